"""Bundles as earlier versions wrote them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from berxit.runtime.bundle import read_manifest, sha256, write_manifest


def with_fixed_table(bundle: Path, folder: Path) -> Path:
    """A copy of an ONNX bundle with the older form of the word embedding table: the ONNX file has a fixed number of
    rows, and the scales of an int8 table are in the ONNX file."""
    shutil.copytree(bundle, folder)
    manifest = read_manifest(folder)
    first = manifest.segments[0]
    file, tables = folder / first.file, dict(first.constants)
    model = onnx.load(str(file))
    for port in [each for each in model.graph.input if each.name in tables]:
        if port.name.endswith(".scale"):
            stored = tables.pop(port.name)
            values = np.fromfile(folder / stored.file, stored.dtype).reshape(stored.shape)
            model.graph.initializer.append(numpy_helper.from_array(values, port.name))
            model.graph.input.remove(port)
            (folder / stored.file).unlink()
        else:
            (rows, *_) = port.type.tensor_type.shape.dim
            assert rows.dim_param == "vocabulary"
            rows.dim_value = tables[port.name].shape[0]
    file.write_bytes(model.SerializeToString())
    inputs = tuple(each for each in first.inputs if each.role != "constant" or each.name in tables)
    first = replace(first, sha256=sha256(file), inputs=inputs, constants=tables)
    write_manifest(replace(manifest, segments=(first, *manifest.segments[1:])), folder)
    return folder
