import { type Head, type HeadPrediction, headsOf, headsProblems } from "./heads.js";
import { largest } from "./policies.js";
import { type Span, spansOf, type Words } from "./spans.js";

/** A prediction in the terms of the user. */
export interface Described {
  label: string | number;
  scores: Record<string, number>;
  labels: string[] | null;
  spans: Span[] | null;
  heads: Record<string, HeadPrediction> | null;
}

/** A task kind, `model.kind` of the manifest: which decisions a text has, and what its prediction is. */
export interface Kind {
  /** Smallest and largest number of labels of a model. */
  labelCounts: readonly [number, number];
  /** True if a text has several decisions. */
  several: boolean;
  /** True if the decisions are those of the words of a text. */
  words: boolean;
  /** The named heads in the labels of a model; only for models with named heads. */
  headsOf?(labels: string[]): Head[];
  /** Problems of labels and columns in a manifest, besides the number of labels. `heads`: all heads of the model. */
  problems?(labels: string[], heads: readonly Head[], column: string): Iterable<string>;
  /** Number of classes of a decision; 1 for a value. `heads`: all heads of the model. */
  classes(labels: string[], heads: readonly Head[]): number;
  /**
   * Logits of each decision of a row, from the logits of an exit: (C,), or (S, C) for tokens. `heads`: the requested
   * heads; empty for other kinds.
   */
  decisions(logits: Float32Array, labels: string[], words: Words | null, heads: readonly Head[]): Float32Array[];
  /**
   * The prediction: the class with the largest logit of each decision, the first of several. `logits`: of each decision,
   * divided by the temperature. `scores`: their class probabilities, which can be equal for different logits.
   */
  describe(
    logits: Float32Array[], scores: Float32Array[], labels: string[], words: Words | null, heads: readonly Head[],
  ): Described;
}

/** The fields of other kinds. */
const NONE = { labels: null, spans: null, heads: null };

const asIs = (logits: Float32Array): Float32Array[] => [logits];
const scoresOf = (labels: string[], values: ArrayLike<number>): Record<string, number> =>
  Object.fromEntries(labels.map((name, k) => [name, values[k]]));
/** Separates the labels of a set. */
const SEPARATOR = "|";
/** Logit of all classes but the first in the decision of a text without words, whose certainty is the highest. */
const CERTAIN = -30000;

export const KINDS: ReadonlyMap<string, Kind> = new Map(Object.entries<Kind>({
  classification: {
    labelCounts: [2, Infinity],
    several: false,
    words: false,
    classes: (labels) => labels.length,
    decisions: asIs,
    describe: ([logits], [scores], labels) => (
      { ...NONE, label: labels[largest(logits)], scores: scoresOf(labels, scores) }),
  },
  regression: {
    labelCounts: [0, 0],
    several: false,
    words: false,
    classes: () => 1,
    decisions: asIs,
    describe: ([[value]]) => ({ ...NONE, label: value, scores: { value } }),
  },
  multilabel: {
    labelCounts: [1, 62],
    several: true,
    words: false,
    classes: () => 2,
    decisions: (logits) => Array.from(logits, (each) => Float32Array.of(0, each)),
    describe(logits, scores, labels) {
      const found = labels.filter((_, k) => largest(logits[k]) === 1);
      const present = scoresOf(labels, scores.map((each) => each[1]));
      return { ...NONE, label: found.join(SEPARATOR), scores: present, labels: found };
    },
  },
  tokens: {
    labelCounts: [3, Infinity],
    several: true,
    words: true,
    classes: (labels) => labels.length,
    decisions(logits, labels, words) {
      const size = labels.length;
      const found = (words as Words).tokens.map((token) => logits.slice(token * size, (token + 1) * size));
      return found.length > 0 ? found : [Float32Array.from(labels, (_, k) => (k === 0 ? 0 : CERTAIN))];
    },
    describe(logits, scores, labels, words) {
      const numbers = (words as Words).tokens.map((_, place) => largest(logits[place]));
      const tags = numbers.map((number) => labels[number]);
      const spans = spansOf(tags, words as Words, numbers.map((number, place) => scores[place][number]));
      return { ...NONE, label: tags.join(" "), scores: {}, spans };
    },
  },
  heads: {
    labelCounts: [2, Infinity],
    several: true,
    words: false,
    headsOf,
    problems: headsProblems,
    classes: (_, heads) => Math.max(...heads.map(({ classes }) => classes.length)),
    decisions: (logits, _labels, _words, heads) =>
      heads.map(({ start, classes }) => logits.slice(start, start + classes.length)),
    describe(logits, scores, labels, _, heads) {
      const numbers = logits.map(largest);
      return {
        ...NONE,
        label: heads.map(({ start }, place) => labels[start + numbers[place]]).join(SEPARATOR),
        scores: Object.assign({}, ...heads.map(({ start, classes }, place) =>
          scoresOf(labels.slice(start, start + classes.length), scores[place]))),
        heads: Object.fromEntries(heads.map(({ name, classes }, place) =>
          [name, { label: classes[numbers[place]], scores: scoresOf(classes, scores[place]) }])),
      };
    },
  },
}));
