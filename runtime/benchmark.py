"""The bench: latency and score of a bundle on this device, against average exit layer."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import numpy as np
import numpy.typing as npt

from berxit import devices
from berxit.runtime.backend_options import Options, OptionValue
from berxit.runtime.backends import BACKENDS, allowed_difference
from berxit.runtime.bundle import Manifest
from berxit.runtime.chance import at_chance, chance_message, check_labels, check_outputs, constant_prediction
from berxit.runtime.errors import BerxitError
from berxit.runtime.examples import Examples
from berxit.runtime.golden import check_tokenization, differences, read_golden
from berxit.runtime.measurement import (
    Energy,
    Line,
    Measured,
    measure,
    measure_energy,
    rounds_for,
    spread_thresholds,
    stored_pass,
)
from berxit.runtime.metrics import metric_named
from berxit.runtime.noise import Noise, bench_problems
from berxit.runtime.policies import ExitPolicy
from berxit.runtime.prediction import Prediction
from berxit.runtime.progress import Progress, silent
from berxit.runtime.runner import EarlyExitRunner
from berxit.runtime.tuning import TuningResult

CALIBRATED = "calibrated"
"""Name of the operating point with the bundle's own thresholds."""
FULL_DEPTH = "full depth"
ENERGY_SECONDS = 3.0
"""Longest measurement of the energy of one operating point."""
ONE_GRAPH = "one graph"
"""Name of the operating point at full depth as one graph (without exits)."""


@dataclass(frozen=True)
class BenchResult:
    """Content of bench.json: the measurements and their conditions."""

    bundle: str
    target: str
    backend: str
    """The backend that ran the segments."""
    precision: str
    task: str
    metric: str | None
    """None for inputs without labels."""
    layers: int
    device: str
    machine: devices.Machine
    threads: int
    inputs: int
    rounds: int
    boundary: str
    self_check: float
    """The largest difference from the checkpoint over all exits of the golden inputs, on this device; of logits,
    relative to the manifest's ``parity.scale``."""
    by_layer: dict[int, Measured]
    """Layer with an exit -> latency and score if every input exits there."""
    by_threshold: dict[float, Measured]
    criterion: str
    policy: Measured | None
    """The bundle's own thresholds; None if it is not calibrated."""
    line: Line | None
    """None for a bundle with one exit: one depth determines no line."""
    before: devices.Reading
    after: devices.Reading
    versions: dict[str, str]
    lazy: bool = False
    """True if a layer was loaded when an input first reached it."""
    memory_mib: float | None = None
    """Resident memory of the process after every input ran under the bundle's own policy, before any other measurement.
    With ``lazy``, without the layers that no input reached."""
    tuned: tuple[TuningResult, ...] = ()
    """With --tune: latency with every backend, option and number of threads, the fastest first, which ran the bench."""
    constant_score: float | None = None
    """The score of the best prediction that is the same for every input; None without labels."""
    warnings: tuple[str, ...] = ()
    """Scores at chance."""
    noise: Noise | None = None
    """None in the results of an older version."""
    backend_options: dict[str, OptionValue] = field(default_factory=dict)
    sensors: dict[str, devices.Sampled | None] = field(default_factory=dict)
    """Sensor -> its samples while the latencies were measured; None for a sensor that the machine does not have. Empty
    in the results of an older version."""
    energy: dict[str, Energy] = field(default_factory=dict)
    """Operating point, ``full depth`` or ``calibrated`` -> energy per input. Empty without a power sensor."""
    one_graph: Measured | None = None
    """Full depth as one graph (without exits); None if the bundle does not contain it."""

    def noise_problems(self) -> list[str]:
        """Reasons why no decision should depend on this bench; empty for a quiet machine."""
        return bench_problems(self.noise, self.line)

    @property
    def full_depth(self) -> Measured:
        """Latency and score at the last layer."""
        return self.by_layer[self.layers]


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
    queries: int = 200,
    seconds: float = 10.0,
    warmup: int = 20,
    progress: Progress = silent,
) -> BenchResult:
    """Measures a bundle on this device, on ``examples`` or on the bundle's golden inputs (without a score).

    ``thresholds``: number of thresholds to measure, spread over the average exit layers that the data allows.
    ``queries`` and ``seconds``: minimum per operating point, and for the whole measurement. ``tuned``: result of
    ``tune``; its fastest entry runs the bundle. ``lazy``: as in ``EarlyExitRunner.load``; it changes the measured
    memory, not the latencies, which are measured with all layers loaded.

    Raises InputError for labels for which the metric is not defined, BerxitError for exits that differ too much from
    the checkpoint's or have no score.
    """
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
    backends = [runner.backend, *([one_graph] if one_graph else [])]
    pad, scale = manifest.model.pad_token_id, manifest.parity.scale
    largest = float(np.max([gap for each in backends for gap in differences(each, golden, pad, scale)]))
    allowed = allowed_difference(manifest, runner.backend)
    if not largest <= allowed:
        raise BerxitError(
            f"{bundle}: on this device an exit differs from the checkpoint by {largest:.1e}, allowed is {allowed:.0e}."
            " Export the bundle again, or upgrade the backend"
        )
    layers = manifest.model.layers
    before = devices.read_sensors()
    logits, lte = stored_pass(runner, inputs)
    tried = spread_thresholds(runner.policy, manifest.exits, logits, lte, thresholds)
    policies: dict[str, ExitPolicy] = {f"layer {i}": runner.policy.at_depth(i) for i in manifest.exits}
    policies.update({f"threshold {t}": runner.policy.with_threshold(t) for t in tried})
    if manifest.calibration is not None:
        policies[CALIBRATED] = runner.policy
    others = {}
    if one_graph:
        policies[ONE_GRAPH] = runner.policy.at_depth(layers)
        others[ONE_GRAPH] = EarlyExitRunner(manifest, runner.tokenizer, one_graph, runner.device)
    rounds = rounds_for(runner, inputs, len(policies), queries=queries, seconds=seconds)
    score = _scorer(runner, examples) if examples else None
    constant, warnings = _chance(manifest, logits, examples.labels) if examples else (None, ())
    with progress(rounds * len(inputs) * len(policies)) as bar, devices.Sampler() as sampler:
        found, noise = measure(
            runner, inputs, policies, rounds=rounds, warmup=warmup, others=others, score=score, advance=bar.update
        )
    compared = {CALIBRATED: policies.get(CALIBRATED), FULL_DEPTH: policies[f"layer {layers}"]}
    energy = measure_energy(
        runner,
        inputs,
        {name: policy for name, policy in compared.items() if policy},
        seconds=min(ENERGY_SECONDS, 0.3 * seconds),
        progress=progress,
    )
    return BenchResult(
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
        line=Line.through([point for name, point in found.items() if name != ONE_GRAPH]),
        before=before,
        after=devices.read_sensors(),
        versions=_versions(),
        lazy=lazy,
        memory_mib=memory,
        tuned=tuned,
        constant_score=constant,
        warnings=warnings,
        noise=noise,
        backend_options=dict(runner.backend.options),
        sensors=sampler.results(),
        energy=energy,
        one_graph=found.get(ONE_GRAPH),
    )


def _scorer(runner: EarlyExitRunner, examples: Examples) -> Callable[[Sequence[Prediction]], float]:
    model = runner.manifest.model
    metric = metric_named(model.metric)

    def score(answers: Sequence[Prediction]) -> float:
        values = [a.label if model.regression else model.labels.index(str(a.label)) for a in answers]
        return metric(np.array(values), examples.labels)

    return score


def _chance(manifest: Manifest, logits: npt.NDArray, labels: npt.NDArray) -> tuple[float, tuple[str, ...]]:
    """The constant prediction's score, and a warning if full depth scores no better: logits (N, E, C), labels (N,)."""
    metric, classes = manifest.model.metric, logits.shape[2]
    check_outputs(metric, logits, manifest.exits, "the labelled inputs")
    last = logits[:, -1, 0] if manifest.model.regression else logits[:, -1].argmax(axis=1)
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
