// Static files for the demo page, with byte ranges and the headers that let onnxruntime-web use threads.
//
//   node demo/serve.mjs [SITE] [PORT]        by default demo/site and 8080; port 0 chooses a free one
//
// With --count, prints the bytes of each response.
import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";

const [site = fileURLToPath(new URL("site", import.meta.url)), port = "8080"] =
  process.argv.slice(2).filter((argument) => argument !== "--count");
const count = process.argv.includes("--count");
const TYPES = {
  ".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".mjs": "text/javascript",
  ".json": "application/json", ".wasm": "application/wasm",
};

const server = createServer(async (request, response) => {
  const path = decodeURIComponent(new URL(request.url, "http://localhost").pathname);
  const file = join(site, normalize(path.endsWith("/") ? `${path}index.html` : path));
  const found = await stat(file).catch(() => null);
  if (!file.startsWith(site) || !found?.isFile()) {
    response.writeHead(404).end();
    return;
  }
  const headers = {
    "Content-Type": TYPES[extname(file)] ?? "application/octet-stream",
    "Accept-Ranges": "bytes",
    "Cross-Origin-Opener-Policy": "same-origin", // both: SharedArrayBuffer, which threads need
    "Cross-Origin-Embedder-Policy": "require-corp",
  };
  const range = /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? "");
  const start = range ? Number(range[1]) : 0;
  const end = Math.min(range?.[2] ? Number(range[2]) : found.size - 1, found.size - 1);
  if (range && start > end) {
    response.writeHead(416, { "Content-Range": `bytes */${found.size}` }).end();
    return;
  }
  headers["Content-Length"] = Math.max(0, end - start + 1);
  if (range) headers["Content-Range"] = `bytes ${start}-${end}/${found.size}`;
  response.writeHead(range ? 206 : 200, headers);
  if (count) console.log(`${headers["Content-Length"]} ${path}`);
  if (found.size === 0) response.end();
  else createReadStream(file, { start, end }).pipe(response);
});
server.listen(Number(port), "127.0.0.1", () => console.log(`http://localhost:${server.address().port}/`));
