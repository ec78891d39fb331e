import { BerxitError } from "../errors.js";
import type { Component } from "./normalizer.js";

/** A special token, or the place of the first or second text. */
export type Part = { id: number; type: number } | { text: 0 | 1; type: number };

/** The parts of an input: those of a single text, and those of a pair. */
export interface Template {
  single: Part[];
  pair: Part[];
}

/** The post-processor of tokenizer.json, which adds the special tokens. */
export function template(component: Component | null): Template {
  const first: Part = { text: 0, type: 0 };
  if (component === null) return { single: [first], pair: [first, { text: 1, type: 1 }] };
  if (component.type === "TemplateProcessing") {
    const parts = (items: Record<string, any>[]): Part[] => items.flatMap((item): Part[] => {
      if (item.Sequence) return [{ text: item.Sequence.id === "A" ? 0 : 1, type: item.Sequence.type_id }];
      const { id, type_id: type } = item.SpecialToken;
      return component.special_tokens[id].ids.map((each: number) => ({ id: each, type }));
    });
    return { single: parts(component.single), pair: parts(component.pair) };
  }
  if (!["BertProcessing", "RobertaProcessing"].includes(component.type)) {
    throw new BerxitError(`the post_processor '${component.type}'`);
  }
  const [start, end] = [component.cls.at(-1), component.sep.at(-1)] as [number, number];
  const single = [{ id: start, type: 0 }, first, { id: end, type: 0 }];
  const pair: Part[] = component.type === "BertProcessing"
    ? [...single, { text: 1, type: 1 }, { id: end, type: 1 }]
    : [...single, { id: end, type: 0 }, { text: 1, type: 0 }, { id: end, type: 0 }];
  return { single, pair };
}
