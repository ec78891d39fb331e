"""The tokenizer of training, evaluation and calibration: the runtime's tokenizer, from the checkpoint's files.

Every setting of a tokenizer is either stored in tokenizer.json, which every runner reads, or rejected.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from berxit.runtime.errors import InputError
from berxit.runtime.json_data import read_json
from berxit.runtime.tokenization import Text, TextTokenizer
from berxit.train.pretrained import find_file

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"

REVEALING = (
    "The Café in ZÜRICH isn't open, is it?",
    "  two  blanks, a tab\tand a line\r\nbreak \n",
    "\u00a0no-break and wide\u3000blanks\u2003",
    "日本語のテキスト 中文 한국어 русский العَرَبِيَّة हिन्दी",
    "e\u0301te\u0301, ﬁne ½ Straße İstanbul ΣΊΣΥΦΟΣ 👩\u200d🚀",
    "special tokens: [CLS] a [SEP] b [MASK] <s> c </s> <mask>",
    "don't stop!!! ...really?? (10:30 p.m.) costs $4.50 or 3,99 €",
)
"""Texts on which implementations of a tokenizer differ: case, accents, whitespace, scripts, special tokens,
punctuation."""

_UNSUPPORTED = {
    "padding_side": ("right", "inputs are padded on the right, and exits read the first token"),
    "truncation_side": ("right", "the end of a long text is truncated"),
    "truncation_strategy": ("longest_first", "the longer text of a pair is truncated first"),
    "split_special_tokens": (False, "tokenizer.json cannot store another value"),
}
"""Setting of tokenizer_config.json -> the only value that every runner implements, and the reason."""

_OVERRIDES = {
    "do_lower_case": ("BertNormalizer", "lowercase"),
    "strip_accents": ("BertNormalizer", "strip_accents"),
    "tokenize_chinese_chars": ("BertNormalizer", "handle_chinese_chars"),
    "add_prefix_space": ("ByteLevel", "add_prefix_space"),
}
"""Setting of tokenizer_config.json -> type and key of the part of tokenizer.json that it overrides."""


def stored_tokenizer(
    folder: Path, max_length: int, pad_token_id: int, name: str, *, words: bool = False
) -> TextTokenizer:
    """The tokenizer of a folder that ``save_pretrained`` wrote. A bundle contains the same file. ``name``: its name in
    error messages. ``words``: also find the words of each text.

    Raises InputError for a setting that runners do not implement, BerxitError for files that cannot be read.
    """
    config, data = read_json(folder / CONFIG_FILE), read_json(folder / TOKENIZER_FILE)
    for setting, (only, reason) in _UNSUPPORTED.items():
        if (value := config.get(setting)) not in (None, only):
            raise InputError(f"{name}: {setting} is {value!r}, but {reason}: set it to {only!r} in its {CONFIG_FILE}")
    if dropout := data.get("model", {}).get("dropout"):
        raise InputError(
            f"{name}: dropout {dropout} makes the token ids of a text random: set it to null in its {TOKENIZER_FILE}"
        )
    return TextTokenizer(folder / TOKENIZER_FILE, max_length, pad_token_id, words=words)


def saved_tokenizer(
    tokenizer: PreTrainedTokenizerBase, source: str, max_length: int, *, words: bool = False
) -> TextTokenizer:
    """The tokenizer that the checkpoint will contain, for training. ``source``: the model's folder or hub name.
    ``words``: also find the words of each text.

    Raises InputError for a setting that runners do not implement, and if transformers does not tokenize as defined in
    ``source``'s tokenizer.json.
    """
    if max_length > tokenizer.model_max_length:
        longest = tokenizer.model_max_length
        raise InputError(
            f"--max-length {max_length} is more than the tokenizer's model_max_length {longest} ({source}): use"
            f" --max-length {longest}, or increase model_max_length in its {CONFIG_FILE}"
        )
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tokenizer.save_pretrained(folder)
        found = stored_tokenizer(folder, max_length, int(tokenizer.pad_token_id), source, words=words)
        saved = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    saved.no_padding()
    saved.no_truncation()
    _check_source(saved, source)
    return found


def revealing_texts(pairs: bool, max_length: int) -> list[Text]:
    """Texts, or pairs, that a wrong implementation of the tokenizer encodes to other ids. Some are truncated."""
    long, longer = ("one two three four " * max_length for _ in range(2))
    longer += "and five more words follow here"
    if not pairs:
        return [*REVEALING, longer]
    following = (*REVEALING[1:], REVEALING[0])
    short = REVEALING[0]
    return [*zip(REVEALING, following, strict=True), (longer, short), (short, longer), (long, longer), (longer, long)]


def _check_source(saved: Tokenizer, source: str) -> None:
    """Raises InputError if the saved tokenizer encodes texts to other ids than the source's files define.

    transformers rebuilds many tokenizers from their vocabulary only, and ignores other parts of tokenizer.json or
    tokenizer_config.json without a message.
    """
    path = find_file(source, TOKENIZER_FILE)
    if path is None:
        return
    data, config = read_json(Path(path)), get_tokenizer_config(source)
    settings = {name: config[name] for name in _OVERRIDES if name in config}
    for name, value in settings.items():
        _override(data, *_OVERRIDES[name], value)
    expected = Tokenizer.from_str(json.dumps(data))
    expected.no_padding()
    expected.no_truncation()
    if expected.post_processor is None:  # transformers then adds the post-processor of the family.
        expected.post_processor = saved.post_processor
    for text in REVEALING:
        if expected.encode(text).ids != saved.encode(text).ids:
            named = ", ".join(f"{name} = {value}" for name, value in settings.items()) or "none"
            raise InputError(
                f"{source}: {TOKENIZER_FILE} under the settings of {CONFIG_FILE} ({named}) encodes {text!r} to other"
                " ids than transformers does: fix the settings, or set tokenizer_class there to"
                ' "PreTrainedTokenizerFast", which reads tokenizer.json unchanged'
            )


def _override(data: Any, kind: str, key: str, value: Any) -> None:
    """Sets ``key`` to the ``value`` from tokenizer_config.json in every part of tokenizer.json of type ``kind``."""
    if isinstance(data, dict):
        if data.get("type") == kind:
            data[key] = value
        for name in ("normalizer", "normalizers", "pre_tokenizer", "pretokenizers"):
            _override(data.get(name), kind, key, value)
    elif isinstance(data, list):
        for part in data:
            _override(part, kind, key, value)
