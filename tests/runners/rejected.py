"""Cases that every runner rejects, in one line that contains the named values."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MODEL = "confidence"
"""The bundle that is changed."""
MANIFEST: tuple[tuple[list[str | int], Any, list[str]], ...] = (
    (["schema_version"], 99, ["99"]),
    (["schema_version"], None, ["schema_version"]),
    (["colour"], 3, ["colour"]),
    (["target"], "abacus", ["abacus"]),
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
    (["segments", 3, "file"], "../layer_03.onnx", ["../layer_03.onnx"]),
    (["segments", 3, "file"], "segments/layer_07.onnx", ["layer_07.onnx"]),
    (["segments", 3, "sha256"], "0" * 64, ["layer_03.onnx"]),
    (["tokenizer", "sha256"], "0" * 64, ["tokenizer.json"]),
)
"""Place in manifest.json, the value to write there (None: remove the key), and words of the message."""
MODELS: tuple[tuple[str, list[str | int], Any, list[str]], ...] = (
    ("agreement", ["model", "kind"], "multilabel", ["per class"]),
    ("learned", ["model", "kind"], "multilabel", ["learned"]),
    ("multilabel", ["model", "labels"], [f"label {number}" for number in range(63)], ["63"]),
    ("multilabel", ["model", "kind"], "heads", ["heads"]),
    ("heads", ["model", "labels", 4], "what=none", ["one after the other"]),
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
