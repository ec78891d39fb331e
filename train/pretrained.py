"""Loading of a pre-trained encoder: folder, configuration, weight files and tokenizer. train/checks.py checks them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from berxit.runtime.errors import BerxitError, InputError, first_line
from berxit.train import checks

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""In the order in which transformers looks for them."""


def resolve_model(model: Path | str) -> str:
    """The folder (or hub name) with the encoder's config.json.

    In old sentence-transformers folders, the file is in the folder of the first module, such as 0_Transformer. Raises
    InputError for a path that is not a folder.
    """
    name, folder = str(model), Path(model)
    if not folder.is_dir():
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise InputError(f"no folder {name}: --model is a model folder, or a name on the hub (OWNER/NAME)")
        return name
    if not (folder / "config.json").is_file():
        return next((str(path.parent) for path in sorted(folder.glob("0_*/config.json"))), name)
    return name


def read_config(model: str) -> PreTrainedConfig:
    """The configuration of an encoder. Raises InputError for a model that contains its own code."""
    checks.check_own_code(model, "config.json", PreTrainedConfig.get_config_dict(model)[0])
    return AutoConfig.from_pretrained(model, trust_remote_code=False)


def read_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub name.

    Raises InputError for a tokenizer with its own code, without its files, or without a tokenizer.json equivalent.
    """
    checks.check_own_code(model, "tokenizer_config.json", get_tokenizer_config(model))
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare Exception; a missing package raises ImportError
        raise InputError(
            f"cannot load the tokenizer of {model}: {first_line(error)}."
            " Add the tokenizer.json that belongs to the model"
        ) from error
    checks.check_tokenizer_files(model, tokenizer, lambda name: find_file(model, name) is not None)
    return tokenizer


def load_encoder(model: str, layers: int | None = None) -> tuple[PreTrainedModel, bool]:
    """The encoder with its weights from the file, in float32; and True if the file contains its pooler.

    ``layers``: load only the first ``layers`` layers. Raises InputError if file and configuration do not match or are
    not supported, BerxitError for a file that cannot be read.
    """
    config = read_config(model)
    adapter = checks.check_config(model, config)
    file_layers = adapter.layers
    if layers is not None:
        if layers > file_layers:
            raise InputError(f"--layers {layers} is more than the {file_layers} of {model}")
        adapter.keep_layers(layers)
    with torch.device("meta"):
        skeleton = AutoModel.from_config(config)
    weights = read_weights(model)
    matched = checks.match_weights(model, weights, skeleton, file_layers)
    state = {ours: weights[theirs] for ours, theirs in matched.items()}
    del weights
    encoder = type(skeleton).from_pretrained(None, config=config, state_dict=state, dtype=torch.float32)
    checks.check_finite(model, encoder)
    return encoder, any(name.startswith(checks.POOLER) for name in state)


def read_weights(model: str) -> dict[str, Tensor]:
    """Every tensor of the weight file, or of all its shards, under the names in the file.

    Raises BerxitError if there is no file, or if it cannot be read.
    """
    found = next((path for name in WEIGHT_FILES if (path := find_file(model, name))), None)
    if found is None:
        raise BerxitError(f"{model} has no weights: add its model.safetensors or pytorch_model.bin")
    files = get_checkpoint_shard_files(model, found)[0] if found.endswith(".json") else [found]
    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            weights.update(_read(file))
        except Exception as error:  # safetensors, zipfile and pickle raise unrelated types
            raise BerxitError(f"cannot read the weights {file}: {first_line(error)}. Copy the file again") from error
    return weights


def find_file(model: str, name: str) -> str | None:
    """The local path of a model's file; None if the model does not have it."""
    if Path(model).is_dir():
        return str(Path(model) / name) if (Path(model) / name).is_file() else None
    try:
        return cached_file(model, name)
    except OSError:
        return None


def _read(file: str) -> dict[str, Any]:
    if file.endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True)  # never runs code that the file contains
