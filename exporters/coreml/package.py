"""A .mlpackage: equal functions give equal bytes in every file.

coremltools writes packages through temporary files that only their owner can read, with random identifiers, and with
protobuf maps in any order. A device compiles a package again if its checksum changes. Therefore the files are written
here: the program with maps in the order of their keys, and identifiers that are derived from the content.
"""

from __future__ import annotations

import json
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from berxit.exporters.coreml.silenced_coremltools import (
    ConverterRegistry,
    Function,
    Program,
    ct,
    mb,
    mil_convert_to_proto,
)
from berxit.exporters.coreml.weights import content_key
from berxit.runtime.bundle import sha256

AUTHOR = "com.apple.CoreML"
"""Author of the items, and folder of their files, in every package that coremltools writes."""
MODEL, WEIGHTS = "model.mlmodel", "weights"
ITEMS = {MODEL: "CoreML Model Specification", WEIGHTS: "CoreML Model Weights"}
"""Items of a package -> their descriptions, as coremltools writes them."""
IMMEDIATE = 10
"""Constants with fewer elements are stored in the program and not in the weight file."""


@contextmanager
def new_function(inputs: Mapping[str, Any], target: ct.target) -> Iterator[Function]:
    """A function with these placeholders, whose ops are written in the body of the ``with`` statement.

    Ops without a name are numbered from 0. coremltools' builder counts them per process, so the second export of a
    process would have other names.
    """
    before, mb.name_count = mb.name_count, defaultdict(int)
    try:
        with Function(inputs, opset_version=target) as function:
            yield function
    finally:
        mb.name_count = before


def write_package(functions: Mapping[str, Function], package: Path, target: ct.target) -> None:
    """Writes a package with these functions. One function of the name ``main`` makes a package that iOS 16 reads;
    others need iOS 18 or macOS 15. Equal weights are stored once."""
    program = Program()
    for name, function in functions.items():
        program.add_function(name, function)
    program.default_function_name = next(iter(functions))
    program.export_as_multifunction = set(functions) != {"main"}
    _share_weights(program)
    data = package / "Data" / AUTHOR
    (data / WEIGHTS).mkdir(parents=True)
    model, _ = mil_convert_to_proto(
        program,
        convert_from="milinternal",
        convert_to="mlprogram",
        converter_registry=ConverterRegistry,
        # No passes: there is nothing to fuse, and one of them would add a check for ids below 0 to every lookup.
        main_pipeline=ct.PassPipeline(pass_names=[], pipeline_name="none"),
        specification_version=target.value,
        weights_dir=str(data / WEIGHTS),
    )
    (data / MODEL).write_bytes(model.SerializeToString(deterministic=True))
    (package / "Manifest.json").write_text(_manifest(data), encoding="utf-8")


def _share_weights(program: Program) -> None:
    """Gives constants of equal content the same identity, which the writer of the weight file stores once."""
    for function in program.functions.values():
        for op in function.operations:
            value = op.outputs[0].val if op.op_type == "const" else None
            if isinstance(value, np.ndarray) and value.size >= IMMEDIATE:
                op.weight_id = content_key(value)


def _manifest(data: Path) -> str:
    """Manifest of the package with its items in ``data``. Different contents have different identifiers."""
    content = sha256(data)
    identifiers = {name: str(uuid.uuid5(uuid.NAMESPACE_URL, f"{name} {content}")) for name in ITEMS}
    entries = {
        identifiers[name]: {"author": AUTHOR, "description": text, "name": name, "path": f"{AUTHOR}/{name}"}
        for name, text in ITEMS.items()
    }
    manifest = {"fileFormatVersion": "1.0.0", "itemInfoEntries": entries, "rootModelIdentifier": identifiers[MODEL]}
    return json.dumps(manifest, indent=4, sort_keys=True) + "\n"
