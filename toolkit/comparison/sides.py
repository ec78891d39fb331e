"""The two sides of a comparison: bundle or checkpoint, opened so that both return every exit's output for a text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from berxit import devices
from berxit.runtime.bundle import Manifest, ModelInfo, read_manifest
from berxit.runtime.bundle_files import MANIFEST
from berxit.runtime.errors import InputError
from berxit.runtime.loop import every_exit
from berxit.runtime.policies import ExitPolicy
from berxit.runtime.runner import EarlyExitRunner
from berxit.runtime.tokenization import Text, TextTokenizer, TokenBatch

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RowOutputs:
    """Outputs of all E exits for one text."""

    logits: Array
    """(E, C)"""
    lte: Array | None
    """(E,), or None without LTE."""
    hidden: tuple[Array, ...] = ()
    """E + 1 of (S, d): the embeddings, then the hidden states at each exit. Empty if not returned."""


@dataclass(frozen=True)
class Side:
    """One model of a comparison."""

    name: str
    path: Path
    model: ModelInfo
    exits: tuple[int, ...]
    policy: ExitPolicy
    executed_by: str
    outputs: Callable[[Text], RowOutputs]
    manifest: Manifest | None = None
    """None for a checkpoint."""
    runner: EarlyExitRunner | None = None
    """None if latency is not measured: a checkpoint, or a bundle for another device."""

    @property
    def mib(self) -> float:
        """Size on disk."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file()) / 2**20


def open_side(path: Path, threads: int | None) -> Side:
    """Opens a bundle or a checkpoint. Raises InputError for a folder that is neither."""
    if (path / MANIFEST).is_file():
        return _bundle(path, threads)
    if (path / "config.json").is_file():
        return _checkpoint(path)
    raise InputError(f"{path} is neither a bundle, nor a checkpoint, nor a bench: give a folder with one of them")


def _bundle(path: Path, threads: int | None) -> Side:
    """A bundle for this machine, or one for another device executed by the exporter's parity check."""
    manifest = read_manifest(path)
    runner = None
    if manifest.target in devices.recognise(devices.this_machine()).targets:
        runner = EarlyExitRunner.load(path, threads=threads)
        backend, executed_by = runner.backend, runner.backend.name
    else:
        from berxit.exporters.targets import find_target

        backend = find_target(manifest.target).load_writer().checking_backend(path, manifest, threads)
        executed_by = "parity check of the export"
    model = manifest.model
    tokenizer = TextTokenizer(path / manifest.tokenizer.file, model.max_length, model.pad_token_id)
    keeps_hidden = manifest.target == "coreml" and runner is None

    def outputs(text: Text) -> RowOutputs:
        batch = tokenizer([text])
        logits, lte, hidden = [], [], []
        if keeps_hidden:
            hidden.append(_hidden_states(backend.embed(batch), batch))
        for found in every_exit(backend, batch):
            logits.append(model.task_kind.decisions(found.logits, batch.places)[0].astype(np.float64))
            if found.lte is not None:
                lte.append(float(found.lte[0]))
            if keeps_hidden:
                hidden.append(_hidden_states(found.state, batch))
        return RowOutputs(np.stack(logits), np.array(lte) if lte else None, tuple(hidden))

    return Side(
        name=path.name,
        path=path,
        model=model,
        exits=manifest.exits,
        policy=manifest.policy,
        executed_by=executed_by,
        outputs=outputs,
        manifest=manifest,
        runner=runner,
    )


def _checkpoint(path: Path) -> Side:
    """A checkpoint in PyTorch, in float64, so that differences come from the other side's rounding alone."""
    import torch

    from berxit.exporters.writing import model_info
    from berxit.train.calibration import read_policy
    from berxit.train.checkpoint import load_checkpoint
    from berxit.train.encoding import as_tensors

    model, tokenizer = load_checkpoint(path)
    model.double()
    config, calibrated = model.config, read_policy(path)
    policy = calibrated.policy if calibrated else ExitPolicy.full_depth(model.layers, config.regression)

    @torch.no_grad()
    def outputs(text: Text) -> RowOutputs:
        batch = tokenizer([text])
        found = model(**as_tensors(batch), output_hidden_states=True)
        lte = None if found.certainties is None else found.certainties[0].numpy()
        logits = config.task_kind.decisions(found.exit_logits[0].numpy())
        return RowOutputs(logits, lte, tuple(hidden[0].numpy() for hidden in found.hidden_states))

    return Side(
        name=path.name,
        path=path,
        model=model_info(model, tokenizer.pad_token_id, config.max_length),
        exits=tuple(range(1, model.layers + 1)),
        policy=policy,
        executed_by="PyTorch, float64",
        outputs=outputs,
    )


def _hidden_states(state: Any, batch: TokenBatch) -> Array:
    """The CoreML executor's state, (1, S', d) or (1, d, 1, S') with padding at the end -> (S, d)."""
    rows = state.rows[0].tensors["hidden"]
    rows = rows[0, :, 0].T if rows.ndim == 4 else rows[0]
    return rows[: int(batch.lengths[0])].astype(np.float64)
