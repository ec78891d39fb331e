import { BerxitError } from "./errors.js";

/** Reads a value of a JSON file. Raises BerxitError, which starts with the place, for a value of another type. */
export type Read<T> = (value: unknown, place: string) => T;

const AGAIN = "Export the bundle again";

function misfit(place: string, expected: string, value: unknown): BerxitError {
  const text = JSON.stringify(value) ?? "nothing";
  return new BerxitError(`${place}: expected ${expected}, found ${text.slice(0, 60)}. ${AGAIN}`);
}

export const text: Read<string> = (value, place) => {
  if (typeof value !== "string") throw misfit(place, "a string", value);
  return value;
};

export const flag: Read<boolean> = (value, place) => {
  if (typeof value !== "boolean") throw misfit(place, "true or false", value);
  return value;
};

export const number: Read<number> = (value, place) => {
  if (typeof value !== "number" || !Number.isFinite(value)) throw misfit(place, "a number", value);
  return value;
};

export const integer: Read<number> = (value, place) => {
  if (!Number.isSafeInteger(value)) throw misfit(place, "an integer", value);
  return value as number;
};

export const anything: Read<unknown> = (value) => value;

export const orNull = <T>(read: Read<T>): Read<T | null> => (value, place) =>
  value === null ? null : read(value, place);

export const list = <T>(read: Read<T>): Read<T[]> => (value, place) => {
  if (!Array.isArray(value)) throw misfit(place, "a list", value);
  return value.map((item, index) => read(item, `${place}[${index}]`));
};

export const numberOrList: Read<number | number[]> = (value, place) =>
  Array.isArray(value) ? list(number)(value, place) : number(value, place);

export const record = <T>(read: Read<T>): Read<Record<string, T>> => (value, place) =>
  Object.fromEntries(Object.entries(members(value, place)).map(([key, item]) => [key, read(item, `${place}.${key}`)]));

type Reads = Record<string, Read<unknown>>;
type Values<R extends Reads> = { [K in keyof R]: ReturnType<R[K]> };

/** An object with these keys only. */
export const object = <R extends Reads, O extends Reads = Record<never, never>>(
  required: R, optional: O = {} as O,
): Read<Values<R> & Partial<Values<O>>> => (value, place) => {
  const found = members(value, place);
  const unknown = Object.keys(found).find((key) => !(Object.hasOwn(required, key) || Object.hasOwn(optional, key)));
  if (unknown !== undefined) {
    throw new BerxitError(`${place}: unknown key '${unknown}'. Upgrade this package, or export the bundle again`);
  }
  const missing = Object.keys(required).find((key) => !Object.hasOwn(found, key));
  if (missing !== undefined) throw new BerxitError(`${place}: the key '${missing}' is missing. ${AGAIN}`);
  const reads = { ...optional, ...required } as Reads;
  const read = Object.entries(found).map(([key, item]) => [key, (reads[key] as Read<unknown>)(item, `${place}.${key}`)]);
  return Object.fromEntries(read);
};

function members(value: unknown, place: string): Record<string, unknown> {
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw misfit(place, "an object", value);
  return value as Record<string, unknown>;
}

/** The content of a JSON file. `place`: for messages. */
export function parseJson(bytes: Uint8Array, place: string): unknown {
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (error) {
    throw new BerxitError(`${place}: the file is not JSON in UTF-8. ${AGAIN}`, { cause: error });
  }
}
