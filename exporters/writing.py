"""Files of a bundle except its manifest: tokenizer, golden inputs and segments."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from berxit.exporters.golden_samples import of_every_length
from berxit.exporters.loading import LoadedCheckpoint
from berxit.exporters.segments import Segments
from berxit.exporters.targets import Settings
from berxit.runtime.bundle import SCHEMA_VERSION, DataFile, Manifest, ModelInfo, Parity, sha256
from berxit.runtime.golden import Golden, tokenized, write_golden
from berxit.runtime.metrics import positive_class
from berxit.runtime.policies import ExitPolicy
from berxit.runtime.progress import Progress
from berxit.runtime.tokenization import Text, TextTokenizer
from berxit.train.encoding import as_tensors
from berxit.train.modeling import MultiExitModel
from berxit.train.tokenizing import TOKENIZER_FILE, revealing_texts

GOLDEN_FILE = "golden.json"
REFERENCE = "PyTorch, fp32"
"""The implementation that computes the golden outputs."""
PACKAGES = ("berxit", "torch", "transformers", "numpy")
"""Packages whose versions every manifest records."""


@dataclass(frozen=True)
class Written:
    """A written bundle without manifest.json."""

    folder: Path
    tokenizer: TextTokenizer
    golden: Golden
    draft: Manifest
    """The manifest before the parity check: with the target's tolerance, no differences, and a policy without early
    exits. Backends open the segments with it."""


def write_files(
    checkpoint: LoadedCheckpoint,
    settings: Settings,
    segments: Segments,
    samples: Sequence[Text],
    folder: Path,
    progress: Progress,
) -> Written:
    """Writes the files into an empty folder. ``samples``: texts of the golden inputs.

    Raises InputError for settings that the target rejects, BerxitError for weights that the precision cannot represent.
    """
    target, model = settings.target, checkpoint.model
    max_length = settings.max_length(model.config.max_length)
    shutil.copyfile(checkpoint.path / TOKENIZER_FILE, folder / TOKENIZER_FILE)
    words = model.config.task_kind.words
    tokenizer = TextTokenizer(folder / TOKENIZER_FILE, max_length, checkpoint.tokenizer.pad_token_id, words=words)
    if target.every_length:
        samples = of_every_length(samples, settings.lengths, tokenizer)
    golden = make_golden(model, tokenizer, samples, max_length)
    write_golden(golden, folder / GOLDEN_FILE)
    inputs = golden.one_by_one(tokenizer.pad_token_id)
    with progress(len(segments.layers) + 1) as bar:
        written = target.load_writer().write_segments(segments, folder, settings, inputs, bar)
    policy = ExitPolicy.full_depth(model.layers, model.config.regression)
    draft = Manifest(
        schema_version=SCHEMA_VERSION,
        target=target.name,
        precision=settings.precision.name,
        model=model_info(model, tokenizer.pad_token_id, max_length),
        tokenizer=DataFile(TOKENIZER_FILE, sha256(folder / TOKENIZER_FILE)),
        segments=written.segments,
        policy=policy,
        calibration=None,
        parity=Parity(REFERENCE, settings.precision.atol, (), golden.scale(regression=model.config.regression)),
        golden=DataFile(GOLDEN_FILE, sha256(folder / GOLDEN_FILE)),
        made_with={name: version(name) for name in (*PACKAGES, *target.packages)},
        lengths=settings.lengths,
        max_batch=settings.max_batch,
        threads=settings.threads,
        target_version=settings.version.name if settings.version and settings.version.opset else None,
        opset=settings.version.opset if settings.version else None,
        full=written.full,
    )
    return Written(folder, tokenizer, golden, draft)


def model_info(model: MultiExitModel, pad_token_id: int, max_length: int) -> ModelInfo:
    """The manifest's description of the model. ``max_length``: tokens of the longest input of the bundle."""
    config = model.config
    return ModelInfo(
        family=config.backbone.model_type,
        task=config.task,
        kind=config.kind,
        labels=config.labels,
        metric=config.metric,
        text_columns=config.text_columns,
        label_column=config.label_column,
        layers=model.layers,
        hidden_size=model.hidden_size,
        max_length=max_length,
        pad_token_id=pad_token_id,
        lte=config.lte,
        positive=positive_class(config.metric, config.labels),
    )


@torch.no_grad()
def make_golden(model: MultiExitModel, tokenizer: TextTokenizer, samples: Sequence[Text], max_length: int) -> Golden:
    """The checkpoint's outputs for the samples, as one padded batch; and token ids of texts on which tokenizer
    implementations differ."""
    batch = tokenizer(samples)
    outputs = model(**as_tensors(batch))
    cases = tokenized(samples, batch)
    revealing = revealing_texts(len(model.config.text_columns) == 2, max_length)
    return Golden(
        texts=tuple(case.texts for case in cases),
        input_ids=tuple(case.input_ids for case in cases),
        token_type_ids=tuple(case.token_type_ids for case in cases),
        tokenization=tokenized(revealing, tokenizer(revealing)),
        logits=_nested(outputs.exit_logits.numpy(), batch.lengths if model.config.task_kind.words else None),
        lte=None if outputs.certainties is None else shortest(outputs.certainties.numpy()).tolist(),
    )


def _nested(logits: npt.NDArray[np.float32], lengths: npt.NDArray[np.int64] | None) -> tuple[Any, ...]:
    """Logits (B, n, C) as lists. With the numbers of tokens ``lengths``, logits (B, n, S, C) without padding."""
    values = shortest(logits)
    if lengths is None:
        return tuple(values.tolist())
    return tuple(row[:, :length].tolist() for row, length in zip(values, lengths.tolist(), strict=True))


def shortest(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """The same values with the fewest decimals that still give the same float32."""
    return np.array([float(str(value)) for value in values.ravel()]).reshape(values.shape)
