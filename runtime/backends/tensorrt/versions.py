"""Differences between TensorRT 8.5 to 11 and TensorRT-RTX. They are detected by the names in the module, not by its
version number; tests/runtime/tensorrt_names.json lists the names of each version."""

from __future__ import annotations

from collections import deque
from importlib import import_module
from types import ModuleType
from typing import Any

from berxit.devices import install_command
from berxit.runtime.bundle_files import BundleFile
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.manifest_checks import Port

DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT32": "int32", "INT8": "int8"}
"""TensorRT's name of a tensor's type -> numpy's."""
BUILDERS = {"tensorrt": ("tensorrt",), "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}
"""Builder -> the Python modules under which it may be installed."""


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


class Api:
    """One interface to every version of TensorRT."""

    def __init__(self, builder: str, trt: ModuleType) -> None:
        self.builder = builder
        self.trt: Any = trt
        self.version: str = trt.__version__
        self.logger: Any = _quiet_logger(self.trt)

    def said(self) -> str:
        """The errors that TensorRT has logged since the last call, in one line."""
        errors = "; ".join(dict.fromkeys(self.logger._errors)) or "it gave no reason"
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
        """True from TensorRT 10: several contexts of an engine may use one optimization profile."""
        return hasattr(self.trt, "ExecutionContextAllocationStrategy")

    def network(self, builder: Any) -> Any:
        flags = self.trt.NetworkDefinitionCreationFlag
        flag = flags.STRONGLY_TYPED if self.strongly_typed else flags.EXPLICIT_BATCH
        return builder.create_network(1 << int(flag))

    def set_precision(self, config: Any, network: Any, precision: str) -> None:
        """Sets the precision of the parsed network. TF32, which has 10 bits of mantissa, is on by default in every
        version; it is disabled, because exits are float32 in all precisions. From TensorRT 10 the types in the file set
        the rest. Before, flags of the builder do, and layers that are float32 in the file are constrained to
        float32."""
        flags = self.trt.BuilderFlag
        config.clear_flag(flags.TF32)
        if self.strongly_typed:
            return
        for flag in {"fp16": (flags.FP16,), "int8": (flags.INT8, flags.FP16)}.get(precision, ()):
            config.set_flag(flag)
        if precision == "fp16" and (exact := self._float32_layers(network)):
            config.set_flag(flags.OBEY_PRECISION_CONSTRAINTS)
            for layer in exact:
                layer.precision = self.trt.DataType.FLOAT

    def _float32_layers(self, network: Any) -> list[Any]:
        """The layers of a float16 file that compute in float32: exits, and parts of norms. Empty if no layer computes
        in float16: the types are then unknown, and a constraint of all layers to float32 would undo the precision."""
        known = self.trt.LayerType
        computing = (known.MATRIX_MULTIPLY, known.ELEMENTWISE, known.REDUCE, known.UNARY, known.ACTIVATION)
        layers = [network.get_layer(i) for i in range(network.num_layers)]
        typed = [(layer, layer.get_output(0).dtype) for layer in layers if layer.type in computing]
        if self.trt.DataType.HALF not in {dtype for _, dtype in typed}:
            return []
        return [layer for layer, dtype in typed if dtype == self.trt.DataType.FLOAT]

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
            cache = config.create_timing_cache(content)
            if cache is not None and config.set_timing_cache(cache, False):
                return cache
        raise self.refused("an empty timing cache")

    def set_shape(self, profile: Any, name: str, least: tuple[int, ...], most: tuple[int, ...]) -> None:
        """Sets an input's smallest shape, for which kernels are tuned, and its largest. Raises BerxitError."""
        try:
            profile.set_shape(name, least, least, most)
        except ValueError as error:
            raise self.refused(f"the shapes {least} to {most} of input {name}") from error

    def add_profile(self, config: Any, profile: Any) -> None:
        """Adds an optimization profile. Raises BerxitError."""
        if config.add_optimization_profile(profile) < 0:
            raise self.refused("an optimization profile")

    def refused(self, what: str) -> BerxitError:
        """The error of a call that returned False."""
        return BerxitError(f"{self.title} rejected {what}: {self.said()}. Run again, or berxit-build --force")

    def must(self, done: bool, what: str) -> None:
        """Raises BerxitError if a call returned False."""
        if not done:
            raise self.refused(what)

    def set_workspace(self, config: Any, mib: int) -> None:
        config.set_memory_pool_limit(self.trt.MemoryPoolType.WORKSPACE, mib << 20)

    def parse(self, network: Any, file: BundleFile) -> Any:
        """Reads a segment file into the network; the parser must outlive the build. Raises BerxitError."""
        parser = self.trt.OnnxParser(network, self.logger)
        model = file.location()
        if not (parser.parse(model) if isinstance(model, bytes) else parser.parse_from_file(model)):
            reason = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors)) or self.said()
            raise BerxitError(
                f"{self.title} cannot parse {file}: {reason}. Export again with the --target-version that is here"
            )
        return parser

    def context(self, engine: Any, kernels: Kernels) -> Any:
        """An execution context without its own activation memory."""
        if self.ahead_of_time:
            return engine.create_execution_context(kernels.config(self, engine))
        if self.shares_profiles:
            return engine.create_execution_context(self.trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        return engine.create_execution_context_without_device_memory()

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
