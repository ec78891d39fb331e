import { BerxitError } from "../errors.js";
import type { AlignedText } from "./aligned.js";
import type { Component } from "./normalizer.js";

/** Splits a text into words. */
export type Splitter = (text: AlignedText) => AlignedText[];

/** The pre-tokenizer of tokenizer.json, as the tokenizers library computes it. */
export function preTokenizer(component: Component | null): Splitter {
  const steps = component === null ? [] : stepsOf(component);
  return (text) => steps.reduce((words, step) => words.flatMap(step), [text]).filter((word) => word.text !== "");
}

function stepsOf(component: Component): Splitter[] {
  switch (component.type) {
    case "Sequence":
      return component.pretokenizers.flatMap(stepsOf);
    case "BertPreTokenizer":
      return [(text) => text.matches(BERT)];
    case "WhitespaceSplit":
      return [(text) => text.matches(/\P{White_Space}+/gu)];
    case "Split":
      if (component.pattern.String !== " " || component.behavior !== "MergedWithPrevious" || component.invert) break;
      return [(text) => text.matches(/[^ ]* |[^ ]+$/gu)];
    case "ByteLevel":
      if (component.use_regex === false) break;
      return [byteLevel(component.add_prefix_space ?? true)];
    case "Metaspace": {
      const { replacement: mark, prepend_scheme: scheme = "always", split = true } = component;
      if (!["always", "never"].includes(scheme)) break;
      return [(text) => {
        const marked = text.replaced(/ /g, mark);
        const whole = scheme === "always" && !marked.text.startsWith(mark) ? marked.prepended(mark) : marked;
        return split ? wordsFrom(whole, mark) : [whole];
      }];
    }
  }
  throw new BerxitError(`the pre_tokenizer '${component.type}'`);
}

/** Unicode's and ASCII's punctuation, one by one; other characters without whitespace. */
const BERT = /[\p{P}!-/:-@[-`{-~]|(?:(?![\p{P}!-/:-@[-`{-~])\P{White_Space})+/gu;
/** GPT-2's pattern, with Unicode's whitespace. */
const GPT2 = new RegExp(
  "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?(?:(?![\\p{L}\\p{N}])\\P{White_Space})+"
    + "|\\p{White_Space}+(?!\\P{White_Space})|\\p{White_Space}+", "gu");
const ENCODER = new TextEncoder();
/** Byte -> character of GPT-2's alphabet: printable bytes themselves, others characters from U+0100 on. */
const LETTERS: string[] = [];
for (let byte = 0, others = 256; byte < 256; byte++) {
  const printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
  LETTERS.push(String.fromCharCode(printable ? byte : others++));
}

function byteLevel(prefixSpace: boolean): Splitter {
  return (text) => {
    const words = (prefixSpace && !text.text.startsWith(" ") ? text.prepended(" ") : text).matches(GPT2);
    return words.map((word) => word.changed(inLetters));
  };
}

function inLetters(text: string): string {
  return Array.from(ENCODER.encode(text), (byte) => LETTERS[byte]).join("");
}

/** Splits a text before each occurrence of the mark. */
function wordsFrom(text: AlignedText, mark: string): AlignedText[] {
  const words: AlignedText[] = [];
  let start = 0;
  for (let at = text.text.indexOf(mark, 1); at >= 0; at = text.text.indexOf(mark, at + 1)) {
    words.push(text.slice(start, at));
    start = at;
  }
  return [...words, text.slice(start)];
}
