/** Runs early-exit bundles of berxit in browsers and Node. */
export { BerxitError, InputError } from "./errors.js";
export type { HeadPrediction } from "./heads.js";
export type { Manifest } from "./manifest.js";
export type { BackendName } from "./onnxruntime.js";
export type { Prediction, StoppedBy } from "./prediction.js";
export { EarlyExitRunner, type LoadOptions, type PredictOptions } from "./runner.js";
export type { Span } from "./spans.js";
export type { Text } from "./tokenization/tokenizer.js";
