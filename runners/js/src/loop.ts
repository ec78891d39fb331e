import type { TokenBatch } from "./batch.js";
import type { ExitRule } from "./deadline.js";
import type { ExitPolicy, Memory } from "./policies.js";
import type { Segments } from "./segments.js";

/** Results of one layer for the rows that reached it. */
export interface LayerResult {
  layer: number;
  /** Row numbers in the batch. */
  rows: number[];
  /** (B, D) logits of each decision of a row. */
  decisions: Float32Array[][];
  certainties: number[];
  /** True for each row that exits here. */
  exits: boolean[];
}

/** The decisions of a row, from the logits of an exit and the row's number in the batch. */
export type DecisionsOf = (logits: Float32Array, row: number) => Float32Array[];

/** Runs from exit to exit and yields the results of each. A row exits as soon as the rule is satisfied. */
export async function* exitLoop(
  segments: Segments, batch: TokenBatch, policy: ExitPolicy, rule: ExitRule, decisionsOf: DecisionsOf,
): AsyncGenerator<LayerResult> {
  let rows = batch.lengths.map((_, row) => row);
  let memory: (Memory | undefined)[] = rows.map(() => undefined);
  let state = await segments.embed(batch);
  try {
    for (const layer of segments.exits) {
      const { logits, lte } = await segments.layer(layer, state);
      const decisions = logits.map((each, row) => decisionsOf(each, rows[row]));
      const found = decisions.map((each, row) => policy.certainty(layer, each, lte?.[row] ?? null, memory[row]));
      const certainties = found.map(([certainty]) => certainty);
      const exits = rule.exits(layer, certainties, decisions);
      yield { layer, rows, decisions, certainties, exits };
      const remaining = rows.flatMap((_, row) => (exits[row] ? [] : [row]));
      if (remaining.length === 0) return;
      memory = remaining.map((row) => found[row][1]);
      if (remaining.length < rows.length) {
        state = segments.keep(state, remaining);
        rows = remaining.map((row) => rows[row]);
      }
    }
  } finally {
    segments.dispose(state);
  }
}
