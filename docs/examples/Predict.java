import berxit.EarlyExitRunner;
import berxit.Prediction;
import java.util.Locale;

public final class Predict { // Predict BUNDLE TEXT...
    public static void main(String[] arguments) {
        try (EarlyExitRunner runner = EarlyExitRunner.load(arguments[0])) {
            for (int i = 1; i < arguments.length; ++i) {
                Prediction found = runner.predict(arguments[i]);
                System.out.println(String.format(Locale.ROOT, "%s: %s (%.3f), layer %d, %.2f ms",
                    arguments[i], found.label(), found.value(), found.exitLayer(), found.latencyMs()));
            }
        }
    }
}
