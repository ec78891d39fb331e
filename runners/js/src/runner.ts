import { padded, parts } from "./batch.js";
import { Deadline, endOf, type ExitRule, MISS_PROBABILITY, RESERVE, ruleOf, StepEstimator } from "./deadline.js";
import { BerxitError, InputError } from "./errors.js";
import { openFiles } from "./files.js";
import { parseJson } from "./fields.js";
import { verify } from "./golden.js";
import { chosenHeads, type Head } from "./heads.js";
import { type DecisionsOf, type LayerResult, exitLoop } from "./loop.js";
import { type Bundle, type Manifest, openBundle } from "./manifest.js";
import { type BackendName, defaultBackend, defaultThreads, importOrt, type Ort } from "./onnxruntime.js";
import { type ExitPolicy, softmax } from "./policies.js";
import type { Prediction, StoppedBy } from "./prediction.js";
import { Segments } from "./segments.js";
import { type Encoding, type Text, Tokenizer } from "./tokenization/tokenizer.js";
import { stripped } from "./tokenization/unicode.js";

export interface LoadOptions {
  /** `node` (onnxruntime-node), `wasm` or `webgpu` (onnxruntime-web); by default node in Node, wasm elsewhere. */
  backend?: BackendName;
  /** The imported package of ONNX Runtime, where the runner cannot import it itself. */
  ort?: Ort;
  /** CPU threads of onnxruntime-node; by default the bundle's, else the number of cores, at most four. */
  threads?: number;
  /** Compare every file with its sha256; default true. */
  verify?: boolean;
  /** Load a layer when the first input reaches it; default false. */
  lazy?: boolean;
  /**
   * `rows`: fetch the rows of the word embedding table that a text needs, the default for http: addresses. The checksum
   * of the table is then not checked. `whole`: fetch the table at the load, the default for folders.
   */
  table?: "rows" | "whole";
  /** Largest share of calls with a deadline that may end late although their first exit was in time. */
  missProbability?: number;
}

export interface PredictOptions {
  /** Replaces the calibrated thresholds at every layer. */
  threshold?: number;
  /** Milliseconds from the call: the deepest exit that is expected in time makes the prediction, the first in any case. */
  deadlineMs?: number;
  /**
   * Names of the heads that are needed, of a model with named heads; by default all. The text exits when they are certain,
   * and the prediction contains only them.
   */
  heads?: readonly string[];
  /** Called with the prediction of every exit that is computed, the shallowest first. Its `stoppedBy` is null until the row exits. */
  onExit?: (prediction: Prediction, row: number) => void;
}

interface Call {
  policy: ExitPolicy;
  start: number;
  end: number;
  deadlineMs: number | undefined;
  heads: readonly Head[];
}

/** Clock in seconds. */
const clock = (): number => performance.now() / 1e3;

/** Runs a bundle layer by layer until the exit policy is satisfied. */
export class EarlyExitRunner {
  private readonly estimator: StepEstimator;
  private closed = false;

  private constructor(
    private readonly bundle: Bundle,
    private readonly tokenizer: Tokenizer,
    private readonly segments: Segments,
    missProbability: number,
  ) {
    this.estimator = new StepEstimator(missProbability);
  }

  /**
   * Loads the bundle at an address, or in a folder (Node). Raises BerxitError for a damaged bundle or one that this runner
   * cannot run.
   */
  static async load(bundle: string | URL, options: LoadOptions = {}): Promise<EarlyExitRunner> {
    const files = await openFiles(bundle);
    const opened = await openBundle(files, options.verify ?? true);
    const { manifest } = opened;
    const content = await opened.read(manifest.tokenizer);
    const place = `${files.place}: ${manifest.tokenizer.file}`;
    const tokenizer = new Tokenizer(parseJson(content, place), manifest.model.max_length, place, opened.kind.words);
    const name = options.backend ?? defaultBackend();
    const segments = await Segments.open(opened, {
      name,
      ort: options.ort ?? (await importOrt(name)),
      threads: options.threads ?? manifest.threads ?? (name === "node" ? await defaultThreads() : 1),
      lazy: options.lazy ?? false,
      tableByRows: (options.table ?? (/^https?:/.test(files.place) ? "rows" : "whole")) === "rows",
    });
    return new EarlyExitRunner(opened, tokenizer, segments, options.missProbability ?? MISS_PROBABILITY);
  }

  /** Content of manifest.json. */
  get manifest(): Manifest {
    return this.bundle.manifest;
  }

  /** Predicts one text, or one pair of texts. Raises InputError for an invalid argument. */
  async predict(text: Text, options: PredictOptions = {}): Promise<Prediction> {
    return (await this.predictions([text], options, () => "the text"))[0];
  }

  /**
   * Predicts any number of texts, or of pairs, and returns the predictions in input order. The deadline applies to all
   * texts together.
   */
  async predictBatch(texts: readonly Text[], options: PredictOptions = {}): Promise<Prediction[]> {
    if (!Array.isArray(texts)) throw new InputError("a batch is a list of texts: use predict for one");
    return this.predictions(texts, options, (row) => (texts.length > 1 ? `text ${row}` : "the text"));
  }

  /** Predictions of all exits, the shallowest first. A layer runs when the iteration reaches it. */
  stream(text: Text): AsyncGenerator<Prediction> {
    const start = clock();
    this.checkOpen();
    const encoding = this.encode(text, "the text", Infinity);
    return this.streamed(encoding, start);
  }

  private async *streamed(encoding: Encoding, started: number): AsyncGenerator<Prediction> {
    const { policy, heads } = this.bundle;
    const call = { policy, start: started, end: Infinity, deadlineMs: undefined, heads };
    const batch = padded([encoding], this.manifest.model.pad_token_id);
    const last = this.segments.exits.at(-1);
    const rule: ExitRule = { exits: (layer, certainties) => certainties.map(() => layer === last) };
    for await (const result of exitLoop(this.segments, batch, policy, rule, this.decisionsOf([encoding], heads))) {
      const prediction = this.prediction(result, 0, encoding, call);
      const paused = clock();
      yield prediction;
      call.start += clock() - paused; // the time between two iterations is the caller's
    }
  }

  /** Runs the golden inputs. Returns the largest difference at each exit; raises BerxitError if one is too large. */
  async verify(): Promise<number[]> {
    this.checkOpen();
    return verify(this.bundle, this.tokenizer, this.segments);
  }

  /** Loads what is not loaded yet, the layers and the word embedding table, and runs every segment once. */
  async warmUp(): Promise<void> {
    this.checkOpen();
    await this.segments.table?.load();
    await this.segments.warmUp(Math.min(16, this.manifest.model.max_length));
  }

  /** Frees the segments. Later calls raise BerxitError. */
  async close(): Promise<void> {
    if (!this.closed) {
      this.closed = true;
      await this.segments.close();
    }
  }

  private checkOpen(): void {
    if (this.closed) throw new BerxitError("this runner is closed: load the bundle again");
  }

  private async predictions(
    texts: readonly Text[], { threshold, deadlineMs, heads: names, onExit }: PredictOptions, nameOf: (row: number) => string,
  ): Promise<Prediction[]> {
    const start = clock();
    this.checkOpen();
    if (texts.length === 0) throw new InputError("the batch is empty: give at least one text");
    const policy = threshold === undefined ? this.bundle.policy : this.bundle.policy.withThreshold(threshold);
    const end = deadlineMs === undefined ? Infinity : endOf(deadlineMs, start);
    const { heads: all, manifest: { model } } = this.bundle;
    const heads = names === undefined ? all : chosenHeads(model.kind, all, names);
    const call: Call = { policy, start, end, deadlineMs, heads };
    texts.forEach((text, row) => this.check(text, nameOf(row)));
    const encodings = texts.map((text, row) => this.encode(text, nameOf(row), end));
    const found = new Array<Prediction>(texts.length);
    const lengths = encodings.map((each) => each.inputIds.length);
    let left = lengths.reduce((sum, each) => sum + each, 0);
    for (const rows of parts(lengths, this.segments.tokensAtOnce)) {
      const tokens = rows.reduce((sum, row) => sum + lengths[row], 0);
      const now = clock();
      const rule = this.rule(policy, now + (tokens / left) * (end - now));
      left -= tokens;
      const part = rows.map((row) => encodings[row]);
      const batch = padded(part, this.manifest.model.pad_token_id);
      for await (const result of exitLoop(this.segments, batch, policy, rule, this.decisionsOf(part, heads))) {
        for (const [place, local] of result.rows.entries()) {
          if (!result.exits[place] && onExit === undefined) continue;
          const row = rows[local];
          const prediction = this.prediction(result, place, encodings[row], call);
          if (result.exits[place]) found[row] = prediction;
          onExit?.(prediction, row);
        }
      }
    }
    return found;
  }

  private decisionsOf(encodings: Encoding[], heads: readonly Head[]): DecisionsOf {
    const { kind, manifest: { model } } = this.bundle;
    return (logits, row) => kind.decisions(logits, model.labels, encodings[row].words, heads);
  }

  private rule(policy: ExitPolicy, end: number): ExitRule {
    if (end === Infinity) return ruleOf(policy);
    const opening = (layer: number): number => this.segments.openingSeconds(layer);
    return new Deadline(policy, this.segments.exits, end - RESERVE, this.estimator, opening, clock);
  }

  /** Raises InputError for a text that is none, that is empty, or a pair where the model expects single texts. */
  private check(text: Text, name: string): void {
    const { text_columns: columns, task } = this.manifest.model;
    const texts = typeof text === "string" ? [text] : Array.isArray(text) ? text : [];
    if (texts.length < 1 || texts.length > 2 || !texts.every((each) => typeof each === "string")) {
      throw new InputError(`${name} is ${typeof text}: give a string, or a list of two for a pair`);
    }
    if (texts.length !== columns.length) {
      const [takes, given] = columns.length === 2 ? ["pairs of texts", "one text"] : ["single texts", "a pair"];
      throw new InputError(`this model takes ${takes} (${task}), and was given ${given}`);
    }
    if (texts.some((each) => stripped(each) === "")) {
      throw new InputError(`${name} is empty: give at least one character that is not whitespace`);
    }
    if (texts.some((each) => /\p{Cs}/u.test(each))) {
      throw new InputError(`${name} contains a lone surrogate, half of a character: decode it as UTF-8 again`);
    }
  }

  private encode(text: Text, name: string, end: number): Encoding {
    this.check(text, name);
    const encoding = this.tokenizer.encode(text, end, clock);
    if (encoding.inputIds.length === 0) {
      throw new BerxitError(`${this.bundle.files.place}: ${name} has no tokens. Export the bundle again`);
    }
    return encoding;
  }

  private prediction(result: LayerResult, place: number, encoding: Encoding, call: Call): Prediction {
    const { kind, manifest: { model } } = this.bundle;
    const { layer } = result;
    const [decisions, certainty] = [result.decisions[place], result.certainties[place]];
    const logits = decisions.map((each) => call.policy.scaled(layer, each));
    let stoppedBy: StoppedBy | null = null;
    if (layer === this.segments.exits.at(-1)) stoppedBy = "last_layer";
    else if (result.exits[place]) stoppedBy = call.policy.exits(layer, certainty, decisions) ? "certainty" : "deadline";
    const latencyMs = 1e3 * (clock() - call.start);
    return {
      ...kind.describe(logits, logits.map(softmax), model.labels, encoding.words, call.heads),
      exitLayer: layer,
      certainty,
      latencyMs,
      truncated: encoding.truncated,
      stoppedBy,
      late: call.deadlineMs === undefined ? null : latencyMs > call.deadlineMs,
      model: this.bundle.digest,
    };
  }
}
