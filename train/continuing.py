"""Training that continues from a berxit checkpoint: its encoder, and the exit heads whose labels match the new task."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedConfig

from berxit.runtime.errors import InputError
from berxit.train.checkpoint import load_checkpoint
from berxit.train.configuration import MultiExitConfig
from berxit.train.modeling import MultiExitModel

MODEL_TYPE = MultiExitConfig.model_type


@dataclass(frozen=True)
class Continued:
    """A model that starts from a checkpoint."""

    model: MultiExitModel
    heads_kept: bool
    description: str
    """One line for the user: the parts that the model has from the checkpoint."""


def is_checkpoint(model: str) -> bool:
    """True for a checkpoint of this project, False for a pre-trained encoder or a model that cannot be read."""
    return family_of(model) == MODEL_TYPE


def family_of(model: str) -> str | None:
    """The model type in config.json; None if it cannot be read."""
    try:
        found = PreTrainedConfig.get_config_dict(model)[0].get("model_type")
    except Exception:  # reported by the functions that load the model
        return None
    return found if isinstance(found, str) else None


def continue_from(source: str, config: MultiExitConfig, layers: int | None) -> Continued:
    """A model with the options and labels of ``config``, whose weights start from the checkpoint ``source``.

    The encoder is always kept, with the norms of its exits if it has them. Exit heads are kept if labels, kind of head
    and pooling are equal; the order of the labels may differ. The LTE module is kept with them. The dense layers of
    pooler heads are kept for other labels, too. ``layers``: use only the first ``layers`` layers. ``config.backbone``
    is replaced.

    Raises InputError for a checkpoint on the hub or too few layers, BerxitError for a checkpoint that cannot be read.
    """
    if not Path(source).is_dir():
        raise InputError(f"{source} is a berxit checkpoint on the hub: download it, and give its folder to --model")
    before, _ = load_checkpoint(Path(source))
    if layers is not None:
        if layers > before.layers:
            raise InputError(f"--layers {layers} is more than the {before.layers} of {source}")
        before = before.first_layers(layers)
    config.backbone = before.config.backbone
    model = MultiExitModel(config)
    model.backbone.load_state_dict(before.backbone.state_dict())
    _copy_norms(before, model)
    reason = _difference(before.config, config)
    kept = ["encoder"]
    same_input = (before.config.exit_head, before.config.pooling) == (config.exit_head, config.pooling)
    if same_input and config.exit_head == "pooler":
        _copy_poolers(before, model)
    if not reason:
        _copy_classifiers(before, model)
        kept.append(f"{model.layers} exit heads")
        if before.lte is not None and model.lte is not None:
            model.lte.load_state_dict(before.lte.state_dict())
            kept.append("LTE")
    new = f"; new exit heads, because {reason}" if reason else ""
    return Continued(model, not reason, f"continues from {Path(source).resolve().name}: {', '.join(kept)}{new}")


def _difference(before: MultiExitConfig, now: MultiExitConfig) -> str:
    """The reason why exit heads cannot be kept; empty if they can."""
    if before.kind != now.kind:
        return f"its kind is {before.kind}"
    if sorted(before.labels) != sorted(now.labels):
        return f"its labels are {', '.join(before.labels)}"
    if before.exit_head != now.exit_head:
        return f"its --exit-head is {before.exit_head}"
    if before.pooling != now.pooling:
        return f"its --pooling is {before.pooling}"
    return ""


@torch.no_grad()
def _copy_classifiers(before: MultiExitModel, model: MultiExitModel) -> None:
    """Copies the classifiers, with their rows in the new order of the labels."""
    rows = [before.config.labels.index(label) for label in model.config.labels] or [0]
    for old, new in zip(before.heads, model.heads, strict=True):
        new.classifier.weight.copy_(old.classifier.weight[rows])
        new.classifier.bias.copy_(old.classifier.bias[rows])


def _copy_norms(before: MultiExitModel, model: MultiExitModel) -> None:
    """Copies the norms of the exits of a pre-norm encoder, which belong to the scale of its hidden states."""
    for old, new in zip(before.heads, model.heads, strict=True):
        if new.norm is not None:
            new.norm.load_state_dict(old.norm.state_dict())


def _copy_poolers(before: MultiExitModel, model: MultiExitModel) -> None:
    for old, new in zip(before.heads, model.heads, strict=True):
        new.pooler.load_state_dict(old.pooler.state_dict())
