"""The bundle: a folder with everything a device needs, described by manifest.json. docs/bundle.md is its specification.

Only data formats: JSON, raw little-endian tensors, and the back end's own model files. Reading one never executes
anything. Exporters write through ``write_manifest``, runtimes read through ``read_manifest``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from berxit.runtime.bundle_files import MANIFEST, BundleFolder
from berxit.runtime.calibration import Calibration, upgraded
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.json_data import decode_json, parse, write_json
from berxit.runtime.manifest_checks import check_manifest
from berxit.runtime.policies import ExitPolicy
from berxit.runtime.storage import recover

SCHEMA_VERSION = 1
DIGEST_LENGTH = 12
MISSING_S, REPLACED_S, PAUSE_S = 0.5, 5.0, 0.005
"""Seconds that a load waits for a missing bundle, for one that keeps changing, and between two attempts."""


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
    positive: str | None = None
    """The class that the metric F1 scores: the second of two labels. None for other metrics, and in older bundles."""

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
    """The largest difference that is allowed: of logits divided by ``scale``, and of LTE certainty as it is."""
    max_diff: tuple[float, ...]
    """Per exit, over logits (divided by ``scale``) and LTE certainty of the golden inputs."""
    scale: float = 1.0
    """Size of the model's values, as ``Golden.scale`` measures it: a tolerance for logits means nothing for prices."""


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
    calibration: Calibration | None
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
    return open_bundle(bundle, verify=verify)[1]


def open_bundle(bundle: Path | str, *, verify: bool = True) -> tuple[BundleFolder, Manifest]:
    """The checked bundle, with all files that its manifest names open. What is read through the folder is what was
    checked, whatever replaces the bundle meanwhile.

    ``verify``: check every file against its sha256. A bundle that is replaced while it is opened is opened again; one
    that is missing between the two renames of a replacement is waited for. Raises as ``read_manifest`` does.
    """
    folder = Path(bundle)
    start = time.monotonic()
    while True:
        before = _state(folder)
        if before is None:
            recover(folder)
        try:
            opened = BundleFolder(folder, verify=verify)
            return opened, _checked_manifest(folder, opened)
        except BerxitError:
            waited = time.monotonic() - start
            if waited > (MISSING_S if before is None else REPLACED_S) or (before and before == _state(folder)):
                raise
            time.sleep(PAUSE_S)


def _state(folder: Path) -> list[tuple[str, int, int, int]] | None:
    """Names, inodes, sizes and times of the files, which change if the bundle is replaced. None if it is missing."""
    try:
        found = ((path, path.stat()) for path in (folder, *sorted(folder.rglob("*"))))
        return [(str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in found]
    except OSError:
        return None


def _checked_manifest(folder: Path, opened: BundleFolder) -> Manifest:
    content = opened.manifest().read_bytes()
    data = decode_json(content, folder / MANIFEST)
    version = data.get("schema_version")
    if not isinstance(version, int):
        raise BerxitError(f"{folder / MANIFEST}: no schema_version. This is not a bundle of berxit-export")
    if version > SCHEMA_VERSION:
        raise BerxitError(
            f"{folder / MANIFEST}: schema version {version} is newer than {SCHEMA_VERSION}, the newest this berxit"
            " reads: upgrade berxit here, or export again with this version"
        )
    try:
        if data.get("calibration") is not None:
            data["calibration"] = upgraded(data["calibration"])
            parse(Calibration, data["calibration"], f"{folder / MANIFEST}: calibration")  # names the wrong key
        manifest: Manifest = parse(Manifest, data, str(folder / MANIFEST))
        manifest.policy.check(regression=manifest.model.regression, lte=manifest.model.lte)
    except InputError as error:  # the policy checks itself, but knows no file
        raise BerxitError(f"{folder / MANIFEST}: policy: {error}. Export the bundle again") from None
    check_manifest(manifest, str(folder / MANIFEST))
    if manifest.calibration is not None:
        manifest.calibration.check(manifest.model.layers, f"{folder / MANIFEST}: calibration")
    for file, digest in sorted(files_of(manifest).items()):
        _open_file(opened, DataFile(file, digest))
    return dataclasses.replace(manifest, digest=hashlib.sha256(content).hexdigest()[:DIGEST_LENGTH])


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
    data["calibration"] = manifest.calibration.stored() if manifest.calibration else None
    for key in ("threads", "scores"):  # readers older than these, and than repeat, refuse what they do not know
        if data[key] is None:
            del data[key]
    if data["model"]["positive"] is None:
        del data["model"]["positive"]
    if data["parity"]["scale"] == 1:
        del data["parity"]["scale"]
    for segment in data["segments"]:
        if segment["repeat"] == 1:
            del segment["repeat"]
    write_json(data, folder / MANIFEST)


MAPPED = 1 << 20
"""Bytes from which on a tensor is mapped."""


def read_tensor(bundle: Path | BundleFolder, tensor: TensorFile) -> npt.NDArray:
    """A raw tensor file of the bundle, read-only: what is large is mapped, not read, and takes the memory of its pages
    that are used."""
    file, dtype = BundleFolder.at(bundle).file(tensor), np.dtype(tensor.dtype).newbyteorder("<")
    size, count = file.size, int(np.prod(tensor.shape))
    if size != count * dtype.itemsize:
        raise BerxitError(f"{file}: {size / dtype.itemsize:g} values, expected {count}. Copy or export again")
    return np.frombuffer(file.map() if size >= MAPPED else file.read_bytes(), dtype).reshape(tensor.shape)


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


def check_package(package: Path, digest: str) -> None:
    """Raises BerxitError where the folder's checksum is another than ``digest``."""
    if sha256(package) != digest:
        raise BerxitError(f"{package}: checksum differs from the manifest's. Copy the bundle again, or export it again")


def _open_file(bundle: BundleFolder, entry: DataFile) -> None:
    """Opens and checks what a manifest names: a file, or a folder (.mlpackage)."""
    package = bundle.package(entry)
    if package is None:
        bundle.file(entry)
    elif bundle.verify:
        check_package(package, entry.sha256)
