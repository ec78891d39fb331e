"""Tokenizers of the model families, created by the classes of transformers with small vocabularies."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

SIZES = {"bert": 500, "mpnet": 300, "roberta": 500, "albert": 500, "unigram": 300, "deberta": 300, "mmbert": 300}
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
    "q": "k",  # applies to "q" with an accent, too, which is one grapheme
    "か\u3099": "が",  # six bytes, so that this grapheme is never mapped as a whole
}
"""Spelling -> replacement; a small version of SentencePiece's nmt_nfkc."""


def small_tokenizers(texts: Iterable[str]) -> dict[str, Tokenizer]:
    """Kind -> tokenizer, trained on ``texts``. DistilBERT uses that of BERT."""
    from transformers import AlbertTokenizer, BertTokenizer, DebertaV2Tokenizer, MPNetTokenizer, RobertaTokenizer

    specials = {token: place for place, token in enumerate(("<s>", "<pad>", "</s>", "[UNK]", "<mask>"))}
    albert = AlbertTokenizer(_spm_precompiled_charsmap=charsmap(RULES))
    made: dict[str, Any] = {
        "bert": BertTokenizer(),
        "mpnet": MPNetTokenizer(vocab=specials),
        "roberta": RobertaTokenizer(mask_token=AddedToken("<mask>", lstrip=True)),  # as in roberta-base
        "albert": albert,
        "deberta": DebertaV2Tokenizer(),
    }
    words = list(texts)
    found = {
        kind: tokenizer.train_new_from_iterator(words, SIZES[kind], show_progress=False).backend_tokenizer
        for kind, tokenizer in made.items()
    }
    # Covers what ALBERT's pipeline does not: the map without NFKD before it, and unsplit spaces as in older files.
    plain = albert.train_new_from_iterator(words, SIZES["unigram"], show_progress=False).backend_tokenizer
    plain.normalizer = normalizers.Sequence(
        [normalizers.Precompiled(charsmap(RULES)), normalizers.Lowercase(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    plain.pre_tokenizer = pre_tokenizers.Metaspace()
    return {**found, "unigram": plain, "mmbert": mmbert(words)}


def mmbert(texts: Iterable[str]) -> Tokenizer:
    """A tokenizer as mmBERT's: BPE over whole texts, whose unknown characters become tokens of their bytes."""
    specials = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trainer = trainers.BpeTrainer(vocab_size=SIZES["mmbert"], show_progress=False, limit_alphabet=60)
    trained.train_from_iterator(texts, trainer)
    model = json.loads(trained.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    tokens = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    vocab = {token: number for number, token in enumerate(tokens)}
    merges = [tuple(merge) for merge in model["merges"]]
    found = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    found.normalizer = normalizers.Replace(" ", "▁")
    found.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    found.add_special_tokens([AddedToken(token, normalized=False) for token in specials])
    ends = [(token, vocab[token]) for token in ("<bos>", "<eos>")]
    found.post_processor = processors.TemplateProcessing("<bos> $A <eos>", "<bos> $A <eos> $B:1 <eos>:1", ends)
    return found


def charsmap(rules: dict[str, str]) -> bytes:
    """Precompiled map of SentencePiece: size of a double-array trie in bytes, the trie, the zero-terminated
    replacements.

    A unit of the trie has 32 bits, little-endian: its label (8 bits), a flag that a spelling ends there (1 bit), and
    the exclusive or of its position and the base of its children (21 bits, from bit 10 on). If bit 31 is set, the other
    bits are an offset into the replacements.
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
    size = (max(units) // 256 + 1) * 256  # a reader may access any unit of a block
    trie = b"".join(units.get(place, 0).to_bytes(4, "little") for place in range(size))
    return len(trie).to_bytes(4, "little") + trie + bytes(texts)
