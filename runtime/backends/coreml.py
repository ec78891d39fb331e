"""CoreML through coremltools, on a Mac: one model per segment, or one function of a multifunction package each.

A package is compiled once. The compiled package is stored in the cache folder under its sha256, and the next runner
only loads it. coremltools' ``MLModel`` would compile again for every function, and raise errors of the compilation only
at the first prediction.

A segment accepts one row, of any length up to the model's, or of one of the lengths in the manifest. The state contains
the tensors of each row separately, padded to the next of these lengths.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from berxit.devices import default_threads, find
from berxit.runtime.bundle import Manifest, Segment, check_package
from berxit.runtime.bundle_files import BundleFolder
from berxit.runtime.cache import cache_folder
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.loop import Backend
from berxit.runtime.policies import Bools, Floats
from berxit.runtime.tokenization import TokenBatch

Tensors = dict[str, npt.NDArray]
Predict = Callable[[Tensors], Tensors]
"""One function of a package: inputs by name -> outputs by name."""
Opener = Callable[[Path, str | None], Predict]
"""Package and function name (None: the package has one) -> that function, loaded."""

UNITS = {"ne": "CPU_AND_NE", "gpu": "CPU_AND_GPU", "cpu": "CPU_ONLY"}
"""Value of the option ``units`` -> coremltools' name of the compute units."""
WARM_UP = 2
"""Runs of every segment and length before the first prediction, because CoreML optimizes at the first run."""


class State(NamedTuple):
    """State of B rows between two layers."""

    rows: tuple[Tensors, ...]
    """Per row: role -> input of the next layer."""


@dataclass(frozen=True)
class _LoadedSegment:
    """A loaded segment. Maps roles to the names in its package."""

    segment: Segment
    predict: Predict
    alone: Lock = field(default_factory=Lock)
    """Apple's documentation: one prediction at a time on one MLModel."""

    def run(self, tensors: Tensors) -> Tensors:
        feeds = {i.name: np.asarray(tensors[i.role], dtype=i.dtype) for i in self.segment.inputs}
        with self.alone:
            found = self.predict(feeds)
        return {o.role: np.asarray(found[o.name], dtype=o.dtype) for o in self.segment.outputs}


class CoreMLBackend(Backend):
    """Runs segments row by row. ``open_function`` loads them."""

    name = "coreml"

    def __init__(self, folder: Path, manifest: Manifest, threads: int, open_function: Opener) -> None:
        self.layers = manifest.model.layers
        self.exits = manifest.exits
        self.threads = threads
        self._lengths = manifest.lengths
        self._longest = manifest.model.max_length
        self._pad = manifest.model.pad_token_id
        segments = (_LoadedSegment(s, open_function(folder / s.file, s.function)) for s in manifest.segments)
        self._embeddings, *layers = segments
        self._layers = dict(zip(self.exits, layers, strict=True))

    def embed(self, batch: TokenBatch) -> State:
        return State(tuple(self._embeddings.run(self._row(batch, i)) for i in range(len(batch))))

    def layer(self, layer: int, state: State) -> tuple[State, Floats, Floats | None]:
        found = [self._layers[layer].run(row) for row in state.rows]
        rows = tuple({**row, "hidden": new["hidden"]} for row, new in zip(state.rows, found, strict=True))
        logits = np.concatenate([new["logits"] for new in found])
        return State(rows), logits, np.concatenate([new["lte"] for new in found]) if "lte" in found[0] else None

    def keep(self, state: State, rows: Bools) -> State:
        return State(tuple(row for row, continues in zip(state.rows, rows, strict=True) if continues))

    def warm_up(self) -> None:
        """Runs every segment at every length of the bundle, so that the first prediction is fast."""
        for length in self._lengths or (self._longest,):
            for _ in range(WARM_UP):
                state = self.embed(TokenBatch.pad([[self._pad] * length], [[0] * length], self._pad))
                for layer in self.exits:
                    state, _, _ = self.layer(layer, state)

    def _row(self, batch: TokenBatch, row: int) -> Tensors:
        """One row without its padding, or padded to the next length that the segments take: (1, S) each."""
        tokens = int(batch.lengths[row])
        length = next((length for length in sorted(self._lengths) if length >= tokens), tokens)
        if self._lengths and length == tokens and tokens not in self._lengths:
            raise InputError(
                f"an input of {tokens} tokens is longer than the bundle takes ({max(self._lengths)}): export again with"
                f" --lengths up to {tokens}, or shorten the text"
            )
        return {
            "input_ids": _fill(batch.input_ids[row, :tokens], length, self._pad),
            "token_type_ids": _fill(batch.token_type_ids[row, :tokens], length, 0),
            "attention_mask": _fill(batch.attention_mask[row, :tokens], length, 0),
        }


def unusable_here(**_: str) -> str | None:
    """The reason why this machine cannot run it; None if it can."""
    return None if platform.system() == "Darwin" else "only Apple's systems have CoreML"


def open_backend(
    folder: Path | BundleFolder, manifest: Manifest, threads: int | None, units: str | None = None
) -> CoreMLBackend:
    """``units``: compute units, a key of UNITS; None: those of the Mac's device profile.

    Raises BerxitError if this machine is no Mac, or CoreML cannot compile, load or run a package.
    """
    if platform.system() != "Darwin":
        raise BerxitError(
            f"{folder} needs CoreML, which only Apple's systems have, and this is {platform.system()}: run it on a Mac,"
            " or in an app on iPhone or iPad. Its graph and weights were verified when it was exported"
        )
    path = BundleFolder.at(folder).path
    backend = CoreMLBackend(path, manifest, threads or default_threads(), _opener(path, manifest, units))
    backend.warm_up()
    return backend


def _opener(folder: Path, manifest: Manifest, units: str | None) -> Opener:
    import coremltools as ct

    mac = find("mac")
    chosen = ct.ComputeUnit[UNITS[units] if units else (mac and mac.compute_units) or "ALL"]
    sums = {folder / segment.file: segment.sha256 for segment in manifest.segments}
    compiled: dict[Path, Path] = {}

    def open_function(package: Path, function: str | None) -> Predict:
        what = f"{package}{f', function {function}' if function else ''}"
        if package not in compiled:
            with _one_line(f"cannot compile {package}", "Update macOS, or export for this one: --target-version ios16"):
                compiled[package] = compile_package(package, sums[package])
        with _one_line(f"cannot load {what}", f"Update macOS, or remove {compiled[package]} and try again"):
            model = ct.models.CompiledMLModel(str(compiled[package]), chosen, function)

        def predict(feeds: Tensors) -> Tensors:
            with _one_line(
                f"cannot run {what} on {chosen.name}", "Try other compute units: --backend-option units=cpu"
            ):
                return model.predict(feeds)

        return predict

    return open_function


def compile_package(package: Path, digest: str) -> Path:
    """The compiled package (.mlmodelc) in the cache folder, compiled if it is missing.

    ``digest``: the package's sha256, its key in the cache. It is checked here again, and a copy is compiled, so that a
    bundle that is replaced meanwhile cannot store another package's code under this key. Each version of macOS has its
    own compiled package. Raises BerxitError if the checksum differs or the cache cannot be written, and the errors of
    coremltools for a package that cannot be compiled.
    """
    from coremltools.models.utils import compile_model

    check_package(package, digest)

    kept = cache_folder() / "coreml" / f"macOS-{platform.mac_ver()[0]}" / f"{digest}.mlmodelc"
    if kept.exists():
        return kept
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=kept.parent) as scratch:
            copy = Path(shutil.copytree(package, Path(scratch) / package.name))
            check_package(copy, digest)
            compiled = Path(compile_model(str(copy)))  # In a temporary folder of the system.
            moved = Path(shutil.move(compiled, Path(scratch) / kept.name))
            if not kept.exists():  # No other process was faster.
                moved.rename(kept)
    except OSError as error:
        raise BerxitError(f"cannot write {kept}: {error.strerror}. Set BERXIT_CACHE to a folder with room") from error
    return kept


@contextmanager
def _one_line(what: str, remedy: str) -> Iterator[None]:
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
