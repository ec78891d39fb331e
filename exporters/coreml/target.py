"""The CoreML target: one package with every segment as a function (iOS 18, macOS 15), or one per segment (iOS 16).

In a multifunction package equal weights are stored once, so ALBERT's body is. Every package is read back from disk and
executed in numpy before the bundle is moved into place (``coreml/executor.py``).
"""

from __future__ import annotations

import gc
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from berxit.exporters.coreml.executor import MilFunction, open_package
from berxit.exporters.coreml.graph import Form, MilSegment, embeddings_model, layer_model
from berxit.exporters.coreml.silenced_coremltools import ct
from berxit.exporters.segments import Segments
from berxit.exporters.targets import CoreMLVersion, Settings
from berxit.runtime.backends.coreml import CoreMLBackend, Predict
from berxit.runtime.bundle import Manifest, Segment, sha256
from berxit.runtime.errors import InputError
from berxit.runtime.progress import Bar
from berxit.runtime.tokenization import TokenBatch


def write_segments(
    segments: Segments, folder: Path, settings: Settings, samples: Sequence[TokenBatch], bar: Bar
) -> tuple[Segment, ...]:
    """As ``Writer.write_segments``. Raises InputError for lengths that the version does not accept."""
    assert isinstance(settings.version, CoreMLVersion)
    version = settings.version
    if len(settings.lengths) > 1 and not version.multifunction:
        raise InputError(
            f"--target-version {version.name} takes one of --lengths, or none for any length: lists of lengths came"
            " with ios18"
        )
    form = Form(
        settings.precision,
        getattr(ct.target, version.deployment_target),
        settings.lengths,
        segments.max_length,
        ane=settings.layout == "ane",
    )
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
    """The runtime's own backend; numpy executes every saved package in place of CoreML."""
    opened: dict[Path, dict[str, MilFunction]] = {}

    def open_function(package: Path, function: str | None) -> Predict:
        if package not in opened:
            opened[package] = open_package(package)
        return opened[package][function or "main"]

    return CoreMLBackend(folder, manifest, threads or 1, open_function)


def _join(names: list[str], packages: Path, output: Path) -> None:
    """Joins packages of one function each into one package. Equal weights are stored once."""
    joined = ct.utils.MultiFunctionDescriptor()
    for name in names:
        joined.add_function(str(packages / f"{name}.mlpackage"), "main", name)
    joined.default_function_name = names[0]
    ct.utils.save_multifunction(joined, str(output))
    for name in names:
        shutil.rmtree(packages / f"{name}.mlpackage")


@contextmanager
def _little_garbage() -> Iterator[None]:
    """Excludes existing objects from garbage collection. coremltools collects after every conversion, which takes two
    seconds in a process with torch, most of them for objects that existed before."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
