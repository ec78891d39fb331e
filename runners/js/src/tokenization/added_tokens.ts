import { BerxitError } from "../errors.js";
import type { Token } from "../spans.js";
import { AlignedText } from "./aligned.js";
import { after, before, characters, escaped } from "./unicode.js";

interface AddedToken {
  id: number;
  content: string;
  single_word: boolean;
  lstrip: boolean;
  rstrip: boolean;
  normalized: boolean;
}

/** A part of a text: an added token, or text. */
export type Piece = Token | AlignedText;

/**
 * Added tokens, such as "[SEP]", which are matched before pre-tokenization, as the tokenizers library does. The matching
 * of @huggingface/tokenizers ignores `single_word`, and strips JavaScript's whitespace.
 */
export class AddedTokens {
  private readonly raw: Matcher;
  private readonly normalized: Matcher;
  /** Characters of the longest token. */
  readonly longest: number;

  /** Raises BerxitError for a token that is empty after normalization, or equals another one then. */
  constructor(tokens: AddedToken[], private readonly normalize: (text: AlignedText) => AlignedText) {
    const seen = new Map<string, number>();
    const found = tokens.map((token) => {
      const content = token.normalized ? normalize(AlignedText.of(token.content, false)).text : token.content;
      if (content === "") throw new BerxitError(`the added token with id ${token.id}, which is empty after normalization`);
      if (token.normalized) {
        const equal = seen.get(content);
        if (equal !== undefined) {
          throw new BerxitError(`the added tokens with ids ${equal} and ${token.id}, which are equal after normalization`);
        }
        seen.set(content, token.id);
      }
      return { ...token, content };
    });
    this.raw = new Matcher(found.filter((token) => !token.normalized));
    this.normalized = new Matcher(found.filter((token) => token.normalized));
    this.longest = Math.max(0, ...found.map((token) => characters(token.content)));
  }

  /** Splits the text at its added tokens, and normalizes the parts between them. */
  split(text: AlignedText): Piece[] {
    return this.raw.split(text).flatMap((piece) =>
      piece instanceof AlignedText ? this.normalized.split(this.normalize(piece)) : [piece]);
  }
}

const WORD = /^[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]$/u;

class Matcher {
  private readonly pattern: RegExp | null;
  private readonly tokens: Map<string, AddedToken>;

  constructor(tokens: AddedToken[]) {
    this.tokens = new Map(tokens.map((token) => [token.content, token]));
    // Of two matches at one place, the longer wins.
    const longestFirst = [...this.tokens.keys()].sort((a, b) => b.length - a.length);
    this.pattern = longestFirst.length > 0 ? new RegExp(longestFirst.map(escaped).join("|"), "gu") : null;
  }

  /** The matches do not overlap, but whitespace that one strips may belong to the next, which is then found, too. */
  split(whole: AlignedText): Piece[] {
    const { text } = whole;
    if (this.pattern === null) return text === "" ? [] : [whole];
    const pieces: Piece[] = [];
    let done = 0; // the text before this index is already split
    for (const match of text.matchAll(this.pattern)) {
      const token = this.tokens.get(match[0]) as AddedToken;
      let start = match.index;
      let end = start + match[0].length;
      if (token.single_word && (isWord(before(text, start)) || isWord(after(text, end)))) continue;
      if (token.lstrip) start = Math.max(start - (/\p{White_Space}*$/u.exec(text.slice(0, start))?.[0].length ?? 0), done);
      if (token.rstrip) end += /^\p{White_Space}*/u.exec(text.slice(end))?.[0].length ?? 0;
      if (done < start) pieces.push(whole.slice(done, start));
      const [first, last] = whole.rangeOf(start, end);
      pieces.push({ id: token.id, start: first, end: last });
      done = end;
    }
    if (done < text.length) pieces.push(whole.slice(done));
    return pieces;
  }
}

function isWord(character: string): boolean {
  return WORD.test(character);
}
