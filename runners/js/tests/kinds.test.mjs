// Predictions of decisions whose float32 probabilities are equal.
import assert from "node:assert/strict";
import { test } from "node:test";
import { headsOf } from "../dist/heads.js";
import { KINDS } from "../dist/kinds.js";
import { softmax } from "../dist/policies.js";

const Z = 3e-8;
const WORD = { tokens: [1], starts: [0], ends: [4] };
const describe = (name, labels, logits, words = null) => {
  const kind = KINDS.get(name);
  const heads = kind.headsOf?.(labels) ?? [];
  const decisions = kind.decisions(Float32Array.from(logits), labels, words, heads);
  return kind.describe(decisions, decisions.map(softmax), labels, words, heads);
};

test("kinds decide on the logits if the probabilities are equal", () => {
  assert.equal(...softmax(Float32Array.of(0, Z)));
  assert.deepEqual(describe("multilabel", ["a", "b", "c"], [Z, -Z, 0]).labels, ["a"]);
  assert.equal(describe("classification", ["a", "b"], [0, Z]).label, "b");
  assert.equal(describe("heads", ["x=a", "x=b", "y=a", "y=b"], [0, Z, 0, -Z]).label, "x=b|y=a");
  assert.equal(describe("tokens", ["O", "B-A", "I-A"], [9, 0, 0, 0, Z, 0], WORD).label, "B-A");
});

test("kinds decide for the first of equal logits", () => {
  assert.equal(describe("classification", ["a", "b"], [1, 1]).label, "a");
  assert.deepEqual(describe("multilabel", ["a"], [0]).labels, []);
});

test("headsOf finds the first logit and the classes of each head", () => {
  assert.deepEqual(headsOf(["x=a", "x=b", "y=a=b", "y=c"]), [
    { name: "x", classes: ["a", "b"], start: 0 }, { name: "y", classes: ["a=b", "c"], start: 2 }]);
});
