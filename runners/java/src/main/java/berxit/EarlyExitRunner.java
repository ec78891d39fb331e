package berxit;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Collections;
import java.util.Iterator;
import java.util.List;
import java.util.NoSuchElementException;

/**
 * Runs a bundle layer by layer until the exit policy is satisfied. Thread-safe.
 *
 * <pre>
 * try (EarlyExitRunner runner = EarlyExitRunner.load("bundle")) {
 *     System.out.println(runner.predict("turn the kitchen lights off").label());
 * }
 * </pre>
 */
public final class EarlyExitRunner implements AutoCloseable {
    static {
        System.loadLibrary("berxit_java");
    }

    /** Options of {@link #load(String, Options)}. Each setter returns the options. */
    public static final class Options {
        String onnxruntime;
        int threads;
        boolean pool = true;
        boolean spinning = true;
        boolean verify = true;
        double missProbability = 0.01;

        /** Path of ONNX Runtime's library. Default: the environment variable BERXIT_ONNXRUNTIME, then the default names. */
        public Options onnxruntime(String path) {
            onnxruntime = path;
            return this;
        }

        /** Number of threads. Default: the bundle's, else the number of cores, at most 4. */
        public Options threads(int count) {
            threads = count;
            return this;
        }

        /** True (default): one thread pool for all runners of the process. False: a pool per segment. */
        public Options pool(boolean shared) {
            pool = shared;
            return this;
        }

        /** True (default): the pool's threads wait busily for the next layer. False saves energy and costs latency. */
        public Options spinning(boolean busily) {
            spinning = busily;
            return this;
        }

        /** True (default): check the sha256 of every file. */
        public Options verify(boolean checksums) {
            verify = checksums;
            return this;
        }

        /** Largest share of calls that may miss their deadline although their first exit was in time. */
        public Options missProbability(double share) {
            missProbability = share;
            return this;
        }
    }

    private final long handle;
    private final List<String> labels;
    private int users;
    private boolean closed;

    private EarlyExitRunner(long handle) {
        this.handle = handle;
        List<String> found = new ArrayList<>();
        for (byte[] label : labels(handle)) found.add(text(label));
        labels = Collections.unmodifiableList(found);
    }

    /** Loads a bundle with the default options. */
    public static EarlyExitRunner load(String bundle) {
        return load(bundle, new Options());
    }

    /**
     * Loads a bundle: the path of its folder.
     *
     * @throws IllegalArgumentException for an option out of range
     * @throws BerxitException for a damaged bundle, or one that this device cannot run
     */
    public static EarlyExitRunner load(String bundle, Options options) {
        return new EarlyExitRunner(open(bytes(bundle, "bundle"), options.onnxruntime == null ? null : bytes(options.onnxruntime, "library"),
            options.threads, options.pool, options.spinning, options.verify, options.missProbability));
    }

    /** Class names, labels or tags in the model's order; empty for regression. */
    public List<String> labels() {
        return labels;
    }

    /** Predicts one text with the bundle's thresholds and without a deadline. */
    public Prediction predict(String text) {
        return predict(Collections.singletonList(new String[] {text}), null, null).get(0);
    }

    /** Predicts a pair of texts. */
    public Prediction predict(String text, String pair) {
        return predict(Collections.singletonList(new String[] {text, pair}), null, null).get(0);
    }

    /**
     * Predicts any number of inputs, and returns the predictions in their order.
     *
     * @param inputs arrays of one text, or of the two texts of a pair
     * @param threshold replaces the calibrated thresholds at every layer; null: the bundle's
     * @param deadlineMs milliseconds from the call for all inputs; null: none
     * @throws IllegalArgumentException for an empty text, a threshold or deadline out of range
     * @throws BerxitException for a failure of ONNX Runtime
     * @throws IllegalStateException for a closed runner
     */
    public List<Prediction> predict(List<String[]> inputs, Double threshold, Double deadlineMs) {
        byte[][] texts = new byte[2 * inputs.size()][];
        for (int i = 0; i < inputs.size(); ++i) {
            String[] input = inputs.get(i);
            if (input.length < 1 || input.length > 2) throw new IllegalArgumentException("an input must have 1 or 2 texts");
            for (int part = 0; part < input.length; ++part) texts[2 * i + part] = bytes(input[part], "a text");
        }
        enter();
        try {
            List<Prediction> found = new ArrayList<>();
            double nan = Double.NaN;
            Object[] results = predict(handle, texts, threshold == null ? nan : threshold, deadlineMs == null ? nan : deadlineMs);
            for (int i = 0; i < inputs.size(); ++i) found.add(new Prediction(labels, results, i, texts[2 * i]));
            return found;
        } finally {
            leave();
        }
    }

    /**
     * The predictions of all exits of a text, the shallowest first. A layer runs when the iterator reaches it. Close the stream
     * after use.
     */
    public PredictionStream stream(String text, String pair) {
        enter();
        try {
            byte[] first = bytes(text, "a text");
            return new PredictionStream(openStream(handle, first, pair == null ? null : bytes(pair, "a text")), first);
        } finally {
            leave();
        }
    }

    /**
     * Compares every exit with the checkpoint on the golden inputs, and returns the largest difference.
     *
     * @throws BerxitException if it is larger than the bundle allows
     */
    public double check() {
        enter();
        try {
            return check(handle);
        } finally {
            leave();
        }
    }

    /** Frees the runner after the calls that use it. A second call does nothing. */
    @Override
    public synchronized void close() {
        if (closed) return;
        closed = true;
        if (users == 0) free(handle);
    }

    private synchronized void enter() {
        if (closed) throw new IllegalStateException("this runner is closed: load the bundle again");
        ++users;
    }

    private synchronized void leave() {
        if (--users == 0 && closed) free(handle);
    }

    /** Iterator over the predictions of all exits. Belongs to one thread at a time. */
    public final class PredictionStream implements Iterator<Prediction>, AutoCloseable {
        private final byte[] text;
        private long stream;
        private Prediction next;

        private PredictionStream(long stream, byte[] text) {
            this.stream = stream;
            this.text = text;
        }

        @Override
        public boolean hasNext() {
            if (next == null && stream != 0) {
                Object[] found = nextOf(stream);
                if (found == null) close();
                else next = new Prediction(labels, found, 0, text);
            }
            return next != null;
        }

        @Override
        public Prediction next() {
            if (!hasNext()) throw new NoSuchElementException("the last exit was reached");
            Prediction found = next;
            next = null;
            return found;
        }

        @Override
        public void close() {
            if (stream != 0) freeStream(stream);
            stream = 0;
        }
    }

    private static byte[] bytes(String text, String what) {
        if (text == null) throw new IllegalArgumentException(what + " is null");
        return text.getBytes(StandardCharsets.UTF_8);
    }

    static String text(byte[] utf8) {
        return new String(utf8, StandardCharsets.UTF_8);
    }

    private static native long open(byte[] bundle, byte[] onnxruntime, int threads, boolean pool, boolean spinning, boolean verify,
        double missProbability);

    private static native void free(long runner);

    private static native byte[][] labels(long runner);

    /** Four entries per input, as the constructor of Prediction reads them. */
    private static native Object[] predict(long runner, byte[][] texts, double threshold, double deadlineMs);

    private static native long openStream(long runner, byte[] text, byte[] pair);

    private static native Object[] nextOf(long stream);

    private static native void freeStream(long stream);

    private static native double check(long runner);
}
