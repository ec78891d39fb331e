import { BerxitError, InputError } from "./errors.js";
import { integer, list, number, numberOrList, object, text, type Read } from "./fields.js";

/** Exit criteria; docs/bundle.md of the repository defines them. All certainties are float32. */
const CRITERIA = ["confidence", "entropy", "lte", "patience", "agreement", "learned", "fixed"] as const;
export type Criterion = (typeof CRITERIA)[number];
/** Largest float32. */
const LARGEST = Math.fround(3.4028234663852886e38);
const CLASSIFICATION_FEATURES = 6;
const REGRESSION_FEATURES = 5;

export interface PolicyFields {
  criterion: Criterion;
  /** n - 1 thresholds, for layers 1 to n - 1: a number, or one per predicted class. */
  thresholds: (number | number[])[];
  /** n divisors of the logits of each layer. */
  temperatures: number[];
  /** Regression: for patience, two values that differ by less agree; for learned, the unit of the values. */
  tolerance: number;
  /** Number of consecutive exits that must pass the threshold. */
  patience?: number;
  /** Layers whose exit is switched off. */
  off?: number[];
  /** For learned: n - 1 rows of weights, the intercept first. */
  weights?: number[][];
}

const criterion: Read<Criterion> = (value, place) => {
  const name = text(value, place) as Criterion;
  if (!CRITERIA.includes(name)) {
    throw new BerxitError(
      `${place}: unknown exit criterion '${name}': this runner knows ${CRITERIA.join(", ")}. Upgrade this package, or`
        + " choose another criterion and export the bundle again",
    );
  }
  return name;
};
export const policyFields: Read<PolicyFields> = object(
  { criterion, thresholds: list(numberOrList), temperatures: list(number), tolerance: number },
  { patience: integer, off: list(integer), weights: list(list(number)) },
);

/** State of one decision of a row. */
interface State {
  /** Exits so far. */
  exits: number;
  /** Predicted class of the last exit; its value for regression. */
  prediction: number;
  /** Number of consecutive exits that agreed with the exit before them. */
  streak: number;
  /** Certainty of the last exit. */
  certainty: number;
  /** Outputs of the last two exits, the latest first: class probabilities, or one value. */
  outputs: number[][];
}

/** State of one row that a policy passes from one exit to the next. */
export interface Memory {
  /** (D,) states of the row's decisions. */
  states: State[];
  /** Certainties of the last exits, at most patience - 1, the latest last. */
  window: number[];
}

const NO_STATE: State = { exits: 0, prediction: 0, streak: 0, certainty: 0, outputs: [] };

/** Exit policy: a criterion with one threshold per layer except the last. */
export class ExitPolicy {
  readonly criterion: Criterion;
  private readonly patience: number;
  private readonly off: ReadonlySet<number>;
  private readonly weights: number[][];

  /** Raises InputError for a number out of range, and for settings that contradict each other. */
  constructor(readonly fields: PolicyFields) {
    const { criterion, thresholds, temperatures, patience = 1, off = [], weights = [] } = fields;
    this.criterion = criterion;
    this.patience = patience;
    this.off = new Set(off);
    this.weights = weights;
    const layers = temperatures.length;
    if (thresholds.length !== layers - 1) {
      throw new InputError(
        `the policy has ${thresholds.length} thresholds and ${layers} temperatures: n layers need n - 1 and n`);
    }
    if (!temperatures.every((each) => each > 0 && Number.isFinite(each))) {
      throw new InputError("a temperature is not above 0, and finite");
    }
    thresholds.flat().forEach((each) => this.checkThreshold(each));
    if (patience < 1 || patience > layers || (patience > 1 && this.counts)) {
      throw new InputError(
        `patience is ${patience}: it must be from 1 to ${layers}, and 1 with the criterion ${criterion}`);
    }
    if (!off.every((layer) => layer >= 1 && layer < layers)) {
      throw new InputError(`exits ${off.join(", ")} cannot be switched off: give layers before the last one`);
    }
    if (weights.length !== (criterion === "learned" ? layers - 1 : 0)) {
      throw new InputError(`'${criterion}' has ${weights.length} rows of weights for ${layers} layers`);
    }
  }

  get layers(): number {
    return this.fields.temperatures.length;
  }

  /** The smallest schema version of a bundle with this policy. */
  get schemaVersion(): number {
    const newer = ["agreement", "learned", "fixed"].includes(this.criterion) || this.fields.thresholds.some(Array.isArray);
    return newer || this.patience > 1 || this.off.size > 0 ? 2 : 1;
  }

  /** True if the certainty is a number of exits, which exits at the threshold, too. */
  private get counts(): boolean {
    return this.criterion === "patience" || this.criterion === "fixed";
  }

  private checkThreshold(value: number): void {
    const name = this.criterion;
    let problem: string;
    if (!Number.isFinite(value) || value < 0) problem = "it must be a finite number of at least 0";
    else if (["confidence", "lte", "learned"].includes(name) && value > 1) problem = `${name} is between 0 and 1`;
    else if (this.counts && value < 1) problem = `${name} is a number of exits, at least 1`;
    else return;
    throw new InputError(`threshold ${value} is out of range: ${problem}`);
  }

  /**
   * Raises InputError if the policy does not work for a model. `outputs`: classes of a decision, 1 for regression.
   * `several`: the model's texts have several decisions.
   */
  check(outputs: number, lte: boolean, several = false): void {
    const regression = outputs === 1;
    if (several && this.criterion === "learned") {
      throw new InputError("'learned' needs one class per text: use confidence, entropy, patience or lte");
    }
    if (several && this.fields.thresholds.some(Array.isArray)) {
      throw new InputError("thresholds per class need one class per text: use one threshold for all labels");
    }
    if (regression && ["confidence", "entropy", "agreement"].includes(this.criterion)) {
      throw new InputError(`'${this.criterion}' needs class probabilities: use lte, patience or learned for regression`);
    }
    if (this.criterion === "lte" && !lte) throw new InputError("'lte' needs a model that was trained with --lte");
    for (const each of this.fields.thresholds) {
      if (Array.isArray(each) && (regression || each.length !== outputs)) {
        throw new InputError(`a threshold has ${each.length} numbers: it needs one, or one per class`);
      }
    }
    const features = regression ? REGRESSION_FEATURES : CLASSIFICATION_FEATURES;
    for (const row of this.weights) {
      if (row.length !== features + 1) {
        throw new InputError(`'learned' has ${row.length} weights at a layer: this model needs ${features + 1}`);
      }
    }
    if (regression && this.criterion === "learned" && !(this.fields.tolerance > 0)) {
      throw new InputError("'learned' needs a tolerance above 0 for regression");
    }
  }

  /** The policy with the same threshold at every layer, for every class. */
  withThreshold(value: number): ExitPolicy {
    return new ExitPolicy({ ...this.fields, thresholds: this.fields.thresholds.map(() => value) });
  }

  /**
   * Certainty of one row at `layer`, that of its least certain decision, and its state for the next exit. `decisions`:
   * logits of each decision, one per class, or one value.
   */
  certainty(layer: number, decisions: Float32Array[], lte: number | null, memory?: Memory): [number, Memory] {
    const before = memory ?? { states: [], window: [] };
    const states = decisions.map((logits, place) =>
      this.after(layer, this.scaled(layer, logits), lte, before.states[place] ?? NO_STATE));
    const recent = [...before.window, this.least(states.map((state) => state.certainty))];
    const window = this.patience > 1 ? recent.slice(1 - this.patience) : [];
    const none = this.criterion === "entropy" ? LARGEST : 0;
    const certainty = recent.length < this.patience ? none : this.least(recent);
    return [certainty, this.off.has(layer) ? before : { states, window }];
  }

  private least(certainties: number[]): number {
    const entropy = this.criterion === "entropy";
    return certainties.reduce((worst, each) => (entropy ? Math.max(worst, each) : Math.min(worst, each)));
  }

  /** State after the exit of `layer`, whose `certainty` is that of the criterion. */
  private after(layer: number, logits: Float32Array, lte: number | null, before: State): State {
    const regression = logits.length === 1;
    const prediction = regression ? logits[0] : largest(logits);
    const agrees = before.exits > 0 && (regression
      ? Math.abs(Math.fround(prediction - before.prediction)) < Math.fround(this.fields.tolerance)
      : prediction === before.prediction);
    const after: State = {
      exits: before.exits + 1, prediction, streak: agrees ? before.streak + 1 : 0, certainty: 0, outputs: [],
    };
    switch (this.criterion) {
      case "confidence":
        after.certainty = confidence(logits);
        break;
      case "entropy":
        after.certainty = entropy(logits);
        break;
      case "lte":
        if (lte === null) throw new BerxitError(`layer ${layer} returned no lte, which the policy needs. Export the bundle again`);
        after.certainty = lte;
        break;
      case "patience":
        after.certainty = after.streak;
        break;
      case "fixed":
        after.certainty = after.exits;
        break;
      case "agreement":
        after.certainty = Math.fround(confidence(logits) + (agrees ? before.certainty : 0));
        break;
      case "learned": {
        const [features, outputs] = regression
          ? valueFeatures(logits[0], this.fields.tolerance, lte, before.outputs)
          : classFeatures(logits, after.streak, lte, before.outputs);
        after.outputs = [outputs, ...before.outputs.slice(0, 1)];
        after.certainty = layer === this.layers ? 1 : logistic(this.weights[layer - 1], features);
      }
    }
    return after;
  }

  /** True if the row exits at `layer`. The threshold is compared as float32, because the certainty is float32. */
  exits(layer: number, certainty: number, decisions: Float32Array[]): boolean {
    if (layer >= this.layers) return true;
    if (this.off.has(layer)) return false;
    const entry = this.fields.thresholds[layer - 1];
    const threshold = Math.fround(Array.isArray(entry) ? entry[largest(decisions[0])] : entry);
    if (this.counts) return certainty >= threshold;
    return this.criterion === "entropy" ? certainty < threshold : certainty > threshold;
  }

  /** The logits of a decision, divided by the temperature of the layer; the value for regression. */
  scaled(layer: number, logits: Float32Array): Float32Array {
    const temperature = Math.fround(this.fields.temperatures[layer - 1]);
    return logits.length === 1 || temperature === 1 ? logits : logits.map((each) => each / temperature);
  }
}

/** Index of the largest value; the first of several. */
export function largest(values: ArrayLike<number>): number {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return best;
}

/** Class probabilities of a decision; the value for regression. */
export function softmax(logits: Float32Array): Float32Array {
  if (logits.length === 1) return logits;
  const powers = exponentials(logits);
  const total = powers.reduce((sum, each) => sum + each, 0);
  return Float32Array.from(powers, (each) => each / total);
}

/** Exponentials of the logits, which are shifted so that exp cannot overflow. */
function exponentials(logits: Float32Array): number[] {
  const top = logits[largest(logits)];
  return Array.from(logits, (each) => Math.exp(each - top));
}

function confidence(logits: Float32Array): number {
  return Math.fround(1 / exponentials(logits).reduce((sum, each) => sum + each, 0));
}

function entropy(logits: Float32Array): number {
  const powers = exponentials(logits);
  const total = powers.reduce((sum, each) => sum + each, 0);
  const terms = powers.map((each) => (each === 0 ? 0 : (each / total) * Math.log(each / total)));
  return Math.fround(-terms.reduce((sum, each) => sum + each, 0));
}

type Features = [features: number[], outputs: number[]];

/** Features of a classifier's exit for `learned`, and its class probabilities. `before`: those of the two exits before. */
function classFeatures(logits: Float32Array, streak: number, lte: number | null, before: number[][]): Features {
  const k = largest(logits);
  const powers = exponentials(logits);
  const rest = powers.reduce((sum, each, i) => (i === k ? sum : sum + each), 0);
  const features = [
    1 / (1 + rest), -Math.log(Math.max(rest, 1e-9)), Math.min(streak, 3), before[0]?.[k] ?? 0, before[1]?.[k] ?? 0,
    lte ?? 0,
  ];
  return [features, powers.map((each) => each / (1 + rest))];
}

/** Features of a regression model's exit for `learned`, and its value. `before`: those of the two exits before. */
function valueFeatures(value: number, tolerance: number, lte: number | null, before: number[][]): Features {
  const differences = [0, 1].map((i) =>
    before[i] === undefined ? 0 : Math.log(Math.abs(value - before[i][0]) / tolerance + 0.01));
  const size = value / tolerance;
  const limited = lte === null ? 0.5 : Math.min(Math.max(lte, 1e-6), 1 - 1e-6);
  return [[...differences, size, size * size, Math.log(limited / (1 - limited))], [value]];
}

function logistic(weights: number[], features: number[]): number {
  const score = features.reduce((sum, feature, i) => sum + weights[i + 1] * feature, weights[0]);
  return Math.fround(1 / (1 + Math.exp(-Math.min(Math.max(score, -30), 30))));
}
