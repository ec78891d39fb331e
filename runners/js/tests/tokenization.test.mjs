// Words of pairs, and the alignment of long runs; the vectors contain neither.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";
import { AlignedText } from "../dist/tokenization/aligned.js";
import { Tokenizer } from "../dist/tokenization/tokenizer.js";

const VECTORS = new URL("../../../tests/runners/vectors/", import.meta.url);

test("encode finds the words of the first text of a pair", async () => {
  const tokenizer = new Tokenizer(JSON.parse(await readFile(new URL("bert.json", VECTORS), "utf8")), 16, "", true);
  const { words } = tokenizer.encode(["turn the lights off", "play jazz"]);
  assert.deepEqual(words, tokenizer.encode("turn the lights off").words);
});

test("changed aligns runs in parts of 32 characters", () => {
  // A step that replaces a run by one character less.
  const shorter = (text) => text.replace(/𝔞{2,}|a{2,}/gu, (run) => "b".repeat(Array.from(run).length - 1));
  for (const character of ["a", "𝔞"]) {
    const found = AlignedText.of(character.repeat(40), true).changed(shorter);
    const { length } = character;
    assert.equal(found.text, "b".repeat(39));
    assert.deepEqual([30, 31].map((at) => found.rangeOf(at, at + 1)), [30, 32].map((at) => [at * length, (at + 1) * length]));
  }
});

test("changed returns one range per unit if a part of a long run is shorter than the run", () => {
  const one = AlignedText.of("a".repeat(40), true).changed((text) => text.replace(/a+/g, "b"));
  assert.deepEqual([one.text, one.rangeOf(0, 9)], ["b", [0, 1]]);
});

test("rangeOf returns [0, 0] for an empty range and without alignment", () => {
  const aligned = AlignedText.of("a𝔞", true);
  assert.deepEqual([aligned.rangeOf(0, 2), aligned.rangeOf(1, 3), aligned.rangeOf(2, 9)], [[0, 3], [1, 3], [1, 3]]);
  assert.deepEqual([aligned.rangeOf(1, 1), AlignedText.of("a", false).rangeOf(0, 1)], [[0, 0], [0, 0]]);
});
