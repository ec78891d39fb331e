"""The families' tokenizers, as transformers' own classes write them, with small vocabularies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers

SIZES = {"bert": 500, "mpnet": 300, "roberta": 500, "albert": 500, "unigram": 300}
RULES = {
    "\u00a0": " ",
    "\u3000": " ",
    "\u200b": " ",
    "\u200d": "",
    "\ufeff": "",
    "\u2019": "'",
    "—": "-",
    "ß": "ss",
    "½": "1/2",
    "ﬁ": "fi",
    "é": "e",
    "e\u0301": "e",
    "q": "k",  # and so "q" with an accent, which is one grapheme
    "か\u3099": "が",  # six bytes: a grapheme that is never looked up as a whole
}
"""Spelling -> what replaces it, as SentencePiece's nmt_nfkc has them by the thousand."""


def small_tokenizers(texts: Iterable[str]) -> dict[str, Tokenizer]:
    """Kind -> tokenizer, trained on ``texts``. DistilBERT's is BERT's."""
    from transformers import AlbertTokenizer, BertTokenizer, MPNetTokenizer, RobertaTokenizer

    specials = {token: place for place, token in enumerate(("<s>", "<pad>", "</s>", "[UNK]", "<mask>"))}
    albert = AlbertTokenizer(_spm_precompiled_charsmap=charsmap(RULES))
    made: dict[str, Any] = {
        "bert": BertTokenizer(),
        "mpnet": MPNetTokenizer(vocab=specials),
        "roberta": RobertaTokenizer(mask_token=AddedToken("<mask>", lstrip=True)),  # as roberta-base has it
        "albert": albert,
    }
    words = list(texts)
    found = {
        kind: tokenizer.train_new_from_iterator(words, SIZES[kind], show_progress=False).backend_tokenizer
        for kind, tokenizer in made.items()
    }
    # What ALBERT's other steps hide: the map without NFKD before it, the rule on spaces (older files') without a cut.
    plain = albert.train_new_from_iterator(words, SIZES["unigram"], show_progress=False).backend_tokenizer
    plain.normalizer = normalizers.Sequence(
        [normalizers.Precompiled(charsmap(RULES)), normalizers.Lowercase(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    plain.pre_tokenizer = pre_tokenizers.Metaspace()
    return {**found, "unigram": plain}


def charsmap(rules: dict[str, str]) -> bytes:
    """SentencePiece's precompiled map: the size of a double-array trie in bytes, the trie, the texts, each ended by a
    zero byte. A unit of the trie is little-endian, 32 bits: its label (8), whether a spelling ends there (1), how its
    children's places follow from its own by exclusive or (21, from bit 10 on); or, with bit 31, a place in the texts.
    """
    texts, places = bytearray(), {}
    for spelling, text in rules.items():
        places[spelling.encode()] = len(texts)
        texts += text.encode() + b"\0"
    units: dict[int, int] = {0: 0}

    def grow(place: int, prefix: bytes) -> None:
        below = [spelling for spelling in places if spelling.startswith(prefix)]
        labels = sorted({spelling[len(prefix)] if len(spelling) > len(prefix) else 0 for spelling in below})
        base = next(base for base in range(1, 1 << 21) if not any(base ^ label in units for label in labels))
        units[place] |= (base ^ place) << 10 | (0 in labels) << 8
        units.update({base ^ label: label or places[prefix] | 1 << 31 for label in labels})
        for label in labels:
            if label:
                grow(base ^ label, prefix + bytes([label]))

    grow(0, b"")
    size = (max(units) // 256 + 1) * 256  # a reader may look anywhere in a block
    trie = b"".join(units.get(place, 0).to_bytes(4, "little") for place in range(size))
    return len(trie).to_bytes(4, "little") + trie + bytes(texts)
