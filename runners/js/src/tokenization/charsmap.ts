import { BerxitError } from "../errors.js";

const DECODER = new TextDecoder();
const ENCODER = new TextEncoder();

/** Precompiled character map of SentencePiece: a double-array trie that maps spellings to their replacement. */
export class Charsmap {
  private readonly trie: Uint32Array;
  private readonly texts: Uint8Array;
  private readonly graphemes = new Intl.Segmenter("und", { granularity: "grapheme" });

  /** Parses the map: the size of the trie in bytes, the trie, the zero-terminated replacements; little-endian. */
  constructor(base64: string) {
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    const size = bytes.length >= 4 ? view.getUint32(0, true) : 0;
    if (size < 4 || size % 4 || 4 + size > bytes.length) throw new BerxitError("a damaged precompiled_charsmap");
    this.trie = Uint32Array.from({ length: size / 4 }, (_, place) => view.getUint32(4 + 4 * place, true));
    this.texts = bytes.subarray(4 + size);
  }

  /** Replaces each grapheme if it is short and mapped as a whole, otherwise each of its characters. */
  apply(text: string): string {
    let found = "";
    for (const { segment } of this.graphemes.segment(text)) {
      const bytes = ENCODER.encode(segment);
      const whole = bytes.length < 6 ? this.replacement(bytes) : null;
      if (whole !== null) found += whole;
      else for (const character of segment) found += this.replacement(ENCODER.encode(character)) ?? character;
    }
    return found;
  }

  /** Replacement of the shortest mapped prefix of the spelling, which replaces the whole spelling; null without one. */
  private replacement(spelling: Uint8Array): string | null {
    let at = offset(this.trie[0]);
    for (const byte of spelling) {
      at ^= byte;
      if (byte === 0 || at >= this.trie.length) return null;
      const unit = this.trie[at];
      if ((unit & 0x800000ff) !== byte) return null;
      at ^= offset(unit);
      if ((unit >>> 8) & 1 && at < this.trie.length) {
        const start = this.trie[at] & 0x7fffffff;
        const end = this.texts.indexOf(0, start);
        return DECODER.decode(this.texts.subarray(start, end < 0 ? undefined : end));
      }
    }
    return null;
  }
}

function offset(unit: number): number {
  return (unit >>> 10) << ((unit & 0x200) >>> 6);
}
