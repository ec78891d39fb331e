"""Checkpoints: Hugging Face model folders. They are checked when they are read."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from berxit.runtime.errors import BerxitError, InputError, first_line
from berxit.runtime.extensions import UnregisteredError
from berxit.runtime.json_data import read_json, write_json
from berxit.runtime.metrics import metric_named
from berxit.runtime.storage import recover
from berxit.runtime.tokenization import Text, TextTokenizer
from berxit.train import checks
from berxit.train.modeling import MultiExitModel
from berxit.train.options import recorded_model
from berxit.train.pretrained import read_tokenizer
from berxit.train.tokenizing import CONFIG_FILE, TOKENIZER_FILE, stored_tokenizer

RECORD_FILE = "training.json"
SAMPLES_FILE = "samples.json"
SAMPLES = 32
"""Number of texts of the data that a checkpoint contains. They become the golden inputs of its bundles."""
DEV_FILE = "dev.jsonl"
"""File with the rows that were held out as the dev split, in the task's columns. With it, the checkpoint is a data
folder with a dev split."""


@dataclass(frozen=True)
class TrainingRecord:
    """Content of training.json: everything that is needed to repeat the training."""

    options: dict[str, Any]
    """The result of ``TrainingOptions.recorded``."""
    train_file: str
    """File name without its folder."""
    train_sha256: str
    train_examples: int
    steps: int
    seconds: float
    loss: float
    """Mean training loss of the last epoch."""
    device: str
    versions: dict[str, str]
    task: dict[str, Any] = field(default_factory=dict)
    model_sha256: str | None = None
    """Hash of the model folder's files. None for a model from the hub."""
    processes: int = 1
    dev_examples: int = 0
    """Number of rows that were held out as the dev split (dev.jsonl)."""
    stopping_examples: int = 0
    """Number of rows that --early-stopping held out."""
    scores: list[Any] = field(default_factory=list)
    """For each stage, the scores after every epoch (train.epoch_scores.EpochScore)."""


def save_checkpoint(
    folder: Path,
    model: MultiExitModel,
    tokenizer: PreTrainedTokenizerBase,
    record: TrainingRecord,
    samples: list[Text],
) -> None:
    """Writes config.json, model.safetensors, the tokenizer files, the training record and some sample texts to
    ``folder``.

    File modes follow the umask of the process. Some of the libraries create files that only the owner can read.
    """
    for config in (model.config, model.config.backbone):
        config._name_or_path = recorded_model(config._name_or_path)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_json(asdict(record), folder / RECORD_FILE)
    write_json({"texts": samples}, folder / SAMPLES_FILE)
    apply_umask(folder)


def apply_umask(folder: Path) -> None:
    """Sets the mode of everything in ``folder`` according to the umask. This process must have created ``folder``."""
    mode = folder.stat().st_mode & 0o777
    for path in folder.rglob("*"):
        path.chmod(mode if path.is_dir() else mode & 0o666)


def read_config(folder: Path) -> dict[str, Any]:
    """A checkpoint's config.json. Raises BerxitError if the folder is not a multi-exit checkpoint."""
    needed = ("config.json", "model.safetensors", TOKENIZER_FILE, CONFIG_FILE)
    recover(folder)
    if not folder.is_dir():
        raise BerxitError(f"no checkpoint at {folder}: train one with berxit-train")
    if missing := [name for name in needed if not (folder / name).is_file()]:
        raise BerxitError(f"checkpoint {folder} has no {', '.join(missing)}: copy the complete folder, or retrain")
    config = read_json(folder / "config.json")
    if config.get("model_type") != "berxit":
        raise BerxitError(f"{folder} is a model without exits: fine-tune it with berxit-train --model {folder}")
    try:
        metric_named(str(config.get("metric", "accuracy")))
    except UnregisteredError as error:
        raise error.in_file(folder / "config.json") from None
    return config


def load_checkpoint(folder: Path | str, device: torch.device | str = "cpu") -> tuple[MultiExitModel, TextTokenizer]:
    """The model and its tokenizer, which truncates to the model's ``max_length``.

    Raises BerxitError if the folder is not a multi-exit checkpoint or is damaged, and InputError if train/checks.py
    rejects it.
    """
    folder = Path(folder)
    read_config(folder)
    try:
        model, loading = MultiExitModel.from_pretrained(str(folder), output_loading_info=True)
        tokenizer = read_tokenizer(str(folder))
    except InputError:
        raise
    except Exception as error:  # safetensors and tokenizers raise unrelated types
        raise BerxitError(f"cannot read checkpoint {folder}: {first_line(error)}. Copy it again, or retrain") from error
    for problem, names in (("lacks weights", "missing_keys"), ("has unknown weights", "unexpected_keys")):
        if loading[names]:
            raise BerxitError(
                f"checkpoint {folder} {problem}, the first is {min(loading[names])}: copy it again, or retrain"
            )
    checks.check_config(str(folder), model.config.backbone)
    checks.check_finite(str(folder), model)
    checks.check_max_length(str(folder), model.adapter, model.config.max_length)
    pairs = len(model.config.text_columns) == 2
    checks.check_tokenizer(str(folder), tokenizer, model.backbone, pairs=pairs, pooling=model.config.pooling)
    try:
        config, name = model.config, f"checkpoint {folder}"
        words = config.task_kind.words
        stored = stored_tokenizer(folder, config.max_length, tokenizer.pad_token_id, name, words=words)
    except InputError as error:  # older versions did not check this before training
        raise BerxitError(f"{error}, and retrain") from None
    return model.eval().to(device), stored


def read_record(folder: Path) -> dict[str, Any]:
    """The content of a checkpoint's training.json; empty if the file does not exist."""
    return read_json(folder / RECORD_FILE) if (folder / RECORD_FILE).is_file() else {}


def spread_samples(texts: list[Text]) -> list[Text]:
    """At most SAMPLES of the texts, at even distances."""
    return texts[:: max(1, len(texts) // SAMPLES)][:SAMPLES]


def read_samples(folder: Path) -> list[Text]:
    """The checkpoint's sample texts; empty if the file does not exist."""
    if not (folder / SAMPLES_FILE).is_file():
        return []
    return [text if isinstance(text, str) else tuple(text) for text in read_json(folder / SAMPLES_FILE)["texts"]]
