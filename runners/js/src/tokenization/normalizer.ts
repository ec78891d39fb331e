import { BerxitError } from "../errors.js";
import type { AlignedText, Step } from "./aligned.js";
import { Charsmap } from "./charsmap.js";
import { escaped } from "./unicode.js";

type Change = (text: AlignedText) => AlignedText;
/** A component of tokenizer.json. */
export type Component = { type: string } & Record<string, any>;

/**
 * The normalizer of tokenizer.json, as the tokenizers library computes it. That of @huggingface/tokenizers is not used: it
 * replaces SentencePiece's character map by NFKC, lowercases with context (final sigma), and treats characters beyond
 * U+FFFF, control characters and U+0085 differently.
 */
export function normalizer(component: Component | null): Change {
  const changes = component === null ? [] : changesOf(component);
  return (text) => changes.reduce((found, change) => change(found), text);
}

function changesOf(component: Component): Change[] {
  if (component.type === "Sequence") return component.normalizers.flatMap(changesOf);
  if (component.type === "Replace") return [replacement(component)];
  if (component.type === "Strip") {
    const { strip_left: left = true, strip_right: right = true } = component;
    return [(text) => text.slice(left ? text.text.search(/\P{White_Space}|$/u) : 0, right ? endOf(text.text) : undefined)];
  }
  return stepsOf(component).map((step) => (text) => text.changed(step));
}

/** Index after the last character that is not whitespace. */
function endOf(text: string): number {
  return text.replace(/(?<!\p{White_Space})\p{White_Space}+$/u, "").length;
}

/** Regular expressions of the tokenizers that are supported, in JavaScript's syntax. */
const PATTERNS: Record<string, string> = {
  " {2,}": " {2,}", "\\s{2,}|[\\n\\r\\t]": "\\p{White_Space}{2,}|[\\n\\r\\t]",
};

function replacement({ pattern: { String: fixed, Regex: regex }, content }: Component): Change {
  if (!fixed && !Object.hasOwn(PATTERNS, regex)) throw new BerxitError(`the pattern '${regex}' of the normalizer Replace`);
  const pattern = new RegExp(fixed ? escaped(fixed) : PATTERNS[regex], "gu");
  return (text) => text.replaced(pattern, content);
}

function stepsOf(component: Component): Step[] {
  switch (component.type) {
    case "BertNormalizer": {
      const { clean_text = true, handle_chinese_chars = true, lowercase: lower = true } = component;
      return [
        ...(clean_text ? [cleanText] : []), ...(handle_chinese_chars ? [spaceChinese] : []),
        ...(component.strip_accents ?? lower ? [form("NFD"), remove(/\p{Mn}/gu)] : []), ...(lower ? [lowercase] : []),
      ];
    }
    case "NFC": case "NFD": case "NFKC": case "NFKD":
      return [form(component.type)];
    case "Lowercase":
      return [lowercase];
    case "StripAccents":
      return [remove(/\p{M}/gu)];
    case "Precompiled": {
      const map = new Charsmap(component.precompiled_charsmap);
      return [(text) => map.apply(text)];
    }
    default:
      throw new BerxitError(`the normalizer '${component.type}'`);
  }
}

const form = (name: string): Step => (text) => text.normalize(name);
const remove = (pattern: RegExp): Step => (text) => text.replace(pattern, "");

/** Lowercase of each character, regardless of its neighbours. */
const lowercase: Step = (text) =>
  /\u03a3/.test(text) ? Array.from(text, (character) => character.toLowerCase()).join("") : text.toLowerCase();

/** Removes control characters, except tabs and line ends; other whitespace becomes a space. */
const cleanText: Step = (text) =>
  text.replace(/[\0\ufffd]|(?![\t\n\r])[\p{Cc}\p{Cf}\p{Co}\p{Cs}]/gu, "").replace(/\p{White_Space}/gu, " ");

/** The blocks of CJK ideographs that BERT's tokenizer lists. */
const CHINESE = new RegExp(
  "[\\u{4e00}-\\u{9fff}\\u{3400}-\\u{4dbf}\\u{20000}-\\u{2a6df}\\u{2a700}-\\u{2b73f}\\u{2b740}-\\u{2b81f}"
    + "\\u{2b920}-\\u{2ceaf}\\u{f900}-\\u{faff}\\u{2f800}-\\u{2fa1f}]", "gu");
const spaceChinese: Step = (text) => text.replace(CHINESE, " $& ");
