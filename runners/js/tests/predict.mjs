// Predictions for many texts, for comparison with another runner.
//
//   node predict.mjs BUNDLE TEXTS.json [node|wasm]
//
// TEXTS.json: a list of texts and of pairs. Prints one line of JSON per text: label, exit layer, certainty at every exit.
import { readFile } from "node:fs/promises";
import { EarlyExitRunner } from "../dist/index.js";

const [bundle, file, backend = "node"] = process.argv.slice(2);
const texts = JSON.parse(await readFile(file, "utf8"));
const options = backend === "node" ? { threads: 1 } : { backend, ort: await import("onnxruntime-web"), table: "rows" };
const runner = await EarlyExitRunner.load(bundle, options);
const differences = await runner.verify();
const batch = await runner.predictBatch(texts);
const lines = [];
for (const [row, text] of texts.entries()) {
  const { label, exitLayer } = await runner.predict(text);
  const certainties = [];
  for await (const { certainty } of runner.stream(text)) certainties.push(certainty);
  lines.push(JSON.stringify({ label, exit_layer: exitLayer, batch: [batch[row].label, batch[row].exitLayer], certainties }));
}
console.log(JSON.stringify({ differences }));
console.log(lines.join("\n"));
await runner.close();
