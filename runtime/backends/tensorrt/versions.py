"""Differences between TensorRT 8.5 to 11 and TensorRT-RTX. They are detected by the names in the module, not by its
version number; tests/runtime/tensorrt_names.json lists the names of each version. Only the files that a version reads
depend on its number, because its parser accepts others without an error.

TensorRT refuses a call by an exception, whose type depends on the call, or by returning None, False or -1. Here every
refusal is a BerxitError.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any, TypeVar

from berxit.devices import install_command
from berxit.runtime.bundle import FLOAT32_NODES, Manifest
from berxit.runtime.bundle_files import BundleFile
from berxit.runtime.errors import BerxitError, InputError, first_line
from berxit.runtime.manifest_checks import Port

Result = TypeVar("Result")
REFUSALS = (RuntimeError, TypeError, ValueError, IndexError, MemoryError)
"""Exceptions that TensorRT's Python bindings raise."""

DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT32": "int32", "INT8": "int8"}
"""TensorRT's name of a tensor's type -> numpy's."""
BUILDERS = {"tensorrt": ("tensorrt",), "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}
"""Builder -> the Python modules under which it may be installed."""


@dataclass(frozen=True)
class Reader:
    """The files that a version of TensorRT and its successors read."""

    since: tuple[int, int]
    """Major and minor version."""
    opset: int
    """Newest ONNX opset."""
    target_version: str
    """--target-version of an export for it."""


READERS: dict[str, tuple[Reader, ...]] = {
    "tensorrt": (
        Reader((8, 5), 16, "jetpack5"),  # No LayerNormalization, which is new in opset 17.
        Reader((8, 6), 17, "jetpack6.0"),  # Opset 19 has float16 scales, which this parser reads as float32.
        Reader((10, 0), 20, "tensorrt10"),
    ),
    "tensorrt-rtx": (Reader((1, 0), 23, "tensorrt-rtx"),),
}
"""Builder -> its versions, ascending; docs/operators.md of onnx-tensorrt, at the tag of each version."""


def load(builder: str) -> Api:
    """Imports a builder. Raises InputError for an unknown one, BerxitError if it is not installed."""
    if builder not in BUILDERS:
        raise InputError(f"unknown builder '{builder}': choose {' or '.join(BUILDERS)}")
    for module in BUILDERS[builder]:
        try:
            return Api(builder, import_module(module))
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
    raise BerxitError(f"this needs {BUILDERS[builder][0]}, which is not installed here: {install_command(builder)}")


def _quiet_logger(trt: Any) -> Any:
    """A logger that stores the last errors instead of printing them: a build without a GPU logs harmless errors."""

    class Log(trt.ILogger):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: deque[str] = deque(maxlen=4)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self._errors.append(message)

    return Log()


def _progress_monitor(trt: Any, note: Callable[[str], None]) -> Any:
    """A monitor that reports the steps of a build to ``note``. An exception, such as Ctrl-C, stops the build, and is
    stored in ``_stopped_by``, because TensorRT discards it."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._stopped_by: BaseException | None = None
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                note(f"{phase_name[:40]} {step + 1}/{self._steps.get(phase_name, '?')}")
            except BaseException as error:  # KeyboardInterrupt, too
                self._stopped_by = error
            return self._stopped_by is None

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Monitor()


class Api:
    """One interface to every version of TensorRT."""

    def __init__(self, builder: str, trt: ModuleType) -> None:
        self.builder = builder
        self.trt: Any = trt
        self.version: str = trt.__version__
        self.logger: Any = _quiet_logger(self.trt)

    def said(self) -> str:
        """The errors that TensorRT has logged since the last call, in one line, each cut to 200 characters."""
        lines = (" ".join(error.split())[:200] for error in self.logger._errors)
        errors = "; ".join(dict.fromkeys(lines)) or "it gave no reason"
        self.logger._errors.clear()
        return errors

    @property
    def title(self) -> str:
        return f"{'TensorRT-RTX' if self.ahead_of_time else 'TensorRT'} {self.version}"

    @property
    def ahead_of_time(self) -> bool:
        """True if an engine can be built without its GPU, and works on every GPU of a compute capability."""
        return hasattr(self.trt, "ComputeCapability")

    @property
    def strongly_typed(self) -> bool:
        """True from TensorRT 10: each tensor has its type in the file. Before, flags of the builder set the
        precision."""
        return hasattr(self.trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")

    @property
    def shares_profiles(self) -> bool:
        """True from TensorRT 8.6: several contexts of an engine may use one optimization profile."""
        return self._always_shares_profiles or self._sharing is not None

    @property
    def _always_shares_profiles(self) -> bool:
        """True from TensorRT 10."""
        return hasattr(self.trt, "ExecutionContextAllocationStrategy")

    @property
    def _sharing(self) -> Any | None:
        """The feature of TensorRT 8.6 that lets contexts share profiles."""
        return getattr(getattr(self.trt, "PreviewFeature", None), "PROFILE_SHARING_0806", None)

    def check_files(self, manifest: Manifest, where: str) -> None:
        """Raises BerxitError if this TensorRT does not read the segment files of the bundle ``where``. Its parser may
        accept them nevertheless, and compute something else."""
        number = tuple(int(part) for part in self.version.split(".")[:2])
        readers = [reader for reader in READERS[self.builder] if reader.since <= number]
        if not readers:
            oldest = ".".join(map(str, READERS[self.builder][0].since))
            raise BerxitError(f"{self.title} is too old for {where}: install {oldest} or a newer one")
        reader = readers[-1]
        again = f"export again with --target-version {reader.target_version}"
        if manifest.opset is not None and manifest.opset > reader.opset:
            raise BerxitError(
                f"{where} was exported for {manifest.target_version} (opset {manifest.opset}), but {self.title} reads"
                f" opsets up to {reader.opset}: {again}"
            )
        if manifest.opset is None and not self.strongly_typed:
            raise BerxitError(
                f"{where} was exported by an older berxit, which did not record the opset: {self.title} accepts files"
                f" that it cannot read, so {again}"
            )

    def make_builder(self) -> Any:
        return self._start(self.trt.Builder)

    def make_runtime(self) -> Any:
        return self._start(self.trt.Runtime)

    def _start(self, kind: Callable[[Any], Result]) -> Result:
        """Raises BerxitError if TensorRT does not start, which it reports by a TypeError."""
        try:
            return kind(self.logger)
        except REFUSALS as error:
            raise BerxitError(
                f"{self.title} cannot use the GPU here ({first_line(error)}; {self.said()}): its CUDA version must fit"
                " the driver, which berxit doctor shows"
            ) from error

    def network(self, builder: Any) -> Any:
        flags = self.trt.NetworkDefinitionCreationFlag
        flag = flags.STRONGLY_TYPED if self.strongly_typed else flags.EXPLICIT_BATCH
        with self.refusing("a network"):
            return self.must(builder.create_network(1 << int(flag)), "a network")

    def config(self, builder: Any) -> Any:
        """Settings of a build. Contexts of the engine can share its profiles, if this version can do that."""
        with self.refusing("a builder configuration"):
            config = self.must(builder.create_builder_config(), "a builder configuration")
            if self._sharing is not None and not self._always_shares_profiles:
                config.set_preview_feature(self._sharing, True)
        return config

    def _watch(self, config: Any, note: Callable[[str], None]) -> Any | None:
        """Reports the steps of the build to ``note``. Returns the monitor, which must outlive the build; None before
        TensorRT 10, which has none."""
        if not hasattr(self.trt, "IProgressMonitor"):
            return None
        monitor = _progress_monitor(self.trt, note)
        config.progress_monitor = monitor
        return monitor

    def set_precision(self, config: Any, network: Any, precision: str, *, exits: bool) -> None:
        """Sets the precision of the parsed network. TF32, which has 10 bits of mantissa, is on by default in every
        version; it is disabled, because exits are float32 in all precisions. From TensorRT 10 the types in the file set
        the rest. Before, flags of the builder allow lower precisions, and layers whose names start with FLOAT32_NODES
        must compute in float32.

        ``exits``: the network has an exit. Raises BerxitError if its layers cannot be recognized.
        """
        flags = self.trt.BuilderFlag
        config.clear_flag(flags.TF32)
        if self.strongly_typed:
            return
        allowed = {"fp16": (flags.FP16,), "int8": (flags.INT8, flags.FP16)}.get(precision, ())
        for flag in allowed:
            config.set_flag(flag)
        exact = self._float32_layers(network) if allowed else []
        if allowed and exits and not exact:
            raise BerxitError(f"{self.title} did not keep the names of float32 layers: export in fp32")
        if exact:
            config.set_flag(flags.OBEY_PRECISION_CONSTRAINTS)
        for layer in exact:
            layer.precision = self.trt.DataType.FLOAT
            layer.set_output_type(0, self.trt.DataType.FLOAT)

    def _float32_layers(self, network: Any) -> list[Any]:
        """The layers with a computation that must be float32. Shapes and constants have no precision."""
        known = self.trt.LayerType
        computing = (known.MATRIX_MULTIPLY, known.ELEMENTWISE, known.REDUCE, known.UNARY, known.ACTIVATION)
        layers = (network.get_layer(i) for i in range(network.num_layers))
        return [layer for layer in layers if layer.type in computing and layer.name.startswith(FLOAT32_NODES)]

    def set_capability(self, config: Any, capability: tuple[int, int]) -> None:
        """Sets the compute capability, if it can be chosen. Raises InputError for one that is not supported."""
        if not self.ahead_of_time:
            return
        known = self.trt.ComputeCapability
        name = f"SM{capability[0]}{capability[1]}"
        if not hasattr(known, name):
            names = ", ".join(sorted((n[2:] for n in dir(known) if n.startswith("SM")), key=int))
            raise InputError(f"{self.title} cannot build for compute capability {name[2:]}: it knows {names}")
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(known, name), 0)

    def timing_cache(self, config: Any, timings: bytes) -> Any | None:
        """The timing cache that the build uses and extends. It contains ``timings``, or nothing if they are damaged or
        of another TensorRT. None for TensorRT-RTX, which builds without a GPU and times nothing. Raises BerxitError."""
        if self.ahead_of_time:
            return None
        for content in dict.fromkeys((timings, b"")):
            with self.refusing("a timing cache"):
                cache = config.create_timing_cache(content)
                if cache is not None and config.set_timing_cache(cache, False):
                    return cache
        raise self.refused("an empty timing cache")

    def make_profile(self, builder: Any) -> Any:
        with self.refusing("a new optimization profile"):
            return self.must(builder.create_optimization_profile(), "a new optimization profile")

    def set_shape(self, profile: Any, name: str, least: tuple[int, ...], most: tuple[int, ...]) -> None:
        """Sets an input's smallest shape, for which kernels are tuned, and its largest. Raises BerxitError."""
        with self.refusing(f"the shapes {least} to {most} of input {name}"):
            profile.set_shape(name, least, least, most)

    def add_profile(self, config: Any, profile: Any) -> None:
        """Adds an optimization profile. Raises BerxitError."""
        with self.refusing("an optimization profile"):
            self.must(config.add_optimization_profile(profile) >= 0, "an optimization profile")

    def refused(self, what: str, error: Exception | None = None) -> BerxitError:
        """The error of a call that failed."""
        reason = f"{first_line(error)}; {self.said()}" if error else self.said()
        return BerxitError(f"{self.title} rejected {what}: {reason}. Run again, or berxit-build --force")

    def must(self, result: Result | None, what: str) -> Result:
        """The result of a call. Raises BerxitError for None and False."""
        if result is None or result is False:
            raise self.refused(what)
        return result

    @contextmanager
    def refusing(self, what: str) -> Iterator[None]:
        """Converts the exceptions of calls to BerxitErrors."""
        try:
            yield
        except BerxitError:
            raise
        except REFUSALS as error:
            raise self.refused(what, error) from error

    def set_workspace(self, config: Any, mib: int) -> None:
        config.set_memory_pool_limit(self.trt.MemoryPoolType.WORKSPACE, mib << 20)

    def parse(self, network: Any, file: BundleFile) -> Any:
        """Reads a segment file into the network; the parser must outlive the build. Raises BerxitError."""
        with self.refusing(f"a parser for {file}"):
            parser = self.trt.OnnxParser(network, self.logger)
            model = file.location()
            if parser.parse(model) if isinstance(model, bytes) else parser.parse_from_file(model):
                return parser
            reason = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors)) or self.said()
            raise BerxitError(
                f"{self.title} cannot parse {file}: {' '.join(reason.split())}. Export again with the --target-version"
                " that is here"
            )

    def build(self, builder: Any, network: Any, config: Any, what: str, note: Callable[[str], None]) -> Any:
        """The serialized engine of ``what``. Reports the steps of the build to ``note``, from TensorRT 10. Raises
        BerxitError, and KeyboardInterrupt if the user stops the build."""
        monitor = self._watch(config, note)
        with self.refusing(what):
            engine = builder.build_serialized_network(network, config)
        if monitor is not None and monitor._stopped_by is not None:
            raise monitor._stopped_by
        if engine is None:
            raise BerxitError(
                f"{self.title} could not build {what}: {self.said()}. Give it more memory (--workspace), or export with"
                " a --target-version or --precision that it knows"
            )
        return engine

    def engine(self, runtime: Any, data: bytes, file: str) -> Any:
        """The engine of a segment file. Raises BerxitError."""
        remedy = "Rebuild it: berxit-build --force"
        try:
            engine = runtime.deserialize_cuda_engine(data)
        except REFUSALS as error:
            raise BerxitError(
                f"{self.title} cannot load the engine of {file}: {first_line(error)}. {remedy}"
            ) from error
        if engine is None:
            raise BerxitError(f"{self.title} cannot load the engine of {file}: {self.said()}. {remedy}")
        return engine

    def context(self, engine: Any, kernels: Kernels, what: str) -> Any:
        """An execution context without its own activation memory. Raises BerxitError."""
        with self.refusing(what):
            if self.ahead_of_time:
                context = engine.create_execution_context(kernels.config(self, engine))
            elif self._always_shares_profiles:
                context = engine.create_execution_context(self.trt.ExecutionContextAllocationStrategy.USER_MANAGED)
            else:
                context = engine.create_execution_context_without_device_memory()
        if context is None:
            raise BerxitError(f"{self.title} created no {what}: {self.said()}. Is the GPU's memory full?")
        return context

    def ports(self, engine: Any) -> tuple[list[Port], list[Port]]:
        """The engine's inputs and outputs."""
        known = {getattr(self.trt.DataType, name): dtype for name, dtype in DTYPES.items()}
        inputs: list[Port] = []
        outputs: list[Port] = []
        for place in range(engine.num_io_tensors):
            name = engine.get_tensor_name(place)
            shape = tuple("?" if size == -1 else int(size) for size in engine.get_tensor_shape(name))
            port = Port(name, known.get(engine.get_tensor_dtype(name)), shape)
            (inputs if engine.get_tensor_mode(name) == self.trt.TensorIOMode.INPUT else outputs).append(port)
        return inputs, outputs

    @staticmethod
    def memory_size(engine: Any) -> int:
        """Bytes of activation memory that a context of the engine needs."""
        if hasattr(engine, "device_memory_size_v2"):
            return int(engine.device_memory_size_v2)
        return int(engine.device_memory_size)

    @staticmethod
    def set_memory(context: Any, address: int, size: int) -> None:
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(address, size)
        else:
            context.device_memory = address


class Kernels:
    """Kernels that TensorRT-RTX compiles for the GPU when a context first runs, for all engines of a runner. They are
    stored for the next process. TensorRT compiles kernels at the build, so there are none."""

    def __init__(self, kept: bytes = b"") -> None:
        self._kept = kept
        self._cache: Any = None
        self._configs: list[Any] = []  # They must outlive the contexts that are created from them.

    def config(self, api: Api, engine: Any) -> Any:
        """Runtime configuration for a context of the engine. Raises BerxitError."""
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(api.trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            if self._kept and not self._cache.deserialize(self._kept):  # Of another driver or GPU: compiled again.
                self._kept = b""
        api.must(config.set_runtime_cache(self._cache), "a runtime cache")
        self._configs.append(config)
        return config

    def grown(self) -> bytes | None:
        """The kernels to store; None if they are unchanged."""
        if self._cache is None:
            return None
        found = bytes(memoryview(self._cache.serialize()))
        return found if found != self._kept else None
