import { BerxitError, failure } from "./errors.js";

/** The files of a bundle: in a folder, or below an address. Names are relative and contain "/". */
export interface BundleFiles {
  /** For messages. */
  readonly place: string;
  /** The whole file. Raises BerxitError if it is missing. */
  read(name: string): Promise<Uint8Array>;
  /**
   * Bytes `start` to `end`, the end excluded. null if the server does not support ranges. Raises BerxitError if the
   * file is missing or shorter.
   */
  readRange(name: string, start: number, end: number): Promise<Uint8Array | null>;
}

const COPY_AGAIN = "Copy the bundle again, or export it again";

/** Opens the files at an address (http:, https:) or in a folder (a path or a file: URL, in Node only). */
export async function openFiles(bundle: string | URL): Promise<BundleFiles> {
  const text = bundle.toString();
  if (typeof process === "undefined" || !process.versions?.node || /^https?:/.test(text)) {
    const base = typeof location === "undefined" ? undefined : location.href;
    return new HttpFiles(new URL(text.endsWith("/") ? text : `${text}/`, base));
  }
  const [{ open }, path, { fileURLToPath }] = await Promise.all([
    import("node:fs/promises"), import("node:path"), import("node:url"),
  ]);
  const folder = text.startsWith("file:") ? fileURLToPath(text) : text;
  return {
    place: folder,
    async read(name) {
      const file = await open(path.join(folder, name)).catch((error) => missing(folder, name, error));
      try {
        return new Uint8Array(await file.readFile());
      } finally {
        await file.close();
      }
    },
    async readRange(name, start, end) {
      const file = await open(path.join(folder, name)).catch((error) => missing(folder, name, error));
      try {
        const bytes = new Uint8Array(end - start);
        const { bytesRead } = await file.read(bytes, 0, bytes.length, start);
        if (bytesRead < bytes.length) throw tooShort(folder, name, end);
        return bytes;
      } finally {
        await file.close();
      }
    },
  };
}

function missing(place: string, name: string, error: unknown): never {
  const absent = error instanceof Error && "code" in error && error.code === "ENOENT";
  throw absent
    ? new BerxitError(`${place}: '${name}' is missing. ${COPY_AGAIN}`)
    : failure(`${place}: cannot read '${name}'`, error, COPY_AGAIN);
}

function tooShort(place: string, name: string, end: number): BerxitError {
  return new BerxitError(`${place}: '${name}' has fewer than ${end} bytes. ${COPY_AGAIN}`);
}

class HttpFiles implements BundleFiles {
  readonly place: string;

  constructor(private readonly base: URL) {
    this.place = base.href;
  }

  async read(name: string): Promise<Uint8Array> {
    const response = await this.fetch(name, {});
    return this.body(name, response);
  }

  async readRange(name: string, start: number, end: number): Promise<Uint8Array | null> {
    const response = await this.fetch(name, { headers: { Range: `bytes=${start}-${end - 1}` } });
    if (response.status !== 206) {
      await response.body?.cancel();
      return null;
    }
    const bytes = await this.body(name, response);
    if (bytes.length !== end - start) throw tooShort(this.place, name, end);
    return bytes;
  }

  private async fetch(name: string, options: RequestInit): Promise<Response> {
    const url = new URL(name.split("/").map(encodeURIComponent).join("/"), this.base);
    let response: Response;
    try {
      response = await fetch(url, options);
    } catch (error) {
      throw failure(`${this.place}: cannot fetch '${name}'`, error, "Check the address and the connection");
    }
    if (response.status === 404) throw new BerxitError(`${this.place}: '${name}' is missing. ${COPY_AGAIN}`);
    if (!response.ok) {
      throw new BerxitError(`${this.place}: '${name}': the server answered ${response.status}. Check the address`);
    }
    return response;
  }

  private async body(name: string, response: Response): Promise<Uint8Array> {
    try {
      return new Uint8Array(await response.arrayBuffer());
    } catch (error) {
      throw failure(`${this.place}: cannot fetch '${name}'`, error, "Check the connection");
    }
  }
}

/** sha256 of some bytes as hexadecimal digits. Raises BerxitError where the browser provides no WebCrypto. */
export async function sha256(bytes: Uint8Array): Promise<string> {
  if (!globalThis.crypto?.subtle) {
    throw new BerxitError("checksums need WebCrypto, which browsers provide on https: and localhost only: load with { verify: false }");
  }
  const digest = await crypto.subtle.digest("SHA-256", bytes as Uint8Array<ArrayBuffer>);
  return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
