import { InputError } from "./errors.js";
import type { ExitPolicy } from "./policies.js";

/** Decides which rows exit after a layer: a policy, one with a deadline, or full depth. */
export interface ExitRule {
  /** True for each row that exits, from its certainty and the logits of its decisions. */
  exits(layer: number, certainties: number[], decisions: Float32Array[][]): boolean[];
}

/** The rule of a policy. */
export function ruleOf(policy: ExitPolicy): ExitRule {
  return {
    exits: (layer, certainties, decisions) => certainties.map((each, row) => policy.exits(layer, each, decisions[row])),
  };
}

/** Default largest share of calls that miss their deadline although their first exit was in time. */
export const MISS_PROBABILITY = 0.01;
const FIRST_MARGIN = 2;
const LARGEST_MARGIN = 16;
/** A missed deadline raises the margin by a factor of at most e^RATE. */
const RATE = 0.25;
/** Seconds reserved for the work after the last layer. */
export const RESERVE = 1e-4;

/**
 * Estimates the time of the next segment, so that the share of missed deadlines stays below `missProbability`: the
 * slowest layer so far of the call, times a margin that missed deadlines raise (adaptive conformal inference). All calls
 * of a runner share one estimator.
 */
export class StepEstimator {
  private logMargin = Math.log(FIRST_MARGIN);

  constructor(readonly missProbability = MISS_PROBABILITY) {
    if (!(missProbability > 0 && missProbability < 1)) {
      throw new InputError(`missProbability is ${missProbability}: it must be above 0 and below 1`);
    }
  }

  /** Estimated time per layer, divided by that of the slowest layer so far in the call. */
  get margin(): number {
    return Math.exp(this.logMargin);
  }

  /** Updates the margin after a call. */
  observe(missed: boolean): void {
    const changed = this.logMargin + RATE * ((missed ? 1 : 0) - this.missProbability / 2);
    this.logMargin = Math.min(Math.max(changed, 0), Math.log(LARGEST_MARGIN));
  }
}

/** End, in seconds, of a call that started at `start` seconds. Raises InputError unless `milliseconds` is above 0. */
export function endOf(milliseconds: number, start: number): number {
  if (!(milliseconds > 0)) throw new InputError(`deadlineMs is ${milliseconds}: the deadline must be above 0`);
  return start + milliseconds / 1e3;
}

/** A rule that also stops a row if its next exit is expected after `end`. The first exit is always computed. */
export class Deadline implements ExitRule {
  private readonly rule: ExitRule;
  private readonly margin: number;
  private slowest = 0;
  private waits: boolean;
  private last: number;
  /** True after a row missed its deadline although a larger margin would have prevented that. */
  private missed: boolean | null = null;

  /** `opening`: seconds until the segment of a layer is loaded; 0 if it is. `end` and `clock` are in seconds. */
  constructor(
    policy: ExitPolicy,
    private readonly layers: readonly number[],
    private readonly end: number,
    private readonly estimator: StepEstimator,
    private readonly opening: (layer: number) => number,
    private readonly clock: () => number,
  ) {
    this.rule = ruleOf(policy);
    this.margin = estimator.margin;
    this.waits = opening(layers[0]) > 0;
    this.last = clock();
  }

  exits(layer: number, certainties: number[], decisions: Float32Array[][]): boolean[] {
    const place = this.layers.indexOf(layer);
    const now = this.clock();
    const perLayer = (now - this.last) / this.gap(place);
    // The time of a segment that waited for its file does not predict other segments.
    if (!(this.slowest && this.waits)) this.slowest = Math.max(this.slowest, perLayer);
    this.last = now;
    let found = this.rule.exits(layer, certainties, decisions);
    // If the first exit or the opening of a file was late, no margin could have prevented the miss.
    const preventable = place > 0 && !this.waits;
    if (place + 1 === this.layers.length) {
      found = found.map(() => true);
    } else if (!found.every(Boolean)) {
      const opening = this.opening(this.layers[place + 1]);
      const late = now + opening + this.margin * this.slowest * this.gap(place + 1) > this.end;
      found = found.map((exits) => exits || late);
      this.waits = opening > 0;
    }
    this.record(found, now > this.end, preventable);
    return found;
  }

  private gap(place: number): number {
    return this.layers[place] - (place > 0 ? this.layers[place - 1] : 0);
  }

  /** Records the rows that exit; after the last one, updates the estimator, once. */
  private record(exiting: boolean[], missed: boolean, preventable: boolean): void {
    if (exiting.some(Boolean) && (!missed || preventable)) this.missed = this.missed === true || missed;
    if (exiting.every(Boolean) && this.missed !== null) this.estimator.observe(this.missed);
  }
}
