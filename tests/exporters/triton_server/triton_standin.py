"""Stand-in for ``triton_python_backend_utils``: the classes and functions that the Python backend documents.

https://github.com/triton-inference-server/python_backend: a tensor is made from a name and a numpy array; a tensor of
strings is an array of bytes objects; the parameters of a request are a JSON string; a response has tensors or an error.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

DTYPES = {"TYPE_STRING": np.object_, "TYPE_FP32": np.float32, "TYPE_INT32": np.int32, "TYPE_BOOL": np.bool_}
"""Data types of config.pbtxt -> numpy's."""


class Tensor:
    def __init__(self, name: str, values: npt.NDArray) -> None:
        assert isinstance(values, np.ndarray)
        assert values.dtype in DTYPES.values()
        self._name, self._values = name, values

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> npt.NDArray:
        return self._values

    def shape(self) -> list[int]:
        return list(self._values.shape)


class TritonError:
    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class InferenceResponse:
    def __init__(self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None) -> None:
        self._tensors, self._error = list(output_tensors), error

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


class InferenceRequest:
    """A request as ``execute`` receives it."""

    def __init__(self, inputs: Sequence[Tensor], parameters: dict[str, Any] | None = None, cancelled: bool = False):
        self._inputs, self._cancelled = list(inputs), cancelled
        self._parameters = "" if parameters is None else json.dumps(parameters)

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def parameters(self) -> str:
        return self._parameters

    def is_cancelled(self) -> bool:
        return self._cancelled


def get_input_tensor_by_name(inference_request: InferenceRequest, name: str) -> Tensor | None:
    return next((tensor for tensor in inference_request.inputs() if tensor.name() == name), None)
