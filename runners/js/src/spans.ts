import { after, before, stripped } from "./tokenization/unicode.js";

/** A labelled range of a text. */
export interface Span {
  /** Index of the first character in the text as given: `text.slice(start, end)` is the span. */
  start: number;
  /** Index after the last character. */
  end: number;
  label: string;
  /** Smallest probability of the tags of its words. */
  score: number;
}

/** A token, and its range in the text without surrounding whitespace. */
export interface Token {
  id: number;
  start: number;
  end: number;
}

/** The W words of a tokenized text. */
export interface Words {
  /** (W,) position of the first token of each word in the row. */
  tokens: number[];
  /** (W,) index of the first character of each word in the text as given. */
  starts: number[];
  /** (W,) index after each word. */
  ends: number[];
}

/** Scripts without blanks between words. */
const UNSPACED = "\\u{e00}-\\u{eff}\\u{1000}-\\u{109f}\\u{1780}-\\u{17ff}\\u{3040}-\\u{30ff}\\u{3400}-\\u{4dbf}"
  + "\\u{4e00}-\\u{9fff}\\u{f900}-\\u{faff}\\u{20000}-\\u{3ffff}";
/** A letter, mark or digit of another script. */
const JOINS = new RegExp(`^(?![${UNSPACED}])[\\p{L}\\p{M}\\p{N}]`, "u");

/**
 * The words of a text. `tokens`: the tokens of the stripped text, without special tokens, the first at `position` in the
 * row. A token continues the word before it if it starts in that word, or where it ends, between two characters that join.
 * Any other token starts a word.
 */
export function wordsOf(given: string, tokens: Token[], position: number): Words {
  const text = stripped(given);
  const indent = given.indexOf(text);
  const words: Words = { tokens: [], starts: [], ends: [] };
  tokens.forEach((token, place) => {
    const { end } = token;
    const part = text.slice(token.start, end);
    const content = stripped(part);
    if (content === "") return;
    const start = token.start + part.indexOf(content); // some tokenizers include the blank before a word
    const last = words.ends.length - 1;
    const open = last < 0 ? -1 : words.ends[last] - indent;
    if (start < open || (start === open && JOINS.test(before(text, start)) && JOINS.test(after(text, start)))) {
      words.ends[last] = indent + Math.max(open, end);
    } else {
      words.tokens.push(position + place);
      words.starts.push(indent + start);
      words.ends.push(indent + end);
    }
  });
  return words;
}

/** The spans of IOB2 tags, one per word. An I that continues no span of its label begins one. */
export function spansOf(tags: string[], words: Words, scores: number[]): Span[] {
  const spans: Span[] = [];
  let open = "";
  tags.forEach((tag, place) => {
    const label = tag === "O" ? "" : tag.slice(2);
    const last = spans.at(-1);
    const [start, end, score] = [words.starts[place], words.ends[place], scores[place]];
    if (last !== undefined && label !== "" && label === open && tag.startsWith("I-")) {
      last.end = end;
      last.score = Math.min(last.score, score);
    } else if (label !== "") {
      spans.push({ start, end, label, score });
    }
    open = label;
  });
  return spans;
}
