"""The CoreML target: one package with every segment as a function (iOS 18, macOS 15), or one per segment (iOS 16).

In a multifunction package equal weights are stored once, so ALBERT's body is. Every package is read back from disk and
executed in numpy before the bundle is put in its place (``mil_executor``).
"""

from __future__ import annotations

import gc
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from berxit.exporters.coreml.executor import MilFunction, open_package
from berxit.exporters.coreml.graph import Form, MilSegment, embeddings_model, layer_model
from berxit.exporters.coreml.silenced_coremltools import ct
from berxit.exporters.coreml.weights import COMPRESSIONS
from berxit.exporters.options import ExportOptions
from berxit.exporters.segments import Segments
from berxit.runtime.backends.coreml import CoreMLBackend, Predict
from berxit.runtime.bundle import Manifest, Segment, sha256
from berxit.runtime.errors import InputError
from berxit.runtime.progress import Bar

PRECISIONS = {"fp16": 2e-2, "fp32": 1e-4, **{name: chosen.tolerance for name, chosen in COMPRESSIONS.items()}}
"""Precision -> tolerance: the largest difference of an exit from the checkpoint's (logits relative to their scale, and
LTE). fp16 is the default, since the Neural Engine computes in it and it halves the download; fp32 runs on CPU and GPU
only."""
LEAST_PSNR = {"fp32": 70.0, "fp16": 45.0, "int8": 25.0, "palette6": 20.0, "palette4": 10.0}
"""And the PSNR in dB that its logits must reach, whatever their size; docs/coreml.md has what trained models have."""
SCORED = frozenset(COMPRESSIONS)
"""What may change an answer: its scores are measured, in numpy, and its thresholds chosen from its own answers."""
OPTIONS = frozenset({"lengths", "max_batch", "target_version", "layout", "exits"})
"""Which of ExportOptions the target takes, beside precision."""
PACKAGES = ("coremltools",)
EVERY_LENGTH = True
MAX_BATCH = 1
PROOF = (
    "verified: graph and weights of every saved package, executed in numpy. Apple's runtime was not run here:"
    " berxit-bench does that on a Mac"
)


@dataclass(frozen=True)
class Version:
    """The oldest system a package must run on."""

    target: ct.target
    multifunction: bool
    """Functions that share weights came with iOS 18, and with it lists of lengths for more than one input."""


VERSIONS = {
    "ios18": Version(ct.target.iOS18, multifunction=True),
    "macos15": Version(ct.target.macOS15, multifunction=True),
    "ios16": Version(ct.target.iOS16, multifunction=False),
}
"""--target-version -> what it means; the first is the default."""
LAYOUTS = ("tokens", "ane")
"""--layout: hidden states (1, S, d), the default, or (1, d, 1, S)."""


def write_segments(segments: Segments, folder: Path, options: ExportOptions, bar: Bar) -> tuple[Segment, ...]:
    """Writes the packages below ``folder`` and returns what the manifest says of them.

    Raises InputError for a version, layout or lengths that CoreML does not know.
    """
    version, form = VERSIONS[_version(options)], _form(options, segments)
    (folder / "segments").mkdir()
    written: list[tuple[int, str, MilSegment]] = []
    with _little_garbage(), tempfile.TemporaryDirectory(prefix="berxit-") as scratch:
        packages = Path(scratch) if version.multifunction else folder / "segments"
        for segment in (None, *segments.layers):
            layer = segment.layer if segment else 0
            name = f"layer_{layer:02d}" if segment else "embeddings"
            made = layer_model(segments, segment, form) if segment else embeddings_model(segments, form)
            made.model.save(str(packages / f"{name}.mlpackage"))
            written.append((layer, name, made))
            bar.update(1)
        if version.multifunction:
            _join([name for _, name, _ in written], packages, folder / "segments" / "model.mlpackage")
    digests: dict[str, str] = {}
    described = []
    for layer, name, made in written:
        file = f"segments/{'model' if version.multifunction else name}.mlpackage"
        digests.setdefault(file, sha256(folder / file))
        function = name if version.multifunction else None
        described.append(Segment(layer, file, digests[file], made.inputs, made.outputs, function=function))
    return tuple(described)


def checking_backend(folder: Path, manifest: Manifest, threads: int | None) -> CoreMLBackend:
    """The runtime's own back end, with every saved package executed in numpy in CoreML's place."""
    opened: dict[Path, dict[str, MilFunction]] = {}

    def open_function(package: Path, function: str | None) -> Predict:
        if package not in opened:
            opened[package] = open_package(package)
        return opened[package][function or "main"]

    return CoreMLBackend(folder, manifest, threads or 1, open_function)


def _version(options: ExportOptions) -> str:
    version = options.target_version or next(iter(VERSIONS))
    if version not in VERSIONS:
        raise InputError(f"target coreml has no --target-version '{version}': choose {', '.join(VERSIONS)}")
    return version


def _form(options: ExportOptions, segments: Segments) -> Form:
    version, layout = VERSIONS[_version(options)], options.layout or LAYOUTS[0]
    if layout not in LAYOUTS:
        raise InputError(f"target coreml has no --layout '{layout}': choose {' or '.join(LAYOUTS)}")
    if options.max_batch not in (None, 1):
        raise InputError(f"--max-batch {options.max_batch}: target coreml takes one row at a time")
    if len(options.lengths) > 1 and not version.multifunction:
        raise InputError(
            "--target-version ios16 takes one of --lengths, or none for any length: lists of lengths came with ios18"
        )
    return Form(str(options.precision), version.target, options.lengths, segments.max_length, ane=layout == "ane")


def _join(names: list[str], packages: Path, output: Path) -> None:
    """Packages of one function each -> one package of as many, equal weights stored once."""
    joined = ct.utils.MultiFunctionDescriptor()
    for name in names:
        joined.add_function(str(packages / f"{name}.mlpackage"), "main", name)
    joined.default_function_name = names[0]
    ct.utils.save_multifunction(joined, str(output))
    for name in names:
        shutil.rmtree(packages / f"{name}.mlpackage")


@contextmanager
def _little_garbage() -> Iterator[None]:
    """coremltools collects garbage after every conversion: two seconds each in a process that holds torch, most of them
    spent on what was there before."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
