// Test vectors of all runners; tests/runners/README.md of the repository describes them.
import assert from "node:assert/strict";
import { cp, mkdtemp, readFile, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { Deadline, endOf, StepEstimator } from "../dist/deadline.js";
import * as wasm from "onnxruntime-web";
import { EarlyExitRunner, BerxitError } from "../dist/index.js";
import { ExitPolicy } from "../dist/policies.js";
import { Tokenizer } from "../dist/tokenization/tokenizer.js";

const VECTORS = fileURLToPath(new URL("../../../tests/runners/vectors/", import.meta.url));
const read = async (name) => JSON.parse(await readFile(join(VECTORS, name), "utf8"));
const bundle = (name) => join(VECTORS, "onnx", name);
const asText = (texts) => (texts.length > 1 ? texts : texts[0]);

function alike(found, expected, place) {
  assert.ok(Math.abs(found - expected) <= 1e-5 * Math.max(1, Math.abs(expected)), `${place}: ${found}, expected ${expected}`);
}

test("tokenizers return the token ids of the vectors", async () => {
  const tokenizers = {};
  for (const { tokenizer, max_length: maxLength, texts, ...expected } of await read("tokenization.json")) {
    tokenizers[tokenizer] ??= new Tokenizer(await read(`${tokenizer}.json`), maxLength);
    const found = tokenizers[tokenizer].encode(asText(texts));
    assert.deepEqual(
      { input_ids: found.inputIds, token_type_ids: found.tokenTypeIds, truncated: found.truncated }, expected,
      `${tokenizer}: ${texts}`);
  }
});

/** Unicode scalar values before an index. */
const characters = (text, index) => Array.from(text.slice(0, index)).length;
const blanks = (text) => /^[\p{White_Space}\x1C-\x1F]*/u.exec(text)[0].length;

test("tokenizers find the words of the vectors", async () => {
  const cases = await read("words.json");
  assert.ok(cases.length > 100);
  const tokenizers = {};
  for (const { tokenizer, max_length: maxLength, texts, ...expected } of cases) {
    tokenizers[tokenizer] ??= new Tokenizer(await read(`${tokenizer}.json`), maxLength, "", true);
    const { words } = tokenizers[tokenizer].encode(texts[0]);
    const inText = (index) => characters(texts[0], index) - blanks(texts[0]);
    const found = { ...words, starts: words.starts.map(inText), ends: words.ends.map(inText) };
    assert.deepEqual(found, expected, `${tokenizer}: ${texts}`);
  }
});

test("policies return the certainties and exits of the vectors", async () => {
  const files = ["policies.json", "newer_policies.json", "decisions.json"];
  const cases = (await Promise.all(files.map(read))).flat();
  assert.ok(cases.length > 250);
  for (const [place, { logits, lte, certainty, exit_layer: exitLayer, ...fields }] of cases.entries()) {
    const policy = new ExitPolicy(fields);
    const several = Array.isArray(logits[0][0]);
    policy.check((several ? logits[0][0] : logits[0]).length, lte !== null, several);
    let memory, exit;
    logits.forEach((row, i) => {
      const values = (several ? row : [row]).map((each) => Float32Array.from(each));
      let found;
      [found, memory] = policy.certainty(i + 1, values, lte && Math.fround(lte[i]), memory);
      alike(found, certainty[i], `case ${place}, layer ${i + 1}`);
      if (exit === undefined && policy.exits(i + 1, found, values)) exit = i + 1;
    });
    assert.equal(exit, exitLayer, `case ${place}`);
  }
});

test("deadlines stop as in the vectors", async () => {
  for (const { exits, thresholds, miss_probability: p, calls, margin } of await read("deadlines.json")) {
    const temperatures = new Array(thresholds.length + 1).fill(1);
    const policy = new ExitPolicy({ criterion: "confidence", thresholds, temperatures, tolerance: 0.5 });
    const estimator = new StepEstimator(p);
    for (const { milliseconds, opening, times, certainty, stops } of calls) {
      const clock = times.values();
      const deadline = new Deadline(
        policy, exits, endOf(milliseconds, times[0]), estimator, (layer) => opening[exits.indexOf(layer)],
        () => clock.next().value);
      const found = stops.map((_, i) => deadline.exits(exits[i], [certainty[i]], [[new Float32Array(2)]])[0]);
      assert.deepEqual(found, stops, `${milliseconds} ms, exits ${exits}`);
    }
    assert.ok(Math.abs(estimator.margin - margin) < 1e-9);
  }
});

function assertAnswer(found, expected, place) {
  const { latencyMs, late, ...rest } = found;
  assert.ok(latencyMs > 0);
  assert.equal(late, null);
  const { label, scores, certainty, labels = null, spans = null, heads = null, ...exact } = expected;
  assert.deepEqual(
    { exit_layer: rest.exitLayer, truncated: rest.truncated, stopped_by: rest.stoppedBy, model: rest.model }, exact, place);
  if (typeof label === "number") alike(rest.label, label, place);
  else assert.equal(rest.label, label, place);
  assert.deepEqual(Object.keys(rest.scores), Object.keys(scores));
  for (const [name, score] of Object.entries(scores)) alike(rest.scores[name], score, place);
  alike(rest.certainty, certainty, place);
  assert.deepEqual(rest.labels, labels, place);
  assert.deepEqual(rest.spans?.map(({ start, end, label }) => [start, end, label]), spans?.map((each) => each.slice(0, 3)), place);
  assert.deepEqual(rest.heads && Object.entries(rest.heads).map(([name, head]) => [name, head.label, Object.keys(head.scores)]),
    heads && Object.entries(heads).map(([name, [found, of]]) => [name, found, Object.keys(of)]), place);
  spans?.forEach((each, i) => alike(rest.spans[i].score, each[3], place));
}

// With VECTORS=all, every bundle runs with both; sessions take long to create.
const all = process.env.VECTORS === "all" ? await readdir(join(VECTORS, "onnx")) : null;
const some = { node: ["pairs", "agreement", "fewer_exits", "regression_patience", "multilabel", "heads"], wasm: ["learned", "tokens"] };
for (const [backend, few] of Object.entries(some)) {
  const models = all ?? few;
  test(`predictions, batches and streams equal those of the vectors (${backend})`, async () => {
    for (const name of models) {
      const { texts, batches, streams } = JSON.parse(await readFile(join(bundle(name), "answers.json"), "utf8"));
      const runner = await EarlyExitRunner.load(bundle(name),
        backend === "node" ? {} : { backend, ort: wasm, table: "rows" });
      assert.equal(Math.max(...(await runner.verify())), 0);
      for (const { threshold, heads, answers } of batches) {
        const options = { ...(threshold === null ? {} : { threshold }), heads };
        const together = await runner.predictBatch(texts.map(asText), options);
        for (const [row, answer] of answers.entries()) {
          assertAnswer(together[row], answer, `${name}, batch, row ${row}`);
          assertAnswer(await runner.predict(asText(texts[row]), options), answer, `${name}, row ${row}`);
        }
      }
      for (const [row, expected] of streams.entries()) {
        const found = [];
        for await (const prediction of runner.stream(asText(texts[row]))) found.push(prediction);
        assert.equal(found.length, expected.length);
        found.forEach((prediction, i) => assertAnswer(prediction, expected[i], `${name}, stream of row ${row}`));
      }
      await runner.close();
    }
  });
}

test("bundles and calls of errors.json are rejected in one line", async (context) => {
  const folder = await mkdtemp(join(tmpdir(), "berxit-"));
  context.after(() => rm(folder, { recursive: true }));
  const copied = new Set();
  for (const [number, each] of (await read("errors.json")).entries()) {
    let message = "";
    try {
      if (each.at !== undefined) {
        const changed = join(folder, each.model);
        if (!copied.has(each.model)) await cp(bundle(each.model), changed, { recursive: true, dereference: true });
        copied.add(each.model);
        const manifest = JSON.parse(await readFile(join(bundle(each.model), "manifest.json"), "utf8"));
        const last = each.at.pop();
        const entry = each.at.reduce((found, key) => found[key], manifest);
        if (each.value === null) delete entry[last];
        else entry[last] = each.value;
        await writeFile(join(changed, "manifest.json"), JSON.stringify(manifest));
        await EarlyExitRunner.load(changed);
      } else {
        const runner = await EarlyExitRunner.load(bundle(each.model), { lazy: true });
        const options = {};
        if (each.threshold !== null) options.threshold = each.threshold;
        if (each.deadline_ms !== null) options.deadlineMs = each.deadline_ms;
        await runner.predictBatch(each.texts.map(asText), options);
      }
    } catch (error) {
      assert.ok(error instanceof BerxitError, `${error.stack}`);
      message = error.message;
    }
    assert.notEqual(message, "", `case ${number} is accepted: ${JSON.stringify(each)}`);
    assert.ok(!message.includes("\n"));
    for (const name of each.names) assert.ok(message.includes(name), `'${message}' does not contain '${name}'`);
  }
});
