package berxit;

/** A labelled span of a text: {@code text.substring(span.start(), span.end())}. */
public final class Span {
    private final int start;
    private final int end;
    private final String label;
    private final double score;

    Span(int start, int end, String label, double score) {
        this.start = start;
        this.end = end;
        this.label = label;
        this.score = score;
    }

    /** Index of the first character. */
    public int start() {
        return start;
    }

    /** Index after the last character. */
    public int end() {
        return end;
    }

    public String label() {
        return label;
    }

    /** Smallest probability of the tags of its words. */
    public double score() {
        return score;
    }
}
