"""Tokenizers that the Swift package is compared on: those of the model families, and variants that show every
character of the normalized text in the token ids."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

KINDS = ("bert", "mpnet", "roberta", "albert", "unigram", "deberta", "mmbert")
FORMS = ("NFC", "NFD", "NFKC", "NFKD", "StripAccents", "Lowercase")
ADDED = (
    *("[SEP]", "<mask>", "New York", "é", "e\u0301", "ΣΑΣ", "two  blanks", "foo", "foobar", "obar", "İ", "##x", "a b"),
    *("\uff21\uff22", "ﬁ", "ß", "\u1e9b\u0323", "日本", "don't", "_", "1", "👩\u200d🚀", "か\u3099", " bar", "x "),
)
"""Contents of added tokens: some contain others, some change when they are normalized. None is empty when it is
normalized: both sides reject such a token."""


def pipelines(vectors: Path, rng: random.Random) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and content of each tokenizer.json. ``vectors``: folder of the families' tokenizers."""
    for kind in KINDS:
        content = json.loads((vectors / f"{kind}.json").read_text(encoding="utf-8"))
        yield kind, content
        for number in range(2):
            yield (
                f"{kind}_added_{number}",
                {**content, "added_tokens": [*content["added_tokens"], *added(content, rng)]},
            )
        plain = bytewise(content["normalizer"], content["pre_tokenizer"])
        yield f"{kind}_bytes", plain
        for number in range(3):
            yield f"{kind}_bytes_added_{number}", {**plain, "added_tokens": added(plain, rng)}
    for form in FORMS:
        yield form, bytewise({"type": form}, None)
    plain = bytewise(None, None)
    yield "added", {**plain, "added_tokens": [token(256, "foo", single_word=True), token(257, "bar", strips=True)]}


def bytewise(normalizer: Any, pre_tokenizer: Any) -> dict[str, Any]:
    """Tokenizer whose ids show the bytes of the normalized words, and where the words begin.

    Each word starts with a space. A byte-level pre-tokenizer is not applied twice. Instead, all pairs of bytes are
    merged, which shows the words, too.
    """
    letters = alphabet()
    vocabulary = {letter: byte for byte, letter in enumerate(letters)}
    merges: list[list[str]] = []
    if pre_tokenizer and pre_tokenizer["type"] == "ByteLevel":
        merges = [[first, second] for first in letters for second in letters]
        vocabulary.update({first + second: len(letters) + place for place, (first, second) in enumerate(merges)})
    else:
        last = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
        pre_tokenizer = {"type": "Sequence", "pretokenizers": [pre_tokenizer, last] if pre_tokenizer else [last]}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": START,
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


START = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "!", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [
        {"SpecialToken": {"id": "!", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"Sequence": {"id": "B", "type_id": 1}},
    ],
    "special_tokens": {"!": {"id": "!", "ids": [33], "tokens": ["!"]}},
}
"""A token at the start: the runtime rejects a text without tokens."""


def alphabet() -> list[str]:
    """GPT-2's character for each byte: printable bytes themselves, the others from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def token(number: int, text: str, *, single_word: bool = False, strips: bool = False) -> dict[str, Any]:
    flags = {"single_word": single_word, "lstrip": strips, "rstrip": strips, "normalized": False, "special": False}
    return {"id": number, "content": text, **flags}


def added(content: dict[str, Any], rng: random.Random) -> list[dict[str, Any]]:
    """Added tokens with random options, whose contents the tokenizer does not add already.

    A token of the vocabulary has its id; the others follow the vocabulary, as in a file that the library writes. No two
    are equal after normalization: both sides reject such tokens.
    """
    normalizer = Tokenizer.from_str(json.dumps(content)).normalizer
    model = content["model"]
    ids = (
        model["vocab"] if isinstance(model["vocab"], dict) else {text: n for n, (text, _) in enumerate(model["vocab"])}
    )
    known = {token["content"] for token in content["added_tokens"]}
    chosen: dict[str, bool] = {}
    matched: set[str] = set()
    for text in rng.sample(ADDED, rng.randint(3, 8)):
        normalized = rng.random() < 0.5
        pattern = normalizer.normalize_str(text) if normalized and normalizer else text
        if text not in known and not (normalized and pattern in matched):
            chosen[text] = normalized
            matched |= {pattern} if normalized else set()
    following = iter(range(len(ids), len(ids) + len(chosen)))
    return [
        {
            "id": ids[text] if text in ids else next(following),
            "content": text,
            "single_word": rng.random() < 0.3,
            "lstrip": rng.random() < 0.3,
            "rstrip": rng.random() < 0.3,
            "normalized": normalized,
            "special": rng.random() < 0.3,
        }
        for text, normalized in chosen.items()
    ]


def many_pieces(pieces: int) -> dict[str, Any]:
    """Unigram tokenizer with so many pieces, as large multilingual models have."""
    vocabulary: list[list[Any]] = [["<unk>", 0.0], *([chr(0x4E00 + n), -9.0] for n in range(20_000))]
    vocabulary += [
        [f"▁{number:x}".translate(LETTERS), -8 - number / pieces] for number in range(pieces - len(vocabulary))
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "NFKC"},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "Unigram", "unk_id": 0, "vocab": vocabulary, "byte_fallback": False},
    }


LETTERS = str.maketrans("0123456789", "ghijklmnop")
"""Letters in place of digits, so that the pieces look like words."""
