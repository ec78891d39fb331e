"""Benches and evaluations for the tests of the report, without a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from berxit import devices
from berxit.runtime.bench_records import BenchRecords
from berxit.runtime.bench_result import BenchResult
from berxit.runtime.cold_start import ColdStart
from berxit.runtime.kinds import KINDS
from berxit.runtime.measurement import Latency, Line, Measured
from berxit.runtime.metrics import METRICS
from berxit.runtime.policies import ExitPolicy, exit_layers
from berxit.runtime.queries import ExitOutputs, Queries
from berxit.runtime.speed_up import speed_up
from berxit.runtime.throughput import Throughput
from berxit.runtime.validity import Validity
from berxit.toolkit.evaluation_files import write_evaluation
from berxit.toolkit.evaluation_report import evaluate
from berxit.train.evaluation import Predictions

MACHINE = devices.Machine("Linux", "x86_64", "Some CPU", 4, 16.0, "", "")
NOTHING = devices.Reading(None, None, None, None, None)


def made_pass(rows: int = 60, layers: int = 4, classes: int = 3, seed: int = 0) -> Predictions:
    """A pass whose deeper exits are better and more certain. ``classes``: 1 for regression."""
    rng = np.random.default_rng(seed)
    depth = np.arange(1, layers + 1)[None, :, None]
    if classes == 1:
        labels = rng.uniform(0, 5, rows)
        logits = labels[:, None, None] + rng.normal(size=(rows, layers, 1)) / depth
        return Predictions(logits.astype(np.float32), rng.random((rows, layers)).astype(np.float32), labels, "pearson")
    labels = rng.integers(0, classes, rows)
    logits = rng.normal(size=(rows, layers, classes)) + depth * np.eye(classes)[labels][:, None]
    numerals = "one two three four five six seven eight nine ten eleven twelve"
    names = tuple(numerals.split()[:classes])
    return Predictions(logits.astype(np.float32), None, labels, "accuracy", names=names)


def made_bench(
    *, policy: ExitPolicy | None = None, labelled: bool = True, slower: float = 1.0, found: Predictions | None = None
) -> BenchResult:
    """The bench of a pass, with latencies that grow with the layer and the length of the text."""
    found = made_pass() if found is None else found
    rows, layers = found.logits.shape[:2]
    policy = policy or ExitPolicy.uniform("lte" if found.regression else "confidence", 0.7, layers)
    rng = np.random.default_rng(1)
    length = rng.uniform(0.5, 2, rows)
    texts = tuple(f"text {row} with <b>marks</b> & \u00fcml\u00e4uts" for row in range(rows))
    kind = KINDS["regression" if found.regression else "classification"]
    outputs = ExitOutputs.of(
        policy, range(1, layers + 1), found.logits, found.lte, found.labels if labelled else None, texts, kind
    )
    taken = {f"layer {k}": np.full(rows, k) for k in range(1, layers + 1)}
    threshold = 1.0 if policy.criterion == "patience" else 0.6
    taken[f"threshold {threshold}"] = exit_layers(policy.with_threshold(threshold), outputs.certainty)
    taken["calibrated"] = exit_layers(policy, outputs.certainty, found.logits)
    queries = {
        name: Queries(slower * (1 + exits * length) * rng.uniform(0.98, 1.02, (3, rows)), np.tile(exits, (3, 1)))
        for name, exits in taken.items()
    }

    def measured(name: str) -> Measured:
        predictions = outputs.predictions[np.arange(rows), taken[name] - 1]
        return Measured(
            Latency.of(queries[name].latency_ms),
            float(taken[name].mean()),
            tuple((3 * np.bincount(taken[name] - 1, minlength=layers)).tolist()),
            3 * rows,
            METRICS[found.metric](predictions, found.labels) if labelled else None,
        )

    points = {name: measured(name) for name in queries}
    return BenchResult(
        bundle="my-bundle",
        target="onnxruntime",
        backend="onnxruntime",
        precision="int8",
        task="custom",
        metric=found.metric if labelled else None,
        layers=layers,
        device="cpu",
        machine=MACHINE,
        threads=2,
        inputs=rows,
        rounds=3,
        boundary="from text to prediction, tokenization included",
        self_check=1e-6,
        by_layer={k: points[f"layer {k}"] for k in range(1, layers + 1)},
        by_threshold={threshold: points[f"threshold {threshold}"]},
        criterion=policy.criterion,
        policy=points["calibrated"],
        line=Line(1.0, 1.2, 0.99),
        before=NOTHING,
        after=NOTHING,
        versions={"python": "3.11.7"},
        sensors={sensor.name: None for sensor in devices.SENSORS},
        size_mib=12.5,
        cold_start=ColdStart(0.3, 0.2, 9.5, 3, 40.0, {k: 50.0 + k for k in range(1, layers + 1)}, True),
        throughput=tuple(
            Throughput(name, size, 100.0 * size, 5) for size in (8, 32) for name in ("calibrated", "full depth")
        ),
        speed_ups={"full depth": speed_up(queries["calibrated"], queries[f"layer {layers}"])},
        validity=Validity("standard", False, ("too few queries: 180 per operating point, at least 200 are needed",)),
        records=BenchRecords("my-bundle", queries, outputs, found.names, np.full(rows, 8)),
    )


def made_evaluation(folder: Path, found: Predictions) -> Path:
    """The folder of an evaluation with a calibrated policy."""
    policy = ExitPolicy.uniform("confidence", 0.7, found.layers)
    texts = [f"text {row}" for row in range(len(found.labels))]
    write_evaluation(evaluate(found, policy=policy, texts=texts), found, folder)
    return folder


def per_class(layers: int = 4, classes: int = 3) -> ExitPolicy:
    """A policy with a threshold per predicted class."""
    uniform = ExitPolicy.uniform("confidence", 0.7, layers)
    return replace(uniform, thresholds=(tuple(0.5 + 0.15 * number for number in range(classes)),) * (layers - 1))
