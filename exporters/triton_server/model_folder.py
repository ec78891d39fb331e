"""Writes the model folder of a bundle: config.pbtxt, and a version with model.py and the bundle."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from berxit.runtime.arguments import as_threads
from berxit.runtime.backends import BACKENDS
from berxit.runtime.bundle import Manifest, files_of, read_manifest_for
from berxit.runtime.bundle_files import MANIFEST
from berxit.runtime.errors import InputError
from berxit.runtime.storage import write_whole

INSTANCE_KINDS = {"onnxruntime": "KIND_CPU", "tensorrt": "KIND_GPU"}
"""Target of a bundle -> kind of the model's instance."""
VERSION = "1"


@dataclass(frozen=True)
class TritonOptions:
    """Options of a model folder. The parameters in config.pbtxt can be changed there later."""

    max_batch: int = 64
    """Largest batch that Triton forms."""
    backend: str | None = None
    threads: int | None = None
    threshold: float | None = None
    deadline_ms: float | None = None
    """Milliseconds of each batch."""

    @property
    def parameters(self) -> dict[str, str]:
        """Parameters for model.py; those that are not set are omitted."""
        values = {name: getattr(self, name) for name in ("backend", "threads", "threshold", "deadline_ms")}
        return {name: str(value) for name, value in values.items() if value is not None}


def write_model_folder(bundle: Path, output: Path, options: TritonOptions, *, force: bool = False) -> Manifest:
    """Writes the model folder ``output``, whose name is the model's name, and returns the bundle's manifest.

    Raises InputError if ``output`` exists and ``force`` is False, for a CoreML bundle, a user's own criterion or an
    option out of range, and BerxitError for a damaged bundle.
    """
    manifest = read_manifest_for("Triton", bundle)
    if manifest.target not in INSTANCE_KINDS:
        raise InputError(
            f"{bundle} is a bundle for {manifest.target}, which Triton cannot run: export one for"
            f" {' or '.join(INSTANCE_KINDS)}"
        )
    known = [info.name for info in BACKENDS[manifest.target]]
    if options.backend not in (None, *known):
        raise InputError(
            f"no backend '{options.backend}' runs bundles for {manifest.target}: choose {' or '.join(known)}"
        )
    if options.threads is not None:
        as_threads(options.threads)
    if options.threshold is not None:
        manifest.policy.with_threshold(options.threshold)
    if options.deadline_ms is not None and not options.deadline_ms > 0:
        raise InputError(f"deadline_ms is {options.deadline_ms}: it must be above 0")
    with write_whole(output, force=force) as folder:
        (folder / "config.pbtxt").write_text(config_text(output.resolve().name, manifest, options), encoding="utf-8")
        version = folder / VERSION
        for name in (MANIFEST, *files_of(manifest)):
            place = version / "bundle" / name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle / name, place)
        shutil.copyfile(Path(__file__).with_name("model.py"), version / "model.py")
    return manifest


def config_text(name: str, manifest: Manifest, options: TritonOptions) -> str:
    """Content of config.pbtxt, a ``ModelConfig`` in protobuf's text format."""
    model = manifest.model
    inputs = ["TEXT", "TEXT_PAIR"][: len(model.text_columns)]
    outputs = [("EXIT_LAYER", "TYPE_INT32", 1), ("CERTAINTY", "TYPE_FP32", 1), ("TRUNCATED", "TYPE_BOOL", 1)]
    if model.regression:
        outputs.insert(0, ("VALUE", "TYPE_FP32", 1))
    elif model.task_kind.words:
        outputs[:0] = [("LABEL", "TYPE_STRING", 1), ("SPANS", "TYPE_STRING", 1)]
    else:
        outputs[:0] = [("LABEL", "TYPE_STRING", 1), ("PROBS", "TYPE_FP32", len(model.labels))]
    lines = [
        f"name: {_quoted(name)}",
        'backend: "python"',
        f"max_batch_size: {options.max_batch}",
        *_tensors("input", [(input_, "TYPE_STRING", 1) for input_ in inputs]),
        *_tensors("output", outputs),
        "dynamic_batching { }",
        f"instance_group [ {{ count: 1 kind: {INSTANCE_KINDS[manifest.target]} }} ]",
        *(
            f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}"
            for key, value in options.parameters.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def _tensors(field: str, tensors: list[tuple[str, str, int]]) -> list[str]:
    return [f"{field} {{ name: {_quoted(name)} data_type: {dtype} dims: [ {size} ] }}" for name, dtype, size in tensors]


def _quoted(text: str) -> str:
    """A string of protobuf's text format, whose escapes include those of JSON for ASCII."""
    return json.dumps(text)
