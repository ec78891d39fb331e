"""Checks a bundle for ONNX Runtime and prints the results as JSON: golden inputs, predictions under several policies,
batches, deadlines, streams and a short bench. aarch64.py runs it on an emulated CPU and on this machine."""

from __future__ import annotations

import json
import platform
import sys
from contextlib import redirect_stdout
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from berxit.runtime import EarlyExitRunner
from berxit.runtime.backends import allowed_difference
from berxit.runtime.bench import command
from berxit.runtime.golden import differences, read_golden
from berxit.runtime.tokenization import Text

SHORT = ("--queries", "1", "--seconds", "0", "--thresholds", "1", "--threads", "1", "--quiet")


def check(bundle: Path) -> dict[str, Any]:
    """Results of all checks. Raises AssertionError if one fails."""
    runner = EarlyExitRunner.load(bundle, threads=1)
    manifest = runner.manifest
    golden = read_golden(bundle, manifest)
    off = differences(runner.backend, golden, manifest.model.pad_token_id)
    allowed = allowed_difference(manifest, runner.backend)
    assert max(off) <= allowed, f"golden outputs differ by {max(off)} (allowed: {allowed})"
    texts = golden.inputs
    predictions = []
    for threshold in (None, 0.6, 1.0):
        single = [runner.predict(*pair(text), threshold=threshold) for text in texts]
        batch = runner.predict_batch(texts, threshold=threshold)
        if manifest.precision == "fp32":
            assert [(p.label, p.exit_layer) for p in single] == [(p.label, p.exit_layer) for p in batch]
        predictions += [[str(p.label), p.exit_layer] for p in single]
    layers = manifest.exits
    for text in texts[:2]:
        steps = list(runner.stream(*pair(text)))
        assert [step.exit_layer for step in steps] == list(layers)
        late = runner.predict(
            *pair(text), threshold=1.0, deadline_ms=1e-3
        )  # The deadline has passed at the first exit.
        assert (late.exit_layer, late.stopped_by, late.late) == (layers[0], "deadline", True)
        timely = runner.predict(*pair(text), threshold=1.0, deadline_ms=1e6)
        assert (timely.exit_layer, timely.late) == (steps[-1].exit_layer, False)
    with TemporaryDirectory() as scratch, redirect_stdout(StringIO()):
        command.main([str(bundle), *SHORT, "--output", scratch], standalone_mode=False)
        assert (Path(scratch) / "bench.json").exists()
    runner.close()
    return {
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("numpy", "tokenizers", "onnxruntime")},
        "python": platform.python_version(),
        "precision": manifest.precision,
        "golden_differences": [float(each) for each in off],
        "allowed": allowed,
        "predictions": predictions,
    }


def pair(text: Text) -> tuple[str, ...]:
    """Arguments of ``predict`` for one text or two."""
    return (text,) if isinstance(text, str) else text


if __name__ == "__main__":
    report = check(Path(sys.argv[1]))
    sys.stdout.write(json.dumps(report) + "\n")
