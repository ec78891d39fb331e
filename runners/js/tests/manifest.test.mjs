// Heads and shared files of a manifest, and names that every JavaScript object inherits.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";
import { BerxitError } from "../dist/index.js";
import { parseManifest } from "../dist/manifest.js";

const VECTORS = new URL("../../../tests/runners/vectors/onnx/", import.meta.url);

test("parseManifest rejects names that every object inherits", async () => {
  const manifest = await readFile(new URL("heads/manifest.json", VECTORS), "utf8");
  const changes = [
    [(found) => (found.model.kind = "constructor"), /model\.kind is 'constructor'/],
    [(found) => (found.constructor = {}), /unknown key 'constructor'/],
    [(found) => (found.segments[1].inputs[0].role = "constructor"), /unknown role 'constructor'/],
  ];
  for (const [change, message] of changes) {
    const found = JSON.parse(manifest);
    change(found);
    assert.throws(() => parseManifest(found, "manifest.json"), (error) => {
      assert.match(error.message, message);
      return error instanceof BerxitError;
    });
  }
});

test("parseManifest rejects a shared file with different tensors", async () => {
  const found = JSON.parse(await readFile(new URL("confidence/manifest.json", VECTORS), "utf8"));
  const [, , second, third] = found.segments;
  third.file = second.file;
  parseManifest(found, "manifest.json");
  third.inputs[1].name = third.inputs[0].name;
  third.inputs[0].name = "other";
  assert.throws(() => parseManifest(found, "manifest.json"), /layer 3: 'hidden_in' of .*layer_02.onnx differs from that of .* layer 2/);
});

test("parseManifest returns the heads", async () => {
  const { heads, manifest } = parseManifest(JSON.parse(await readFile(new URL("heads/manifest.json", VECTORS), "utf8")), "");
  assert.deepEqual(heads.flatMap(({ name, classes }) => classes.map((each) => `${name}=${each}`)), manifest.model.labels);
});
