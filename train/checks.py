"""All checks of an encoder and its tokenizer before the first training step.

``berxit-train`` runs them right after loading. ``load_checkpoint`` repeats those that a checkpoint can fail, so that
evaluation, calibration and export read no checkpoint that training would reject. Every function raises InputError with
one line: what does not fit, where, and how to fix it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from berxit.runtime.errors import InputError, first_line
from berxit.runtime.tokenization import Text
from berxit.train.backbones import Adapter, adapter_for
from berxit.train.backbones.weights import array

WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.", "0.auto_model.", "auto_model.")
"""Prefixes that DataParallel, torch.compile, training scripts and sentence-transformers add to an encoder's names."""

BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")
"""Constants that older versions of transformers stored with the weights."""

POOLER = "pooler."

SPECIAL_TOKENS = ("cls", "sep", "unk", "mask", "bos", "eos")
"""Roles whose id config.json may contain. Padding is checked separately."""

TEXTS, CHARACTERS = 1000, 500
"""The share of unknown tokens is counted on this many texts, spread over the data, and this many characters of each."""

UNKNOWN_LIMIT = 0.3
"""A larger share of unknown tokens is rejected: the model cannot distinguish the words behind them."""


@dataclass(frozen=True)
class UnknownTokens:
    """Number of unknown tokens in the training texts."""

    unknown: int
    tokens: int
    """Special tokens such as [CLS] are not counted."""
    texts: int

    @property
    def share(self) -> float:
        return self.unknown / max(self.tokens, 1)

    def __str__(self) -> str:
        return f"unknown tokens: {self.share:.1%} of {self.tokens:,} in {self.texts:,} training texts"


def check_own_code(model: str, file: str, content: Mapping[str, Any]) -> None:
    """Rejects a model or tokenizer whose configuration names Python code to execute."""
    if content.get("auto_map"):
        raise InputError(
            f"{model} contains its own code ('auto_map' in {file}), which is never executed:"
            " choose a model that transformers implements"
        )


def check_config(model: str, config: PreTrainedConfig) -> Adapter:
    """The family's adapter. Rejects a configuration that requests what the canonical layer does not implement."""
    adapter = adapter_for(config)
    for option, values in adapter.implemented.items():
        value = getattr(config, option, values[0])
        if value not in values:
            choices = " or ".join(f"{choice!r}" for choice in values if choice is not None) or "no such option"
            raise InputError(
                f"{model}: config.json has {option} {value!r}, only {choices} is supported: choose another model"
            )
    if reason := adapter.unsupported():
        raise InputError(f"{model}: config.json has {reason}: choose another model")
    heads = config.num_attention_heads
    if heads < 1 or adapter.hidden_size % heads:
        raise InputError(
            f"{model}: config.json has num_attention_heads {heads}, which does not divide the hidden size"
            f" {adapter.hidden_size}: fix config.json"
        )
    if adapter.layers < 1:
        raise InputError(f"{model}: config.json has {adapter.layers} layers: choose a model with at least one")
    if any(not 0 <= row < config.vocab_size for row in (config.pad_token_id, adapter.padding_id) if row is not None):
        raise InputError(
            f"{model}: config.json has pad_token_id {config.pad_token_id}, which is not a row of the word embedding"
            f" table ({config.vocab_size} rows): set it to the tokenizer's padding id"
        )
    return adapter


def check_max_length(model: str, adapter: Adapter, max_length: int) -> None:
    """Rejects a ``max_length`` above the model's number of positions."""
    if max_length > adapter.max_length:
        raise InputError(
            f"--max-length {max_length} is more than the {adapter.max_length} positions of {model}: give a lower value"
        )


def match_weights(
    model: str, weights: Mapping[str, Any], skeleton: PreTrainedModel, file_layers: int
) -> dict[str, str]:
    """The encoder's parameter names -> the names in the file.

    ``skeleton`` is the encoder with the layers that are used; ``file_layers`` is the number of layers in config.json.
    Only the pooler may be missing. Rejects unknown names in the file, and a shape or number type that does not fit.
    """
    adapter = adapter_for(skeleton.config)
    expected = skeleton.state_dict()
    outer, prefix = _prefixes(model, weights, skeleton)
    found: dict[str, str] = {}
    for name in weights:
        ours = _current_name(name.removeprefix(prefix)) if name.startswith(prefix) else ""
        if ours in expected and ours not in found:
            _check_tensor(model, name, weights[name], expected[ours])
            found[ours] = name
        elif not (
            ours in BUFFERS
            or (adapter.ignored and ours.startswith(adapter.ignored))
            or _is_dropped(ours, adapter, expected, file_layers)
            or (name.startswith(outer) and name.removeprefix(outer).startswith(adapter.task_heads))
        ):
            raise InputError(
                f"{model}: the weights have '{name}', which is not part of a {skeleton.config.model_type} encoder with"
                f" {file_layers} layers, its pooler or a known task head: save the encoder alone with save_pretrained"
            )
    has_pooler = any(ours.startswith(POOLER) for ours in found)
    for ours in expected:
        if ours not in found and (has_pooler or not ours.startswith(POOLER)):
            raise InputError(
                f"{model}: the weights lack '{prefix}{ours}', which config.json requires: fix config.json, or copy the"
                " complete weights"
            )
    return found


def check_finite(model: str, encoder: nn.Module) -> None:
    """Rejects weights that contain NaN or infinity."""
    for name, parameter in encoder.named_parameters():
        with np.errstate(all="ignore"):
            finite = np.isfinite(array(parameter).sum())  # numpy: one thread, which other processes do not delay
        if not finite:
            raise InputError(f"{model}: the weights '{name}' contain NaN or infinity: copy or train the model again")


def check_tokenizer_files(model: str, tokenizer: PreTrainedTokenizerBase, exists: Callable[[str], bool]) -> None:
    """Rejects a tokenizer that exists in Python only, and one that transformers created because files are missing."""
    kind = type(tokenizer).__name__
    if not tokenizer.is_fast:
        raise InputError(
            f"{model}: its tokenizer {kind} exists in Python only, and no device can run it:"
            " choose a model that has a tokenizer.json"
        )
    sources = {role: name for role, name in tokenizer.vocab_files_names.items() if role != "tokenizer_file"}
    if not exists("tokenizer.json") and not (sources and all(exists(name) for name in sources.values())):
        needed = " or ".join(filter(None, ("tokenizer.json", " and ".join(sources.values()))))
        raise InputError(
            f"{model} has no tokenizer files: {kind} needs {needed}. Copy them from the model that it was made from"
        )
    if len(tokenizer.get_vocab()) <= len(set(tokenizer.all_special_tokens)):
        raise InputError(
            f"{model}: its tokenizer knows {len(tokenizer.get_vocab())} tokens, all of them special:"
            " copy the tokenizer files from the model that it was made from"
        )


def check_tokenizer(
    model: str, tokenizer: PreTrainedTokenizerBase, encoder: PreTrainedModel, *, pairs: bool, pooling: str
) -> None:
    """Rejects a tokenizer that does not belong to the encoder.

    Every token id needs a row in the word embedding table, and tokenizer and encoder must agree on special tokens.
    ``pairs``: the task has two texts per row. ``pooling``: "first" or "mean", as in MultiExitConfig.
    """
    config, adapter = encoder.config, adapter_for(encoder.config)
    rows = encoder.get_input_embeddings().num_embeddings
    token, last = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if last >= rows:
        raise InputError(
            f"{model}: the tokenizer has '{token}' with id {last}, the word embedding table has {rows} rows: remove the"
            f" token, or recreate the model after resize_token_embeddings({last + 1})"
        )
    padding = tokenizer.pad_token_id
    if padding is None:
        raise InputError(f"{model}: the tokenizer has no padding token: set pad_token in tokenizer_config.json")
    if adapter.padding_id is not None and padding != adapter.padding_id:
        raise InputError(
            f"{model}: the tokenizer pads with id {padding}, the model counts positions from padding id"
            f" {adapter.padding_id}: use the tokenizer that belongs to the model"
        )
    try:
        probe = tokenizer("a", *(("a",) if pairs else ()), return_special_tokens_mask=True, return_token_type_ids=True)
    except Exception as error:  # tokenizers raises bare Exception
        raise InputError(
            f"{model}: the tokenizer fails: {first_line(error)}. Use the tokenizer that belongs to the model"
        ) from error
    ids, special = probe["input_ids"], probe["special_tokens_mask"]
    added = {token_id for token_id, is_special in zip(ids, special, strict=True) if is_special}
    _check_special_tokens(model, tokenizer, config, added)
    if pooling == "first" and not (special and special[0]):
        raise InputError(
            f"{model}: the tokenizer adds no special token before the text, but the exits read the first token:"
            " add --pooling mean, or use the tokenizer that belongs to the model"
        )
    types = max(probe["token_type_ids"]) + 1
    if adapter.has_token_types and types > config.type_vocab_size:
        raise InputError(
            f"{model}: the tokenizer uses {types} token types for {'a pair' if pairs else 'a text'}, config.json has"
            f" type_vocab_size {config.type_vocab_size}: choose a model with two token types"
        )


def unknown_tokens(model: str, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text]) -> UnknownTokens:
    """The number of unknown tokens in the training texts. Rejects a share above UNKNOWN_LIMIT.

    A text without any token counts as one unknown token, because some tokenizers drop unknown characters.
    """
    chosen = texts[:: -(-len(texts) // TEXTS)]
    parts = [part[:CHARACTERS] for text in chosen for part in (text if isinstance(text, tuple) else (text,))]
    rows = tokenizer(parts, add_special_tokens=False, verbose=False)["input_ids"]
    unknown = sum(row.count(tokenizer.unk_token_id) if row else 1 for row in rows)
    found = UnknownTokens(unknown, sum(max(len(row), 1) for row in rows), len(chosen))
    if found.share > UNKNOWN_LIMIT:
        raise InputError(
            f"{found}, more than {UNKNOWN_LIMIT:.0%}: the tokenizer of {model} does not belong to this model or to this"
            " language. Use the model's own tokenizer, or choose another model"
        )
    return found


def _prefixes(model: str, weights: Mapping[str, Any], skeleton: PreTrainedModel) -> tuple[str, str]:
    """The prefix that wrappers add in the file, and the encoder's complete prefix, which may also contain the name of
    the family."""
    table = skeleton.get_input_embeddings().weight
    anchor = next(name for name, parameter in skeleton.named_parameters() if parameter is table)
    candidates = [name for name in weights if name == anchor or name.endswith(f".{anchor}")]
    for name in candidates:
        prefix = name.removesuffix(anchor)
        for outer in (prefix.removesuffix(f"{skeleton.base_model_prefix}."), prefix):
            if re.fullmatch(f"({'|'.join(re.escape(wrapper) for wrapper in WRAPPERS)})*", outer):
                return outer, prefix
    known = ", ".join((f"{skeleton.base_model_prefix}.", *WRAPPERS))
    first = next(iter(candidates or weights), None)
    raise InputError(
        f"{model}: no weights of a {skeleton.config.model_type} encoder: the first is {first!r}, expected '{anchor}',"
        f" after a known prefix or none ({known}). Save the encoder alone with save_pretrained"
    )


def _current_name(name: str) -> str:
    """The current name of a layer norm's parameter. Files that were converted from TensorFlow call it gamma or beta."""
    return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name))


def _check_tensor(model: str, name: str, tensor: Any, expected: Tensor) -> None:
    shape = tuple(getattr(tensor, "shape", ()))
    if shape != tuple(expected.shape):
        raise InputError(
            f"{model}: the weights '{name}' have shape {shape}, config.json requires {tuple(expected.shape)}: fix"
            " config.json, or copy the weights that belong to it"
        )
    if not tensor.is_floating_point():
        raise InputError(
            f"{model}: the weights '{name}' are {str(tensor.dtype).removeprefix('torch.')}: only float32, float16 and"
            " bfloat16 are supported. Choose the model that was not quantized"
        )


def _is_dropped(name: str, adapter: Adapter, expected: Mapping[str, Tensor], file_layers: int) -> bool:
    """True if the tensor belongs to one of the last layers, which ``--layers`` removes."""
    if adapter.layer_list is None or not name.startswith(adapter.layer_list):
        return False
    number, _, rest = name.removeprefix(adapter.layer_list).partition(".")
    return (
        number.isdecimal()
        and adapter.layers <= int(number) < file_layers
        and f"{adapter.layer_list}0.{rest}" in expected
    )


def _check_special_tokens(
    model: str, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, added: set[int]
) -> None:
    """Rejects special tokens with an unknown id, or with another id than in config.json."""
    own = {role: getattr(tokenizer, f"{role}_token_id") for role in SPECIAL_TOKENS}
    if strange := sorted(added - set(own.values())):
        raise InputError(
            f"{model}: the tokenizer adds id {strange[0]} to a text, which is not one of its special tokens: recreate"
            " tokenizer.json and tokenizer_config.json together with save_pretrained"
        )
    for role, found in own.items():
        stated = getattr(config, f"{role}_token_id", None)
        if role in ("bos", "eos") and found not in added:
            continue  # No text contains it.
        if None not in (stated, found) and found not in (stated if isinstance(stated, list) else [stated]):
            raise InputError(
                f"{model}: config.json has {role}_token_id {stated}, the tokenizer's is {found}: use the tokenizer that"
                " belongs to the model, or fix config.json"
            )
