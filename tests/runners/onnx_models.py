"""Whole ONNX bundles of the small models, whose segments consist of a few operators and return the stored outputs.

The embeddings look up numbers for each token id in the word embedding table. Every layer doubles the hidden states. It
compares their sum over a row with the sums of the known texts, and returns the stored outputs of the equal one, or
zeros. A runner therefore gets the stored outputs only if token ids and types, mask, table and order of the layers are
right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from berxit.runtime.bundle import Manifest, Segment, TensorFile, TensorInfo, sha256
from berxit.runtime.golden import read_golden

Array = npt.NDArray[np.generic]
SIZE = 8
"""d, the width of the hidden states."""
TABLE = "segments/embeddings.words.bin"
IDS, TYPES, MASK = (
    TensorInfo(name, name, "int32", ("batch", "length")) for name in ("input_ids", "token_type_ids", "attention_mask")
)
HIDDEN_IN, HIDDEN_OUT = (
    TensorInfo(name, "hidden", "float32", ("batch", "length", SIZE)) for name in ("hidden_in", "hidden_out")
)
BIAS = TensorInfo("attention_bias", "attention_bias", "float32", ("batch", 1, 1, "length"))
LTE = TensorInfo("lte", "lte", "float32", ("batch",))


def write_shared(shared: Path) -> None:
    """Writes the embeddings segment and its table, which all models share, to ``shared``/segments."""
    words = np.random.default_rng(0).integers(1, 512, size=(512, SIZE)).astype("<f4")
    (shared / TABLE).write_bytes(words.tobytes())
    nodes = [
        ("Gather", ["words", "input_ids"], "rows", {}),
        ("Cast", ["token_type_ids"], "types", {"to": TensorProto.FLOAT}),
        ("Unsqueeze", ["types", "last"], "types_column", {}),
        ("Add", ["rows", "types_column"], "all", {}),
        ("Cast", ["attention_mask"], "mask", {"to": TensorProto.FLOAT}),
        ("Unsqueeze", ["mask", "last"], "mask_column", {}),
        ("Mul", ["all", "mask_column"], "hidden_out", {}),
        ("Unsqueeze", ["mask", "middle"], "mask_row", {}),
        ("Sub", ["mask_row", "one"], "padding", {}),
        ("Mul", ["padding", "masked"], "attention_bias", {}),
    ]
    weights = {
        "last": np.array([2]),
        "middle": np.array([1, 2]),
        "one": np.ones(1, np.float32),
        "masked": np.array([30000], np.float32),
    }
    constant = TensorInfo("words", "constant", "float32", ("vocabulary", SIZE))
    write_graph(shared / "segments/embeddings.onnx", nodes, weights, (IDS, TYPES, MASK, constant), (HIDDEN_OUT, BIAS))


def as_onnx(manifest: Manifest, shared: Path, folder: Path) -> Manifest:
    """The manifest of a model for CoreML as that of an ONNX bundle in ``folder``, whose layers it writes. The folder
    contains links to the shared files and to the golden inputs."""
    golden = read_golden(folder, manifest)
    words = np.frombuffer((shared / TABLE).read_bytes(), "<f4").reshape(-1, SIZE)
    sums = [
        sum(int(words[token].sum()) + SIZE * kind for token, kind in zip(ids, types, strict=True))
        for ids, types in zip(golden.input_ids, golden.token_type_ids, strict=True)
    ]
    assert len({*sums}) == len(sums), "two texts of a model have the same sum"
    tensor = TensorFile(TABLE, sha256(shared / TABLE), "float32", words.shape)
    constant = TensorInfo("words", "constant", "float32", words.shape)
    file = "segments/embeddings.onnx"
    inputs = (IDS, TYPES, MASK, constant)
    segments = [Segment(0, file, sha256(shared / file), inputs, (HIDDEN_OUT, BIAS), {"words": tensor})]
    words = manifest.model.task_kind.words
    shape = ("batch", *("length",) * words, manifest.model.outputs)
    outputs = (HIDDEN_OUT, TensorInfo("logits", "logits", "float32", shape), LTE)
    for place, layer in enumerate(manifest.exits):
        file = f"segments/layer_{layer:02d}.onnx"
        logits, lte = (
            filled([np.array(row[layer - 1], np.float32) for row in rows]) for rows in (golden.logits, golden.lte or ())
        )
        write_layer(folder / file, np.array(sums, np.float32) * 2**place, logits, lte, outputs)
        segments.append(Segment(layer, file, sha256(folder / file), (HIDDEN_IN, BIAS), outputs))
    return replace(
        manifest, target="onnxruntime", precision="fp32", segments=tuple(segments), lengths=(), max_batch=None
    )


def filled(rows: list[Array]) -> Array:
    """Arrays (C,), (S, C) or () as one array, with zeros after the last of their S tokens."""
    if rows[0].ndim < 2:
        return np.stack(rows)
    most = max(len(row) for row in rows)
    return np.stack([np.pad(row, ((0, most - len(row)), (0, 0))) for row in rows])


def write_layer(file: Path, sums: Array, logits: Array, lte: Array, outputs: Sequence[TensorInfo]) -> None:
    """Writes the segment of a layer. ``sums`` (B,): of the hidden states of the known texts; ``logits`` (B, C) or
    (B, S, C), of which the segment returns the tokens of its input; ``lte`` (B,)."""
    nodes = [
        ("ReduceSum", ["hidden_in", "axes"], "sum", {"keepdims": 0}),
        ("Unsqueeze", ["sum", "one"], "column", {}),
        ("Equal", ["column", "sums"], "equal", {}),
        ("Cast", ["equal"], "chosen", {"to": TensorProto.FLOAT}),
        ("MatMul", ["chosen", "stored_logits"], "logits" if logits.ndim == 2 else "flat", {}),
        ("MatMul", ["chosen", "stored_lte"], "lte", {}),
        ("Add", ["hidden_in", "hidden_in"], "hidden_out", {}),
    ]
    weights = {
        "axes": np.array([1, 2]),
        "one": np.array([1]),
        "sums": sums[None],
        "stored_logits": logits.reshape(len(logits), -1),
        "stored_lte": lte,
    }
    if logits.ndim == 3:
        nodes += [
            ("Reshape", ["flat", "sizes"], "longest", {}),
            ("Shape", ["hidden_in"], "length", {"start": 1, "end": 2}),
            ("Slice", ["longest", "zero", "length", "one"], "logits", {}),
        ]
        weights |= {"sizes": np.array([-1, *logits.shape[1:]]), "zero": np.array([0])}
    write_graph(file, nodes, weights, (HIDDEN_IN, BIAS), outputs)


def write_graph(
    file: Path,
    nodes: Sequence[tuple[str, list[str], str, dict[str, int]]],
    weights: Mapping[str, Array],
    inputs: Sequence[TensorInfo],
    outputs: Sequence[TensorInfo],
) -> None:
    """Writes an ONNX file. ``nodes``: operator, inputs, output, attributes."""
    types = {"int32": TensorProto.INT32, "float32": TensorProto.FLOAT}
    graph = helper.make_graph(
        [helper.make_node(kind, before, [after], **attributes) for kind, before, after, attributes in nodes],
        file.stem,
        *([helper.make_tensor_value_info(t.name, types[t.dtype], t.shape) for t in each] for each in (inputs, outputs)),
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    file.write_bytes(model.SerializeToString())
