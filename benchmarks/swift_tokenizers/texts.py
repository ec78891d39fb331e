"""Random texts that reveal differences between tokenizers."""

from __future__ import annotations

import random
import sys
import unicodedata

from benchmarks.swift_tokenizers.pipelines import ADDED

GRAPHEMES = (
    *(
        "👩\u200d🚀",
        "👨\u200d👩\u200d👧",
        "🇫🇷",
        "🇫🇷🇩",
        "👍🏽",
        "e\u0301",
        "q\u0308\u0323",
        "\r\n",
        "\u0600a",
        "க்ஷி",
        "नमस्ते",
    ),
    *("각", "\u1100\u1161\u11a8", "か\u3099", "ﾊﾟ", "a\u20dd", "\u200d", "ﷺ", "ﬃ", "Ⅷ", "㎏", "½", "ǆ", "ẛ\u0323", "Å"),
    *("ΣΊΣΥΦΟΣ", "Straße", "İstanbul", "ﬁne", "ς", "ß", "ẞ", "ŉ", "\u1fb3", "\u13a0\uab70", "𐐀"),
)
WORDS = (
    *("the", "quick", "brown", "fox", "don't", "it's", "we're", "I'll", "'twas", "12", "3.5", "a", "Weather", "LIGHTS"),
    *(
        "!?",
        "...",
        "``",
        "''",
        "$4.50",
        "(10:30)",
        "http://x.y/z",
        "snake_case",
        "日本語",
        "中文",
        "한국어",
        "हिन्दी",
        "العربية",
    ),
)
BLANKS = (
    " ",
    "  ",
    "\t",
    "\n",
    "\r\n",
    "\u00a0",
    "\u3000",
    "\u2009",
    "\u200b",
    "\u2028",
    "\x85",
    "\x1c",
    "\ufeff",
    "\x00",
    "",
)
RANGES = (
    *((0x00, 0x80), (0x80, 0x250), (0x300, 0x370), (0x370, 0x590), (0x590, 0x900), (0x900, 0x1200), (0x1100, 0x1200)),
    *((0x1AB0, 0x1F00), (0x1F00, 0x2000), (0x2000, 0x2C00), (0x2C00, 0x3100), (0x3100, 0x3400), (0x4E00, 0x4F00)),
    *((0xA000, 0xAC00), (0xAC00, 0xD7B0), (0xD7B0, 0xD800), (0xE000, 0xE100), (0xF900, 0xFB00), (0xFB00, 0x10000)),
    *((0x10000, 0x13000), (0x16000, 0x17000), (0x1B000, 0x1D000), (0x1D000, 0x1E000), (0x1E000, 0x1FB00)),
    *((0x20000, 0x20100), (0x2A6D0, 0x2A720), (0x2F800, 0x2FA20), (0xE0000, 0xE0200), (0x100000, 0x100010)),
)
MARKS = [chr(c) for c in range(sys.maxunicode + 1) if unicodedata.combining(chr(c))]


def random_text(rng: random.Random) -> str:
    """Words, graphemes, scalars of every block, marks, blanks and added tokens, in random order."""
    size = rng.choice((1, 2, 4, 8, 16, 60))
    kinds = rng.choices((scalar, mark, grapheme, word, blank, added), weights=[rng.random() for _ in range(6)], k=size)
    return "".join(kind(rng) for kind in kinds)


def characters() -> list[str]:
    """Every character that a random text may contain, without whitespace."""
    codes = {code for low, high in RANGES for code in range(low, high)}
    others = "".join((*GRAPHEMES, *WORDS, *BLANKS, *MARKS, *ADDED, *map(str.upper, ADDED), *map(str.lower, ADDED)))
    return sorted(c for c in {*map(chr, codes), *others, *unicodedata.normalize("NFD", others)} if c.strip())


def scalar(rng: random.Random) -> str:
    low, high = rng.choice(RANGES)
    return chr(rng.randrange(low, high))


def mark(rng: random.Random) -> str:
    return rng.choice(MARKS)


def grapheme(rng: random.Random) -> str:
    return rng.choice(GRAPHEMES)


def word(rng: random.Random) -> str:
    return rng.choice(WORDS) + rng.choice((" ", " ", ""))


def blank(rng: random.Random) -> str:
    return rng.choice(BLANKS)


def added(rng: random.Random) -> str:
    text = rng.choice(ADDED)
    changed = rng.choice((text, text.upper(), text.lower(), unicodedata.normalize("NFD", text)))
    return rng.choice(("", " ", "x", "  ")) + changed + rng.choice(("", " ", "x", "  "))
