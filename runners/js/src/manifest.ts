import { type BundleFiles, sha256 } from "./files.js";
import { BerxitError, InputError } from "./errors.js";
import { anything, flag, integer, list, number, object, orNull, parseJson, type Read, record, text } from "./fields.js";
import type { Head } from "./heads.js";
import { type Kind, KINDS } from "./kinds.js";
import { ExitPolicy, policyFields } from "./policies.js";

export const SCHEMA_VERSION = 3;
const PRECISIONS = ["fp32", "fp16", "int8"];
const TOKENS = ["input_ids", "token_type_ids", "attention_mask"];
const CARRIED = ["hidden", "attention_bias", "token_weights"];
/** Dtypes of tensors that the segments exchange. */
const FLOATS = ["float32", "float16"];
/** Dtype of a raw tensor file -> bytes per number. */
export const BYTES: Record<string, number> = { float32: 4, float16: 2, int8: 1, uint8: 1, int32: 4, int64: 8 };

const size: Read<string | number> = (value, place) => (typeof value === "string" ? value : integer(value, place));
const tensor = object({ name: text, role: text, dtype: text, shape: list(size) });
export type TensorInfo = ReturnType<typeof tensor>;
const dataFile = object({ file: text, sha256: text });
export type DataFile = ReturnType<typeof dataFile>;
const tensorFile = object({ file: text, sha256: text, dtype: text, shape: list(integer) });
export type TensorFile = ReturnType<typeof tensorFile>;
const segment = object(
  { layer: integer, file: text, sha256: text, inputs: list(tensor), outputs: list(tensor) },
  { constants: record(tensorFile), function: orNull(text), functions: list(text), compiled: orNull(dataFile), repeat: integer },
);
export type Segment = ReturnType<typeof segment>;
const model = object(
  {
    family: text, task: text, kind: text, labels: list(text), metric: text, text_columns: list(text),
    label_column: text, layers: integer, hidden_size: integer, max_length: integer, pad_token_id: integer, lte: flag,
  },
  { positive: orNull(text) },
);
const manifest = object(
  {
    schema_version: integer, target: text, precision: text, model, tokenizer: dataFile, segments: list(segment),
    policy: policyFields, calibration: anything, golden: dataFile, made_with: record(text),
    parity: object({ reference: text, atol: number, max_diff: list(number) }, { scale: number }),
  },
  {
    lengths: list(integer), max_batch: orNull(integer), scores: anything, threads: orNull(integer),
    target_version: orNull(text), opset: orNull(integer), full: anything,
  },
);
/** Content of manifest.json, with the keys of docs/bundle.md. */
export type Manifest = ReturnType<typeof manifest>;

/** Checked content of manifest.json. */
export interface Parsed {
  manifest: Manifest;
  kind: Kind;
  /** The named heads, in the order of the labels; empty for a model without them. */
  heads: readonly Head[];
  policy: ExitPolicy;
}

export interface Bundle extends Parsed {
  files: BundleFiles;
  /** The first 12 hexadecimal digits of the sha256 of manifest.json; "" without WebCrypto. */
  digest: string;
  /** The content of a file, compared with its sha256 unless the bundle was opened without `verify`. */
  read(entry: DataFile): Promise<Uint8Array>;
}

/** Reads and checks manifest.json. Raises BerxitError for a bundle that is damaged or that this runner cannot run. */
export async function openBundle(files: BundleFiles, verify: boolean): Promise<Bundle> {
  const bytes = await files.read("manifest.json");
  const place = `${files.place}: manifest.json`;
  const parsed = parseManifest(parseJson(bytes, place), place);
  const digest = verify || globalThis.crypto?.subtle ? (await sha256(bytes)).slice(0, 12) : "";
  return {
    ...parsed, files, digest,
    async read(entry) {
      const content = await files.read(entry.file);
      if (verify && (await sha256(content)) !== entry.sha256) {
        throw new BerxitError(
          `${files.place}: '${entry.file}': the checksum differs from the manifest's. Copy the bundle again, or export it again`);
      }
      return content;
    },
  };
}

/** Checks the content of manifest.json. Raises BerxitError as `openBundle`. `place`: for messages. */
export function parseManifest(json: unknown, place: string): Parsed {
  const version = (json as { schema_version?: unknown } | null)?.schema_version;
  if (!Number.isInteger(version)) {
    throw new BerxitError(`${place}: no schema_version. This is not a bundle of berxit-export`);
  }
  if ((version as number) > SCHEMA_VERSION) {
    throw new BerxitError(
      `${place}: schema version ${version} is newer than ${SCHEMA_VERSION}, the newest that this package reads. Upgrade it, or export the bundle again`);
  }
  const found = manifest(json, place);
  const beyond = unsupported(found);
  if (beyond !== undefined) throw new BerxitError(`${place}: ${beyond}. Use another runner, or export another bundle`);
  const { kind: name, labels, lte } = found.model;
  const kind = KINDS.get(name) as Kind;
  const heads = kind.headsOf?.(labels) ?? [];
  for (const problem of problems(found, kind, heads)) {
    throw new BerxitError(`${place}: ${problem}. Export the bundle again`);
  }
  let policy: ExitPolicy;
  try {
    policy = new ExitPolicy(found.policy);
    policy.check(kind.classes(labels, heads), lte, kind.several);
  } catch (error) {
    if (error instanceof InputError) throw new BerxitError(`${place}: policy: ${error.message}. Export the bundle again`);
    throw error;
  }
  const needed = kind.several ? 3 : policy.schemaVersion;
  if ((version as number) < needed) {
    throw new BerxitError(`${place}: schema_version is ${version}, but the kind or the policy needs ${needed}. Export the bundle again`);
  }
  return { manifest: found, kind, heads, policy };
}

/** The exit layers, ascending. */
export function exitsOf(found: Manifest): number[] {
  return found.segments.slice(1).map((each) => each.layer);
}

/** What this runner cannot run, though the bundle may be whole. */
function unsupported({ target, precision, model }: Manifest): string | undefined {
  const known: [string, string, string[]][] = [
    ["target", target, ["onnxruntime"]], ["precision", precision, PRECISIONS],
    ["model.kind", model.kind, [...KINDS.keys()]],
  ];
  const found = known.find(([, value, values]) => !values.includes(value));
  return found && `${found[0]} is '${found[1]}': the runner for JavaScript runs ${found[2].join(", ")}`;
}

function* problems(found: Manifest, kind: Kind, heads: readonly Head[]): Generator<string> {
  const { model, parity } = found;
  const labels = model.labels.length;
  const [least, most] = kind.labelCounts;
  if (labels < least || labels > most) {
    const needed = most === 0 ? "none" : most === Infinity ? `at least ${least}` : `${least} to ${most}`;
    yield `model.labels has ${labels} entries: a ${model.kind} model needs ${needed}`;
  }
  const twice = repeated(model.labels);
  if (twice !== undefined) yield `model.labels contains '${twice}' twice`;
  yield* kind.problems?.(model.labels, heads, model.label_column) ?? [];
  if (model.text_columns.length < 1 || model.text_columns.length > 2) {
    yield `model.text_columns has ${model.text_columns.length} entries: a model reads 1 text or a pair of 2`;
  }
  for (const name of ["layers", "hidden_size", "max_length"] as const) {
    if (!(model[name] >= 1)) yield `model.${name} is ${model[name]}: it must be at least 1`;
  }
  const rows = Math.min(...Object.values(found.segments[0]?.constants ?? {}).map(({ shape }) => shape[0] ?? Infinity));
  if (model.pad_token_id < 0 || model.pad_token_id >= rows) {
    yield `model.pad_token_id is ${model.pad_token_id}: it must be at least 0, and the word embedding table has ${rows} rows`;
  }
  const layers = found.segments.map((each) => each.layer);
  const ascending = layers.every((layer, place) => place === 0 ? layer === 0 : layer > layers[place - 1]);
  if (!ascending || layers.length < 2 || layers.at(-1) !== model.layers || found.policy.temperatures.length !== model.layers) {
    yield `${layers.length} segments [${layers}] and a policy for ${found.policy.temperatures.length} layers do not match a model of ${model.layers} layers`;
  }
  if (found.lengths?.length) yield `lengths is [${found.lengths}]: target onnxruntime accepts any length`;
  for (const name of ["max_batch", "threads"] as const) {
    if ((found[name] ?? 1) < 1) yield `${name} is ${found[name]}: it must be at least 1`;
  }
  if (!(parity.atol >= 0) || !((parity.scale ?? 1) > 0)) yield `parity has atol ${parity.atol} and scale ${parity.scale}`;
  if (parity.max_diff.length !== layers.length - 1) {
    yield `parity.max_diff has ${parity.max_diff.length} entries for ${layers.length - 1} exits`;
  }
  if (!parity.max_diff.every((each) => each >= 0)) yield `parity.max_diff is [${parity.max_diff}]: it must be at least 0`;
  for (const entry of filesOf(found)) {
    if (!isInside(entry.file)) yield `'${entry.file}' is not a name below the bundle's folder`;
  }
  yield* segmentProblems(found, kind);
}

/** All files that the runner loads. */
function filesOf(found: Manifest): DataFile[] {
  const constants = found.segments.flatMap((each) => Object.values(each.constants ?? {}));
  return [found.tokenizer, found.golden, ...found.segments, ...constants];
}

function isInside(name: string): boolean {
  const parts = name.split("/");
  return !/[\\:\0]/.test(name) && parts.every((part) => part !== "" && part !== "." && part !== "..");
}

function* segmentProblems(found: Manifest, kind: Kind): Generator<string> {
  const [first, ...layers] = found.segments;
  const { hidden_size: d, labels, lte } = found.model;
  const heads = first.outputs.find((each) => each.role === "attention_bias")?.shape[1];
  const shapes: Record<string, string[]> = {
    ...Object.fromEntries(TOKENS.map((role) => [role, ["batch,length"]])),
    hidden: [`batch,length,${d}`],
    attention_bias: ["batch,1,1,length", `batch,${heads},length,length`],
    token_weights: ["batch,1,length"],
    logits: [`batch,${kind.words ? "length," : ""}${labels.length || 1}`],
    lte: ["batch"],
  };
  for (const [place, each] of found.segments.entries()) {
    const where = `segment of layer ${each.layer}`;
    if (each.functions?.length || each.compiled) yield `${where}: functions and compiled are allowed for target coreml only`;
    const run = place > 0 ? each.layer - found.segments[place - 1].layer : 1;
    if (!((each.repeat ?? 1) >= 1) || run % (each.repeat ?? 1)) yield `${where}: repeat is ${each.repeat}: it must divide its ${run} layers`;
    const expected = place === 0
      ? { reads: ["input_ids", "attention_mask"], mayRead: TOKENS, writes: ["hidden", "attention_bias"], mayWrite: CARRIED }
      : {
          reads: ["hidden"], mayRead: first.outputs.map((output) => output.role),
          writes: ["logits", ...(lte ? ["lte"] : []), ...(place < layers.length ? ["hidden"] : [])],
          mayWrite: ["logits", ...(lte ? ["lte"] : []), "hidden"],
        };
    for (const [tensors, needed, known] of [
      [each.inputs, expected.reads, expected.mayRead], [each.outputs, expected.writes, expected.mayWrite],
    ] as [TensorInfo[], string[], string[]][]) {
      const varying = tensors.filter((tensor) => tensor.role !== "constant" || tensors === each.outputs);
      const roles = varying.map((tensor) => tensor.role);
      const twice = repeated(tensors.map((tensor) => tensor.name)) ?? repeated(roles);
      if (twice !== undefined) yield `${where}: '${twice}' is listed twice`;
      for (const tensor of varying) {
        if (!Object.hasOwn(shapes, tensor.role)) yield `${where}: '${tensor.name}' has the unknown role '${tensor.role}'`;
        if (!known.includes(tensor.role)) yield `${where}: '${tensor.role}' is not allowed at its position`;
        const shape = tensor.shape.join(",");
        if (!shapes[tensor.role].includes(shape)) {
          yield `${where}: '${tensor.name}' of role ${tensor.role} has shape (${shape}), expected (${shapes[tensor.role].join(") or (")})`;
        }
        const dtypes = TOKENS.includes(tensor.role) ? ["int32"] : CARRIED.includes(tensor.role) ? FLOATS : ["float32"];
        if (!dtypes.includes(tensor.dtype)) yield `${where}: '${tensor.name}' has dtype '${tensor.dtype}', expected ${dtypes.join(" or ")}`;
        const made = first.outputs.find((output) => output.role === tensor.role);
        if (made !== undefined && (made.dtype !== tensor.dtype || `${made.shape}` !== shape)) {
          yield `${where}: '${tensor.name}' is ${tensor.dtype} (${shape}), but the embeddings segment writes ${tensor.role} as ${made.dtype} (${made.shape})`;
        }
      }
      const missing = needed.find((role) => !roles.includes(role));
      if (missing !== undefined) yield `${where}: it has no ${missing}`;
    }
    if ((each.repeat ?? 1) > 1 && !each.outputs.some(({ role }) => role === "hidden")) yield `${where}: repeat is above 1, but it writes no hidden`;
    const same = found.segments.find(({ file }) => file === each.file) as Segment; // a file is opened once
    const differs = each.inputs.find((tensor) => unlike(tensor, same.inputs)) ?? each.outputs.find((tensor) => unlike(tensor, same.outputs));
    if (differs !== undefined) yield `${where}: '${differs.name}' of ${each.file} differs from that of the segment of layer ${same.layer}`;
    const unread = Object.keys(each.constants ?? {}).find((name) => !each.inputs.some((tensor) => tensor.name === name));
    if (unread !== undefined) yield `${where}: constants lists '${unread}', which is not an input`;
    for (const tensor of each.inputs) {
      const constant = each.constants?.[tensor.name];
      if ((tensor.role === "constant") !== (constant !== undefined)) {
        yield `${where}: constants must list exactly the inputs of role constant, but '${tensor.name}' has role '${tensor.role}'`;
      }
      if (constant !== undefined && (constant.dtype !== tensor.dtype || `${constant.shape}` !== `${tensor.shape}` || !Object.hasOwn(BYTES, tensor.dtype))) {
        yield `${where}: input '${tensor.name}' is ${tensor.dtype} (${tensor.shape}), but its constant is ${constant.dtype} (${constant.shape})`;
      }
    }
  }
}

/** True if the tensor of this name among `others` has another role, dtype or shape. */
function unlike(tensor: TensorInfo, others: TensorInfo[]): boolean {
  const other = others.find(({ name }) => name === tensor.name) ?? tensor;
  return other.role !== tensor.role || other.dtype !== tensor.dtype || `${other.shape}` !== `${tensor.shape}`;
}

function repeated(values: string[]): string | undefined {
  return values.find((value, place) => values.indexOf(value) < place);
}
