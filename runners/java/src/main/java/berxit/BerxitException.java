package berxit;

/** A failure of the bundle, of ONNX Runtime or of the device. The message is one line. */
public final class BerxitException extends RuntimeException {
    private static final long serialVersionUID = 1L;

    public BerxitException(String message) {
        super(message);
    }
}
