import type { Encoding } from "./tokenization/tokenizer.js";

/** B rows of token ids, padded on the right to S tokens, row-major. */
export interface TokenBatch {
  rows: number;
  length: number;
  /** (B, S) each. */
  inputIds: Int32Array;
  tokenTypeIds: Int32Array;
  attentionMask: Int32Array;
  /** (B,) tokens per row. */
  lengths: number[];
}

/** A batch of rows of different lengths, padded to the longest. */
export function padded(encodings: Encoding[], padTokenId: number): TokenBatch {
  const lengths = encodings.map((each) => each.inputIds.length);
  const length = Math.max(...lengths);
  const rows = encodings.length;
  const inputIds = new Int32Array(rows * length).fill(padTokenId);
  const tokenTypeIds = new Int32Array(rows * length);
  const attentionMask = new Int32Array(rows * length);
  encodings.forEach((each, row) => {
    inputIds.set(each.inputIds, row * length);
    tokenTypeIds.set(each.tokenTypeIds, row * length);
    attentionMask.fill(1, row * length, row * length + lengths[row]);
  });
  return { rows, length, inputIds, tokenTypeIds, attentionMask, lengths };
}

/** Row numbers of the parts of a batch: rows of similar length, the shortest first, at most `tokens` per part. */
export function parts(lengths: number[], tokens: number): number[][] {
  const order = lengths.map((_, row) => row).sort((a, b) => lengths[a] - lengths[b] || a - b);
  const found: number[][] = [];
  for (const row of order) {
    const part = found.at(-1);
    if (part !== undefined && (part.length + 1) * lengths[row] <= tokens) part.push(row);
    else found.push([row]);
  }
  return found;
}
