import { BPE, Unigram, WordPiece } from "@huggingface/tokenizers";
import { BerxitError, failure } from "../errors.js";
import { type Token, type Words, wordsOf } from "../spans.js";
import { AddedTokens, type Piece } from "./added_tokens.js";
import { AlignedText } from "./aligned.js";
import { type Component, normalizer } from "./normalizer.js";
import { type Template, template } from "./template.js";
import { after, characters, prefix, stripped } from "./unicode.js";
import { preTokenizer, type Splitter } from "./words.js";

/** One text, or a pair. */
export type Text = string | readonly [string, string];

/** Token ids of one input, without padding. */
export interface Encoding {
  inputIds: number[];
  tokenTypeIds: number[];
  /** True if the text was truncated. */
  truncated: boolean;
  /** The words of the text, the first one of a pair; null unless the model labels words. */
  words: Words | null;
}

/** Length of the first prefix of a long text, in characters per token of `maxLength`. */
const CHARACTERS_PER_TOKEN = 6;
/** Largest length of the texts of a pair whose tokens are all counted, in characters per token of `maxLength`. */
const COUNTED_CHARACTERS_PER_TOKEN = 32;
/** Growth factor of the prefix of a long text. */
const GROWTH = 2;

/**
 * Tokenizer defined by tokenizer.json. The token ids equal those of training: the models WordPiece, byte-level BPE and
 * Unigram are those of @huggingface/tokenizers; added tokens, normalizer, pre-tokenizer, template and truncation follow
 * docs/bundle.md. Any other content of the file is an error.
 */
export class Tokenizer {
  private readonly addedTokens: AddedTokens;
  private readonly words: Splitter;
  private readonly model: (word: AlignedText) => Token[];
  private readonly template: Template;
  /** Words at the end of a prefix that may depend on the rest of the text: two, or the most that a token may span. */
  private readonly openWords: number;

  /** `json`: content of tokenizer.json. `place`: for messages. `findWords`: also find the words of each text. */
  constructor(json: any, readonly maxLength: number, place = "tokenizer.json", private readonly findWords = false) {
    try {
      this.words = preTokenizer(json.pre_tokenizer);
      this.model = model(json.model);
      this.template = template(json.post_processor);
      this.addedTokens = new AddedTokens(json.added_tokens ?? [], normalizer(json.normalizer));
    } catch (error) {
      const found = error instanceof BerxitError ? new Error(error.message) : error;
      throw failure(`${place}: this runner does not support`, found, "Upgrade this package, or train with another tokenizer");
    }
    this.openWords = Math.max(2, this.addedTokens.longest);
  }

  /**
   * Ids and types of a text or pair, truncated to `maxLength` tokens, the longer text of a pair first. Of a long text,
   * only the necessary prefix is tokenized. `end`: deadline in seconds on `clock`; the prefix does not grow any further
   * if that would miss it.
   */
  encode(text: Text, end = Infinity, clock = () => performance.now() / 1e3): Encoding {
    const given = typeof text === "string" ? [text] : text;
    const texts = given.map(stripped);
    const parts = texts.length > 1 ? this.template.pair : this.template.single;
    const room = Math.max(this.maxLength - parts.filter((part) => "id" in part).length, 0);
    const found = texts.map((each) => this.tokens(each, room, end, clock));
    let counts = found.map((each) => each.tokens.length);
    if (texts.length > 1 && Math.min(...counts) > room) {
      const sizes = texts.map(characters);
      const countable = Math.max(...sizes) <= COUNTED_CHARACTERS_PER_TOKEN * this.maxLength;
      const whole = found.every((each) => each.whole);
      if (countable && !whole && clock() < end) {
        counts = texts.map((each) => this.tokens(each, Infinity, end, clock).tokens.length);
      } else if (!(countable && whole)) { // too long to count the tokens: the number of characters decides
        counts = [room + (sizes[0] > sizes[1] ? 2 : 1), room + 1];
      }
    }
    const kept = longestFirst(counts[0], counts[1] ?? 0, room);
    const encoding: Encoding = {
      inputIds: [], tokenTypeIds: [],
      truncated: found.some((each, place) => !each.whole || kept[place] < each.tokens.length),
      words: null,
    };
    for (const part of parts) {
      const tokens = "id" in part ? [part] : found[part.text].tokens.slice(0, kept[part.text]);
      if (this.findWords && "text" in part && part.text === 0) {
        encoding.words = wordsOf(given[0], tokens as Token[], encoding.inputIds.length);
      }
      for (const { id } of tokens) {
        encoding.inputIds.push(id);
        encoding.tokenTypeIds.push(part.type);
      }
    }
    return encoding;
  }

  /**
   * Tokens of a text, or of a prefix with more than `room` tokens. Normalization and pre-tokenization look ahead at most one
   * word, and the model tokenizes one word at a time: the ids of a prefix without its last words are the first ids of
   * the text.
   */
  private tokens(text: string, room: number, end: number, clock: () => number): { tokens: Token[]; whole: boolean } {
    for (let length = CHARACTERS_PER_TOKEN * this.maxLength; ; length *= GROWTH) {
      const start = prefix(text, length);
      if (start.length === text.length) break;
      const begin = clock();
      const words = this.split(start);
      const found = words.slice(0, -this.openWords).flatMap(this.tokensOf);
      const now = clock();
      if (found.length > room) return { tokens: found, whole: false };
      if (now + GROWTH * (now - begin) > end) return { tokens: words.flatMap(this.tokensOf), whole: false };
    }
    return { tokens: this.split(text).flatMap(this.tokensOf), whole: true };
  }

  private split(text: string): Piece[] {
    return this.addedTokens.split(AlignedText.of(text, this.findWords)).flatMap((piece): Piece[] =>
      piece instanceof AlignedText ? this.words(piece) : [piece]);
  }

  private readonly tokensOf = (piece: Piece): Token[] => (piece instanceof AlignedText ? this.model(piece) : [piece]);
}

const ENCODER = new TextEncoder();
/** Names of the tokens of bytes, for characters that are not in the vocabulary. */
const BYTES = Array.from({ length: 256 }, (_, byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`);
const BYTE = /^<0x[0-9A-F]{2}>$/;

/** Tokens of one word. */
function model(component: Component): (word: AlignedText) => Token[] {
  const differs = component.type === "BPE"
    && (component.dropout || component.ignore_merges || component.continuing_subword_prefix || component.end_of_word_suffix);
  const lacksBytes = component.byte_fallback && (component.type !== "BPE" || BYTES.some((name) => !(name in component.vocab)));
  if (differs || lacksBytes) {
    throw new BerxitError(`a ${component.type} model of another kind than those of RoBERTa, ALBERT and mmBERT`);
  }
  let found: WordPiece | BPE | Unigram;
  switch (component.type) {
    case "WordPiece":
      found = new WordPiece(component as any);
      break;
    case "BPE":
      found = new BPE({ unk_token: undefined, ...component } as any);
      break;
    case "Unigram":
      found = new Unigram(component as any, "");
      break;
    default:
      throw new BerxitError(`the model '${component.type}'`);
  }
  const { tokens_to_ids: ids, unk_token_id: unknown } = found;
  const continued = component.type === "WordPiece" ? component.continuing_subword_prefix : "";
  return (word) => {
    let [at, bytes] = [0, 0];
    return found._call([word.text]).map((token) => {
      const from = at;
      let to: number;
      // An unknown word of WordPiece is one token. The tokens of the other models are parts of the word, or bytes.
      if (component.type === "WordPiece" && token === component.unk_token) to = at = word.text.length;
      else if (component.byte_fallback && BYTE.test(token)) {
        const character = after(word.text, at);
        to = at + character.length;
        if (++bytes === ENCODER.encode(character).length) [at, bytes] = [to, 0];
      } else to = at += token.length - (from > 0 ? continued.length : 0);
      const [start, end] = word.rangeOf(from, to);
      return { id: ids.get(token) ?? (unknown as number), start, end };
    });
  };
}

/** Numbers of tokens kept of each text of a pair, at most `room` in total. An odd token goes to the longer text, or to
 * the second if both are equally long. */
export function longestFirst(first: number, second: number, room: number): [number, number] {
  if (first + second <= room) return [first, second];
  let [shorter, longer] = [Math.min(first, second), 0];
  if (shorter > Math.floor(room / 2)) shorter = Math.floor(room / 2);
  longer = room - shorter;
  return first > second ? [longer, shorter] : [shorter, longer];
}
