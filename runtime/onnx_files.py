"""Checks of an ONNX file before a backend reads it, without the package onnx, which devices do not have.

A checksum detects damage, not malice. A backend trusts its input: external data names files, or even addresses, that it
reads into the model, and a node can be an operator of a plug-in. The segments of a bundle need neither. Only the
structure is read: protobuf fields with their lengths. Weights are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from mmap import mmap

from berxit.runtime.errors import BerxitError

# fmt: off
OPERATORS = frozenset({
    "Abs", "Add", "Cast", "Clip", "Concat", "Constant", "ConstantOfShape", "Cos", "DequantizeLinear", "Div",
    "DynamicQuantizeLinear",
    "Equal", "Erf", "Exp", "Expand", "Gather", "GatherElements", "Gelu", "Gemm", "Greater", "Identity",
    "LayerNormalization", "Less", "Log", "MatMul", "MatMulInteger", "Max", "Min", "Mul", "Neg", "Not", "Pow",
    "QuantizeLinear", "Range", "ReduceMax", "ReduceMean", "ReduceSum", "Relu", "Reshape", "Shape", "Sigmoid",
    "Sign", "Sin", "Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze",
    "Where",
})
# fmt: on
"""Operators of ONNX's own domain that a segment may contain: functions of tensors. None reads a file, runs a subgraph
or has a state."""
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types of protobuf."""

Buffer = bytes | mmap
Message = memoryview


def check_onnx(content: Buffer, where: str) -> None:
    """Raises BerxitError unless the model ``content`` consists of known operators on tensors in the file itself."""
    try:
        _check_model(memoryview(content), where)
    except MalformedError:
        raise BerxitError(f"cannot load {where}: it is not an ONNX file. Export again") from None


def _check_model(model: Message, where: str) -> None:
    for field, value in _messages(model):
        if field == 7:  # ModelProto.graph
            _check_graph(value, where)
        elif field == 25:  # ModelProto.functions
            raise BerxitError(f"{where}: the file defines operators of its own. Do not use this bundle")


def _check_graph(graph: Message, where: str) -> None:
    for field, value in _messages(graph):
        if field == 1:  # GraphProto.node
            _check_node(value, where)
        elif field == 5:  # GraphProto.initializer
            _check_tensor(value, where)
        elif field == 15:  # GraphProto.sparse_initializer
            raise BerxitError(f"{where}: the file contains sparse tensors. Do not use this bundle")


def _check_node(node: Message, where: str) -> None:
    operator = domain = ""
    for field, value in _messages(node):
        if field == 4:  # NodeProto.op_type
            operator = bytes(value).decode(errors="replace")
        elif field == 7:  # NodeProto.domain
            domain = bytes(value).decode(errors="replace")
        elif field == 5:  # NodeProto.attribute
            _check_attribute(value, where)
    if domain not in ("", "ai.onnx") or operator not in OPERATORS:
        name = f"{domain}.{operator}" if domain else operator
        raise BerxitError(
            f"{where}: this berxit does not know the operator {name!r}: upgrade berxit, or do not use this bundle"
        )


def _check_attribute(attribute: Message, where: str) -> None:
    for field, value in _messages(attribute):
        if field in (5, 10):  # AttributeProto.t and tensors
            _check_tensor(value, where)
        elif field in (6, 11, 22, 23):  # AttributeProto.g, graphs, sparse_tensor, sparse_tensors
            raise BerxitError(f"{where}: the file contains graphs inside of nodes. Do not use this bundle")


def _check_tensor(tensor: Message, where: str) -> None:
    for field, value in _fields(tensor):
        if field == 13 or (field == 14 and value != 0):  # TensorProto.external_data, data_location
            raise BerxitError(f"{where}: the file reads weights from outside. Do not use this bundle")


def _messages(message: Message) -> Iterator[tuple[int, Message]]:
    """The fields of a message that are messages, strings or bytes."""
    return ((number, value) for number, value in _fields(message) if not isinstance(value, int))


class MalformedError(Exception):
    """The bytes are no protobuf message."""


def _fields(message: Message) -> Iterator[tuple[int, Message | int]]:
    """Number and value of every field of a message. Raises MalformedError."""
    place, end = 0, len(message)
    while place < end:
        key, place = _varint(message, place)
        kind = key & 7
        if kind == BYTES:
            size, place = _varint(message, place)
            if size > end - place:
                raise MalformedError
            yield key >> 3, message[place : place + size]
            place += size
        elif kind == VARINT:
            value, place = _varint(message, place)
            yield key >> 3, value
        elif kind in (FIXED64, FIXED32):
            place += 8 if kind == FIXED64 else 4
            if place > end:
                raise MalformedError
        else:  # groups, which ONNX does not use
            raise MalformedError


def _varint(message: Message, place: int) -> tuple[int, int]:
    """The number that starts at ``place``, and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(message):
            raise MalformedError
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise MalformedError
