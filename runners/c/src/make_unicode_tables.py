"""Writes unicode_tables.inc: what the tokenizers library does with every character.

    python runners/c/src/make_unicode_tables.py

The library contains tables of several Unicode versions: one for categories, one for normalization, one for the pattern
of byte-level BPE. So the tables are not those of one version. This program applies the library's parts to every
character and stores the results, so that the C runner returns the token ids of training.
"""

from __future__ import annotations

import json
import struct
import unicodedata
from base64 import b64encode
from collections.abc import Callable, Iterable
from pathlib import Path

import tokenizers
from tokenizers import Tokenizer, normalizers, pre_tokenizers

FILE = Path(__file__).with_name("unicode_tables.inc")
CHARACTERS = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
FLAGS = (
    "whitespace",
    "control",
    "nonspacing",
    "mark",
    "punctuation",
    "letter",
    "number",
    "blank",
    "word",
    "extends",
    "prepends",
    "breaks",
    "pictograph",
)
"""Names of the bits, the lowest first."""
HANGUL = range(0xAC00, 0xD7A4)
BASES = (
    (0x3400, 0xA000),
    (0xAC00, 0xD7A4),
    (0xE000, 0xF900),
    (0x17000, 0x18D00),
    (0x20000, 0xE0000),
    (0xF0000, 0x110000),
)
"""Characters that are graphemes of their own: ideographs, syllables, private use, planes without characters."""
BLOCK = 64
TEXT = "X"
"""Replacement in the character maps that probe for graphemes."""


def bert(**options: bool) -> Callable[[str], str]:
    off = {"clean_text": False, "handle_chinese_chars": False, "strip_accents": False, "lowercase": False}
    return normalizers.BertNormalizer(**{**off, **options}).normalize_str  # type: ignore[no-any-return]


def words(pre_tokenizer: pre_tokenizers.PreTokenizer) -> Callable[[str], list[str]]:
    return lambda text: [word for word, _ in pre_tokenizer.pre_tokenize_str(text)]


def charsmap() -> bytes:
    """A precompiled character map of SentencePiece that maps every character to TEXT.

    A double-array trie: the unit of a byte is stored at (place of its parent XOR offset of its parent) XOR byte. Every
    inner node has a block of 256 units of its own. The leaves share the first block, which contains the values.
    """
    units = [1 << 31] * 256  # value: the replacement starts at byte 0
    units[0] = 1 << 10 | 1 << 9  # the root; its block starts at 256
    units += [0] * 256
    places = {b"": 0}

    def block(offset: int) -> int:
        return offset >> 8 << 10 | 1 << 9

    blocks = {b"": 256}
    for c in [c for c in CHARACTERS[1:] if not any(first <= ord(c) < end for first, end in BASES)] + [TEXT]:
        path = c.encode()
        for size in range(1, len(path) + 1):
            prefix, parent = path[:size], path[: size - 1]
            if prefix in places:
                continue
            place = (blocks[parent] | places[parent] & 255) ^ prefix[-1]
            places[prefix] = place
            if size == len(path):
                units[place] = block(place & ~255) | 1 << 8 | prefix[-1]
            else:
                blocks[prefix] = len(units)
                units += [0] * 256
                units[place] = block(place & ~255 ^ blocks[prefix]) | prefix[-1]
    trie = struct.pack(f"<{len(units)}I", *units)
    return struct.pack("<I", len(trie)) + trie + TEXT.encode() + b"\0"


def tokenizer_with(**parts: object) -> Tokenizer:
    model = {"type": "WordPiece", "vocab": {"a": 0, "#": 1}, "unk_token": "a", "continuing_subword_prefix": "##"}
    data = {"version": "1.0", "model": {**model, "max_input_chars_per_word": 9}, "added_tokens": []}
    return Tokenizer.from_str(json.dumps({**data, **parts}))


def graphemes() -> Callable[[str], str]:
    """Replaces each grapheme of at most 5 bytes, and each character of the others, by TEXT."""
    content = {"type": "Precompiled", "precompiled_charsmap": b64encode(charsmap()).decode()}
    return tokenizer_with(normalizer=content).normalizer.normalize_str  # type: ignore[no-any-return]


def properties() -> list[int]:
    """The bits of every character."""
    clean, nonspacing = bert(clean_text=True), bert(strip_accents=True)
    mark, decomposed = normalizers.StripAccents().normalize_str, normalizers.NFD().normalize_str
    by_blank, by_bert = words(pre_tokenizers.WhitespaceSplit()), words(pre_tokenizers.BertPreTokenizer())
    by_bytes = words(pre_tokenizers.ByteLevel(add_prefix_space=False))
    token = {"id": 1, "content": "#", "single_word": True, "lstrip": False, "rstrip": False}
    single = tokenizer_with(added_tokens=[{**token, "normalized": False, "special": True}])
    replaced, picture = graphemes(), "©\u200d"

    def of_block(block: str) -> int | None:
        """The bits of all characters of a block of BASES if they are equal: letters, or unknown to the library."""
        if not all(f(block) == block for f in (clean, nonspacing, mark)) or len(by_blank(block)) > 1:
            return None
        if len(by_bert(block)) > 1:
            return None
        if len(by_bytes(f"a{block}")) == 1:
            return 1 << FLAGS.index("letter") | 1 << FLAGS.index("word")
        unknown = len(by_bytes(f"!{block}")) == 1 and all(unicodedata.category(c) == "Cn" for c in block)
        return 0 if unknown else None

    found: list[int] = []
    for place, c in enumerate(CHARACTERS):
        if len(found) > place:
            continue
        block = "".join(CHARACTERS[place : place + BLOCK])
        if any(first <= ord(block[0]) and ord(block[-1]) < end for first, end in BASES):
            equal = of_block(block)
            if equal is not None:
                found += [equal] * len(block)
                continue
        if c == "\0":  # ends the spelling in a character map
            found.append(1 << FLAGS.index("control") | 1 << FLAGS.index("breaks"))
            continue
        whitespace = len(by_blank(f"a{c}a")) == 2
        control = clean(f"a{c}a") == "aa"
        assert control or clean(f"a{c}a") == ("a a" if whitespace else f"a{c}a"), c
        plain = decomposed(c) == c
        letter = len(by_bytes(f"a{c}")) == 1
        number = len(by_bytes(f"1{c}")) == 1
        blank = not (letter or number) and len(by_bytes(f"!{c}")) == 2
        size = len(c.encode())
        base = any(first <= ord(c) < end for first, end in BASES)
        extends = not base and replaced(f"a{c}") == TEXT
        prepends = not base and replaced(f"{c}a") == TEXT
        # The other two matter in graphemes of at most 5 bytes only.
        breaks = not base and size <= 3 and replaced(f"{c}\u0301") == 2 * TEXT
        joined = size < 4 and not (base or breaks or extends) and replaced(f"{picture}{c}") == 3 * TEXT
        pictograph = c == "©" or (size > 1 and joined)
        values = (
            whitespace,
            control,
            plain and nonspacing(f"a{c}a") == "aa",
            mark(f"a{c}a") == "aa",
            by_bert(f"a{c}a") == ["a", c, "a"],
            letter,
            number,
            blank,
            1 not in single.encode(f"#{c}").ids,
            extends,
            prepends,
            breaks,
            pictograph,
        )
        found.append(sum(bit << place for place, bit in enumerate(values)))
    return found


def ranges(values: Iterable[int]) -> list[tuple[int, int, int]]:
    """First and last character, and the value, of each run of equal values other than 0."""
    found: list[tuple[int, int, int]] = []
    for c, value in zip(CHARACTERS, values, strict=True):
        code = ord(c)
        if found and found[-1][2] == value and found[-1][1] in (code - 1, 0xD7FF if code == 0xE000 else code - 1):
            found[-1] = (found[-1][0], code, value)
        elif value:
            found.append((code, code, value))
    return found


def combining_class(nfd: Callable[[str], str], c: str) -> int:
    """The canonical combining class, 0 if the library does not know the character."""
    value = unicodedata.combining(c)
    reordered = value and (nfd(f"\u0345{c}") != f"\u0345{c}" or nfd(f"{c}\u0334") != f"{c}\u0334")
    return value if reordered else 0


def mapping(name: str, entries: Iterable[tuple[str, str]]) -> str:
    """Two arrays: the characters with the place of their replacement, and all replacements."""
    keys, pool = [], []
    for c, text in entries:
        keys.append(f"{{{ord(c)},{len(pool)},{len(text)}}}")
        pool += [str(ord(each)) for each in text]
    return f"{array('Mapping', name, keys)}{array('char32_t', f'{name}Text', pool)}"


def array(kind: str, name: str, items: list[str]) -> str:
    lines, line = [], ""
    for item in items:
        if len(line) + len(item) > 118:
            lines.append(line)
            line = ""
        line += f"{item},"
    body = "\n".join([*lines, line])
    return f"const {kind} k{name}[] = {{\n{body}\n}};\n"


def main() -> None:
    nfd, nfc = normalizers.NFD().normalize_str, normalizers.NFC().normalize_str
    nfkd, lower = normalizers.NFKD().normalize_str, normalizers.Lowercase().normalize_str
    blocks = ("".join(CHARACTERS[place : place + BLOCK]) for place in range(0, len(CHARACTERS), BLOCK))
    changed = [c for block in blocks if not nfkd(block) == lower(block) == block for c in block]
    others = [c for c in changed if ord(c) not in HANGUL]
    decomposed = [(c, nfd(c)) for c in others if nfd(c) != c]
    compatible = [(c, nfkd(c)) for c in others if nfkd(c) != nfd(c)]
    lowered = [(c, lower(c)) for c in changed if lower(c) != c]
    composed = []
    for c in others:
        parts = unicodedata.decomposition(c).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            first, second = (chr(int(part, 16)) for part in parts)
            if nfc(first + second) == c:
                composed.append(f"{{{ord(first)},{ord(second)},{ord(c)}}}")
    composed.sort(key=lambda entry: tuple(map(int, entry.strip("{}").split(","))))
    classes = ranges(combining_class(nfd, c) for c in CHARACTERS)
    bits = ranges(properties())
    text = f"// Generated by make_unicode_tables.py from tokenizers {tokenizers.__version__}. Do not edit.\n"
    text += "enum : unsigned {\n" + "".join(f"  k{name.title()} = {1 << n},\n" for n, name in enumerate(FLAGS)) + "};\n"
    text += array("Range", "Properties", [f"{{{a},{b},{v}}}" for a, b, v in bits])
    text += array("Range", "CombiningClasses", [f"{{{a},{b},{v}}}" for a, b, v in classes])
    text += mapping("Decomposed", decomposed) + mapping("Compatible", compatible) + mapping("Lowered", lowered)
    text += array("Pair", "Composed", composed)
    FILE.write_text(text, encoding="ascii")
    print(f"{FILE}: {len(text)} bytes")


if __name__ == "__main__":
    main()
