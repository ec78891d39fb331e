"""CoreML through coremltools, on a Mac: one model per segment, or one function of a multifunction package each.

A package is compiled once. The compiled package is stored in the cache folder under its sha256, and the next runner
only loads it; a bundle may also contain it. coremltools' ``MLModel`` would compile again for every function, and raise
errors of the compilation only at the first prediction.

A segment accepts one row, of any length up to the model's, or of one of the lengths in the manifest. The state contains
the tensors of each row separately, padded to the next of these lengths. If every length has its own functions, they are
loaded when the first row of that length arrives.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from berxit.devices import default_threads, find
from berxit.runtime.bundle import Manifest, Segment, check_package, is_finder_metadata, read_tensor
from berxit.runtime.bundle_files import BundleFolder
from berxit.runtime.cache import cache_folder
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.loop import Backend
from berxit.runtime.policies import Bools, Floats
from berxit.runtime.tokenization import TokenBatch

Tensors = dict[str, npt.NDArray]
Predict = Callable[[Tensors], Tensors]
"""One function of a package: inputs by name -> outputs by name."""
Opener = Callable[[Segment, str | None], Predict]
"""Segment and function name (None: the package has one) -> that function, loaded."""

UNITS = {"ne": "CPU_AND_NE", "gpu": "CPU_AND_GPU", "cpu": "CPU_ONLY"}
"""Value of the option ``units`` -> coremltools' name of the compute units."""
WARM_UP = 2
"""Runs of every segment and length before the first prediction, because CoreML optimizes at the first run."""
ANY_LENGTH = 0
"""Key of functions that accept several lengths."""


class Row(NamedTuple):
    """State of one row between two layers."""

    functions: int
    """Length whose functions run it, or ANY_LENGTH."""
    tensors: Tensors
    """Role -> input of the next layer, as CoreML returned it."""


class State(NamedTuple):
    """State of B rows between two layers."""

    rows: tuple[Row, ...]


@dataclass(frozen=True)
class _LoadedSegment:
    """A loaded segment. Maps roles to the names in its package."""

    segment: Segment
    predict: Predict
    constants: Tensors
    alone: Lock = field(default_factory=Lock)
    """Apple's documentation: one prediction at a time on one MLModel."""

    def run(self, tensors: Tensors) -> Tensors:
        """Role -> output. Tensors are passed on in the dtype that CoreML returned: coremltools converts float16 to
        float32 on both sides, so a conversion to the manifest's dtype would only cost time."""
        feeds = {i.name: tensors[i.role] for i in self.segment.varying}
        with self.alone:
            found = self.predict({**feeds, **self.constants})
        return {o.role: found[o.name] for o in self.segment.outputs}


class CoreMLBackend(Backend):
    """Runs segments row by row. ``open_function`` loads them."""

    name = "coreml"

    def __init__(
        self,
        folder: Path | BundleFolder,
        manifest: Manifest,
        threads: int,
        open_function: Opener,
        *,
        warm: bool = False,
    ) -> None:
        """``warm``: run every segment at every length that is loaded, so that the first prediction is fast."""
        self.layers = manifest.model.layers
        self.exits = manifest.exits
        self.threads = threads
        self._manifest = manifest
        self._open = open_function
        self._warm = warm
        self._constants = {
            tensor.file: read_tensor(folder, tensor)
            for segment in manifest.segments
            for tensor in segment.constants.values()
        }
        self._loaded: dict[int, dict[int, _LoadedSegment]] = {}
        self._loading = Lock()
        if not manifest.segments[0].functions:
            self._functions(ANY_LENGTH)

    def embed(self, batch: TokenBatch) -> State:
        return State(tuple(self._embed(self.padded(batch, row)) for row in range(len(batch))))

    def layer(self, layer: int, state: State) -> tuple[State, Floats, Floats | None]:
        found = [self._functions(row.functions)[layer].run(row.tensors) for row in state.rows]
        rows = tuple(
            Row(row.functions, {**row.tensors, "hidden": new["hidden"]})
            for row, new in zip(state.rows, found, strict=True)
        )
        return State(rows), *exit_outputs(found)

    def keep(self, state: State, rows: Bools) -> State:
        return State(tuple(row for row, continues in zip(state.rows, rows, strict=True) if continues))

    def one_graph(self) -> OneGraph | None:
        return OneGraph(self, self._manifest.full) if self._manifest.full else None

    def padded(self, batch: TokenBatch, row: int) -> Row:
        """One row without its padding, or padded to the next length that the segments accept: (1, S) each."""
        lengths, pad = self._manifest.lengths, self._manifest.model.pad_token_id
        tokens = int(batch.lengths[row])
        length = next((length for length in sorted(lengths) if length >= tokens), tokens)
        if lengths and length not in lengths:
            raise InputError(
                f"an input of {tokens} tokens is longer than the bundle takes ({max(lengths)}): export again with"
                f" --lengths up to {tokens}, or shorten the text"
            )
        tensors = {
            "input_ids": _fill(batch.input_ids[row, :tokens], length, pad),
            "token_type_ids": _fill(batch.token_type_ids[row, :tokens], length, 0),
            "attention_mask": _fill(batch.attention_mask[row, :tokens], length, 0),
        }
        return Row(length if self._manifest.segments[0].functions else ANY_LENGTH, tensors)

    def load(self, segment: Segment, length: int) -> _LoadedSegment:
        """A segment's function for one length, or for ANY_LENGTH."""
        function = segment.functions[self._manifest.lengths.index(length)] if segment.functions else segment.function
        constants = {name: self._constants[tensor.file] for name, tensor in segment.constants.items()}
        return _LoadedSegment(segment, self._open(segment, function), constants)

    def _functions(self, length: int) -> dict[int, _LoadedSegment]:
        """Layer (0: the embeddings) -> its function for one length. Loads and warms them up if they are missing."""
        with self._loading:
            if length not in self._loaded:
                loaded = {segment.layer: self.load(segment, length) for segment in self._manifest.segments}
                if self._warm:
                    any_length = self._manifest.lengths or (self._manifest.model.max_length,)
                    self._warm_up(loaded, (length,) if length else any_length)
                self._loaded[length] = loaded
        return self._loaded[length]

    def _embed(self, row: Row) -> Row:
        return Row(row.functions, self._functions(row.functions)[0].run(row.tensors))

    def _warm_up(self, loaded: dict[int, _LoadedSegment], lengths: Sequence[int]) -> None:
        pad = self._manifest.model.pad_token_id
        for length in lengths:
            for _ in range(WARM_UP):
                tensors = loaded[0].run(self.padded(TokenBatch.pad([[pad] * length], [[0] * length], pad), 0).tensors)
                for layer in self.exits:
                    tensors |= {"hidden": loaded[layer].run(tensors)["hidden"]}


class OneGraph(Backend):
    """Full depth as one graph (without exits) of a bundle whose other segments ``segments`` runs."""

    name = CoreMLBackend.name

    def __init__(self, segments: CoreMLBackend, full: Segment) -> None:
        self.layers = segments.layers
        self.exits = (segments.layers,)
        self.threads = segments.threads
        self.options = segments.options
        self._segments, self._full = segments, full
        self._loaded: dict[int, _LoadedSegment] = {}

    def embed(self, batch: TokenBatch) -> State:
        return State(tuple(self._segments.padded(batch, row) for row in range(len(batch))))

    def layer(self, layer: int, state: State) -> tuple[State, Floats, Floats | None]:
        for row in state.rows:
            if row.functions not in self._loaded:
                self._loaded[row.functions] = self._segments.load(self._full, row.functions)
        return state, *exit_outputs([self._loaded[row.functions].run(row.tensors) for row in state.rows])

    def keep(self, state: State, rows: Bools) -> State:
        return self._segments.keep(state, rows)


def filled(rows: Sequence[npt.NDArray]) -> Sequence[npt.NDArray]:
    """Logits of rows, (1, C) unchanged; (1, S, C) with zeros after the S tokens, up to the longest row."""
    if rows[0].ndim == 2:
        return rows
    most = max(row.shape[1] for row in rows)
    return [np.pad(row, ((0, 0), (0, most - row.shape[1]), (0, 0))) for row in rows]


def exit_outputs(found: Sequence[Tensors]) -> tuple[Floats, Floats | None]:
    """Logits (B, C) or (B, S, C), and LTE certainty (B,) or None, in float32, from the outputs of each row by role."""
    logits = np.concatenate(filled([new["logits"] for new in found])).astype(np.float32, copy=False)
    if "lte_logit" in found[0]:
        values = np.concatenate([new["lte_logit"] for new in found]).astype(np.float32, copy=False)
        return logits, sigmoid(values)
    if "lte" in found[0]:
        return logits, np.concatenate([new["lte"] for new in found]).astype(np.float32, copy=False)
    return logits, None


def sigmoid(values: Floats) -> Floats:
    """1 / (1 + exp(-x)), without overflow."""
    return np.exp(np.minimum(values, 0)) / (1 + np.exp(-np.abs(values)))


def unusable_here(**_: str) -> str | None:
    """The reason why this machine cannot run it; None if it can."""
    return None if platform.system() == "Darwin" else "only Apple's systems have CoreML"


def open_backend(
    folder: Path | BundleFolder,
    manifest: Manifest,
    threads: int | None,
    units: str | None = None,
    *,
    embeddings_on_cpu: bool = False,
) -> CoreMLBackend:
    """``units``: compute units, a key of UNITS; None: those of the Mac's device profile. ``embeddings_on_cpu``: other
    units run the layers only.

    Raises BerxitError if this machine is no Mac, or CoreML cannot compile, load or run a package.
    """
    if platform.system() != "Darwin":
        raise BerxitError(
            f"{folder} needs CoreML, which only Apple's systems have, and this is {platform.system()}: run it on a Mac,"
            " or in an app on iPhone or iPad. Its graph and weights were verified when it was exported"
        )
    bundle = BundleFolder.at(folder)
    opener = _opener(bundle.path, units, embeddings_on_cpu=embeddings_on_cpu)
    return CoreMLBackend(bundle, manifest, threads or default_threads(), opener, warm=True)


def _opener(folder: Path, units: str | None, *, embeddings_on_cpu: bool) -> Opener:
    import coremltools as ct

    mac = find("mac")
    chosen = UNITS[units] if units else (mac and mac.compute_units) or "ALL"
    compiled: dict[str, Path] = {}

    def compiled_package(segment: Segment, *, again: bool = False) -> Path:
        package = folder / segment.file
        if segment.file not in compiled or again:
            with coreml_errors(
                f"cannot compile {package}", "Update macOS, or export for this one: --target-version ios16"
            ):
                compiled[segment.file] = compile_package(package, segment.sha256, again=again)
        return compiled[segment.file]

    def load(segment: Segment, function: str | None, unit: ct.ComputeUnit) -> ct.models.CompiledMLModel:
        if segment.compiled:
            return ct.models.CompiledMLModel(str(folder / segment.loaded.file), unit, function)
        try:
            return ct.models.CompiledMLModel(str(compiled_package(segment)), unit, function)
        except BerxitError:
            raise
        except Exception:  # coremltools raises RuntimeError or Exception. The cached package may be damaged.
            return ct.models.CompiledMLModel(str(compiled_package(segment, again=True)), unit, function)

    def open_function(segment: Segment, function: str | None) -> Predict:
        what = f"{folder / segment.loaded.file}{f', function {function}' if function else ''}"
        unit = ct.ComputeUnit["CPU_ONLY" if embeddings_on_cpu and segment.layer == 0 else chosen]
        with coreml_errors(f"cannot load {what}", "Update macOS, or export the bundle again"):
            model = load(segment, function, unit)

        def predict(feeds: Tensors) -> Tensors:
            with coreml_errors(
                f"cannot run {what} on {unit.name}", "Try other compute units: --backend-option units=cpu"
            ):
                return model.predict(feeds)

        return predict

    return open_function


def compile_package(package: Path, digest: str, *, again: bool = False) -> Path:
    """The compiled package (.mlmodelc) in the cache folder, compiled if it is missing; or ``again``, if it is damaged.

    ``digest``: the package's sha256, its key in the cache. It is checked here again, and a copy is compiled, so that a
    bundle that is replaced meanwhile cannot store another package's code under this key. Each version of macOS has its
    own compiled package. Raises BerxitError if the checksum differs or the cache cannot be written, and the errors of
    coremltools for a package that cannot be compiled.
    """
    from coremltools.models.utils import compile_model

    check_package(package, digest)

    kept = cache_folder() / "coreml" / f"macOS-{platform.mac_ver()[0]}" / f"{digest}.mlmodelc"
    if kept.exists() and not again:
        return kept
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=kept.parent) as scratch:
            copy = Path(shutil.copytree(package, Path(scratch) / package.name, ignore=_finder_metadata))
            check_package(copy, digest)
            compiled = Path(compile_model(str(copy)))  # In a temporary folder of the system.
            moved = Path(shutil.move(compiled, Path(scratch) / kept.name))
            if again and kept.exists():
                kept.rename(Path(scratch) / "damaged")
            if not kept.exists():  # No other process was faster.
                moved.rename(kept)
    except OSError as error:
        raise BerxitError(f"cannot write {kept}: {error.strerror}. Set BERXIT_CACHE to a folder with room") from error
    return kept


def _finder_metadata(_folder: str, names: list[str]) -> set[str]:
    return {name for name in names if is_finder_metadata(name)}


@contextmanager
def coreml_errors(what: str, remedy: str) -> Iterator[None]:
    """Raises CoreML's errors, which are bare RuntimeError and Exception, as BerxitError of one line."""
    try:
        yield
    except BerxitError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BerxitError(f"CoreML {what}: {reason}. {remedy}") from error


def _fill(values: npt.NDArray, length: int, filler: int) -> npt.NDArray[np.int32]:
    """(S,) -> (1, length)"""
    filled = np.full((1, length), filler, dtype=np.int32)
    filled[0, : len(values)] = values
    return filled
