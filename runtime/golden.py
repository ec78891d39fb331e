"""Golden inputs: texts with the checkpoint's outputs at every exit, to check a bundle on a device without torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from berxit.runtime.bundle import Manifest
from berxit.runtime.bundle_files import BundleFolder
from berxit.runtime.errors import BerxitError
from berxit.runtime.json_data import decode_json, parse, write_json
from berxit.runtime.loop import Backend, every_exit
from berxit.runtime.tokenization import Text, TextTokenizer, TokenBatch


@dataclass(frozen=True)
class TokenizedText:
    """One text, or a pair, with the token ids that every runner must produce."""

    texts: tuple[str, ...]
    """One text, or two for a pair."""
    input_ids: tuple[int, ...]
    """Token ids without padding."""
    token_type_ids: tuple[int, ...]

    @property
    def text(self) -> Text:
        """The text, or a tuple of two for a pair."""
        return self.texts[0] if len(self.texts) == 1 else (self.texts[0], self.texts[1])


TYPICAL_LOGIT = 5.0
"""Approximate largest logit of the trained classifiers on which the tolerances of the targets were chosen."""


@dataclass(frozen=True)
class Golden:
    """Content of golden.json: B samples, n layers, C outputs."""

    texts: tuple[tuple[str, ...], ...]
    """(B,) one or two texts each."""
    input_ids: tuple[tuple[int, ...], ...]
    """(B,) token ids of each sample, without padding."""
    token_type_ids: tuple[tuple[int, ...], ...]
    logits: tuple[tuple[tuple[Any, ...], ...], ...]
    """(B, n, C); for tokens (B, n, S, C) with the S tokens of each sample, without padding."""
    lte: tuple[tuple[float, ...], ...] | None
    """(B, n) LTE certainty; None if the model has no LTE module."""
    tokenization: tuple[TokenizedText, ...] = ()
    """Texts that detect a deviating tokenizer. Segments do not run on them."""

    @property
    def tokenized(self) -> tuple[TokenizedText, ...]:
        """All texts with their token ids: the samples, then ``tokenization``."""
        samples = zip(self.texts, self.input_ids, self.token_type_ids, strict=True)
        return *(TokenizedText(*sample) for sample in samples), *self.tokenization

    @property
    def inputs(self) -> list[Text]:
        """Texts of the samples, as ``EarlyExitRunner.predict_batch`` accepts them."""
        return [sample.text for sample in self.tokenized[: len(self.texts)]]

    def batch(self, pad_token_id: int) -> TokenBatch:
        """All samples as one padded batch."""
        return TokenBatch.pad(self.input_ids, self.token_type_ids, pad_token_id)

    def one_by_one(self, pad_token_id: int) -> list[TokenBatch]:
        """Each sample as a separate batch, without padding."""
        rows = zip(self.input_ids, self.token_type_ids, strict=True)
        return [TokenBatch.pad([ids], [types], pad_token_id) for ids, types in rows]

    def scale(self, *, regression: bool) -> float:
        """Scale of the logits, ``Manifest.parity.scale``: the largest logit divided by ``TYPICAL_LOGIT``.

        At least 1 for classification, whose logits have no unit.
        """
        scale = max(float(np.abs(np.array(row)).max(initial=0.0)) for row in self.logits) / TYPICAL_LOGIT
        return (scale or 1.0) if regression else max(1.0, scale)


def read_golden(bundle: Path | BundleFolder, manifest: Manifest) -> Golden:
    """Reads golden.json. Raises BerxitError if it differs from its checksum, is damaged, or does not fit the model."""
    file = BundleFolder.at(bundle).file(manifest.golden)
    return parse_golden(file.read_bytes(), file.path, manifest)


def parse_golden(content: bytes, file: Path, manifest: Manifest) -> Golden:
    """The golden inputs in the bytes of a golden.json. ``file``: for messages. Raises as ``read_golden`` does."""
    golden: Golden = parse(Golden, decode_json(content, file), str(file))
    rows, layers, outputs = len(golden.texts), manifest.model.layers, manifest.model.outputs
    sizes = [len(golden.input_ids), len(golden.token_type_ids), len(golden.logits), len(golden.lte or golden.texts)]
    per_row = [len(row) for row in (*golden.logits, *(golden.lte or ()))]
    if manifest.model.task_kind.words:
        pairs = zip(golden.logits, golden.input_ids, strict=False)
        shapes = {_shape(exit_) == (len(ids), outputs) for row, ids in pairs for exit_ in row}
    else:
        shapes = {_shape(exit_) == (outputs,) for row in golden.logits for exit_ in row}
    if not rows or {*sizes} != {rows} or {*per_row} != {layers} or shapes != {True}:
        raise BerxitError(
            f"{file}: the entries do not match {rows} samples, and {layers} layers and {outputs} outputs of the"
            " manifest. Export the bundle again"
        )
    return golden


def _shape(values: Sequence[Any]) -> tuple[int, ...] | None:
    """Shape of nested sequences of numbers; None if they are ragged or contain something else."""
    try:
        found = np.array(values)
    except ValueError:
        return None
    return found.shape if found.dtype.kind in "iuf" else None


def tokenized(texts: Sequence[Text], batch: TokenBatch) -> tuple[TokenizedText, ...]:
    """Pairs each text with its token ids, the same row of ``batch``."""
    return tuple(
        TokenizedText((text,) if isinstance(text, str) else text, tuple(ids[:n].tolist()), tuple(types[:n].tolist()))
        for text, ids, types, n in zip(texts, batch.input_ids, batch.token_type_ids, batch.lengths, strict=True)
    )


def check_tokenization(golden: Golden, tokenizer: TextTokenizer) -> None:
    """Raises BerxitError for the first text whose token ids differ from those at export."""
    for expected in golden.tokenized:
        (found,) = tokenized([expected.text], tokenizer([expected.text]))
        if found != expected:
            raise BerxitError(
                f"the token ids of {expected.texts[0][:60]!r} differ from those at export: install the release of"
                " tokenizers that the bundle was exported with, or export it again"
            )


def write_golden(golden: Golden, path: Path) -> None:
    write_json(dataclasses.asdict(golden), path)


@dataclass(frozen=True)
class Deviation:
    """Difference between one exit's outputs and the checkpoint's, over all golden samples."""

    max_diff: float
    """Largest absolute difference of the logits, divided by the bundle's scale, and of the LTE certainty."""
    psnr: float
    """Peak signal-to-noise ratio of the logits in dB: 20 lg(largest expected logit / root mean square difference)."""


def deviations(backend: Backend, golden: Golden, pad_token_id: int, scale: float = 1.0) -> list[Deviation]:
    """Deviation of each exit of the backend, from all samples in one batch.

    ``scale``: divisor of the differences of logits, ``Manifest.parity.scale``. Raises BerxitError for outputs that are
    not finite.
    """
    found, lengths = [], [len(ids) for ids in golden.input_ids]
    for layer, outputs, lte, _ in every_exit(backend, golden.batch(pad_token_id)):
        rows, logits = [np.array(row[layer - 1]) for row in golden.logits], outputs
        if outputs.ndim == 3:  # only tokens, no padding
            logits = np.concatenate([row[:length] for row, length in zip(outputs, lengths, strict=True)])
        expected = np.concatenate(rows) if outputs.ndim == 3 else np.stack(rows)
        off = [np.abs(logits - expected).max() / scale]
        if golden.lte is not None and lte is not None:
            off.append(np.abs(lte - np.array(golden.lte)[:, layer - 1]).max())
        noise = np.sqrt(np.mean((logits - expected) ** 2))
        with np.errstate(divide="ignore", invalid="ignore"):  # no difference: inf; all expected logits 0: -inf
            psnr = 20 * np.log10(np.abs(expected).max() / noise)
        found.append(Deviation(float(np.max(off)), float(psnr)))  # np.max, unlike max, returns NaN if any value is
    return found


def differences(backend: Backend, golden: Golden, pad_token_id: int, scale: float = 1.0) -> list[float]:
    """Largest difference at each exit: ``Deviation.max_diff``."""
    return [deviation.max_diff for deviation in deviations(backend, golden, pad_token_id, scale)]
