package berxit;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
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
    private final List<String> labels;
    private final List<Span> spans;

    /**
     * @param classes names of the model's classes
     * @param found four entries per input: numbers; scores; names (the label, those of the set, those of the spans); spans
     *     as start and end in bytes, and score
     * @param input number of the input
     * @param text the input in UTF-8
     */
    Prediction(List<String> classes, Object[] found, int input, byte[] text) {
        double[] numbers = (double[]) found[4 * input];
        float[] scores = (float[]) found[4 * input + 1];
        byte[][] names = (byte[][]) found[4 * input + 2];
        double[] places = (double[]) found[4 * input + 3];
        label = names[0] == null ? null : EarlyExitRunner.text(names[0]);
        value = numbers[0];
        exitLayer = (int) numbers[1];
        certainty = numbers[2];
        latencyMs = numbers[3];
        truncated = numbers[4] != 0;
        stoppedBy = StoppedBy.values()[(int) numbers[5]];
        late = numbers[6] < 0 ? null : Boolean.valueOf(numbers[6] != 0);
        Map<String, Float> named = new LinkedHashMap<>();
        for (int i = 0; i < scores.length; ++i) named.put(label == null ? "value" : classes.get(i), scores[i]);
        this.scores = Collections.unmodifiableMap(named);
        int first = names.length - places.length / 3;
        List<String> set = new ArrayList<>();
        for (int i = 1; i < first; ++i) set.add(EarlyExitRunner.text(names[i]));
        labels = Collections.unmodifiableList(set);
        List<Span> ranges = new ArrayList<>();
        Characters characters = new Characters(text);
        for (int i = 0; i < places.length; i += 3) {
            int start = characters.before((int) places[i]), end = characters.before((int) places[i + 1]);
            ranges.add(new Span(start, end, EarlyExitRunner.text(names[first + i / 3]), places[i + 2]));
        }
        spans = Collections.unmodifiableList(ranges);
    }

    /** Counts the UTF-16 code units before byte offsets, which ascend: each byte of the text is decoded once. */
    private static final class Characters {
        private final byte[] text;
        private int bytes;
        private int units;

        Characters(byte[] text) {
            this.text = text;
        }

        int before(int offset) {
            units += new String(text, bytes, offset - bytes, StandardCharsets.UTF_8).length();
            bytes = offset;
            return units;
        }
    }

    /**
     * The class name; for multilabel the labels and for heads HEAD=CLASS of each head, joined by "|"; for tokens the IOB2 tags of
     * the words, separated by blanks; null for regression.
     */
    public String label() {
        return label;
    }

    /** Multilabel: the labels of the text, in the model's order. Heads: HEAD=CLASS of each head. Empty for another kind. */
    public List<String> labels() {
        return labels;
    }

    /** Tokens: the labelled spans of the text. Empty for another kind. */
    public List<Span> spans() {
        return spans;
    }

    /** The value of a regression model; the label's probability for classification; otherwise 0. */
    public double value() {
        return value;
    }

    /** Class or label and probability, in the model's order; for regression "value"; empty for tokens. */
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
