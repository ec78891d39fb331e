/** A step that changes a text. */
export type Step = (text: string) => string;

/** Largest number of characters that a step may combine, in UTF-16 units. Longer runs are aligned in parts. */
const LONGEST = 64;

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

  /** The range of the source; [0, 0] if the text is empty or not aligned. */
  get range(): Range {
    const { ranges } = this;
    return ranges === null || ranges.length === 0 ? [0, 0] : [ranges[0][0], ranges[ranges.length - 1][1]];
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
    let [part, result, start] = ["", "", 0];
    const ranges: Range[] = [];
    const close = (): void => {
      const before = Array.from(part, (character) => this.ranges![(start += character.length) - 1]);
      Array.from(result).forEach((character, place) => {
        for (let unit = 0; unit < character.length; unit++) ranges.push(before[Math.min(place, before.length - 1)]);
      });
    };
    for (const character of this.text) {
      const alone = step(character);
      const joins = part !== "" && part.length < LONGEST && step(part + character) !== result + alone;
      if (!joins) {
        close();
        [part, result] = ["", alone];
      }
      part += character;
      if (joins) result = step(part);
    }
    close();
    while (ranges.length < whole.length) ranges.push(ranges.at(-1) ?? this.range); // only after a part of LONGEST units
    return new AlignedText(whole, ranges);
  }
}
