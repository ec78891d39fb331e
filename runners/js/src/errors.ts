/** Failure of a bundle, a file or ONNX Runtime. The message is one line: the failure, the place and the remedy. */
export class BerxitError extends Error {
  constructor(message: string, options?: ErrorOptions) {
    super(oneLine(message), options);
    this.name = new.target.name;
  }
}

/** Invalid argument of the caller. */
export class InputError extends BerxitError {}

/** The text with escapes for control characters and lone surrogates. */
function oneLine(text: string): string {
  return text.replace(
    /[\p{Cc}\p{Cs}\u2028\u2029]/gu,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

/** An error of a library as a BerxitError; a BerxitError is returned unchanged. */
export function failure(what: string, error: unknown, remedy: string): BerxitError {
  if (error instanceof BerxitError) return error;
  const text = error instanceof Error ? error.message || error.name : String(error);
  const line = (text.split("\n")[0] ?? "").slice(0, 200).replace(/\.+$/, "");
  return new BerxitError(`${what}: ${line}. ${remedy}`, { cause: error });
}
