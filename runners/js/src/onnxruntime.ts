import type * as ORT from "onnxruntime-common";
import { BerxitError, failure } from "./errors.js";

export type Ort = typeof ORT;
/** `node`: onnxruntime-node. `wasm`, `webgpu`: onnxruntime-web. */
export type BackendName = "node" | "wasm" | "webgpu";

/** The default: `node` in Node, `wasm` elsewhere. */
export function defaultBackend(): BackendName {
  return typeof process !== "undefined" && process.versions?.node !== undefined ? "node" : "wasm";
}

/** Imports the package of a backend. Raises BerxitError if it is not installed. */
export async function importOrt(name: BackendName): Promise<Ort> {
  try {
    switch (name) {
      case "node":
        return (await import("onnxruntime-node")) as unknown as Ort;
      case "wasm":
        return (await import("onnxruntime-web/wasm")) as unknown as Ort;
      case "webgpu":
        return (await import("onnxruntime-web/webgpu")) as unknown as Ort;
    }
  } catch (error) {
    const library = name === "node" ? "onnxruntime-node" : "onnxruntime-web";
    throw failure(`cannot import ${library}`, error, `Install it (npm install ${library}), or give { ort }`);
  }
  throw new BerxitError(`backend is '${String(name)}': give node, wasm or webgpu`);
}

/** The number of cores, at most four. Only for Node. */
export async function defaultThreads(): Promise<number> {
  return Math.min(4, (await import("node:os")).availableParallelism());
}

/** Options of a session. `threads` is ignored by onnxruntime-web, whose threads are a setting of the page. */
export function sessionOptions(name: BackendName, threads: number): ORT.InferenceSession.SessionOptions {
  // The fusion changes sums by rounding, which an int8 layer amplifies. The Python runtime disables it, too.
  const optimization = { disable_specified_optimizers: "SkipLayerNormFusion" };
  if (name === "node") {
    const extra = { optimization, session: { force_spinning_stop: "1" } };
    return { executionProviders: ["cpu"], intraOpNumThreads: threads, interOpNumThreads: 1, logSeverityLevel: 3, extra };
  }
  return { executionProviders: [name], logSeverityLevel: 3, ...(name === "wasm" ? { extra: { optimization } } : {}) };
}
