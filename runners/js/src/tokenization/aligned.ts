/** A step that changes a text. */
export type Step = (text: string) => string;

/** Largest number of characters that a step may combine. Longer runs are aligned in parts. */
const LONGEST = 32;

/** A range of UTF-16 units of the source text. */
type Range = readonly [start: number, end: number];

/**
 * A text in a state of tokenization. If it is aligned, each of its UTF-16 units has a range of the source text, as in the
 * tokenizers library: that of the character that it replaces.
 */
export class AlignedText {
  private constructor(readonly text: string, private readonly ranges: Range[] | null) {}

  static of(text: string, aligned: boolean): AlignedText {
    if (!aligned) return new AlignedText(text, null);
    const ranges: Range[] = [];
    let at = 0;
    for (const character of text) {
      const range: Range = [at, (at += character.length)];
      for (let unit = 0; unit < character.length; unit++) ranges.push(range);
    }
    return new AlignedText(text, ranges);
  }

  /** The source range of the units from `start` to `end`; [0, 0] if there are none, or the text is not aligned. */
  rangeOf(start: number, end: number): Range {
    const { ranges } = this;
    const last = Math.min(end, ranges?.length ?? 0);
    return ranges === null || start >= last ? [0, 0] : [ranges[start][0], ranges[last - 1][1]];
  }

  slice(start: number, end?: number): AlignedText {
    return new AlignedText(this.text.slice(start, end), this.ranges?.slice(start, end) ?? null);
  }

  /** The matches of a pattern with the flag g. */
  matches(pattern: RegExp): AlignedText[] {
    if (this.ranges === null) return (this.text.match(pattern) ?? []).map((text) => new AlignedText(text, null));
    return Array.from(this.text.matchAll(pattern), (match) => this.slice(match.index, match.index + match[0].length));
  }

  /** The text with `mark` in front, which has the range of the first unit. */
  prepended(mark: string): AlignedText {
    return new AlignedText(mark + this.text, this.ranges && [...Array.from(mark, () => this.ranges![0]), ...this.ranges]);
  }

  /** Replaces each match of a pattern with the flag g. The content has the range of the last matched unit. */
  replaced(pattern: RegExp, content: string): AlignedText {
    const text = this.text.replace(pattern, () => content);
    if (this.ranges === null) return new AlignedText(text, null);
    const ranges: Range[] = [];
    let done = 0;
    for (const match of this.text.matchAll(pattern)) {
      for (; done < match.index; done++) ranges.push(this.ranges[done]);
      done += match[0].length;
      for (let unit = 0; unit < content.length; unit++) ranges.push(this.ranges[done - 1]);
    }
    return new AlignedText(text, [...ranges, ...this.ranges.slice(done)]);
  }

  /**
   * Applies a step. To align the result, the text is divided into the smallest parts that the step changes independently.
   * Each character of a changed part has the range of the character at the same place, or of the last one.
   */
  changed(step: Step): AlignedText {
    const whole = step(this.text);
    if (this.ranges === null || whole === this.text) return new AlignedText(whole, this.ranges);
    let [part, result, size, start] = ["", "", 0, 0]; // `size`: characters of the part
    const ranges: Range[] = [];
    const close = (): void => {
      const before = Array.from(part, (character) => this.ranges![(start += character.length) - 1]);
      Array.from(result).forEach((character, place) => {
        for (let unit = 0; unit < character.length; unit++) ranges.push(before[Math.min(place, before.length - 1)]);
      });
    };
    for (const character of this.text) {
      const alone = step(character);
      const together = size > 0 && size < LONGEST ? step(part + character) : null;
      if (together !== null && together !== result + alone) {
        [part, result, size] = [part + character, together, size + 1];
      } else {
        close();
        [part, result, size] = [character, alone, 1];
      }
    }
    close();
    // The lengths differ only after a part of LONGEST characters.
    while (ranges.length < whole.length) ranges.push(ranges.at(-1) ?? this.rangeOf(0, this.text.length));
    return new AlignedText(whole, ranges.slice(0, whole.length));
  }
}
