"""Targets and their precisions, versions and layouts. No framework is imported here, so help and docs derive from it.

A new target is one entry in TARGETS and one module that implements ``Writer``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from berxit.exporters.options import ExportOptions
from berxit.runtime.arguments import as_threads
from berxit.runtime.errors import InputError

if TYPE_CHECKING:
    from berxit.exporters.segments import Segments
    from berxit.runtime.bundle import Manifest, Segment
    from berxit.runtime.loop import Backend
    from berxit.runtime.progress import Bar
    from berxit.runtime.tokenization import TokenBatch


@dataclass(frozen=True)
class Precision:
    """Number format of a bundle, with the limits of its parity check."""

    name: str
    atol: float
    """Largest difference of an exit from the checkpoint: of logits divided by their scale, and of LTE certainty."""
    least_psnr: float = -math.inf
    """Smallest PSNR in dB of an exit's logits, whatever their size. A wrong exit is below 10."""
    scored: bool = False
    """True if rounding may change predictions. The export then measures the scores on the calibration data, chooses the
    thresholds from the bundle's own outputs, and limits ``atol`` to twice the measured difference."""


@dataclass(frozen=True)
class CompressedWeights(Precision):
    """Weights in few bits; the device decompresses them to float16."""

    bits: int = 8
    palette: bool = False
    """True: each weight is an index into a table of 2^bits values, found by k-means. False: an integer, multiplied by
    the scale of its row."""
    group: int = 0
    """Output channels that share a table; 0: all channels of the matrix."""
    activations: bool = False
    """True: the inputs of the large matmuls are int8, too."""


@dataclass(frozen=True)
class Version:
    """The oldest software that must read the segments."""

    name: str
    without: tuple[str, ...] = ()
    """Names of precisions and target options that it does not support."""
    aliases: tuple[str, ...] = ()
    """Other names that --target-version accepts. The manifest records ``name``."""
    opset: int | None = None
    """ONNX opset of the files. The manifest records it with the version's name, and a backend compares both with the
    software of the device. None: not recorded."""

    @property
    def described(self) -> str:
        """Name and other names, for help: jetpack6.1 (also jetpack6, jetpack6.2)."""
        return f"{self.name} (also {', '.join(self.aliases)})" if self.aliases else self.name


@dataclass(frozen=True)
class TargetOption:
    """A variant of the segments, off by default. Whether it is faster must be measured on the device."""

    name: str
    description: str
    without: tuple[str, ...] = ()
    """Names of precisions that it does not go with."""


@dataclass(frozen=True)
class TensorRTVersion(Version):
    tensorrt: tuple[int, int] = (10, 3)
    """Major and minor version of the oldest TensorRT that it serves."""
    opset: int = 19
    int8_dtype: str = "float16"
    """Dtype of an int8 file's scales and of the operators around its matmuls. TensorRT 8 quantizes only float32."""
    int8_weights: bool = True
    """True if an int8 file contains int8 weights. False: float32 weights, which TensorRT quantizes at the build."""


_TENSORRT_8: dict[str, Any] = {"without": ("bf16",), "int8_dtype": "float32", "int8_weights": False}


@dataclass(frozen=True)
class CoreMLVersion(Version):
    deployment_target: str = ""
    """Name in coremltools.target."""
    multifunction: bool = True
    """True if a package contains several functions, which share equal weights. Packages of these systems also accept
    lists of lengths for more than one input."""


class WrittenSegments(NamedTuple):
    """Entries of the manifest."""

    segments: tuple[Segment, ...]
    full: Segment | None = None
    """Full depth as one graph, if the bundle has it."""


class Writer(Protocol):
    """Module that writes the segments of a target."""

    def write_segments(
        self, segments: Segments, folder: Path, settings: Settings, samples: Sequence[TokenBatch], bar: Bar
    ) -> WrittenSegments:
        """Writes the files below ``folder`` and returns their entries of the manifest.

        ``samples``: the golden inputs, one row each and without padding, for precisions that measure activations.
        Raises InputError for settings that do not go together.
        """

    def checking_backend(self, folder: Path, manifest: Manifest, threads: int | None) -> Backend:
        """Backend that executes the written files on this machine, for the parity check."""


@dataclass(frozen=True)
class Target:
    """Format of segments, for one kind of runtime."""

    name: str
    writer: str
    """Module that implements ``Writer``; imported on first use."""
    precisions: tuple[Precision, ...]
    """The first is the default."""
    versions: tuple[Version, ...] = ()
    """Versions that --target-version accepts; the first is the default. Empty: the target has no versions."""
    layouts: tuple[str, ...] = ()
    """Layouts that --layout accepts; the first is the default. Empty: the target has one layout."""
    variants: tuple[TargetOption, ...] = ()
    """Values that --target-options accepts."""
    options: frozenset[str] = frozenset()
    """Those of the options lengths, max_batch and threads that it accepts."""
    packages: tuple[str, ...] = ("onnx",)
    """Packages whose versions the manifest records, in addition to those of every export."""
    lengths: tuple[int, ...] = ()
    """Default of --lengths: those below the model's longest input, and that one. Empty: any length."""
    max_batch: int | None = None
    """Default of --max-batch. None: any number of rows."""
    largest_batch: int | None = None
    """Upper limit of --max-batch. None: no limit."""
    every_length: bool = False
    """True if the golden inputs must contain an input for each of the lengths."""
    proof: str | None = None
    """Line after the parity check: what it verifies, and what it does not."""

    @property
    def default_precision(self) -> Precision:
        return self.precisions[0]

    @property
    def accepted_options(self) -> frozenset[str]:
        """Names of the ExportOptions that it accepts."""
        names = {"precision", "exits", *self.options}
        names |= {"target_version"} if self.versions else set()
        names |= {"target_options"} if self.variants else set()
        return frozenset(names | ({"layout"} if self.layouts else set()))

    def precision(self, name: str | None) -> Precision:
        """The precision of this name; the default for None. Raises InputError for an unknown name."""
        for precision in self.precisions:
            if name in (None, precision.name):
                return precision
        known = ", ".join(precision.name for precision in self.precisions)
        raise InputError(f"target {self.name} has no precision '{name}': choose {known}")

    def version(self, name: str | None) -> Version | None:
        """The version of this name; the default for None, which is None without versions."""
        for version in self.versions:
            if name in (None, version.name, *version.aliases):
                return version
        if name is None:
            return None
        known = ", ".join(version.name for version in self.versions)
        raise InputError(f"target {self.name} has no --target-version '{name}': choose {known}")

    def settings(self, options: ExportOptions) -> Settings:
        """The options with defaults filled in. Raises InputError for an option or a value that the target rejects."""
        for field in fields(options):
            if getattr(options, field.name) not in (None, ()) and field.name not in self.accepted_options:
                raise InputError(f"--{field.name.replace('_', '-')} does not go with target {self.name}")
        precision, version = self.precision(options.precision), self.version(options.target_version)
        if version and precision.name in version.without:
            others = ", ".join(other.name for other in self.precisions if other.name not in version.without)
            raise InputError(
                f"--precision {precision.name} does not go with --target-version {version.name}: choose {others}"
            )
        for name in options.target_options:
            self._check_variant(name, precision, version)
        if options.layout not in (None, *self.layouts):
            raise InputError(
                f"target {self.name} has no --layout '{options.layout}': choose {' or '.join(self.layouts)}"
            )
        batch = self.max_batch if options.max_batch is None else options.max_batch
        if batch is not None and batch < 1:
            raise InputError(f"--max-batch {batch}: it must be at least 1")
        if batch is not None and self.largest_batch is not None and batch > self.largest_batch:
            raise InputError(f"--max-batch {batch}: the largest batch of target {self.name} is {self.largest_batch}")
        if options.threads is not None:
            as_threads(options.threads)
        layout = options.layout or next(iter(self.layouts), None)
        variants = frozenset(options.target_options)
        return Settings(self, precision, version, layout, options.lengths, batch, options.threads, variants)

    def _check_variant(self, name: str, precision: Precision, version: Version | None) -> None:
        """Raises InputError unless a value of --target-options goes with the precision and the version."""
        found = next((variant for variant in self.variants if variant.name == name), None)
        if found is None:
            known = ", ".join(variant.name for variant in self.variants)
            raise InputError(f"target {self.name} has no target option '{name}': choose {known}")
        if precision.name in found.without:
            raise InputError(f"--target-options {name} does not go with --precision {precision.name}: omit one of them")
        if version and name in version.without:
            others = ", ".join(other.name for other in self.versions if name not in other.without)
            raise InputError(
                f"--target-options {name} does not go with --target-version {version.name}: choose {others}"
            )

    def load_writer(self) -> Writer:
        return cast(Writer, import_module(self.writer))


@dataclass(frozen=True)
class Settings:
    """Options of an export with the defaults of its target."""

    target: Target
    precision: Precision
    version: Version | None = None
    layout: str | None = None
    lengths: tuple[int, ...] = ()
    """Ascending, after ``for_model``. Empty: any length."""
    max_batch: int | None = None
    threads: int | None = None
    variants: frozenset[str] = frozenset()
    """Names of the target options."""

    def for_model(self, max_length: int) -> Settings:
        """The settings with lengths up to ``max_length``, the longest input of the model in tokens."""
        default = (*(n for n in self.target.lengths if n < max_length), max_length) if self.target.lengths else ()
        lengths = self.lengths or default
        return replace(self, lengths=tuple(sorted({min(length, max_length) for length in lengths})))

    def max_length(self, model_max_length: int) -> int:
        """Tokens of the longest input that the bundle accepts."""
        return self.lengths[-1] if self.lengths else model_max_length


ONNX_RUNTIME = Target(
    "onnxruntime",
    writer="berxit.exporters.onnx.onnxruntime",
    precisions=(
        Precision("fp32", atol=1e-4),
        # Single logits of real models move by up to 1.1 and reach 30 to 46 dB; 20 dB allow an error (root mean square)
        # of a tenth of the largest logit. The measured scores decide.
        Precision("int8", atol=2.0, least_psnr=20.0, scored=True),
        Precision("fp16", atol=1e-2),  # stored weights; all computation is in float32
    ),
    options=frozenset({"threads"}),
)

TENSORRT = Target(
    "tensorrt",
    writer="berxit.exporters.onnx.tensorrt",
    precisions=(  # limits here and on the device; docs/tensorrt.md has the measured values
        Precision("fp16", atol=5e-2, least_psnr=40.0),
        Precision("fp32", atol=1e-4),
        Precision("bf16", atol=5e-1, least_psnr=20.0),
        Precision("int8", atol=2.0, least_psnr=20.0, scored=True),
    ),
    versions=(
        # Opset 19 has QuantizeLinear on float16.
        TensorRTVersion("jetpack6.1", aliases=("jetpack6", "jetpack6.2")),
        TensorRTVersion("jetpack7", tensorrt=(10, 13)),
        TensorRTVersion("jetpack6.0", tensorrt=(8, 6), opset=17, **_TENSORRT_8),
        # TensorRT 8.5 has no LayerNormalization, which is new in opset 17.
        TensorRTVersion("jetpack5", tensorrt=(8, 5), opset=16, **_TENSORRT_8),
        TensorRTVersion("tensorrt8.6", tensorrt=(8, 6), opset=17, **_TENSORRT_8),
        TensorRTVersion("tensorrt10", tensorrt=(10, 0)),
        TensorRTVersion("tensorrt11", tensorrt=(11, 0)),
        TensorRTVersion("tensorrt-rtx", tensorrt=(1, 0)),
    ),
    options=frozenset({"lengths", "max_batch"}),
    lengths=(16, 32, 64, 128, 256, 512),
    max_batch=8,
    proof=(
        "checked: the very files, in ONNX Runtime on this CPU; of bf16, which it cannot compute, the same graphs in"
        " float32 with every result rounded to bfloat16. TensorRT's own numbers are checked on the device, by bench"
    ),
)

COREML = Target(
    "coreml",
    writer="berxit.exporters.coreml.target",
    precisions=(  # docs/coreml.md has the PSNR of trained models
        Precision("fp16", atol=2e-2, least_psnr=45.0),  # the Neural Engine's; half the download
        Precision("fp32", atol=1e-4, least_psnr=70.0),  # CPU and GPU only
        CompressedWeights("int8", atol=0.25, least_psnr=25.0, scored=True, bits=8),
        CompressedWeights("palette6", atol=0.75, least_psnr=20.0, scored=True, bits=6, palette=True),
        CompressedWeights("palette4", atol=2.0, least_psnr=10.0, scored=True, bits=4, palette=True),
        CompressedWeights("palette6-grouped", atol=0.75, least_psnr=20.0, scored=True, bits=6, palette=True, group=16),
        CompressedWeights("palette4-grouped", atol=2.0, least_psnr=10.0, scored=True, bits=4, palette=True, group=16),
        # As the int8 of the other targets, whose activations are int8, too.
        CompressedWeights("int8-activations", atol=2.0, least_psnr=20.0, scored=True, bits=8, activations=True),
    ),
    versions=(
        CoreMLVersion("ios18", deployment_target="iOS18"),
        CoreMLVersion("macos15", deployment_target="macOS15"),
        CoreMLVersion(  # one function per package, no groups of channels, no int8 activations
            "ios16",
            ("palette6-grouped", "palette4-grouped", "int8-activations", "fixed-shapes", "full-depth"),
            deployment_target="iOS16",
            multifunction=False,
        ),
    ),
    variants=(
        TargetOption("fixed-shapes", "a function with fixed shapes for each of --lengths"),
        TargetOption("full-depth", "also full depth as one graph (without exits), for comparison"),
        TargetOption("float16-exits", "exit outputs in float16, the sigmoid of LTE in the app", without=("fp32",)),
        TargetOption("shared-body", "one function for all layers that share their weights (ALBERT)"),
        TargetOption("compiled", "on a Mac: also the compiled package"),
    ),
    layouts=("tokens", "ane"),
    options=frozenset({"lengths", "max_batch"}),
    packages=("coremltools",),
    max_batch=1,
    largest_batch=1,
    every_length=True,
    proof=(
        "verified: graph and weights of every saved package, executed in numpy. Apple's runtime was not run here:"
        " berxit-bench does that on a Mac"
    ),
)

TARGETS: dict[str, Target] = {target.name: target for target in (ONNX_RUNTIME, TENSORRT, COREML)}
"""Target by name."""


def find_target(name: str) -> Target:
    """Raises InputError for an unknown name."""
    if name not in TARGETS:
        raise InputError(f"unknown target '{name}': choose one of {', '.join(TARGETS)}")
    return TARGETS[name]


def by_target(names: dict[str, Sequence[str]]) -> str:
    """Names per target in one line, for help: "coreml: tokens, ane"."""
    return "; ".join(f"{target}: {', '.join(values)}" for target, values in names.items() if values)


def precisions_by_target(*, scored: bool = False) -> dict[str, Sequence[str]]:
    """Target -> names of its precisions, the default first. ``scored``: only those whose scores are measured."""
    return {t.name: [p.name for p in t.precisions if p.scored or not scored] for t in TARGETS.values()}


def versions_by_target() -> dict[str, Sequence[str]]:
    """Target -> its versions with their other names, the default first."""
    return {target.name: [version.described for version in target.versions] for target in TARGETS.values()}


def layouts_by_target() -> dict[str, Sequence[str]]:
    """Target -> names of its layouts, the default first."""
    return {target.name: target.layouts for target in TARGETS.values()}


def batches_by_target() -> dict[str, Sequence[str]]:
    """Target -> its default of --max-batch, for the targets that have one."""
    return {target.name: [str(target.max_batch)] for target in TARGETS.values() if target.max_batch}


def variants_by_target() -> dict[str, Sequence[str]]:
    """Target -> values of --target-options, with their descriptions."""
    return {t.name: [f"{variant.name} ({variant.description})" for variant in t.variants] for t in TARGETS.values()}


def targets_with(option: str) -> str:
    """Names of the targets that accept an option of ExportOptions, for help."""
    return ", ".join(target.name for target in TARGETS.values() if option in target.accepted_options)
