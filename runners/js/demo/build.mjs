// Copies everything that the demo page needs into one folder of static files, which works offline.
//
//   node demo/build.mjs BUNDLE [SITE]        SITE: by default demo/site
import { cp, mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const here = (name) => fileURLToPath(new URL(name, import.meta.url));
const [bundle, site = here("site")] = process.argv.slice(2);
if (bundle === undefined) throw new Error("give the folder of a bundle: node demo/build.mjs BUNDLE [SITE]");
const ORT = "../node_modules/onnxruntime-web/dist";
const FILES = {
  "index.html": "index.html",
  "demo.css": "demo.css",
  "demo.js": "demo.js",
  "../dist": "lib/berxit",
  "../node_modules/@huggingface/tokenizers/dist/tokenizers.min.mjs": "lib/tokenizers.min.mjs",
  [`${ORT}/ort.wasm.bundle.min.mjs`]: "lib/ort.wasm.bundle.min.mjs",
  [`${ORT}/ort-wasm-simd-threaded.wasm`]: "lib/ort-wasm-simd-threaded.wasm",
  [`${ORT}/ort.webgpu.bundle.min.mjs`]: "lib/ort.webgpu.bundle.min.mjs",
  [`${ORT}/ort-wasm-simd-threaded.asyncify.wasm`]: "lib/ort-wasm-simd-threaded.asyncify.wasm",
};

await rm(site, { recursive: true, force: true });
await mkdir(join(site, "lib"), { recursive: true });
for (const [from, to] of Object.entries(FILES)) await cp(here(from), join(site, to), { recursive: true });
await cp(bundle, join(site, "bundle"), { recursive: true, dereference: true });
console.log(`written: ${site}. Serve it with: node demo/serve.mjs ${site}`);
