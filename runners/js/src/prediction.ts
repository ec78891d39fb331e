import type { HeadPrediction } from "./heads.js";
import type { Span } from "./spans.js";

/**
 * Reason for an exit: the certainty passed the threshold, the next exit was not expected before the deadline, or no
 * deeper layer follows.
 */
export type StoppedBy = "certainty" | "deadline" | "last_layer";

/** The model's prediction for one text, with its latency and the reason why it exited. */
export interface Prediction {
  /**
   * The class name; for regression the value; for multilabel the labels, joined by "|"; for tokens the IOB2 tags of the
   * words, separated by blanks; for heads HEAD=CLASS of each head, joined by "|".
   */
  label: string | number;
  /** Class or label -> probability, in the model's order; for regression `{ value }`; empty for tokens. */
  scores: Record<string, number>;
  /** Multilabel: the labels of the text, in the model's order. null for another kind. */
  labels: string[] | null;
  /** Tokens: the labelled spans of the text. null for another kind. */
  spans: Span[] | null;
  /** Heads: name of each requested head -> its class and probabilities. null for another kind. */
  heads: Record<string, HeadPrediction> | null;
  /** Number of layers that were run, from 1. */
  exitLayer: number;
  /** The exit criterion's certainty at that layer. */
  certainty: number;
  /** Milliseconds from the call to this prediction, tokenization included; in a batch until this row exited. */
  latencyMs: number;
  /** True if the text had more tokens than the model accepts, or than could be read before the deadline. */
  truncated: boolean;
  /** null in `stream` before the last layer. */
  stoppedBy: StoppedBy | null;
  /** True if `latencyMs` exceeded the deadline; null without a deadline. */
  late: boolean | null;
  /** Identity of the bundle: the first 12 hexadecimal digits of the sha256 of its manifest.json. */
  model: string;
}
