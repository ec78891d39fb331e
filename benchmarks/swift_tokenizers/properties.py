"""Properties of characters on which the two sides differ, and the version of Unicode that explains each difference.

Both sides read the same properties from tables of different Unicode versions. For each property, one tokenizer shows
its value in the token ids. A difference is explained by a version in one of three cases only:

- The library treats the character as one that no version assigns, and its age is newer than the library's table.
- The other runner's table does not contain the character yet.
- The property of the character changed between the versions of the two tables (CHANGED).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.swift_tokenizers.comparison import Encoder, Program, differing
from benchmarks.swift_tokenizers.pipelines import bytewise, token

Version = tuple[int, int]


@dataclass(frozen=True)
class Property:
    name: str
    table: str
    """Source of the library's table."""
    version: Version
    """Of the library's table."""
    tokenizer: dict[str, Any]
    contexts: str
    """Text that shows the property of the character in place of @."""

    def text(self, character: str) -> str:
        return self.contexts.replace("@", character)


def properties(vectors: Path) -> list[Property]:
    """The properties that the tokenizers use. ``vectors``: folder of the families' tokenizers."""
    precompiled = json.loads((vectors / "unigram.json").read_text(encoding="utf-8"))["normalizer"]["normalizers"][0]
    normalization = ("unicode-normalization-alignments 0.1", (9, 0))
    categories = ("unicode_categories 0.1", (8, 0))
    std = ("Rust's standard library", (17, 0))
    marks = "a\u0345@a\u0301@a\u0323@a\u0334@a"  # marks of classes above, between and below
    bert = dict.fromkeys(("clean_text", "handle_chinese_chars", "strip_accents", "lowercase"), False)

    def normalizer(kind: str, **options: bool) -> dict[str, Any]:
        return bytewise({"type": kind, **(bert if options else {}), **options}, None)

    words = {**bytewise(None, None), "added_tokens": [token(256, "foo", single_word=True)]}
    return [
        Property("canonical decomposition", *normalization, normalizer("NFD"), "a@"),
        Property("compatibility decomposition", *normalization, normalizer("NFKD"), "a@"),
        Property("combining class", *normalization, normalizer("NFD"), marks),
        Property("composition", *normalization, normalizer("NFC"), "a@\u0301 @\u0308 e\u0301@\u0301 \u1100@"),
        Property("mark", *normalization, normalizer("StripAccents"), "a@a"),
        Property("nonspacing mark", *categories, normalizer("BertNormalizer", strip_accents=True), "a@a"),
        Property("control or format", *categories, normalizer("BertNormalizer", clean_text=True), "a@a"),
        Property("punctuation", *categories, bytewise(None, {"type": "BertPreTokenizer"}), "a@a"),
        Property("ideograph", *std, normalizer("BertNormalizer", handle_chinese_chars=True), "a@a"),
        Property("lower case", *std, normalizer("Lowercase"), "a@a"),
        Property("white space", *std, bytewise(None, {"type": "WhitespaceSplit"}), "a@a"),
        Property("letter or number", "Oniguruma", (15, 0), bytewise(None, None), "a@ 1@ !@ @'s"),
        Property("word character", "regex-syntax", (16, 0), words, "@foo foo@"),
        Property("grapheme", "unicode-segmentation", (17, 0), bytewise(precompiled, None), "e\u0301@ @e\u0301"),
    ]


@dataclass(frozen=True)
class Change:
    version: Version
    before: str
    after: str
    """Value from this version on."""


CHANGED = {
    "\u1885": Change((9, 0), "otherLetter", "nonspacingMark"),
    "\u1886": Change((9, 0), "otherLetter", "nonspacingMark"),
    "\U000111c9": Change((11, 0), "otherPunctuation", "nonspacingMark"),
    "\u166d": Change((12, 0), "otherPunctuation", "otherSymbol"),
    "\u1cf2": Change((12, 0), "spacingMark", "otherLetter"),
    "\u1cf3": Change((12, 0), "spacingMark", "otherLetter"),
    "\ua9bd": Change((12, 0), "spacingMark", "nonspacingMark"),
    "\u1734": Change((14, 0), "nonspacingMark", "spacingMark"),
    "\U0001171e": Change((16, 0), "nonspacingMark", "spacingMark"),
}
"""Characters whose general category changed after they were assigned: DerivedGeneralCategory.txt of each version. The
names are Swift's."""
CHANGED_BREAK = {"\U00011a3a": Change((17, 0), "Prepend", "Other")}
"""Characters whose Grapheme_Cluster_Break changed: GraphemeBreakProperty.txt of each version."""
STAND_INS = {2: "\u0378", 3: "\u2fe0", 4: "\U0001fffd"}
"""Number of bytes in UTF-8 -> a character that no version of Unicode assigns."""


@dataclass(frozen=True)
class Found:
    """Differences of the properties."""

    explained: Mapping[str, Mapping[str, str]]
    """Property -> character -> version that explains it."""
    unexplained: Mapping[str, list[str]]
    """Property -> characters."""
    version: Version
    """Of the other runner's table of general categories."""


def compare_properties(program: Program, folder: Path, vectors: Path, characters: Sequence[str]) -> Found:
    """Compares the properties of these characters."""
    encoders: list[tuple[Property, Encoder]] = []
    for number, each in enumerate(properties(vectors)):
        file = folder / f"property_{number}.json"
        file.write_text(json.dumps(each.tokenizer, ensure_ascii=False), encoding="utf-8")
        encoders.append((each, Encoder(file, 512)))
    texts = [{each.text(character): character for character in characters} for each, _ in encoders]
    jobs = [(encoder, list(each)) for (_, encoder), each in zip(encoders, texts, strict=True)]
    differences, _, _ = differing(program, folder, jobs)
    (folder / "characters").write_text("".join(characters), encoding="utf-8")
    ages = dict(zip(characters, map(age, program.run("describe", str(folder / "characters"))), strict=True))
    version = max(version for version, _ in ages.values() if version)
    explained: dict[str, dict[str, str]] = {}
    unexplained: dict[str, list[str]] = {}
    for (each, encoder), shown, found in zip(encoders, texts, differences, strict=True):
        for text, _ in found:
            character = shown[str(text)]
            reason = explanation(each, encoder, character, ages[character], version, program)
            if reason:
                explained.setdefault(each.name, {})[character] = reason
            else:
                unexplained.setdefault(each.name, []).append(character)
    return Found(explained, unexplained, version)


def age(line: str) -> tuple[Version | None, str]:
    """Version in which the character was assigned (None: not in the other runner's table), and its general category."""
    major, minor, category = line.split()
    return ((int(major), int(minor)) if major != "-" else None), category


def explanation(
    each: Property,
    encoder: Encoder,
    character: str,
    described: tuple[Version | None, str],
    own: Version,
    program: Program,
) -> str | None:
    """Reason of a difference; None if no Unicode version explains it. ``own``: version of the program's tables."""
    assigned, category = described
    if assigned is None:
        return f"not in {program.name}'s tables"
    if assigned > each.version and unassigned(each, encoder, character):
        return f"assigned {'in' if program.states_ages else 'up to'} {assigned[0]}.{assigned[1]}"
    if each.name == "grapheme":
        change = CHANGED_BREAK.get(character)
    else:
        change = CHANGED.get(character)
        if change and category != (change.after if own >= change.version else change.before):
            return None
    if change and min(each.version, own) < change.version <= max(each.version, own):
        return f"changed in {change.version[0]}.{change.version[1]}"
    return None


def unassigned(each: Property, encoder: Encoder, character: str) -> bool:
    """True if the library treats the character as one that no version assigns."""
    stand_in = STAND_INS[len(character.encode())]
    with_character, without = (
        bytes(min(number, 255) for number in encoder.ids(each.text(c))) for c in (character, stand_in)
    )
    return with_character.replace(character.encode(), stand_in.encode()) == without


def ranges(characters: Sequence[str]) -> list[str]:
    """Ranges of code points, in hexadecimal."""
    codes = set(map(ord, characters))
    starts = sorted(code for code in codes if code - 1 not in codes)
    ends = sorted(code for code in codes if code + 1 not in codes)
    return [f"{a:04X}" if a == b else f"{a:04X}-{b:04X}" for a, b in zip(starts, ends, strict=True)]


def summary(found: Found, vectors: Path) -> dict[str, Any]:
    """Per property: the library's table, and the characters that differ, by reason."""
    report: dict[str, Any] = {}
    for each in properties(vectors):
        reasons: dict[str, list[str]] = {}
        for character, reason in found.explained.get(each.name, {}).items():
            reasons.setdefault(reason, []).append(character)
        report[each.name] = {
            "library": f"{each.table}, Unicode {each.version[0]}.{each.version[1]}",
            "explained": {
                reason: {"characters": len(reasons[reason]), "ranges": ranges(reasons[reason])}
                for reason in sorted(reasons, key=lambda reason: [int(n) for n in re.findall(r"\d+", reason)])
            },
            "unexplained": ranges(found.unexplained.get(each.name, [])),
        }
    return report
