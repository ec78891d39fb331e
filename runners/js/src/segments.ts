import type * as ORT from "onnxruntime-common";
import { padded, type TokenBatch } from "./batch.js";
import { BerxitError, failure } from "./errors.js";
import { type Bundle, BYTES, exitsOf, type Segment, type TensorInfo } from "./manifest.js";
import { type BackendName, type Ort, sessionOptions } from "./onnxruntime.js";
import { WordTable } from "./table.js";

type Tensor = ORT.Tensor;

/** Tensors that pass from layer to layer, by role, for the rows that are left. */
export interface State {
  tensors: Map<string, Tensor>;
  lengths: number[];
}

/** Outputs of an exit for B rows. */
export interface ExitOutput {
  /** (B,) logits of each row: (C,), or (S, C) for tokens. */
  logits: Float32Array[];
  /** (B,), or null without LTE. */
  lte: Float32Array | null;
}

export interface SegmentOptions {
  name: BackendName;
  ort: Ort;
  threads: number;
  lazy: boolean;
  /** Fetch single rows of the word embedding table. */
  tableByRows: boolean;
}

const AGAIN = "Export the bundle again, or use another backend";

/** The segments of a bundle, each an ONNX Runtime session. */
export class Segments {
  readonly exits: number[];
  /** Largest part of a batch, in tokens. On a GPU a part is one row, because rows cannot be removed there. */
  readonly tokensAtOnce: number;
  readonly table: WordTable | null;
  private readonly files: SegmentFile[];
  private running: Promise<unknown> = Promise.resolve();

  private constructor(private readonly bundle: Bundle, private readonly options: SegmentOptions) {
    const { segments } = bundle.manifest;
    this.exits = exitsOf(bundle.manifest);
    this.tokensAtOnce = options.name === "webgpu" ? 0 : 16384;
    const shared = new Map<string, SegmentFile>();
    this.files = segments.map((segment) => {
      const known = shared.get(segment.file) ?? new SegmentFile(bundle, segment, options);
      shared.set(segment.file, known);
      return known;
    });
    const tables = segments[0].constants ?? {};
    this.table = Object.keys(tables).length > 0 ? new WordTable(bundle, tables, options.tableByRows) : null;
  }

  /** Opens all segments; with `lazy` the embeddings only. */
  static async open(bundle: Bundle, options: SegmentOptions): Promise<Segments> {
    const segments = new Segments(bundle, options);
    // onnxruntime-web creates one session at a time.
    for (const file of options.lazy ? segments.files.slice(0, 1) : new Set(segments.files)) await file.open();
    const whole = !options.tableByRows || segments.files[0].fixedTable;
    if (segments.table !== null && whole) await segments.table.load();
    return segments;
  }

  /** Expected seconds until the segment of `layer` is loaded; 0 if it is. */
  openingSeconds(layer: number): number {
    const file = this.files[1 + this.exits.indexOf(layer)];
    if (file.isOpen) return 0;
    const known = this.files.slice(1).filter((each) => each.isOpen).map((each) => each.seconds);
    return known.length > 0 ? Math.max(...known) : Infinity;
  }

  async embed(batch: TokenBatch): Promise<State> {
    const segment = this.bundle.manifest.segments[0];
    const session = await this.files[0].open();
    const { Tensor } = this.options.ort;
    const shape = [batch.rows, batch.length];
    let ids = batch.inputIds;
    const feeds: Record<string, Tensor> = {};
    if (this.table !== null) {
      const used = this.files[0].fixedTable
        ? Array.from({ length: this.table.rows }, (_, id) => id)
        : [...new Set(ids)].sort((a, b) => a - b);
      const rows = await this.table.take(used);
      const places = new Map(used.map((id, place) => [id, place]));
      ids = ids.map((id) => places.get(id) as number);
      for (const each of rows) feeds[each.name] = tensorOf(this.options.ort, each.dtype, each.bytes, [used.length, ...each.shape]);
    }
    const inputs: Record<string, Int32Array> = {
      input_ids: ids, token_type_ids: batch.tokenTypeIds, attention_mask: batch.attentionMask,
    };
    for (const each of segment.inputs) {
      if (each.role !== "constant") feeds[each.name] = new Tensor("int32", inputs[each.role], shape);
    }
    const outputs = await this.run(session, feeds, segment, "the embeddings segment");
    return { tensors: outputs, lengths: batch.lengths };
  }

  /** Runs the segment that ends with `layer`, and replaces the hidden states of `state`. */
  async layer(layer: number, state: State): Promise<ExitOutput> {
    const place = 1 + this.exits.indexOf(layer);
    const segment = this.bundle.manifest.segments[place];
    const session = await this.files[place].open();
    const constants = await this.files[place].constants(segment);
    let outputs = new Map<string, Tensor>();
    for (let run = 0; run < (segment.repeat ?? 1); run++) {
      const feeds: Record<string, Tensor> = { ...constants };
      for (const each of segment.inputs) {
        if (each.role !== "constant") feeds[each.name] = state.tensors.get(each.role) as Tensor;
      }
      outputs = await this.run(session, feeds, segment, `layer ${layer}`);
      const hidden = outputs.get("hidden");
      if (hidden !== undefined) {
        state.tensors.get("hidden")?.dispose();
        state.tensors.set("hidden", hidden);
      }
    }
    return checked(layer, state.lengths.length, outputs);
  }

  /** Removes the rows that exited, and padding that no remaining row needs. */
  keep(state: State, rows: number[]): State {
    const lengths = rows.map((row) => state.lengths[row]);
    const tensors = new Map<string, Tensor>();
    const stated = this.bundle.manifest.segments[0].outputs;
    for (const [role, tensor] of state.tensors) {
      const info = stated.find((each) => each.role === role) as TensorInfo;
      tensors.set(role, kept(this.options.ort, tensor, info, rows, Math.max(...lengths)));
    }
    return { tensors, lengths };
  }

  /** Frees memory on a GPU. */
  dispose(state: State): void {
    for (const tensor of state.tensors.values()) tensor.dispose();
  }

  async close(): Promise<void> {
    await this.running.catch(() => undefined);
    await Promise.all([...new Set(this.files)].map((each) => each.close()));
  }

  /** Runs every segment once on one row, so that later predictions are fast. */
  async warmUp(length: number): Promise<void> {
    const ids = new Array<number>(length).fill(this.bundle.manifest.model.pad_token_id);
    const types = new Array<number>(length).fill(0);
    const batch = padded([{ inputIds: ids, tokenTypeIds: types, truncated: false, words: null }], 0);
    const state = await this.embed(batch);
    for (const layer of this.exits) await this.layer(layer, state);
    this.dispose(state);
  }

  /** Outputs by role. Sessions of onnxruntime-web share one instance: they run one after another. */
  private async run(
    session: ORT.InferenceSession, feeds: Record<string, Tensor>, segment: Segment, where: string,
  ): Promise<Map<string, Tensor>> {
    const previous = this.options.name === "node" ? Promise.resolve() : this.running.catch(() => undefined);
    const current = previous.then(() => session.run(feeds, segment.outputs.map((each) => each.name)));
    this.running = current;
    try {
      const outputs = await current;
      return new Map(segment.outputs.map((each) => [each.role, outputs[each.name]]));
    } catch (error) {
      throw failure(`backend '${this.options.name}' failed at ${where}`, error, AGAIN);
    }
  }
}

/** A segment file, which is loaded once, by `open` or when a layer is first needed. */
class SegmentFile {
  /** Seconds that loading took. */
  seconds = 0;
  isOpen = false;
  /** True if the ONNX file has a fixed number of rows of the word embedding table: older bundles. */
  fixedTable = false;
  private session: Promise<ORT.InferenceSession> | null = null;
  private readonly constantsOf = new Map<Segment, Promise<Record<string, Tensor>>>();

  constructor(
    private readonly bundle: Bundle, private readonly segment: Segment, private readonly options: SegmentOptions,
  ) {}

  open(): Promise<ORT.InferenceSession> {
    this.session ??= this.load();
    this.session.catch(() => (this.session = null));
    return this.session;
  }

  private async load(): Promise<ORT.InferenceSession> {
    const start = performance.now();
    const { segment, bundle, options } = this;
    const bytes = await bundle.read(segment);
    const where = `${bundle.files.place}: '${segment.file}'`;
    const settings = sessionOptions(options.name, options.threads);
    if (options.name === "webgpu") {
      settings.preferredOutputLocation = Object.fromEntries(segment.outputs.map((each) =>
        [each.name, each.role === "logits" || each.role === "lte" ? "cpu" : "gpu-buffer"]));
    }
    let session: ORT.InferenceSession;
    try {
      session = await options.ort.InferenceSession.create(bytes, settings);
    } catch (error) {
      throw failure(`cannot load ${where}`, error, AGAIN);
    }
    const inputs = session.inputMetadata as readonly ORT.InferenceSession.ValueMetadata[] | undefined;
    const outputs = session.outputMetadata as readonly ORT.InferenceSession.ValueMetadata[] | undefined;
    checkPorts(where, segment.inputs, inputs ?? []);
    checkPorts(where, segment.outputs, outputs ?? []);
    this.fixedTable = (inputs ?? []).some((port) =>
      port.isTensor && port.name in (segment.constants ?? {}) && segment.layer === 0 && typeof port.shape[0] === "number" && port.shape[0] >= 0);
    this.seconds = (performance.now() - start) / 1e3;
    this.isOpen = true;
    return session;
  }

  /** Constant inputs of a layer that shares its file. Those of the embeddings are the word embedding table. */
  constants(segment: Segment): Promise<Record<string, Tensor>> {
    let found = this.constantsOf.get(segment);
    if (found === undefined) {
      const entries = Object.entries(segment.constants ?? {}).map(async ([name, file]) => {
        const bytes = await this.bundle.read(file);
        return [name, tensorOf(this.options.ort, file.dtype, bytes, file.shape)] as const;
      });
      found = Promise.all(entries).then(Object.fromEntries) as Promise<Record<string, Tensor>>;
      found.catch(() => this.constantsOf.delete(segment));
      this.constantsOf.set(segment, found);
    }
    return found;
  }

  async close(): Promise<void> {
    const session = await this.session?.catch(() => null);
    this.session = null;
    this.isOpen = false;
    this.constantsOf.clear();
    await session?.release();
  }
}

/** Raises BerxitError unless the tensors of the manifest are those of the opened file, as far as it states them. */
function checkPorts(where: string, stated: TensorInfo[], ports: readonly ORT.InferenceSession.ValueMetadata[]): void {
  for (const tensor of ports.length > 0 ? stated : []) {
    const port = ports.find((each) => each.name === tensor.name);
    if (port === undefined) throw new BerxitError(`${where}: the file has no tensor '${tensor.name}'. Export the bundle again`);
    if (!port.isTensor) continue;
    const fits = port.shape.length === tensor.shape.length
      && port.shape.every((size, axis) => typeof size === "string" || size < 0 || size === tensor.shape[axis]);
    if (port.type !== tensor.dtype || !fits) {
      throw new BerxitError(
        `${where}: '${tensor.name}' is ${port.type} (${port.shape}) in the file and ${tensor.dtype} (${tensor.shape}) in the manifest. Export the bundle again`);
    }
  }
}

/** A tensor of raw little-endian bytes. */
function tensorOf(ort: Ort, dtype: string, bytes: Uint8Array, shape: number[]): Tensor {
  const buffer = bytes.byteOffset % BYTES[dtype] === 0 ? bytes : bytes.slice();
  const count = buffer.byteLength / BYTES[dtype];
  const views: Record<string, () => unknown> = {
    float32: () => new Float32Array(buffer.buffer, buffer.byteOffset, count),
    float16: () => new Uint16Array(buffer.buffer, buffer.byteOffset, count),
    int8: () => new Int8Array(buffer.buffer, buffer.byteOffset, count),
    uint8: () => buffer,
    int32: () => new Int32Array(buffer.buffer, buffer.byteOffset, count),
    int64: () => new BigInt64Array(buffer.buffer, buffer.byteOffset, count),
  };
  if (count !== shape.reduce((product, size) => product * size, 1)) {
    throw new BerxitError(`a constant has ${count} values, expected (${shape}). Copy the bundle again, or export it again`);
  }
  return new ort.Tensor(dtype as "float32", views[dtype]() as Float32Array, shape);
}

/** The outputs of an exit. Raises BerxitError unless logits are finite and LTE certainties are in [0, 1]. */
function checked(layer: number, rows: number, outputs: Map<string, Tensor>): ExitOutput {
  const all = outputs.get("logits")?.data as Float32Array;
  const lte = (outputs.get("lte")?.data as Float32Array | undefined) ?? null;
  if (all.length % rows || !all.every(Number.isFinite)) {
    throw new BerxitError(`layer ${layer}: logits are not finite: ${all.slice(0, 4)}. ${AGAIN}`);
  }
  if (lte !== null && !lte.every((each) => each >= 0 && each <= 1)) {
    throw new BerxitError(`layer ${layer}: LTE certainties are not in [0, 1]: ${lte.slice(0, 4)}. ${AGAIN}`);
  }
  const classes = all.length / rows;
  const logits = Array.from({ length: rows }, (_, row) => all.slice(row * classes, (row + 1) * classes));
  return { logits, lte };
}

/** Some rows of a tensor, with the first `length` entries along its axes of that name. */
function kept(ort: Ort, tensor: Tensor, info: TensorInfo, rows: number[], length: number): Tensor {
  const [count, ...dims] = tensor.dims;
  const sizes = dims.map((size, axis) => (info.shape[axis + 1] === "length" ? length : size));
  const data = tensor.data as Float32Array;
  const rowSize = data.length / count;
  const found = new (data.constructor as Float32ArrayConstructor)(rows.length * sizes.reduce((a, b) => a * b, 1));
  let at = 0;
  const copy = (start: number, axis: number, step: number): void => {
    if (axis === sizes.length || dims.slice(axis).every((size, i) => size === sizes[axis + i])) {
      found.set(data.subarray(start, start + step), at);
      at += step;
      return;
    }
    const next = step / dims[axis];
    for (let i = 0; i < sizes[axis]; i++) copy(start + i * next, axis + 1, next);
  };
  for (const row of rows) copy(row * rowSize, 0, rowSize);
  return new ort.Tensor(tensor.type as "float32", found, [rows.length, ...sizes]);
}
