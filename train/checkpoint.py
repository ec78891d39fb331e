"""Checkpoints: Hugging Face folders, checked before they are read."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from berxit.runtime.errors import BerxitError, InputError, first_line
from berxit.runtime.json_data import read_json, write_json
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
"""Texts of the data that a checkpoint carries; they become the golden inputs of its bundles."""
DEV_FILE = "dev.jsonl"
"""The rows that --dev-fraction held out, in the task's columns: the checkpoint is a data folder with a dev split."""


@dataclass(frozen=True)
class TrainingRecord:
    """training.json: how the checkpoint came about, so that it can be repeated."""

    options: dict[str, Any]
    """As ``TrainingOptions.recorded`` returns them."""
    train_file: str
    """Its name, without the folder."""
    train_sha256: str
    train_examples: int
    steps: int
    seconds: float
    loss: float
    """Mean over the last epoch, of what the strategy minimised."""
    device: str
    versions: dict[str, str]
    task: dict[str, Any] = field(default_factory=dict)
    model_sha256: str | None = None
    """Of the model folder's files; None for a name on the hub."""
    processes: int = 1
    dev_examples: int = 0
    """Rows that --dev-fraction held out, in dev.jsonl; 0 without it."""


def save_checkpoint(
    folder: Path,
    model: MultiExitModel,
    tokenizer: PreTrainedTokenizerBase,
    record: TrainingRecord,
    samples: list[Text],
) -> None:
    """Fills ``folder``: config.json, model.safetensors, tokenizer files, how it was trained, and some sample texts.

    Files get the modes that the process's umask asks for; some of the libraries create them for the owner alone.
    """
    for config in (model.config, model.config.backbone):
        config._name_or_path = recorded_model(config._name_or_path)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_json(asdict(record), folder / RECORD_FILE)
    write_json({"texts": samples}, folder / SAMPLES_FILE)
    apply_umask(folder)


def apply_umask(folder: Path) -> None:
    """Gives everything in ``folder``, which was created by this process, the modes that the umask asks for."""
    mode = folder.stat().st_mode & 0o777
    for path in folder.rglob("*"):
        path.chmod(mode if path.is_dir() else mode & 0o666)


def read_config(folder: Path) -> dict[str, Any]:
    """A checkpoint's config.json. Raises BerxitError for a folder that is no multi-exit checkpoint."""
    needed = ("config.json", "model.safetensors", TOKENIZER_FILE, CONFIG_FILE)
    recover(folder)
    if not folder.is_dir():
        raise BerxitError(f"no checkpoint at {folder}: make one with berxit-train")
    if missing := [name for name in needed if not (folder / name).is_file()]:
        raise BerxitError(f"checkpoint {folder} has no {', '.join(missing)}: train again, or copy it whole")
    config = read_json(folder / "config.json")
    if config.get("model_type") != "berxit":
        raise BerxitError(f"{folder} is a plain model without exits: give it to berxit-train --model first")
    return config


def load_checkpoint(folder: Path, device: torch.device | str = "cpu") -> tuple[MultiExitModel, TextTokenizer]:
    """Model and tokenizer, which truncates to the model's ``max_length``.

    Raises BerxitError for a folder that is no multi-exit checkpoint, or a damaged one, and InputError for one that
    train/checks.py rejects.
    """
    read_config(folder)
    try:
        model, loading = MultiExitModel.from_pretrained(str(folder), output_loading_info=True)
        tokenizer = read_tokenizer(str(folder))
    except InputError:
        raise
    except Exception as error:  # safetensors and tokenizers raise their own, unrelated types
        raise BerxitError(
            f"cannot read checkpoint {folder}: {first_line(error)}. Copy it again or train again"
        ) from error
    for problem, names in (("lacks weights", "missing_keys"), ("has unknown weights", "unexpected_keys")):
        if loading[names]:
            raise BerxitError(
                f"checkpoint {folder} {problem}, the first is {min(loading[names])}: copy it again or train again"
            )
    checks.check_config(str(folder), model.config.backbone)
    checks.check_finite(str(folder), model)
    checks.check_max_length(str(folder), model.adapter, model.config.max_length)
    pairs = len(model.config.text_columns) == 2
    checks.check_tokenizer(str(folder), tokenizer, model.backbone, pairs=pairs, pooling=model.config.pooling)
    try:
        stored = stored_tokenizer(folder, model.config.max_length, tokenizer.pad_token_id, f"checkpoint {folder}")
    except InputError as error:  # of a release that did not check it before training
        raise BerxitError(f"{error}, and train again") from None
    return model.eval().to(device), stored


def read_record(folder: Path) -> dict[str, Any]:
    """training.json of a checkpoint; empty where there is none."""
    return read_json(folder / RECORD_FILE) if (folder / RECORD_FILE).is_file() else {}


def spread_samples(texts: list[Text]) -> list[Text]:
    """At most SAMPLES of the texts, evenly spread."""
    return texts[:: max(1, len(texts) // SAMPLES)][:SAMPLES]


def read_samples(folder: Path) -> list[Text]:
    """The checkpoint's sample texts; empty where there are none."""
    if not (folder / SAMPLES_FILE).is_file():
        return []
    return [text if isinstance(text, str) else tuple(text) for text in read_json(folder / SAMPLES_FILE)["texts"]]
