import { BerxitError } from "./errors.js";
import { BYTES, type TensorFile } from "./manifest.js";
import type { Bundle } from "./manifest.js";

/** Bytes between two rows that are fetched rather than skipped, because a request costs more than they do. */
const GAP = 8192;

/** Some rows of a table: raw, little-endian. */
export interface Rows {
  name: string;
  dtype: string;
  /** Sizes of one row. */
  shape: number[];
  bytes: Uint8Array;
}

/**
 * The word embedding table of a bundle: the constant inputs of the embeddings, of which a run gets only the rows of its
 * texts. Rows are fetched when a text needs them and stored, or the whole files are.
 */
export class WordTable {
  readonly rows: number;
  private readonly files: StoredTable[];

  /** `byRows`: fetch single rows. Their files cannot be compared with their sha256. */
  constructor(private readonly bundle: Bundle, tables: Record<string, TensorFile>, private byRows: boolean) {
    this.files = Object.entries(tables).map(([name, file]) => new StoredTable(bundle, name, file));
    this.rows = Math.min(...this.files.map((each) => each.file.shape[0]));
  }

  /** Fetches the whole files, and compares them with their sha256. Later calls fetch nothing. */
  async load(): Promise<void> {
    await Promise.all(this.files.map((each) => each.load()));
  }

  /** Rows of these ids of every table, in the given order. */
  async take(ids: number[]): Promise<Rows[]> {
    const largest = ids.reduce((most, id) => Math.max(most, id), 0);
    if (largest >= this.rows) {
      throw new BerxitError(
        `${this.bundle.files.place}: token id ${largest} is not in the word embedding table, which has ${this.rows} rows. Export the bundle again`);
    }
    return Promise.all(this.files.map(async (each) => {
      if (this.byRows && !(await each.fetch(ids))) this.byRows = false; // a server without ranges
      if (!this.byRows) await each.load();
      return { name: each.name, dtype: each.file.dtype, shape: each.file.shape.slice(1), bytes: each.take(ids) };
    }));
  }
}

class StoredTable {
  private readonly rowBytes: number;
  private readonly stored = new Map<number, Uint8Array>();
  private whole: Uint8Array | null = null;
  private loading: Promise<void> | null = null;

  constructor(private readonly bundle: Bundle, readonly name: string, readonly file: TensorFile) {
    this.rowBytes = BYTES[file.dtype] * file.shape.slice(1).reduce((product, size) => product * size, 1);
  }

  load(): Promise<void> {
    this.loading ??= this.bundle.read(this.file).then((bytes) => {
      const expected = this.rowBytes * this.file.shape[0];
      if (bytes.length !== expected) {
        throw new BerxitError(
          `${this.bundle.files.place}: '${this.file.file}' has ${bytes.length} bytes, expected ${expected}. Copy the bundle again, or export it again`);
      }
      this.whole = bytes;
      this.stored.clear();
    });
    this.loading.catch(() => (this.loading = null));
    return this.loading;
  }

  /** Fetches the rows that are not stored. False if the server does not support ranges. */
  async fetch(ids: number[]): Promise<boolean> {
    if (this.whole !== null) return true;
    const missing = ids.filter((id) => !this.stored.has(id)).sort((a, b) => a - b);
    const ranges: [number, number][] = [];
    for (const id of missing) {
      const last = ranges.at(-1);
      if (last !== undefined && (id - last[1]) * this.rowBytes <= GAP) last[1] = id + 1;
      else ranges.push([id, id + 1]);
    }
    const fetched = await Promise.all(ranges.map(async ([first, end]) => {
      const bytes = await this.bundle.files.readRange(this.file.file, first * this.rowBytes, end * this.rowBytes);
      for (let id = first; bytes !== null && id < end; id++) {
        this.stored.set(id, bytes.subarray((id - first) * this.rowBytes, (id - first + 1) * this.rowBytes));
      }
      return bytes !== null;
    }));
    return fetched.every(Boolean);
  }

  /** Copies rows that were fetched before. */
  take(ids: number[]): Uint8Array {
    const { rowBytes, whole } = this;
    const found = new Uint8Array(ids.length * rowBytes);
    ids.forEach((id, place) => {
      const row = whole?.subarray(id * rowBytes, (id + 1) * rowBytes) ?? (this.stored.get(id) as Uint8Array);
      found.set(row, place * rowBytes);
    });
    return found;
  }
}
