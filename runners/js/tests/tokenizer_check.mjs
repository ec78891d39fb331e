// The JavaScript side of benchmarks/swift_tokenizers.
//
//   node tokenizer_check.mjs compare JOBS       JOBS has lines TOKENIZER, MAX_LENGTH, CASES, separated by tabs. Prints each
//                                               difference as a line of JSON, then the number of cases and the seconds
//   node tokenizer_check.mjs describe FILE      prints a line for each character of the file: the version of Unicode of
//                                               JavaScript's tables ("- -" if they do not contain it), and its category
//   node tokenizer_check.mjs read TOKENIZER     prints the milliseconds of five reads
import { readFileSync } from "node:fs";
import { Tokenizer } from "../dist/tokenization/tokenizer.js";

/** Texts with the token ids of the Python runtime; TokenizerCheck of the Swift package describes the format. */
function* cases(bytes) {
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let at = 0;
  const number = () => view.getInt32((at += 4) - 4, true);
  const numbers = (count) => Array.from({ length: count }, number);
  while (at < bytes.length) {
    const texts = Array.from({ length: bytes[at++] }, () => {
      const size = number();
      return decoder.decode(bytes.subarray(at, (at += size)));
    });
    const count = number();
    yield { texts, ids: numbers(count), types: numbers(count), truncated: bytes[at++] === 1 };
  }
}

const equal = (a, b) => a.length === b.length && a.every((each, place) => each === b[place]);
const read = (file) => JSON.parse(readFileSync(file, "utf8"));

function compare(jobs) {
  let [count, seconds] = [0, 0];
  for (const [job, line] of readFileSync(jobs, "utf8").trim().split("\n").entries()) {
    const [file, maxLength, data] = line.split("\t");
    const tokenizer = new Tokenizer(read(file), Number(maxLength));
    let number = 0;
    for (const { texts, ids, types, truncated } of cases(readFileSync(data))) {
      const begin = performance.now();
      const found = tokenizer.encode(texts.length > 1 ? texts : texts[0]);
      seconds += (performance.now() - begin) / 1e3;
      if (!equal(found.inputIds, ids) || !equal(found.tokenTypeIds, types) || found.truncated !== truncated) {
        console.log(JSON.stringify({ job, number, ids: found.inputIds }));
      }
      number++;
    }
    count += number;
  }
  console.log(JSON.stringify({ cases: count, seconds }));
}

/** Names as in Swift. */
const CATEGORIES = {
  otherLetter: /\p{Lo}/u, nonspacingMark: /\p{Mn}/u, spacingMark: /\p{Mc}/u, otherPunctuation: /\p{Po}/u, otherSymbol: /\p{So}/u,
};

function describe(file) {
  const [major, minor = "0"] = process.versions.unicode.split(".");
  for (const character of readFileSync(file, "utf8")) {
    const version = /\p{Cn}/u.test(character) ? "- -" : `${major} ${minor}`;
    const category = Object.keys(CATEGORIES).find((name) => CATEGORIES[name].test(character)) ?? "other";
    console.log(`${version} ${category}`);
  }
}

const [command, file] = process.argv.slice(2);
if (command === "compare") compare(file);
else if (command === "describe") describe(file);
else if (command === "read") {
  for (let i = 0; i < 5; i++) {
    const begin = performance.now();
    new Tokenizer(read(file), 128);
    console.log(performance.now() - begin);
  }
} else {
  console.error("usage: tokenizer_check.mjs compare JOBS | describe FILE | read TOKENIZER");
  process.exit(2);
}
