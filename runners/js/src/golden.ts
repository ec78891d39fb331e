import { padded } from "./batch.js";
import { BerxitError } from "./errors.js";
import { integer, list, number, numberOrList, object, orNull, parseJson, text } from "./fields.js";
import type { Bundle } from "./manifest.js";
import type { Segments } from "./segments.js";
import type { Text, Tokenizer } from "./tokenization/tokenizer.js";

const tokenized = object({ texts: list(text), input_ids: list(integer), token_type_ids: list(integer) });
const golden = object(
  {
    texts: list(list(text)), input_ids: list(list(integer)), token_type_ids: list(list(integer)),
    logits: list(list(list(numberOrList))), lte: orNull(list(list(number))),
  },
  { tokenization: list(tokenized) },
);

/**
 * Runs the golden inputs of a bundle, and returns the largest difference from the checkpoint at each exit. Raises
 * BerxitError if token ids differ, or a difference is larger than the bundle allows.
 */
export async function verify(bundle: Bundle, tokenizer: Tokenizer, segments: Segments): Promise<number[]> {
  const { manifest } = bundle;
  const place = `${bundle.files.place}: ${manifest.golden.file}`;
  const expected = golden(parseJson(await bundle.read(manifest.golden), place), place);
  const samples = expected.texts.map((texts, row) => (
    { texts, input_ids: expected.input_ids[row], token_type_ids: expected.token_type_ids[row] }));
  for (const sample of [...samples, ...(expected.tokenization ?? [])]) {
    const pair: Text = sample.texts.length > 1 ? [sample.texts[0], sample.texts[1]] : sample.texts[0];
    const { inputIds, tokenTypeIds } = tokenizer.encode(pair);
    if (`${inputIds}` !== `${sample.input_ids}` || `${tokenTypeIds}` !== `${sample.token_type_ids}`) {
      throw new BerxitError(
        `${place}: the token ids of '${sample.texts[0].slice(0, 60)}' differ from those at export: this runner cannot use this tokenizer. Use another runner`);
    }
  }
  const scale = manifest.parity.scale ?? 1;
  const worst = segments.exits.map(() => 0);
  for (const [row, sample] of samples.entries()) {
    const encoding = { inputIds: sample.input_ids, tokenTypeIds: sample.token_type_ids, truncated: false, words: null };
    const state = await segments.embed(padded([encoding], manifest.model.pad_token_id));
    for (const [exit, layer] of segments.exits.entries()) {
      const { logits, lte } = await segments.layer(layer, state);
      const stored = expected.logits[row][layer - 1].flat();
      const differences = Array.from(logits[0], (each, k) => Math.abs(each - stored[k]) / scale);
      if (lte !== null && expected.lte !== null) differences.push(Math.abs(lte[0] - expected.lte[row][layer - 1]));
      for (const each of differences) worst[exit] = each <= worst[exit] ? worst[exit] : each; // keeps NaN
    }
    segments.dispose(state);
  }
  const off = worst.findIndex((each) => !(each <= manifest.parity.atol));
  if (off >= 0) {
    throw new BerxitError(
      `${bundle.files.place}: here layer ${segments.exits[off]} is off the checkpoint by ${worst[off]}, at most ${manifest.parity.atol} is allowed. Use another backend, or export with --precision fp32`);
  }
  return worst;
}
