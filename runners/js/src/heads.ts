import { InputError } from "./errors.js";

/** Prediction of one named head. */
export interface HeadPrediction {
  /** The class name. */
  label: string;
  /** Class -> probability, in the model's order. */
  scores: Record<string, number>;
}

/** A named head of a model. Its labels are HEAD=CLASS, one after the other. */
export interface Head {
  name: string;
  classes: string[];
  /** Number of its first logit. */
  start: number;
}

const [MOST_HEADS, MOST_CLASSES] = [6, 511];

/** The heads in the labels of a model, in their order. */
export function headsOf(labels: string[]): Head[] {
  const found: Head[] = [];
  labels.forEach((label, start) => {
    const end = label.indexOf("=");
    const name = label.slice(0, end);
    if (found.at(-1)?.name !== name) found.push({ name, classes: [], start });
    found[found.length - 1].classes.push(label.slice(end + 1));
  });
  return found;
}

/**
 * Problems of the labels and columns of a model with named heads, as messages about the manifest. `column`: the columns of
 * the heads, separated by "|".
 */
export function* headsProblems(labels: string[], heads: readonly Head[], column: string): Generator<string> {
  const unnamed = labels.find((label) => !label.includes("="));
  if (unnamed !== undefined) yield `model.labels contains '${unnamed}': a label of a heads model is HEAD=CLASS`;
  if (new Set(heads.map(({ name }) => name)).size < heads.length) {
    yield "model.labels must list the labels of a head one after the other";
  }
  if (heads.length > MOST_HEADS) yield `model.labels has ${heads.length} heads: a model has at most ${MOST_HEADS}`;
  const wrong = heads.find(({ classes }) => classes.length < 2 || classes.length > MOST_CLASSES);
  if (wrong !== undefined) yield `model.labels: head '${wrong.name}' must have 2 to ${MOST_CLASSES} classes`;
  const columns = column.split("|").length;
  if (columns !== heads.length) yield `model.label_column has ${columns} columns for ${heads.length} heads`;
}

/**
 * The requested heads, in the model's order. `heads`: all heads of the model. Raises InputError for a model without named
 * heads, and for an unknown one. `kind`: for messages.
 */
export function chosenHeads(kind: string, heads: readonly Head[], names: readonly string[]): readonly Head[] {
  if (heads.length === 0) throw new InputError(`a ${kind} model has no named heads: omit the option heads`);
  const known = heads.map(({ name }) => name);
  const unknown = names.find((name) => !known.includes(name));
  if (unknown !== undefined) throw new InputError(`this model has no head '${unknown}': it has ${known.join(", ")}`);
  if (names.length === 0) throw new InputError(`no head is requested: give at least one of ${known.join(", ")}`);
  return heads.filter(({ name }) => names.includes(name));
}
