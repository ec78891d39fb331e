/** Unicode's White_Space and the separators U+001C to U+001F, which every runner removes around a text. */
export function stripped(text: string): string {
  return text.replace(/^[\p{White_Space}\x1C-\x1F]+/u, "").replace(LAST_BLANKS, "");
}

const LAST_BLANKS = /(?<![\p{White_Space}\x1C-\x1F])[\p{White_Space}\x1C-\x1F]+$/u;

/** Number of characters (Unicode scalar values). */
export function characters(text: string): number {
  let count = 0;
  for (let i = 0; i < text.length; i++) if ((text.charCodeAt(i) & 0xfc00) !== 0xdc00) count++;
  return count;
}

/** The character that ends at an index; "" at the start. */
export function before(text: string, place: number): string {
  return place > 0 ? (Array.from(text.slice(Math.max(0, place - 2), place)).at(-1) ?? "") : "";
}

/** The character that starts at an index; "" at the end. */
export function after(text: string, place: number): string {
  return place < text.length ? String.fromCodePoint(text.codePointAt(place) as number) : "";
}

/** A pattern that matches this text. */
export function escaped(text: string): string {
  return text.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&");
}

/** The first `count` characters; the text itself if it has no more. */
export function prefix(text: string, count: number): string {
  if (text.length <= count) return text;
  let end = 0;
  for (; count > 0 && end < text.length; count--) end += (text.codePointAt(end) as number) > 0xffff ? 2 : 1;
  return text.slice(0, end);
}
