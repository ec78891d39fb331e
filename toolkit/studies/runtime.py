"""Table 4: time for the whole split on this device, one input at a time, for every bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from berxit import devices
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.examples import read_examples_for
from berxit.runtime.measurement import Measured, measure
from berxit.runtime.noise import Noise
from berxit.runtime.policies import ExitPolicy
from berxit.runtime.runner import EarlyExitRunner
from berxit.runtime.tables import Table
from berxit.toolkit.studies.findings import Findings, Panel
from berxit.toolkit.studies.look import BLUE, GRAY
from berxit.toolkit.studies.request import Request

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FULL, CALIBRATED = "full depth", "calibrated"
WARMUP = 20


@dataclass(frozen=True)
class BundleTimes:
    """Latencies of one bundle."""

    bundle: str
    model: str
    task: str
    layers: int
    target: str
    precision: str
    threads: int
    inputs: int
    full: Measured
    calibrated: Measured | None
    """With the bundle's exit policy; None if it was never calibrated."""
    noise: Noise

    def seconds(self, measured: Measured) -> float:
        """Total time for all inputs, one at a time."""
        return measured.latency.mean * self.inputs / 1e3


def study(request: Request) -> Findings:
    for path in request.paths:
        if not (path / "manifest.json").is_file():
            raise BerxitError(f"{path} is not a bundle: the study runtime needs bundles, export one with berxit-export")
    names = distinct_names(request.paths)
    times = [
        _measure(request, EarlyExitRunner.load(path), name) for path, name in zip(request.paths, names, strict=True)
    ]
    if len(tasks := {time.task for time in times}) > 1:
        raise InputError(
            f"a study needs bundles of one task, but these are for {', '.join(sorted(tasks))}: run the study for each"
            " task"
        )
    rows = []
    for time in times:
        early = time.calibrated
        cells = ["-"] * 3
        if early is not None:
            ratio = time.full.latency.mean / early.latency.mean
            cells = [f"{time.seconds(early):.1f}", f"{early.average_exit_layer:.2f}", f"{ratio:.2f}x"]
        target = f"{time.target} {time.precision}"
        rows.append([time.bundle, time.model, target, str(time.layers), f"{time.seconds(time.full):.1f}", *cells])
    header = ["bundle", "model", "target", "layers", "full depth, s", "calibrated, s", "average exit layer", "speed-up"]
    return Findings(
        name=f"runtime-{times[0].task}",
        title=f"{times[0].task}: seconds for {times[0].inputs} inputs",
        conditions=[
            f"data: {request.data_file.parent.name}/{request.data_file.name}, {times[0].inputs} inputs, one at a time,"
            " from text to prediction, including tokenization; full depth and calibrated in shuffled order",
            f"device: {devices.this_machine()}; threads: {', '.join(str(time.threads) for time in times)}",
            *(f"noise of {time.bundle}: {'; '.join(time.noise.problems()) or time.noise}" for time in times),
        ],
        tables=[("Seconds for the whole split", Table(header, rows))],
        data={"bundles": [asdict(time) for time in times]},
        panels=[_panel(times)],
    )


def _measure(request: Request, runner: EarlyExitRunner, name: str) -> BundleTimes:
    manifest = runner.manifest
    model = manifest.model
    examples = read_examples_for(model, request.data_file)
    policies: dict[str, ExitPolicy] = {FULL: runner.policy.at_depth(model.layers)}
    if manifest.calibration is not None:
        policies[CALIBRATED] = runner.policy
    measured = measure(runner, examples.texts, policies, rounds=1, warmup=WARMUP, progress=request.bar(name))
    return BundleTimes(
        bundle=name,
        model=f"{model.family}, d = {model.hidden_size}",
        task=model.task,
        layers=model.layers,
        target=manifest.target,
        precision=manifest.precision,
        threads=runner.backend.threads,
        inputs=len(examples),
        full=measured.points[FULL],
        calibrated=measured.points.get(CALIBRATED),
        noise=measured.noise,
    )


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as distinguish all paths: "bge/fp32" and "minilm/fp32"."""
    parts = [path.resolve().parts for path in paths]
    deepest = max(map(len, parts))
    for count in range(1, deepest + 1):
        names = ["/".join(each[-count:]) for each in parts]
        if len(set(names)) == len(set(parts)):
            break
    return names


def _panel(times: Sequence[BundleTimes]) -> Panel:
    def draw(axes: Axes) -> None:
        heights = range(len(times))
        full = axes.barh([h - 0.2 for h in heights], [t.seconds(t.full) for t in times], 0.36, color=GRAY)
        early = [(h + 0.2, t.seconds(t.calibrated)) for h, t in zip(heights, times, strict=True) if t.calibrated]
        axes.bar_label(full, fmt=f" %.1f s {FULL}", fontsize=7.5)
        if early:
            bars = axes.barh([h for h, _ in early], [s for _, s in early], 0.36, color=BLUE)
            axes.bar_label(bars, fmt=" %.1f s calibrated early exit", fontsize=7.5)
        labels = [
            f"{time.bundle}\n{time.model}, {time.layers} layers\n{time.target} {time.precision}" for time in times
        ]
        axes.set_yticks(heights, labels, fontsize=7.5)
        axes.set_ylim(len(times) - 0.5, -0.5)
        axes.set_xlim(0, 1.5 * max(time.seconds(time.full) for time in times))
        axes.grid(visible=False, axis="y")
        axes.set(xlabel=f"seconds for {times[0].inputs} inputs, one at a time")
        axes.set_title(f"{devices.this_machine()}")

    return draw
