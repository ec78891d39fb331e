"""The bundle: a folder with everything a device needs, described by manifest.json. docs/bundle.md is its specification.

Only data formats: JSON, raw little-endian tensors, and the back end's own model files. Reading one never executes
anything. Exporters write through ``write_manifest``, runtimes read through ``read_manifest``.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.json_data import parse, read_json, write_json
from berxit.runtime.policies import ExitPolicy

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
DIGEST_LENGTH = 12


@dataclass(frozen=True)
class ModelInfo:
    """What the model is and what its answers mean."""

    family: str
    """The backbone's architecture: bert, roberta, albert, distilbert."""
    task: str
    """The task's name: rte, mrpc, ..., custom."""
    kind: str
    """classification or regression."""
    labels: tuple[str, ...]
    """Class names in the order of the logits; empty for regression."""
    metric: str
    """The task's score: accuracy, f1, spearman."""
    text_columns: tuple[str, ...]
    """The columns of the task's data files that hold the text, or the two texts of a pair."""
    label_column: str
    layers: int
    hidden_size: int
    max_length: int
    """Tokens that one input may have, special tokens included; longer ones are cut."""
    pad_token_id: int
    lte: bool
    """Whether the segments give the learned certainty."""

    @property
    def regression(self) -> bool:
        return self.kind == "regression"


@dataclass(frozen=True)
class TensorInfo:
    """One input or output of a segment."""

    name: str
    role: str
    """What is fed or read there: input_ids, token_type_ids, attention_mask; hidden, which each layer replaces;
    attention_bias and token_weights, which the embeddings make and every layer reads; logits, lte; or constant, for an
    input that the segment's ``constants`` feed."""
    dtype: str
    shape: tuple[str | int, ...]
    """Sizes; a name (batch, length) where the size may vary."""


@dataclass(frozen=True)
class DataFile:
    """A file of the bundle, relative to its folder."""

    file: str
    sha256: str


@dataclass(frozen=True)
class TensorFile:
    """A tensor in a file of its own: raw, little-endian, row-major."""

    file: str
    sha256: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Segment:
    """One step of the exit loop: the embeddings (layer 0), or encoder layers up to one with an exit."""

    layer: int
    """The last layer that it runs, whose exit it has; it starts after the segment before."""
    file: str
    """Relative to the bundle; a folder where that is what the back end loads (.mlpackage). Several layers may name one
    file: then the device loads it once (ALBERT)."""
    sha256: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    constants: dict[str, TensorFile] = field(default_factory=dict)
    """Input name -> the tensor to feed there: what differs between layers that share one file."""
    function: str | None = None
    """Which function of the file it is, where one file holds several (CoreML)."""
    repeat: int = 1
    """How often the file runs in turn, its hidden state fed back to it; the last run's answer counts (ALBERT)."""

    @property
    def varying(self) -> tuple[TensorInfo, ...]:
        """The inputs that differ from run to run: not the constants."""
        return tuple(tensor for tensor in self.inputs if tensor.name not in self.constants)


@dataclass(frozen=True)
class Parity:
    """How far the exported segments were from the checkpoint, at every exit, when they were made."""

    reference: str
    atol: float
    """The largest absolute difference that was allowed."""
    max_diff: tuple[float, ...]
    """Per exit, over logits and LTE certainty of the golden inputs."""


@dataclass(frozen=True)
class Scores:
    """What each exit scores on the calibration data: the checkpoint's, and this bundle's own."""

    data: str
    examples: int
    metric: str
    checkpoint: tuple[float, ...]
    """Per exit."""
    bundle: tuple[float, ...]

    @property
    def losses(self) -> tuple[float, ...]:
        """Per exit: what it loses to the checkpoint's, below zero where it gains."""
        return tuple(before - after for before, after in zip(self.checkpoint, self.bundle, strict=True))


@dataclass(frozen=True)
class Manifest:
    """manifest.json. An unknown key is an error: a reader must never guess."""

    schema_version: int
    target: str
    """The back end that runs the segment files: onnxruntime, tensorrt, coreml."""
    precision: str
    model: ModelInfo
    tokenizer: DataFile
    segments: tuple[Segment, ...]
    """In the order of the loop: the embeddings first, then up to each layer that has an exit, the last in any case."""
    policy: ExitPolicy
    calibration: dict[str, Any] | None
    """How the thresholds were chosen; None where they were not (the policy then never stops early)."""
    parity: Parity
    golden: DataFile
    """Inputs and the outputs expected at every exit, so that a device can check itself."""
    made_with: dict[str, str]
    """Versions of the packages that wrote the bundle."""
    lengths: tuple[int, ...] = ()
    """Input lengths that the segments take: pad to the next. Empty: any, up to the model's max_length."""
    max_batch: int | None = None
    """Rows that the segments take at once; None: any."""
    scores: Scores | None = None
    """What its precision costs; None where that was not measured."""
    threads: int | None = None
    """CPU threads to run it with unless the caller says otherwise; None: what the device does by default."""
    digest: str = field(default="", compare=False, metadata={"stored": False})
    """First DIGEST_LENGTH hexadecimal digits of the sha256 of manifest.json: the identity of the bundle, because the
    manifest contains the checksums of all other files. Empty for a manifest that was not read from a file."""

    @property
    def exits(self) -> tuple[int, ...]:
        """The layers that have an exit, ascending."""
        return tuple(segment.layer for segment in self.segments[1:])


def read_manifest(bundle: Path | str, *, verify: bool = True) -> Manifest:
    """Reads and checks a bundle. Raises BerxitError if anything is missing, damaged or newer than this reader."""
    folder = Path(bundle)
    if not folder.is_dir():
        raise BerxitError(f"no bundle at {folder}: write one with berxit-export")
    data = read_json(folder / MANIFEST)
    version = data.get("schema_version")
    if not isinstance(version, int):
        raise BerxitError(f"{folder / MANIFEST}: no schema_version. This is not a bundle of berxit-export")
    if version > SCHEMA_VERSION:
        raise BerxitError(
            f"{folder / MANIFEST}: schema version {version} is newer than {SCHEMA_VERSION}, the newest this berxit"
            " reads: upgrade berxit here, or export again with this version"
        )
    try:
        manifest: Manifest = parse(Manifest, data, str(folder / MANIFEST))
        manifest.policy.check(regression=manifest.model.regression, lte=manifest.model.lte)
    except InputError as error:  # the policy checks itself, but knows no file
        raise BerxitError(f"{folder / MANIFEST}: policy: {error}. Export the bundle again") from None
    layers = [segment.layer for segment in manifest.segments]
    n = manifest.model.layers
    if layers != sorted({0, *layers, n}) or len(layers) < 2 or layers[-1] != n or manifest.policy.layers != n:
        raise BerxitError(
            f"{folder / MANIFEST}: {len(layers)} segments {layers} and a policy for {manifest.policy.layers} layers"
            f" do not fit a model of {n} layers. Export the bundle again"
        )
    for segment in manifest.segments:
        if segment.repeat < 1:
            raise BerxitError(
                f"{folder / MANIFEST}: segment of layer {segment.layer}: repeat is {segment.repeat}, and must be at"
                " least 1. Export the bundle again"
            )
    if manifest.threads is not None and manifest.threads < 1:
        raise BerxitError(
            f"{folder / MANIFEST}: threads is {manifest.threads}: it must be at least 1. Export the bundle again"
        )
    for file, digest in sorted(files_of(manifest).items()):
        _check_file(folder, file, digest if verify else None)
    return dataclasses.replace(manifest, digest=sha256(folder / MANIFEST)[:DIGEST_LENGTH])


def files_of(manifest: Manifest) -> dict[str, str]:
    """Every file of the bundle but the manifest -> its sha256. Files that layers share are named once."""
    files = {data.file: data.sha256 for data in (manifest.tokenizer, manifest.golden)}
    for segment in manifest.segments:
        files[segment.file] = segment.sha256
        files.update({constant.file: constant.sha256 for constant in segment.constants.values()})
    return files


def write_manifest(manifest: Manifest, folder: Path) -> None:
    data = dataclasses.asdict(manifest)
    del data["digest"]
    for key in ("threads", "scores"):  # readers older than these, and than repeat, refuse what they do not know
        if data[key] is None:
            del data[key]
    for segment in data["segments"]:
        if segment["repeat"] == 1:
            del segment["repeat"]
    write_json(data, folder / MANIFEST)


MAPPED = 1 << 20
"""Bytes from which on a tensor is mapped."""


def read_tensor(bundle: Path, tensor: TensorFile) -> npt.NDArray:
    """A raw tensor file of the bundle, read-only: what is large is mapped, not read, and takes the memory of its pages
    that are used."""
    path, dtype = bundle / tensor.file, np.dtype(tensor.dtype).newbyteorder("<")
    size, count = path.stat().st_size, int(np.prod(tensor.shape))
    if size != count * dtype.itemsize:
        raise BerxitError(f"{path}: {size / dtype.itemsize:g} values, expected {count}. Copy or export again")
    values = np.memmap(path, dtype, mode="r") if size >= MAPPED else np.fromfile(path, dtype)
    values.flags.writeable = False
    return values.reshape(tensor.shape)


def sha256(path: Path) -> str:
    """Of a file's bytes; of a folder, of the lines "PATH SHA256" of all files in it, in the order of their paths."""
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(file for file in path.rglob("*") if file.is_file()):
            digest.update(f"{file.relative_to(path).as_posix()} {sha256(file)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _check_file(folder: Path, file: str, digest: str | None) -> None:
    """``digest`` None: that the file is there, inside the bundle, is enough."""
    path = folder / file
    if not path.resolve().is_relative_to(folder.resolve()):
        raise BerxitError(f"{folder / MANIFEST}: file '{file}' lies outside the bundle. Do not use this bundle")
    if not path.exists():
        raise BerxitError(f"{folder}: file '{file}' is missing. Copy the bundle again, whole, or export it again")
    if digest is not None and sha256(path) != digest:
        raise BerxitError(f"{path}: checksum differs from the manifest's. Copy the bundle again, or export it again")
