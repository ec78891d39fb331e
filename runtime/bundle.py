"""The bundle: a folder with everything that a device needs, described by manifest.json. Specification: docs/bundle.md.

It contains only data: JSON, raw little-endian tensors, and the model files of the target. Reading it never executes
code. Exporters write through ``write_manifest``, runtimes read through ``read_manifest``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from berxit.runtime.bundle_files import MANIFEST, BundleFolder
from berxit.runtime.calibration import Calibration, upgraded
from berxit.runtime.errors import BerxitError, InputError, one_line_errors
from berxit.runtime.extensions import StoredNameError, UnregisteredError
from berxit.runtime.json_data import (
    NOT_STORED,
    OMIT_DEFAULT,
    decode_json,
    parse,
    required_version,
    since,
    to_json,
    write_json,
)
from berxit.runtime.kinds import KINDS, Kind
from berxit.runtime.manifest_checks import check_kind, check_manifest
from berxit.runtime.metrics import METRICS
from berxit.runtime.onnx_files import check_onnx
from berxit.runtime.policies import BUILT_IN, ExitPolicy
from berxit.runtime.signing import check_signature
from berxit.runtime.storage import recover

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

SCHEMA_VERSION = 3
"""The newest version that this reader knows."""
DIGEST_LENGTH = 12
FLOAT32_NODES = "float32/"
"""Start of the names of the ONNX nodes that must compute in float32 in every precision: exits, and decomposed norms.
TensorRT names the layers of its network after the nodes."""
MISSING_S, REPLACED_S, PAUSE_S = 0.5, 5.0, 0.005
"""Seconds: longest wait for a missing bundle and for a bundle that keeps changing, and the pause between attempts."""


@dataclass(frozen=True)
class ModelInfo:
    """Description of the model and of its outputs."""

    family: str
    """The backbone's architecture, as transformers' ``model_type``: bert, for example."""
    task: str
    """The task's name: rte, mrpc, ..., custom."""
    kind: str
    """A name in runtime.kinds.KINDS."""
    labels: tuple[str, ...]
    """Class or label names in the order of the logits; for heads HEAD=CLASS; empty for regression."""
    metric: str
    """The task's score, a name in runtime.metrics.METRICS."""
    text_columns: tuple[str, ...]
    """Columns of the task's data files with the text, or with the two texts of a pair."""
    label_column: str
    """Column of the labels; for heads their columns, separated by "|"."""
    layers: int
    hidden_size: int
    max_length: int
    """Largest number of tokens in one input, special tokens included; longer inputs are truncated."""
    pad_token_id: int
    lte: bool
    """True if the layer segments output LTE certainty."""
    positive: str | None = field(default=None, metadata=OMIT_DEFAULT)
    """The class that F1 scores, the second of two labels. None for other metrics, and in bundles of older versions."""

    @property
    def regression(self) -> bool:
        return self.kind == "regression"

    @property
    def task_kind(self) -> Kind:
        """The kind as an object."""
        return KINDS[self.kind].of(self.labels)

    @property
    def outputs(self) -> int:
        """C, the number of logits; 1 for regression."""
        return self.task_kind.outputs(self.labels)

    def check_policy(self, policy: ExitPolicy) -> None:
        """Raises InputError for a policy that does not work for this model."""
        kind = self.task_kind
        policy.check(outputs=kind.classes(self.labels), lte=self.lte, several=kind.several)


@dataclass(frozen=True)
class TensorInfo:
    """One input or output of a segment."""

    name: str
    role: str
    """Content of the tensor: input_ids, token_type_ids, attention_mask; hidden, which each layer replaces;
    attention_bias and token_weights, outputs of the embeddings that every layer reads; logits; lte, or lte_logit, whose
    sigmoid is lte; or constant, for an input in the segment's ``constants``."""
    dtype: str
    shape: tuple[str | int, ...]
    """Sizes; a name (batch, length) for a size that varies."""


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
    """The embeddings (layer 0), or the encoder layers up to one with an exit."""

    layer: int
    """The last layer of the segment, whose exit it contains. It starts after the previous segment."""
    file: str
    """Relative to the bundle; a folder for CoreML (.mlpackage). Several segments may name one file, which the device
    then loads once (ALBERT)."""
    sha256: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    constants: dict[str, TensorFile] = field(default_factory=dict)
    """Constant inputs, by name: the tensors that differ between layers that share one file."""
    function: str | None = None
    """Name of the function, if the file contains several (CoreML)."""
    functions: tuple[str, ...] = field(default=(), metadata=since(2))
    """Names of the functions for the manifest's ``lengths``, in their order, if every length has a function of its own
    (CoreML). ``function`` is then None."""
    compiled: DataFile | None = field(default=None, metadata=since(2))
    """``file``, compiled for the device (CoreML: .mlmodelc). The device loads it instead, and ``file`` may be
    missing."""
    repeat: int = field(default=1, metadata=OMIT_DEFAULT)
    """Number of consecutive runs of the file, each on the hidden states of the previous run. Logits and LTE are those
    of the last run (ALBERT)."""

    @property
    def loaded(self) -> DataFile:
        """The file that a device loads."""
        return self.compiled or DataFile(self.file, self.sha256)

    @property
    def varying(self) -> tuple[TensorInfo, ...]:
        """The inputs that are not constant."""
        return tuple(tensor for tensor in self.inputs if tensor.name not in self.constants)


@dataclass(frozen=True)
class Parity:
    """Differences between the exported segments and the checkpoint, per exit, at the export."""

    reference: str
    atol: float
    """Largest allowed difference: of logits after division by ``scale``, and of LTE certainty."""
    max_diff: tuple[float, ...]
    """Per exit, over logits (divided by ``scale``) and LTE certainty of the golden inputs."""
    scale: float = field(default=1.0, metadata=OMIT_DEFAULT)
    """Size of the model's outputs, as ``Golden.scale`` measures it. A tolerance for logits is too strict for prices."""


@dataclass(frozen=True)
class Scores:
    """Score of each exit on the calibration data: the checkpoint's, and this bundle's own."""

    data: str
    examples: int
    metric: str
    checkpoint: tuple[float, ...]
    """Per exit."""
    bundle: tuple[float, ...]

    @property
    def losses(self) -> tuple[float, ...]:
        """Per exit: the checkpoint's score minus the bundle's."""
        return tuple(before - after for before, after in zip(self.checkpoint, self.bundle, strict=True))


@dataclass(frozen=True)
class Manifest:
    """Content of manifest.json. An unknown key is an error, because a reader must not guess its meaning."""

    schema_version: int
    target: str
    """Format of the segment files: onnxruntime, tensorrt, coreml."""
    precision: str
    model: ModelInfo
    tokenizer: DataFile
    segments: tuple[Segment, ...]
    """In execution order: the embeddings, then one segment per exit. The last layer always has an exit."""
    policy: ExitPolicy
    calibration: Calibration | None
    """Record of the calibration. None without calibration; no input then exits early."""
    parity: Parity
    golden: DataFile
    """Inputs with the expected outputs of every exit, for the check on a device."""
    made_with: dict[str, str]
    """Versions of the packages that wrote the bundle."""
    lengths: tuple[int, ...] = ()
    """Input lengths that the segments accept; inputs are padded to the next one. Empty: any, up to max_length."""
    max_batch: int | None = None
    """Largest number of rows per call of a segment; None: any."""
    scores: Scores | None = field(default=None, metadata=OMIT_DEFAULT)
    """Scores of the checkpoint and of this precision; None if they were not measured."""
    threads: int | None = field(default=None, metadata=OMIT_DEFAULT)
    """Default number of CPU threads, which the caller can override; None: the device's default."""
    target_version: str | None = field(default=None, metadata=since(2))
    """The oldest software that the files were exported for, as --target-version names it. None: the target has no
    versions that a backend compares, or the bundle is older than this key."""
    opset: int | None = field(default=None, metadata=since(2))
    """ONNX opset of the segment files; None as for ``target_version``."""
    full: Segment | None = field(default=None, metadata=since(2))
    """Full depth as one graph (without exits), from token ids to the last layer's logits. None: the bundle has none."""
    digest: str = field(default="", compare=False, metadata=NOT_STORED)
    """First DIGEST_LENGTH hexadecimal digits of the sha256 of manifest.json: the identity of the bundle, because the
    manifest contains the checksums of all other files. Empty for a manifest that was not read from a file."""

    @property
    def exits(self) -> tuple[int, ...]:
        """The layers that have an exit, ascending."""
        return tuple(segment.layer for segment in self.segments[1:])

    @property
    def table_rows(self) -> int | None:
        """Rows of the word embedding table; None if it is not a file of its own."""
        return min((table.shape[0] for table in self.segments[0].constants.values() if table.shape), default=None)


def read_manifest(bundle: Path | str, *, verify: bool = True) -> Manifest:
    """Reads and checks a bundle. Raises BerxitError if anything is missing, damaged or newer than this reader."""
    return open_bundle(bundle, verify=verify)[1]


def open_bundle(
    bundle: Path | str, *, verify: bool = True, key: Ed25519PublicKey | None = None
) -> tuple[BundleFolder, Manifest]:
    """The checked bundle, with all files of its manifest open. Reads through the folder return the checked content,
    even if the bundle is replaced meanwhile.

    ``verify``: check every file against its sha256. ``key``: check the signature of the manifest. A bundle that is
    replaced while it is opened is opened again. If it is missing between the two renames of a replacement, the call
    waits. Raises as ``read_manifest`` does.
    """
    folder = Path(bundle)
    start = time.monotonic()
    while True:
        before = _state(folder)
        if before is None:
            recover(folder)
        try:
            opened = BundleFolder(folder, verify=verify)
            with one_line_errors(f"cannot read bundle {folder}", "Copy the bundle again, or export it again"):
                return opened, _checked_manifest(folder, opened, key)
        except BerxitError:
            waited = time.monotonic() - start
            # A folder that is replaced while its files are listed has no state either, but is not missing.
            longest = REPLACED_S if before or (folder / MANIFEST).exists() else MISSING_S
            if waited > longest or (before and before == _state(folder)):
                raise
            time.sleep(PAUSE_S)


def _state(folder: Path) -> list[tuple[str, int, int, int]] | None:
    """Names, inodes, sizes and times of the files, which change if the bundle is replaced. None if it is missing."""
    try:
        found = ((path, path.stat()) for path in (folder, *sorted(folder.rglob("*"))))
        return [(str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in found]
    except OSError:
        return None


def _checked_manifest(folder: Path, opened: BundleFolder, key: Ed25519PublicKey | None) -> Manifest:
    content = opened.manifest().read_bytes()
    if key is not None:
        check_signature(content, opened.signature(), key, str(folder))
    manifest = parse_manifest(content, folder / MANIFEST)
    for file, digest in sorted(files_of(manifest).items()):
        _open_file(opened, DataFile(file, digest))
    if manifest.target != "coreml":
        for entry in {segment.loaded.file: segment.loaded for segment in manifest.segments}.values():
            segment = opened.file(entry)
            check_onnx(segment.map() if segment.size else b"", str(segment))
    return manifest


def read_manifest_for(reader: str, bundle: Path, *, verify: bool = True) -> Manifest:
    """``read_manifest`` for a ``reader`` in whose processes a user cannot register a criterion. Raises InputError for
    such a criterion, also if it is registered in this process."""
    try:
        manifest = read_manifest(bundle, verify=verify)
        if manifest.policy.criterion not in BUILT_IN:
            raise UnregisteredError("criterion", manifest.policy.criterion, BUILT_IN).in_file(bundle / MANIFEST)
    except StoredNameError as error:
        raise error.where_none_is_registered(reader) from None
    return manifest


def parse_manifest(content: bytes, path: Path) -> Manifest:
    """The checked manifest in the bytes of a manifest.json, without its files. ``path``: for messages.

    Raises BerxitError for content that is damaged, newer than this reader or inconsistent.
    """
    data = decode_json(content, path)
    version = data.get("schema_version")
    if not isinstance(version, int):
        raise BerxitError(f"{path}: no schema_version. This is not a bundle of berxit-export")
    if version > SCHEMA_VERSION:
        raise BerxitError(
            f"{path}: schema version {version} is newer than {SCHEMA_VERSION}, the newest this berxit"
            " reads: upgrade berxit here, or export again with this version"
        )
    try:
        if data.get("calibration") is not None:
            data["calibration"] = upgraded(data["calibration"])
        manifest: Manifest = parse(Manifest, data, str(path))
        check_kind(manifest.model, str(path))
        manifest.model.check_policy(manifest.policy)
    except UnregisteredError as error:  # The bundle is whole. Its criterion is a user's own.
        raise error.in_file(path) from None
    except InputError as error:  # The policy's own check does not know the file.
        raise BerxitError(f"{path}: policy: {error}. Export the bundle again") from None
    needed = schema_version(manifest)
    if version < needed:
        raise BerxitError(
            f"{path}: schema_version is {version}, but it has keys or a policy of version {needed}."
            f" Export the bundle again"
        )
    check_manifest(manifest, str(path))
    if manifest.calibration is not None:
        manifest.calibration.check(manifest.model.layers, f"{path}: calibration")
    return dataclasses.replace(manifest, digest=hashlib.sha256(content).hexdigest()[:DIGEST_LENGTH])


def schema_version(manifest: Manifest) -> int:
    """The smallest schema version whose readers know every part of the manifest."""
    metric = METRICS[manifest.model.metric].since if manifest.model.metric in METRICS else 1
    return max(manifest.policy.schema_version, required_version(manifest), metric, manifest.model.task_kind.since)


def files_of(manifest: Manifest) -> dict[str, str]:
    """Every file that a device loads, except the manifest -> its sha256. Files that layers share occur once."""
    files = {data.file: data.sha256 for data in (manifest.tokenizer, manifest.golden)}
    for segment in (*manifest.segments, *([manifest.full] if manifest.full else [])):
        files[segment.loaded.file] = segment.loaded.sha256
        files.update({constant.file: constant.sha256 for constant in segment.constants.values()})
    return files


def write_manifest(manifest: Manifest, folder: Path) -> None:
    write_json(to_json(manifest), folder / MANIFEST)


MAPPED = 1 << 20
"""Tensors of at least so many bytes are memory-mapped."""


def read_tensor(bundle: Path | BundleFolder, tensor: TensorFile) -> npt.NDArray:
    """A raw tensor file of the bundle, read-only. A large tensor is memory-mapped: only the pages that are used take
    memory."""
    file, dtype = BundleFolder.at(bundle).file(tensor), np.dtype(tensor.dtype).newbyteorder("<")
    size, count = file.size, int(np.prod(tensor.shape))
    if size != count * dtype.itemsize:
        raise BerxitError(f"{file}: {size / dtype.itemsize:g} values, expected {count}. Copy or export again")
    return np.frombuffer(file.map() if size >= MAPPED else file.read_bytes(), dtype).reshape(tensor.shape)


def is_finder_metadata(name: str) -> bool:
    """True for files that macOS adds to folders: .DS_Store, and ._NAME on other file systems. They are not part of a
    package."""
    return name == ".DS_Store" or name.startswith("._")


def sha256(path: Path) -> str:
    """sha256 of a file's bytes; for a folder, of the lines "PATH SHA256" of its files in the order of their paths,
    without Finder metadata."""
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(f for f in path.rglob("*") if f.is_file() and not is_finder_metadata(f.name)):
            digest.update(f"{file.relative_to(path).as_posix()} {sha256(file)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_package(package: Path, digest: str) -> None:
    """Raises BerxitError unless the folder's checksum is ``digest``."""
    if sha256(package) != digest:
        raise BerxitError(f"{package}: checksum differs from the manifest's. Copy the bundle again, or export it again")


def _open_file(bundle: BundleFolder, entry: DataFile) -> None:
    """Opens and checks a file or folder (.mlpackage) of the manifest."""
    package = bundle.package(entry)
    if package is None:
        bundle.file(entry)
    elif bundle.verify:
        check_package(package, entry.sha256)
