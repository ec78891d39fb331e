"""The bench: latency and score of a bundle on this device, against average exit layer."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import numpy.typing as npt

from berxit import devices
from berxit.runtime.backend_options import Options
from berxit.runtime.backends import BACKENDS, allowed_difference
from berxit.runtime.bench_records import BenchRecords
from berxit.runtime.bench_result import CALIBRATED, FULL_DEPTH, ONE_GRAPH, BenchResult
from berxit.runtime.bundle import Manifest
from berxit.runtime.chance import at_chance, chance_message, check_labels, check_outputs, constant_prediction
from berxit.runtime.cold_start import measure_cold_start
from berxit.runtime.energy import measure_energy
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.examples import Examples
from berxit.runtime.golden import Golden, check_tokenization, differences, read_golden
from berxit.runtime.kinds import TextWords
from berxit.runtime.loop import Backend
from berxit.runtime.measurement import (
    Line,
    Minimum,
    measure,
    rounds_for,
    spread_thresholds,
    stored_pass,
)
from berxit.runtime.metrics import metric_named
from berxit.runtime.noise import bench_problems
from berxit.runtime.policies import ExitPolicy, exit_layers
from berxit.runtime.prediction import Prediction
from berxit.runtime.progress import Progress, silent
from berxit.runtime.queries import ExitOutputs
from berxit.runtime.recalibration import text_words
from berxit.runtime.runner import EarlyExitRunner
from berxit.runtime.speed_up import SpeedUp, speed_up
from berxit.runtime.throughput import measure_throughput
from berxit.runtime.tokenization import Text
from berxit.runtime.tuning import TuningResult
from berxit.runtime.validity import PRESETS, judge

EXTRA_SECONDS = 3.0
"""Longest measurement of the energy of one operating point, and of the throughput."""
LONGEST_INPUTS = 8
"""Number of inputs, the longest, with which the memory by layer is measured."""


def bench(
    bundle: Path,
    device: str = "auto",
    *,
    examples: Examples | None = None,
    backend: str | None = None,
    backend_options: Options | None = None,
    threads: int | None = None,
    tuned: tuple[TuningResult, ...] = (),
    lazy: bool = False,
    thresholds: int = 7,
    preset: str = "standard",
    queries: int | None = None,
    seconds: float = 10.0,
    warmup: int = 20,
    progress: Progress = silent,
) -> BenchResult:
    """Measures a bundle on this device, on ``examples`` or on the bundle's golden inputs (without a score).

    ``thresholds``: number of thresholds to measure, spread over the average exit layers that the data allows.
    ``preset``: name in PRESETS, of the rules by which the result is valid. ``queries`` and ``seconds``: minimum per
    operating point (None: the preset's), and for the whole measurement. ``tuned``: result of ``tune``; its fastest
    entry runs the bundle. ``lazy``: as in ``EarlyExitRunner.load``; it changes the measured
    memory, not the latencies, which are measured with all layers loaded.

    Raises InputError for labels for which the metric is not defined, BerxitError for exits that differ too much from
    the checkpoint's or have no score.
    """
    if preset not in PRESETS:
        raise InputError(f"unknown preset '{preset}': choose {' or '.join(PRESETS)}")
    rules = PRESETS[preset]
    if tuned:
        backend, backend_options, threads = tuned[0].backend, tuned[0].backend_options, tuned[0].threads
    runner = EarlyExitRunner.load(
        bundle,
        device,
        backend=backend,
        backend_options=backend_options,
        threads=threads,
        lazy=lazy,
        progress=progress,
    )
    manifest = runner.manifest
    if examples:
        check_labels(manifest.model.metric, examples.labels, "the labelled inputs")
    golden = read_golden(bundle, manifest)
    inputs = examples.texts if examples else golden.inputs
    for text in inputs:
        runner.answer([text], runner.policy)
    memory = devices.resident_mib()
    check_tokenization(golden, runner.tokenizer)
    one_graph = runner.backend.one_graph()
    largest = _self_check(bundle, runner, one_graph, golden)
    layers = manifest.model.layers
    before = devices.read_sensors()
    logits, lte = stored_pass(runner, inputs)
    kind, words = manifest.model.task_kind, list[TextWords]()
    if kind.words:
        words = text_words(runner.tokenizer, inputs, examples.spans if examples else ())
    numbers = kind.numbers(logits, manifest.model.labels, words)
    tried = spread_thresholds(runner.policy, manifest.exits, logits, lte, thresholds)
    policies = _operating_points(runner, tried, one_graph)
    others = {}
    if one_graph:
        others[ONE_GRAPH] = EarlyExitRunner(manifest, runner.tokenizer, one_graph, runner.device)
    compared = {CALIBRATED: policies.get(CALIBRATED), FULL_DEPTH: policies[f"layer {layers}"]}
    compared_policies = {name: policy for name, policy in compared.items() if policy}
    outputs = ExitOutputs.of(
        runner.policy, manifest.exits, logits, lte, examples.labels if examples else None, inputs, kind, numbers
    )
    points = _compared_points(policies, outputs, logits, manifest)
    least = rules.queries if queries is None else queries
    rounds = rounds_for(runner, inputs, len(policies), queries=least, seconds=seconds)
    smallest = Minimum(rules.compared_queries if queries is None else queries, rules.compared_seconds)
    minima = dict.fromkeys(points.values(), smallest)
    score = _scorer(runner, examples) if examples else None
    constant, warnings = _chance(manifest, logits, numbers[:, -1], examples.labels) if examples else (None, ())
    with devices.Sampler() as sampler:
        measured = measure(
            runner,
            inputs,
            policies,
            rounds=rounds,
            warmup=warmup,
            minima=minima,
            others=others,
            score=score,
            progress=progress,
        )
    found, sensors = measured.points, sampler.results()
    extra = min(EXTRA_SECONDS, 0.3 * seconds)
    energy = measure_energy(runner, inputs, compared_policies, seconds=extra, progress=progress)
    throughput = measure_throughput(runner, inputs, compared_policies, seconds=extra, progress=progress)
    cold_start = measure_cold_start(
        bundle,
        {
            "device": device,
            "backend": runner.backend.name,
            "backend_options": dict(runner.backend.options) or None,
            "threads": threads,
            "lazy": lazy,
        },
        sorted(inputs, key=_characters)[-LONGEST_INPUTS:],
        lazy=any(info.name == runner.backend.name and info.lazy for info in BACKENDS[manifest.target]),
        progress=progress,
    )
    line = Line.through([point for name, point in measured.common.items() if name != ONE_GRAPH])
    result = BenchResult(
        bundle=bundle.resolve().name,
        target=manifest.target,
        backend=runner.backend.name,
        precision=manifest.precision,
        task=manifest.model.task,
        metric=manifest.model.metric if examples else None,
        layers=layers,
        device=runner.device.name if runner.device else device,
        machine=devices.with_cuda(devices.this_machine()),
        threads=runner.backend.threads,
        inputs=len(inputs),
        rounds=rounds,
        boundary="from text to prediction, tokenization included",
        self_check=largest,
        by_layer={i: found[f"layer {i}"] for i in manifest.exits},
        by_threshold={t: found[f"threshold {t}"] for t in tried},
        criterion=runner.policy.criterion,
        policy=found.get(CALIBRATED),
        line=line,
        before=before,
        after=devices.read_sensors(),
        versions=_versions(),
        lazy=lazy,
        memory_mib=memory,
        tuned=tuned,
        constant_score=constant,
        warnings=warnings,
        noise=measured.noise,
        backend_options=dict(runner.backend.options),
        sensors=sensors,
        energy=energy,
        one_graph=found.get(ONE_GRAPH),
        size_mib=sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file()) / 2**20,
        cold_start=cold_start,
        throughput=throughput,
        validity=judge(
            rules,
            measured.queries,
            {name: measured.queries[point] for name, point in points.items()},
            sensors,
            bench_problems(measured.noise, line),
        ),
        calibration=_calibration(manifest),
        calibration_warnings=manifest.calibration.warnings if manifest.calibration else (),
        records=BenchRecords(
            bundle.resolve().name,
            measured.queries,
            outputs,
            manifest.model.labels,
            runner.tokenizer(list(inputs)).lengths,
        ),
    )
    return replace(result, speed_ups=_speed_ups(result))


def _calibration(manifest: Manifest) -> str:
    """The calibration record in sentences."""
    record = manifest.calibration
    if record is None:
        return ""
    parts = [record.description, record.summary(), record.comparison]
    return ". ".join(part[0].upper() + part[1:] for part in parts if part)


def _self_check(bundle: Path, runner: EarlyExitRunner, one_graph: Backend | None, golden: Golden) -> float:
    """The largest difference from the checkpoint on the golden inputs. Raises BerxitError if it is not allowed."""
    manifest = runner.manifest
    backends = [runner.backend, *([one_graph] if one_graph else [])]
    pad, scale = manifest.model.pad_token_id, manifest.parity.scale
    largest = float(np.max([gap for each in backends for gap in differences(each, golden, pad, scale)]))
    allowed = allowed_difference(manifest, runner.backend)
    if not largest <= allowed:
        raise BerxitError(
            f"{bundle}: on this device an exit differs from the checkpoint by {largest:.1e}, allowed is {allowed:.0e}."
            " Export the bundle again, or upgrade the backend"
        )
    return largest


def _operating_points(
    runner: EarlyExitRunner, thresholds: Sequence[float], one_graph: Backend | None
) -> dict[str, ExitPolicy]:
    """Name -> policy of every operating point."""
    policies: dict[str, ExitPolicy] = {f"layer {i}": runner.policy.at_depth(i) for i in runner.manifest.exits}
    policies.update({f"threshold {t}": runner.policy.with_threshold(t) for t in thresholds})
    if runner.manifest.calibration is not None:
        policies[CALIBRATED] = runner.policy
    if one_graph:
        policies[ONE_GRAPH] = runner.policy.at_depth(runner.manifest.model.layers)
    return policies


def _compared_points(
    policies: Mapping[str, ExitPolicy], outputs: ExitOutputs, logits: npt.NDArray, manifest: Manifest
) -> dict[str, str]:
    """Name -> operating point of those whose speed-ups are reported."""
    layers = manifest.model.layers
    points = {CALIBRATED: CALIBRATED, FULL_DEPTH: f"layer {layers}", ONE_GRAPH: ONE_GRAPH}
    fixed = _best_fixed(outputs, logits, manifest.model.metric)
    if fixed not in (None, layers) and CALIBRATED in policies:
        points[f"layer {fixed}"] = f"layer {fixed}"
    return {name: point for name, point in points.items() if point in policies}


def _best_fixed(outputs: ExitOutputs, logits: npt.NDArray, metric: str) -> int | None:
    """The first exit layer whose score is at least the policy's: the expected ``BenchResult.best_fixed``. None without
    labels."""
    if outputs.labels is None:
        return None
    score, numbers = metric_named(metric), outputs.predictions
    taken = exit_layers(outputs.policy.at_exits(outputs.exits), outputs.certainty, logits) - 1
    least = score(numbers[np.arange(len(numbers)), taken], outputs.labels)
    enough = (score(predicted, outputs.labels) >= least for predicted in numbers.T)
    return next((layer for layer, is_enough in zip(outputs.exits, enough, strict=True) if is_enough), None)


def _speed_ups(result: BenchResult) -> dict[str, SpeedUp]:
    """Speed-ups of the calibrated policy over full depth, one graph, and the best fixed exit."""
    assert result.records is not None
    queries = result.records.queries
    if CALIBRATED not in queries or len(result.by_layer) == 1:
        return {}
    references = {FULL_DEPTH: f"layer {result.layers}"}
    if ONE_GRAPH in queries:
        references[ONE_GRAPH] = ONE_GRAPH
    if result.best_fixed is not None:
        references[f"layer {result.best_fixed}"] = f"layer {result.best_fixed}"
    return {name: speed_up(queries[CALIBRATED], queries[point]) for name, point in references.items()}


def _characters(text: Text) -> int:
    return sum(map(len, (text,) if isinstance(text, str) else text))


def _scorer(runner: EarlyExitRunner, examples: Examples) -> Callable[[Sequence[Prediction]], float]:
    model = runner.manifest.model
    metric = metric_named(model.metric)

    def score(answers: Sequence[Prediction]) -> float:
        truth = examples.spans or [()] * len(answers)
        pairs = zip(answers, truth, strict=True)
        return metric(np.array([model.task_kind.number(a, model.labels, spans) for a, spans in pairs]), examples.labels)

    return score


def _chance(
    manifest: Manifest, logits: npt.NDArray, last: npt.NDArray, labels: npt.NDArray
) -> tuple[float, tuple[str, ...]]:
    """The constant prediction's score, and a warning if full depth scores no better: logits (N, E, ...), full depth's
    predictions ``last`` (N,), labels (N,)."""
    metric, classes = manifest.model.metric, len(manifest.model.labels)
    check_outputs(metric, logits, manifest.exits, "the labelled inputs")
    constant = constant_prediction(metric, labels, classes)
    if not at_chance(metric, last, labels, classes):
        return constant.score, ()
    message = chance_message("full depth", metric, metric_named(metric)(last, labels), constant, len(labels))
    return constant.score, (f"{message}. Scores are not meaningful here: give --data with more rows, or train again",)


def _versions() -> dict[str, str]:
    """Versions of the installed packages that may have run the bundle. A module's package may have another name:
    tensorrt_rtx_bindings is in tensorrt-rtx-cu13-bindings, onnxruntime may be in onnxruntime-gpu."""
    brought_by = metadata.packages_distributions()
    modules = {name for known in BACKENDS.values() for info in known for name in (info.package, info.other_package)}
    packages = {package for module in modules if module for package in brought_by.get(module, ())}
    found = {"python": platform.python_version()}
    for name in ("berxit", "numpy", "tokenizers", *sorted(packages), "cuda-python"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
