"""Cases that every runner rejects, in one line that contains the named values."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MODEL = "confidence"
"""The bundle that is changed."""
EXTRA = {"file": "segments/extra.bin", "sha256": "0" * 64, "dtype": "float32", "shape": [1]}
"""A tensor that is not an input."""
Case = tuple[list[str | int], Any, list[str]]
MANIFEST: tuple[Case, ...] = (
    (["schema_version"], 99, ["99"]),
    (["schema_version"], None, ["schema_version"]),
    (["colour"], 3, ["colour"]),
    (["model", "kind"], "poetry", ["poetry"]),
    (["model", "labels"], ["lights", "music"], ["2"]),
    (["model", "labels"], ["lights", "music", "music"], ["music"]),
    (["policy", "criterion"], "luck", ["luck"]),
    (["policy", "thresholds"], [0.5] * 4, ["4"]),
    (["policy", "thresholds", 1], 1.5, ["1.5"]),
    (["policy", "temperatures", 2], 0, ["temperature"]),
    (["policy", "weights"], [[0.5] * 7] * 5, ["weights"]),
    (["policy", "off"], [6], ["6"]),
    (["policy", "patience"], 7, ["7"]),
    (["segments", 3, "layer"], 2, ["6"]),
    (["segments", 3, "inputs", 0, "role"], "mood", ["mood"]),
    (["segments", 3, "outputs", 1, "shape"], ["batch", 4], ["4"]),
    (["model", "text_columns"], [], ["text_columns", "0"]),
    (["model", "text_columns"], ["a", "b", "c"], ["text_columns", "3"]),
    (["model", "hidden_size"], 0, ["hidden_size"]),
    (["model", "max_length"], 0, ["max_length"]),
    (["model", "pad_token_id"], -1, ["pad_token_id"]),
    (["model", "lte"], False, ["lte"]),
    (["threads"], 0, ["threads"]),
    (["max_batch"], 0, ["max_batch"]),
    (["lengths"], [16, 8], ["lengths"]),
    (["parity", "atol"], -1, ["atol"]),
    (["parity", "scale"], 0, ["scale"]),
    (["parity", "max_diff"], [], ["max_diff"]),
    (["parity", "max_diff", 2], -0.5, ["max_diff"]),
    (["segments", 0, "inputs", 0, "dtype"], "int64", ["int64"]),
    (["segments", 0, "inputs", 1, "role"], "hidden", ["hidden"]),
    (["segments", 0, "outputs", 1, "role"], "logits", ["logits"]),
    (["segments", 0, "outputs", 1, "dtype"], "int8", ["int8"]),
    (["segments", 3, "repeat"], 2, ["repeat"]),
    (["segments", 3, "constants"], {"extra": EXTRA}, ["extra"]),
    (["segments", 3, "inputs", 0, "dtype"], "float64", ["float64"]),
    (["segments", 3, "inputs", 1, "name"], "hidden_in", ["hidden_in"]),
    (["segments", 3, "inputs", 1, "role"], "hidden", ["hidden"]),
    (["segments", 3, "inputs", 1, "role"], "token_weights", ["token_weights"]),
    (["segments", 3, "inputs", 1, "role"], "constant", ["constant"]),
    (["segments", 3, "inputs", 1, "shape", 1], 2, ["attention_bias"]),
    (["segments", 3, "outputs", 0, "shape", 2], 9, ["hidden", "9"]),
    (["segments", 3, "outputs", 1, "dtype"], "int32", ["int32"]),
    (["segments", 3, "outputs", 1, "role"], "hidden", ["hidden"]),
    (["segments", 3, "outputs", 2, "role"], "constant", ["constant"]),
    (["segments", 3, "outputs", 2, "shape"], ["batch", 1], ["lte"]),
)
"""Place in manifest.json, the value to write there (None: remove the key), and words of the message."""
ONNX: tuple[Case, ...] = (
    (["target"], "abacus", ["abacus"]),
    (["segments", 3, "file"], "../layer_03.onnx", ["../layer_03.onnx"]),
    (["segments", 3, "file"], "segments/layer_07.onnx", ["layer_07.onnx"]),
    (["segments", 3, "sha256"], "0" * 64, ["layer_03.onnx"]),
    (["tokenizer", "sha256"], "0" * 64, ["tokenizer.json"]),
    (["model", "pad_token_id"], 512, ["pad_token_id", "512"]),
    (["segments", 0, "constants", "words", "dtype"], "float16", ["words", "float16"]),
    (["segments", 0, "constants", "words", "shape", 0], 511, ["words", "511"]),
    (["segments", 3, "inputs", 0, "dtype"], "float16", ["hidden", "float16"]),
    (["segments", 3, "outputs", 1, "dtype"], "float16", ["float16"]),
)
"""As MANIFEST, for the target ``onnxruntime`` only: files, the word embedding table, and its dtypes."""
MODELS: tuple[tuple[str, list[str | int], Any, list[str]], ...] = (
    ("agreement", ["model", "kind"], "multilabel", ["per class"]),
    ("learned", ["model", "kind"], "multilabel", ["learned"]),
    ("multilabel", ["model", "labels"], [f"label {number}" for number in range(63)], ["63"]),
    ("multilabel", ["model", "kind"], "heads", ["heads"]),
    ("heads", ["model", "labels", 4], "what=none", ["one after the other"]),
    ("heads", ["model", "label_column"], "what", ["label_column", "1"]),
    ("heads", ["model", "label_column"], "what|room|when", ["label_column", "3"]),
    ("heads", ["schema_version"], 2, ["schema_version", "3"]),
    ("agreement", ["segments", 3, "functions"], ["layer_03"], ["functions"]),
    ("agreement", ["schema_version"], 1, ["schema_version", "2"]),
    ("tokens", ["segments", 2, "outputs", 1, "shape"], ["batch", 5], ["5"]),
)
"""As MANIFEST, for other bundles."""
CALLS: tuple[dict[str, Any], ...] = (
    {"model": "confidence", "texts": [], "names": ["empty"]},
    {"model": "confidence", "texts": [["  \n"]], "names": ["empty"]},
    {"model": "confidence", "texts": [["one"], ["\u00a0\u3000\x1c"]], "names": ["text 1", "empty"]},
    {"model": "confidence", "texts": [["one", "two"]], "names": ["pair"]},
    {"model": "pairs", "texts": [["one"]], "names": ["pair"]},
    {"model": "confidence", "texts": [["one"]], "threshold": 1.5, "names": ["1.5"]},
    {"model": "confidence", "texts": [["one"]], "threshold": -0.5, "names": ["-0.5"]},
    {"model": "patience", "texts": [["one"]], "threshold": 0.5, "names": ["0.5"]},
    {"model": "confidence", "texts": [["one"]], "deadline_ms": 0, "names": ["deadline"]},
    {"model": "confidence", "texts": [["one"]], "deadline_ms": -2.5, "names": ["-2.5"]},
)


def errors() -> Iterator[dict[str, Any]]:
    """Cases of manifests, then of calls."""
    for place, value, names in MANIFEST:
        yield {"model": MODEL, "at": place, "value": value, "names": names}
    for place, value, names in ONNX:
        yield {"model": MODEL, "at": place, "value": value, "names": names, "target": "onnxruntime"}
    for model, place, value, names in MODELS:
        yield {"model": model, "at": place, "value": value, "names": names}
    for call in CALLS:
        yield {"threshold": None, "deadline_ms": None, **call}


def changed_bundle(source: Path, folder: Path, place: list[str | int], value: Any) -> Path:
    """A copy of the bundle ``source`` in ``folder`` with one change of its manifest."""
    shutil.copytree(source, folder)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    *path, last = place
    entry = manifest
    for key in path:
        entry = entry[key]
    if value is None:
        del entry[last]
    else:
        entry[last] = value
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder
