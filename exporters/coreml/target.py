"""The CoreML target: one package with every segment as a function (iOS 18, macOS 15), or one per segment (iOS 16).

In a package, equal weights are stored once: those of ALBERT's layers, and those of the functions for several lengths.
Every package is read back from disk and executed in numpy before the bundle is moved into place
(``coreml/executor.py``).
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from berxit.exporters.coreml.executor import DEFAULT, Arithmetic, MilFunction, open_package
from berxit.exporters.coreml.graph import (
    Form,
    SegmentFunction,
    check_float16_exits,
    embeddings_function,
    full_function,
    head_tensors,
    layer_function,
)
from berxit.exporters.coreml.int8_activations import MATMULS, Int8Activation, int8_activations
from berxit.exporters.coreml.package import write_package
from berxit.exporters.coreml.silenced_coremltools import ct
from berxit.exporters.coreml.weights import Weights
from berxit.exporters.segments import Segments
from berxit.exporters.targets import CompressedWeights, CoreMLVersion, Settings, WrittenSegments
from berxit.runtime.backends.coreml import CoreMLBackend, Predict, coreml_errors
from berxit.runtime.bundle import DataFile, Manifest, Segment, TensorFile, TensorInfo, sha256
from berxit.runtime.errors import InputError
from berxit.runtime.progress import Bar
from berxit.runtime.tokenization import TokenBatch


@dataclass(frozen=True)
class Part:
    """A segment before it is written."""

    layer: int
    name: str
    """Of its function. Segments of the same name share it."""
    write: Callable[[Form], SegmentFunction]
    constants: dict[str, npt.NDArray] = field(default_factory=dict)
    """Constant inputs of this layer, by name."""


def write_segments(
    segments: Segments, folder: Path, settings: Settings, samples: Sequence[TokenBatch], bar: Bar
) -> WrittenSegments:
    """As ``Writer.write_segments``. Raises InputError for lengths that the version does not accept, and for exits that
    exceed the range of their dtype."""
    assert isinstance(settings.version, CoreMLVersion)
    version = settings.version
    if len(settings.lengths) > 1 and not version.multifunction:
        raise InputError(
            f"--target-version {version.name} takes one of --lengths, or none for any length: lists of lengths came"
            " with ios18"
        )
    _check_variants(segments, settings)
    form = _form(segments, settings, samples)
    forms = {"": form}
    if "fixed-shapes" in settings.variants and len(form.lengths) > 1:
        forms = {f"_s{length}": replace(form, lengths=(length,)) for length in form.lengths}
    (folder / "segments").mkdir()
    functions: dict[str, SegmentFunction] = {}
    described: list[Segment] = []
    for part in _parts(segments, form, settings.variants):
        names = [f"{part.name}{suffix}" for suffix in forms]
        for name, each in zip(names, forms.values(), strict=True):
            if name not in functions:
                functions[name] = part.write(each)
        described.append(_describe(part, names, functions[names[0]], settings, folder))
        bar.update(1)
    packages = {"model": functions} if version.multifunction else {n: {"main": f} for n, f in functions.items()}
    files: dict[str, dict[str, Any]] = {}
    for name, content in packages.items():
        file = f"segments/{name}.mlpackage"
        write_package({n: made.function for n, made in content.items()}, folder / file, form.target)
        compiled = _compile(folder, file) if "compiled" in settings.variants else None
        files[file] = {"sha256": sha256(folder / file), "compiled": compiled}
    written = [replace(segment, **files[segment.file]) for segment in described]
    if "full-depth" in settings.variants:
        return WrittenSegments(tuple(written[:-1]), written[-1])
    return WrittenSegments(tuple(written))


def checking_backend(
    folder: Path, manifest: Manifest, threads: int | None, arithmetic: Arithmetic = DEFAULT
) -> CoreMLBackend:
    """The runtime's own backend; numpy executes every saved package in place of CoreML."""
    opened: dict[Path, dict[str, MilFunction]] = {}

    def open_function(segment: Segment, function: str | None) -> Predict:
        package = folder / segment.file
        if package not in opened:
            opened[package] = open_package(package, arithmetic)
        return opened[package][function or "main"]

    return CoreMLBackend(folder, manifest, threads or 1, open_function)


def _check_variants(segments: Segments, settings: Settings) -> None:
    """Raises InputError for a target option that has no effect on this model or cannot be followed here."""
    variants = settings.variants
    if "fixed-shapes" in variants and not settings.lengths:
        raise InputError("--target-options fixed-shapes needs lengths: add --lengths 32,64,128")
    if "shared-body" in variants and not any(segments.shared(segment) for segment in segments.layers):
        raise InputError(
            "--target-options shared-body: no two segments of this model share their weights: export without it"
        )
    if "float16-exits" in variants:
        check_float16_exits(segments)
    if "compiled" in variants and platform.system() != "Darwin":
        raise InputError(
            f"--target-options compiled needs a Mac, and this is {platform.system()}: export without it, and run"
            " 'xcrun coremlcompiler compile' on a Mac (docs/coreml.md)"
        )


def _compile(folder: Path, file: str) -> DataFile:
    """Compiles a package of the bundle; the result is written next to it."""
    compiled = str(Path(file).with_suffix(".mlmodelc"))
    with coreml_errors(f"cannot compile {file}", "Update macOS, or export without --target-options compiled"):
        shutil.move(ct.models.utils.compile_model(str(folder / file)), folder / compiled)
    return DataFile(compiled, sha256(folder / compiled))


def _form(segments: Segments, settings: Settings, samples: Sequence[TokenBatch]) -> Form:
    assert isinstance(settings.version, CoreMLVersion)
    precision = settings.precision
    form = Form(
        Weights(precision),
        getattr(ct.target, settings.version.deployment_target),
        settings.lengths,
        settings.max_length(segments.max_length),
        ane=settings.layout == "ane",
        float16_exits="float16-exits" in settings.variants,
    )
    if isinstance(precision, CompressedWeights) and precision.activations:
        return replace(form, int8=_measured_int8(segments, form, settings, samples))
    return form


def _parts(segments: Segments, form: Form, variants: frozenset[str]) -> Iterator[Part]:
    """The embeddings, the layers with an exit, and full depth as one graph if it was requested."""
    yield Part(0, "embeddings", partial(embeddings_function, segments))
    bodies: dict[tuple[int, ...], str] = {}
    for segment in segments.layers:
        if "shared-body" in variants and segments.shared(segment):
            name = bodies.setdefault(segment.body, f"body_{len(bodies) + 1:02d}")
            write = partial(layer_function, segments, segment, external_head=True)
            yield Part(segment.layer, name, write, head_tensors(segment.exit, form))
        else:
            yield Part(segment.layer, f"layer_{segment.layer:02d}", partial(layer_function, segments, segment))
    if "full-depth" in variants:
        yield Part(segments.layers[-1].layer, "full", partial(full_function, segments))


def _describe(part: Part, names: Sequence[str], function: SegmentFunction, settings: Settings, folder: Path) -> Segment:
    """The segment's entry of the manifest, without the checksum of its package. Writes its constants."""
    assert isinstance(settings.version, CoreMLVersion)
    many = settings.version.multifunction
    constants = {
        name: _write_tensor(value, f"segments/layer_{part.layer:02d}.{name}.bin", folder)
        for name, value in part.constants.items()
    }
    fixed = len(names) > 1
    return Segment(
        part.layer,
        f"segments/{'model' if many else part.name}.mlpackage",
        "",
        _for_manifest(function.inputs, settings.lengths),
        _for_manifest(function.outputs, settings.lengths),
        constants,
        function=names[0] if many and not fixed else None,
        functions=tuple(names) if fixed else (),
    )


def _write_tensor(value: npt.NDArray, file: str, folder: Path) -> TensorFile:
    value.astype(value.dtype.newbyteorder("<")).tofile(folder / file)
    return TensorFile(file, sha256(folder / file), value.dtype.name, value.shape)


def _for_manifest(infos: tuple[TensorInfo, ...], lengths: tuple[int, ...]) -> tuple[TensorInfo, ...]:
    """The tensors as in the manifest: a single length is a number, several or any are a name."""
    length: int | str = lengths[0] if len(lengths) == 1 else "length"
    return tuple(replace(i, shape=tuple(length if size == "length" else size for size in i.shape)) for i in infos)


def _measured_int8(
    segments: Segments, form: Form, settings: Settings, samples: Sequence[TokenBatch]
) -> dict[str, Int8Activation]:
    """Quantization of the inputs of the large matmuls, from a float16 pass over the samples."""
    plain = replace(form, weights=Weights(settings.target.precision("fp16")), lengths=())
    largest: dict[str, npt.NDArray] = {}

    def watch(name: str, arguments: dict[str, npt.NDArray]) -> None:
        if name.rpartition("_")[2] in MATMULS and name.startswith("layer_"):
            x = np.abs(arguments["x"])  # (1, S, d), or (1, d, 1, S)
            channels = x.max(axis=(0, 2, 3) if x.ndim == 4 else (0, 1))
            largest[name] = np.maximum(largest[name], channels) if name in largest else channels

    with TemporaryDirectory(prefix="berxit-") as scratch:
        package = Path(scratch) / "full.mlpackage"
        write_package({"main": full_function(segments, plain).function}, package, form.target)
        function = open_package(package)["main"]
        for batch in samples:
            feeds = {name: getattr(batch, name) for name in function.inputs}
            function(feeds, watch)
    return int8_activations(segments, largest)
