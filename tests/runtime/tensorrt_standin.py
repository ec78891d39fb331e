"""Stand-in for TensorRT without a GPU. It has exactly the names of a recorded version and runs on ONNX Runtime.

Calls fail as those of the Python bindings do (python/src/infer/pyCore.cpp at each version's tag): ``set_shape`` and
``set_optimization_profile_async`` raise RuntimeError, ``Builder`` and ``Runtime`` TypeError, others return None, False
or -1. The parser has the version's rules; see tensorrt_parser.py.

Its kernels run on the fake CUDA driver (fake_cuda), which the real cuda-python calls. Their addresses are checked
against the allocations, and every run overwrites its activation memory, so that overlapping buffers lead to wrong
outputs.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
from fake_cuda import Driver
from onnx import TensorProto, helper
from tensorrt_parser import Parser, rules_of

NAMES: dict[str, dict[str, list[str]]] = json.loads(
    (Path(__file__).parent / "tensorrt_names.json").read_text(encoding="utf-8")
)
"""TensorRT version -> class -> the members that this project may use."""
RUBBISH = 0xC7


class World:
    """A version's TensorRT on the fake CUDA driver: what it built, and which of its calls report failure."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.built: list[str] = []
        """Files from which engines were built."""
        self.contexts = 0
        self.builders = 0
        self.refuses: set[str] = set()
        """Names of calls that report failure."""

    def note(self, kind: str) -> None:
        """Adds the end of one of its objects to ``released``."""
        self.driver.note(f"{id(self)}.{kind}")

    def released(self) -> list[str]:
        """Kinds of ended objects and of released CUDA resources, in order."""
        kinds = (kind.rpartition(".") for kind in self.driver.released())
        return [kind for owner, _, kind in kinds if owner in ("", str(id(self)))]


class Guarded:
    """Object whose recorded names only can be read or set. Names of the stand-in begin with an underscore."""

    _allowed: frozenset[str] = frozenset()
    _module: Any = None

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_") and name not in object.__getattribute__(self, "_allowed"):
            raise AttributeError(f"this TensorRT has no {type(self).__name__}.{name}")
        return object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and name not in type(self)._allowed:
            raise AttributeError(f"this TensorRT has no {type(self).__name__}.{name}")
        object.__setattr__(self, name, value)

    def _answers(self, call: str) -> bool:
        return call not in self._module.world.refuses

    def _start(self, kind: str, logger: Any) -> None:
        """As pybind11 reports a factory that returns a null pointer."""
        if not self._answers(kind):
            logger.log(self._module.ILogger.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")


class ILogger(Guarded):
    def __init__(self) -> None: ...


class IProgressMonitor(Guarded):
    def __init__(self) -> None: ...


class ITimingCache(Guarded):
    def __init__(self, data: bytes) -> None:
        self._data = data

    def serialize(self) -> bytes:
        return self._data


class IOptimizationProfile(Guarded):
    def __init__(self) -> None:
        self._shapes: dict[str, tuple] = {}

    def set_shape(self, name: str, least: tuple, usual: tuple, most: tuple) -> None:
        assert all(a <= b <= c for a, b, c in zip(least, usual, most, strict=True)), "an inverted profile"
        if not self._answers("set_shape"):
            raise RuntimeError("Shape provided for min is inconsistent with other shapes.")
        self._shapes[name] = (least, usual, most)


class IBuilderConfig(Guarded):
    def __init__(self) -> None:
        self._profiles: list[dict] = []
        self._flags: set[Any] = {"TF32"}  # as in every version
        self._cache: Any = None
        self._capabilities: dict[int, Any] = {}
        self._monitor: Any = None
        self._shares = not self._module.builds_unshared

    progress_monitor = property(fset=lambda self, monitor: setattr(self, "_monitor", monitor))

    def set_preview_feature(self, feature: Any, enable: bool) -> None:
        assert self._module.builds_unshared, "deprecated: always on"
        assert (feature, enable) == ("PROFILE_SHARING_0806", True)
        self._shares = True

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        assert pool == "WORKSPACE"
        assert size >= 1 << 20

    def set_flag(self, flag: Any) -> None:
        self._flags.add(flag)

    def clear_flag(self, flag: Any) -> None:
        self._flags.discard(flag)

    def create_timing_cache(self, data: bytes) -> Any:
        assert not self._module.rtx, "deprecated, and asks for a GPU"
        return None if data == b"damaged" else self._module.classes["ITimingCache"](data)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        if cache._data == b"of another version" or not self._answers("set_timing_cache"):
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self._cache

    def add_optimization_profile(self, profile: Any) -> int:
        if not self._answers("add_optimization_profile"):
            return -1
        self._profiles.append(profile._shapes)
        return len(self._profiles) - 1

    def set_compute_capability(self, capability: Any, index: int) -> bool:
        self._capabilities[index] = capability
        return index < self.num_compute_capabilities


class ITensor(Guarded):
    def __init__(self, dtype: str) -> None:
        self._dtype = dtype

    dtype = property(lambda self: self._dtype)


class ILayer(Guarded):
    def __init__(self, name: str, kind: str, dtype: str) -> None:
        self._name, self._kind, self._dtype = name, kind, dtype
        self._precision, self._output = None, None

    name = property(lambda self: self._name)
    type = property(lambda self: self._kind)
    precision = property(lambda self: self._precision, lambda self, value: setattr(self, "_precision", value))

    def set_output_type(self, index: int, dtype: str) -> None:
        assert index == 0
        self._output = dtype

    def get_output(self, index: int) -> ITensor:
        return self._module.classes["ITensor"](self._dtype)


LAYERS = {
    "MatMul": "MATRIX_MULTIPLY", "Add": "ELEMENTWISE", "Sub": "ELEMENTWISE", "Mul": "ELEMENTWISE",
    "Div": "ELEMENTWISE", "Pow": "ELEMENTWISE", "ReduceMean": "REDUCE", "ReduceSum": "REDUCE", "Sqrt": "UNARY",
    "Erf": "UNARY", "Tanh": "ACTIVATION", "Sigmoid": "ACTIVATION", "Relu": "ACTIVATION",
}  # fmt: skip
"""ONNX operator -> TensorRT layer type, for operators that compute."""
DATA_TYPES = {onnx.TensorProto.FLOAT: "FLOAT", onnx.TensorProto.FLOAT16: "HALF"}


class INetworkDefinition(Guarded):
    def __init__(self, flags: int) -> None:
        self._flags = flags
        self._model: Any = None
        self._layers: list[ILayer] | None = None

    num_layers = property(lambda self: len(self._model.graph.node))

    def get_layer(self, index: int) -> ILayer:
        if self._layers is None:
            graph = onnx.shape_inference.infer_shapes(self._model).graph
            types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.output)}
            made = self._module.classes["ILayer"]
            self._layers = [
                made(node.name, LAYERS.get(node.op_type, "OTHER"), DATA_TYPES.get(types[node.output[0]], "OTHER"))
                for node in graph.node
            ]
        return self._layers[index]


class OnnxParser(Guarded):
    def __init__(self, network: Any, logger: Any) -> None:
        self._network, self._errors = network, []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> Any:
        return SimpleNamespace(desc=lambda: self._errors[index])

    def parse(self, model: bytes) -> bool:
        return self._read(onnx.load_from_string(model), "in memory")

    def parse_from_file(self, path: str) -> bool:
        return self._read(onnx.load(path), path)

    def _read(self, model: onnx.ModelProto, path: str) -> bool:
        self._errors += Parser(rules_of(self._module.version), model).errors()
        if not self._errors:
            self._network._model, self._network._path = model, path
        return not self._errors


def in_half(model: onnx.ModelProto, layers: list[Any]) -> onnx.ModelProto:
    """The network with the result of every float32 layer rounded to float16 that is not constrained to float32, which
    TensorRT 8 may do if the FP16 flag is set."""
    rounded = {
        node.output[0]
        for node, layer in zip(model.graph.node, layers, strict=True)
        if layer._kind != "OTHER"
        and layer._dtype == "FLOAT"
        and (layer._precision, layer._output) != ("FLOAT", "FLOAT")
    }
    half = onnx.ModelProto()
    half.CopyFrom(model)
    del half.graph.node[:]
    for node in model.graph.node:
        half.graph.node.append(node)
        for name in set(node.output) & rounded:
            half.graph.node[-1].output[0] = f"{name}.exact"
            casts = [(f"{name}.exact", f"{name}.half", TensorProto.FLOAT16), (f"{name}.half", name, TensorProto.FLOAT)]
            half.graph.node.extend(helper.make_node("Cast", [x], [y], to=kind) for x, y, kind in casts)
    return half


class Builder(Guarded):
    def __init__(self, logger: Any) -> None:
        self._start("Builder", logger)
        self._module.world.builders += 1

    def create_network(self, flags: int = 0) -> Any:
        return self._module.classes["INetworkDefinition"](flags) if self._answers("create_network") else None

    def create_builder_config(self) -> Any:
        return self._module.classes["IBuilderConfig"]() if self._answers("create_builder_config") else None

    def create_optimization_profile(self) -> Any:
        return self._module.classes["IOptimizationProfile"]()

    def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
        model, module = network._model, self._module
        if not self._watched(config._monitor) or not self._answers("build_serialized_network"):
            return None
        typed = getattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        if typed is None or not network._flags >> int(typed) & 1:
            half = any(t.data_type == TensorProto.FLOAT16 for t in model.graph.initializer)
            int8 = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
            if (half and module.BuilderFlag.FP16 not in config._flags) or (
                int8 and module.BuilderFlag.INT8 not in config._flags
            ):
                return None
            if module.BuilderFlag.FP16 in config._flags:
                layers = [network.get_layer(i) for i in range(network.num_layers)]
                constrained = any(layer._precision for layer in layers)
                assert not constrained or "OBEY_PRECISION_CONSTRAINTS" in config._flags, "constraints without effect"
                model = in_half(model, layers)
        dynamic = [i.name for i in model.graph.input if any(d.dim_param for d in i.type.tensor_type.shape.dim)]
        if not config._profiles or any(set(profile) != set(dynamic) for profile in config._profiles):
            return None
        assert "TF32" not in config._flags, "float32 would be computed with 10 bits"
        module.world.built.append(Path(network._path).resolve().name)  # resolves the path of an open file
        if not module.rtx:
            config._cache._data += b"t"
        return pickle.dumps((module.__version__, model.SerializeToString(), config._profiles, config._shares))

    def _watched(self, monitor: Any) -> bool:
        """Reports two steps. False if the monitor stops the build."""
        if monitor is None:
            return True
        monitor.phase_start("Tactic Selection", None, 2)
        going_on = all(monitor.step_complete("Tactic Selection", step) for step in range(2))
        monitor.phase_finish("Tactic Selection")
        return going_on


class Runtime(Guarded):
    def __init__(self, logger: Any) -> None:
        self._start("Runtime", logger)
        self._logger = logger

    def __del__(self) -> None:
        self._module.world.note("runtime")

    def deserialize_cuda_engine(self, data: bytes) -> Any:
        try:
            version, model, profiles, shares = pickle.loads(data)
        except pickle.UnpicklingError:
            version = None
        if version != self._module.__version__:
            self._logger.log(self._module.ILogger.ERROR, "the engine is of another version")
            return None
        return self._module.classes["ICudaEngine"](model, profiles, shares)


class ICudaEngine(Guarded):
    def __init__(self, model: bytes, profiles: list[dict], shares: bool) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        graph = onnx.load_from_string(model)
        if any(tensor.data_type == onnx.TensorProto.BFLOAT16 for tensor in graph.graph.initializer):
            from berxit.exporters.onnx.bfloat16 import rounded_in_float32  # imports torch

            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            model = rounded_in_float32(graph).SerializeToString()
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._profiles, self._shares = profiles, shares
        self._taken: set[int] = set()
        self._memory = 1000 + len(model) % 777

    def __del__(self) -> None:
        self._module.world.note("engine")

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors())

    def get_tensor_name(self, place: int) -> str:
        return list(self._tensors())[place]

    def get_tensor_mode(self, name: str) -> str:
        return "INPUT" if name in {tensor.name for tensor in self._session.get_inputs()} else "OUTPUT"

    def get_tensor_dtype(self, name: str) -> str:
        dtypes = {"float": "FLOAT", "float16": "HALF", "int32": "INT32", "int8": "INT8"}
        return dtypes[self._tensors()[name].type.removeprefix("tensor(").removesuffix(")")]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else -1 for size in self._tensors()[name].shape)

    def _tensors(self) -> dict[str, Any]:
        return {tensor.name: tensor for tensor in (*self._session.get_inputs(), *self._session.get_outputs())}

    device_memory_size = property(lambda self: self._memory)
    device_memory_size_v2 = property(lambda self: self._memory)

    def create_runtime_config(self) -> Any:
        return self._module.classes["IRuntimeConfig"]()

    def create_execution_context(self, how: Any = "STATIC") -> Any:
        strategy = how if isinstance(how, str) else how._strategy
        assert strategy == "USER_MANAGED", "a context with memory of its own"
        if not self._answers("create_execution_context"):
            return None
        return self._module.classes["IExecutionContext"](self, None if isinstance(how, str) else how._cache)

    def create_execution_context_without_device_memory(self) -> Any:
        return self._module.classes["IExecutionContext"](self)


class IRuntimeCache(Guarded):
    def __init__(self) -> None:
        self._data = b""

    def serialize(self) -> bytes:
        return self._data

    def deserialize(self, data: bytes) -> bool:
        if not data.startswith(b"k"):
            return False
        self._data = data
        return True


class IRuntimeConfig(Guarded):
    def __init__(self) -> None:
        self._strategy, self._cache = "STATIC", None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self._strategy = strategy

    def create_runtime_cache(self) -> Any:
        return self._module.classes["IRuntimeCache"]()

    def set_runtime_cache(self, cache: Any) -> bool:
        self._cache = cache
        return self._answers("set_runtime_cache")


class IExecutionContext(Guarded):
    def __init__(self, engine: Any, kernels: Any = None) -> None:
        self._engine, self._kernels = engine, kernels
        self._module.world.contexts += 1
        self._profile: dict | None = None
        self._shapes: dict[str, tuple] = {}
        self._addresses: dict[str, int] = {}
        self._activations: tuple[int, int] | None = None
        self._warm = self._captured = False
        self._inputs = {i.name: i for i in engine._session.get_inputs()}

    def __del__(self) -> None:
        self._module.world.note("context")

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= self._engine._memory
        self._activations = (address, size)

    device_memory = property(fset=lambda self, address: setattr(self, "_activations", (address, self._engine._memory)))

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        if not self._answers("set_optimization_profile_async"):
            raise RuntimeError("Error in set optimization profile async.")
        if index in self._engine._taken and not self._engine._shares:
            raise RuntimeError("Error in set optimization profile async.")
        self._engine._taken.add(index)
        self._profile = self._engine._profiles[index]
        return True

    def set_input_shape(self, name: str, shape: tuple) -> bool:
        assert not self._captured, "a context was changed after its graph was captured"
        least, _, most = self._profile[name]
        if not all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True)):
            return False
        self._shapes[name], self._warm = shape, False
        return self._answers("set_input_shape")

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert not self._captured, "a context was changed after its graph was captured"
        assert address % 256 == 0, f"{name} is not aligned"
        self._addresses[name] = address
        return self._answers("set_tensor_address")

    def execute_async_v3(self, stream: int) -> bool:
        session, driver = self._engine._session, self._module.world.driver
        shapes = {name: self._shapes.get(name) or tuple(i.shape) for name, i in self._inputs.items()}
        if any(not isinstance(size, int) for shape in shapes.values() for size in shape):
            return False
        if driver.capturing(stream):
            assert self._warm, "captured before it ran with these shapes"
            if not self._answers("execute_async_v3"):
                driver.synchronize(stream)  # as a layer that waits for the GPU; no capture can contain it
                return False
            self._captured = True
        if not self._warm and self._kernels is not None:
            self._kernels._data += b"k"
        self._warm = True
        addresses, activations = dict(self._addresses), self._activations
        dtypes = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int32)": "int32"}
        inputs = {name: np.dtype(dtypes[self._inputs[name].type]) for name in shapes}

        def kernel() -> None:  # must not refer to the context, whose end is recorded
            feeds = {}
            for name, dtype in inputs.items():
                size = int(np.prod(shapes[name])) * dtype.itemsize
                feeds[name] = driver.at(addresses[name], size).view(dtype).reshape(shapes[name]).copy()
            names = [output.name for output in session.get_outputs()]
            values = session.run(names, feeds)
            driver.at(*activations)[:] = RUBBISH
            for name, value in zip(names, values, strict=True):
                driver.at(addresses[name], value.nbytes)[:] = np.ascontiguousarray(value).view(np.uint8).reshape(-1)

        driver.launch(stream, kernel)
        return True


IMPLEMENTED = (
    ILogger, IProgressMonitor, ITimingCache, IOptimizationProfile, IBuilderConfig, ITensor, ILayer, INetworkDefinition,
    OnnxParser, Builder, Runtime, ICudaEngine, IRuntimeCache, IRuntimeConfig, IExecutionContext,
)  # fmt: skip


class TensorRt:
    """Replacement of the module ``tensorrt``, with the classes and enumerations of a version."""

    def __init__(self, version: str, world: World) -> None:
        names = NAMES[version]
        self.version = version
        self.__version__ = version.removeprefix("rtx")
        self.rtx = version.startswith("rtx")
        self.major = 11 if version.startswith("rtx") else int(version.partition(".")[0])
        self.builds_unshared = self.major < 10
        """True if contexts share profiles only on request."""
        self.world = world
        self.classes = {
            kind.__name__: type(kind.__name__, (kind,), {"_allowed": frozenset(names[kind.__name__]), "_module": self})
            for kind in IMPLEMENTED
        }
        for name in ("Builder", "Runtime", "OnnxParser"):
            setattr(self, name, self.classes[name])
        self.ILogger = type("ILogger", (self.classes["ILogger"],), {"ERROR": 1, "INTERNAL_ERROR": 0})
        for name in ("MemoryPoolType", "BuilderFlag", "DataType", "LayerType", "TensorIOMode"):
            setattr(self, name, SimpleNamespace(**{member: member for member in names[name]}))
        flags = names["NetworkDefinitionCreationFlag"]
        self.NetworkDefinitionCreationFlag = SimpleNamespace(**{name: i for i, name in enumerate(flags)})
        if names["IProgressMonitor"]:
            self.IProgressMonitor = self.classes["IProgressMonitor"]
        for name in ("ExecutionContextAllocationStrategy", "ComputeCapability", "PreviewFeature"):
            if names.get(name):
                setattr(self, name, SimpleNamespace(**{member: member for member in names[name]}))
