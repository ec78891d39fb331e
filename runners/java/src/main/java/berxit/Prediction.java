package berxit;

import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** The model's prediction for one input. */
public final class Prediction {
    /** Why an input exited. NOT_YET: in a stream, before the last layer. */
    public enum StoppedBy { NOT_YET, CERTAINTY, DEADLINE, LAST_LAYER }

    private final String label;
    private final double value;
    private final Map<String, Float> scores;
    private final int exitLayer;
    private final double certainty;
    private final double latencyMs;
    private final boolean truncated;
    private final StoppedBy stoppedBy;
    private final Boolean late;

    Prediction(List<String> labels, double[] numbers, float[] scores) {
        int index = (int) numbers[0];
        label = index < 0 ? null : labels.get(index);
        value = numbers[1];
        exitLayer = (int) numbers[2];
        certainty = numbers[3];
        latencyMs = numbers[4];
        truncated = numbers[5] != 0;
        stoppedBy = StoppedBy.values()[(int) numbers[6]];
        late = numbers[7] < 0 ? null : Boolean.valueOf(numbers[7] != 0);
        Map<String, Float> named = new LinkedHashMap<>();
        for (int i = 0; i < scores.length; ++i) named.put(index < 0 ? "value" : labels.get(i), scores[i]);
        this.scores = Collections.unmodifiableMap(named);
    }

    /** The class name; null for regression. */
    public String label() {
        return label;
    }

    /** The value of a regression model; the label's probability for classification. */
    public double value() {
        return value;
    }

    /** Class name and probability, in the model's order; for regression "value". */
    public Map<String, Float> scores() {
        return scores;
    }

    /** Number of layers that were executed, from 1. */
    public int exitLayer() {
        return exitLayer;
    }

    /** The exit criterion's certainty at that layer. */
    public double certainty() {
        return certainty;
    }

    /** Milliseconds from the call until this input exited, tokenization included. */
    public double latencyMs() {
        return latencyMs;
    }

    /** True if the text had more tokens than the model accepts, or than could be read before the deadline. */
    public boolean truncated() {
        return truncated;
    }

    /** Why the input exited. */
    public StoppedBy stoppedBy() {
        return stoppedBy;
    }

    /** True if the latency exceeded the deadline; null without a deadline. */
    public Boolean late() {
        return late;
    }
}
