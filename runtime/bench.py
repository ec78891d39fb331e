"""``python -m runtime.bench --device DEVICE BUNDLE``: latency on this device against average exit layer."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

from berxit import devices
from berxit.runtime.backend_options import Options, OptionValue, backend_label, parse_option_flags
from berxit.runtime.backends import BACKENDS, allowed_difference, options_help
from berxit.runtime.bundle import Manifest, read_manifest
from berxit.runtime.chance import at_chance, chance_message, check_labels, check_outputs, constant_prediction
from berxit.runtime.console import debug_option, progress_bar, run
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.examples import Examples, find_split, read_examples_for
from berxit.runtime.golden import check_tokenization, differences, read_golden
from berxit.runtime.json_data import write_json
from berxit.runtime.measurement import Line, Measured, measure, rounds_for, spread_thresholds, stored_pass
from berxit.runtime.metrics import METRICS
from berxit.runtime.noise import Noise, bench_problems
from berxit.runtime.placement import device_here
from berxit.runtime.policies import ExitPolicy
from berxit.runtime.progress import Progress, silent
from berxit.runtime.runner import EarlyExitRunner, Prediction
from berxit.runtime.storage import write_text
from berxit.runtime.tables import Table, markdown_table, plural
from berxit.runtime.tuning import Tried, tune

CALIBRATED = "calibrated"


@dataclass(frozen=True)
class BenchResult:
    """bench.json: everything that was measured, and under which conditions."""

    bundle: str
    target: str
    backend: str
    """The backend that ran the segments."""
    precision: str
    task: str
    metric: str | None
    """None where the inputs had no labels."""
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
    """The bundle's own thresholds; None where it was not calibrated."""
    line: Line | None
    """None for a bundle with one exit: one depth determines no line."""
    before: devices.Reading
    after: devices.Reading
    versions: dict[str, str]
    lazy: bool = False
    """Whether layers were loaded when an input first got there."""
    memory_mib: float | None = None
    """What the process held once every input had been answered under the bundle's own policy, before anything else was
    run: under ``lazy`` without the layers that none needed."""
    tuned: tuple[Tried, ...] = ()
    """With --tune: every back end and thread count that was tried, the fastest first; it ran what is measured here."""
    constant_score: float | None = None
    """The score of the best prediction that is the same for every input; None without labels."""
    warnings: tuple[str, ...] = ()
    """Scores at chance."""
    noise: Noise | None = None
    """None in the results of an older version."""
    backend_options: dict[str, OptionValue] = field(default_factory=dict)

    def noise_problems(self) -> list[str]:
        """Why nothing should be decided by this bench; empty for a quiet machine."""
        return bench_problems(self.noise, self.line)

    @property
    def full_depth(self) -> Measured:
        return self.by_layer[self.layers]

    def headline(self) -> str:
        """What the user wants to know first."""
        if self.policy is None:
            return f"full depth takes {self.full_depth.latency.mean:.2f} ms; not calibrated yet: berxit-calibrate"
        times = self.full_depth.latency.mean / self.policy.latency.mean
        text = (
            f"{times:.2f}x faster than full depth on this device: {self.policy.latency.mean:.2f} ms instead of"
            f" {self.full_depth.latency.mean:.2f} ms per input,"
            f" {self.policy.average_exit_layer:.2f} of {self.layers} layers"
        )
        if self.policy.score is None or self.full_depth.score is None:
            return text
        measured = self.full_depth.score > 0 and not self.warnings
        kept = f" ({self.policy.score / self.full_depth.score:.1%})" if measured else ""
        return f"{text}, at {self.metric} {self.policy.score:.4f} instead of {self.full_depth.score:.4f}{kept}"

    def tables(self) -> list[Table]:
        """Exit layers, thresholds, exit histogram."""
        latency = ["mean ms", "p50", "p90", "p99"]
        score = [self.metric] if self.metric else []
        layers = [
            [str(layer), *_latency(point), *([f"{point.score:.4f}"] if score else [])]
            for layer, point in self.by_layer.items()
        ]
        points = [(f"{threshold:.4g}", point) for threshold, point in self.by_threshold.items()]
        if self.policy is not None:
            points.append((CALIBRATED, self.policy))
        full = self.full_depth.latency.mean
        thresholds = [
            [
                name,
                f"{point.average_exit_layer:.2f}",
                f"{1 - point.average_exit_layer / self.layers:.0%}",
                *_latency(point),
                f"{full / point.latency.mean:.2f}x",
                *([f"{point.score:.4f}"] if score else []),
            ]
            for name, point in points
        ]
        made = [
            Table(["exit layer", *latency, *score], layers),
            Table(
                [f"{self.criterion} threshold", "average exit layer", "saved layers", *latency, "speed-up", *score],
                thresholds,
            ),
        ]
        if self.tuned:
            rows = [[each.label, str(each.threads), f"{each.median_ms:.2f}"] for each in self.tuned]
            made.append(Table(["tried: back end", "threads", "ms at full depth, without tokenisation"], rows))
        if self.policy is not None:
            share = [f"{self.policy.histogram[layer - 1] / self.policy.queries:.1%}" for layer in self.by_layer]
            header = ["share that exits at layer", *map(str, self.by_layer)]
            made.append(Table(header, [[f"{CALIBRATED} policy", *share]]))
        return made

    def _memory(self) -> str:
        return (
            f"{self.memory_mib:.0f} MiB resident once every input was answered"
            f" {'as calibrated' if self.policy else 'at full depth'},"
            f" {'with the layers that they needed (lazy)' if self.lazy else 'with all layers'}"
        )

    def _line(self) -> str:
        if self.line is None:
            return "no line through the latencies: they are all of one depth"
        return (
            f"latency = {self.line.intercept_ms:.2f} ms + {self.line.ms_per_layer:.2f} ms x average exit layer,"
            f" R^2 = {self.line.r_squared:.4f}"
        )

    def _noise(self) -> str:
        problems = self.noise_problems()
        if not problems:
            return f"noise: {self.noise}"
        return f"warning: noisy measurement: {'; '.join(problems)}. Bench again when no other process is busy"

    def text(self) -> str:
        """The whole report, as Markdown."""
        lines = [
            self.headline(),
            *(f"warning: {line}" for line in self.warnings),
            f"bundle {self.bundle} ({self.task}, {self.target} {self.precision}) on {self.device} by"
            f" {backend_label(self.backend, self.backend_options)}:"
            f" {self.machine},"
            f" {plural(self.threads, 'thread')}; {plural(self.inputs, 'input')}, {plural(self.rounds, 'round')},"
            f" batch 1; {self.boundary}",
            *([f"tuned: the fastest here is {self.tuned[0]}"] if self.tuned else []),
            *([self._memory()] if self.memory_mib is not None else []),
            *(markdown_table(*table) for table in self.tables()),
            f"{self._line()}; exits within {self.self_check:.0e} of the checkpoint on this device",
            *([self._noise()] if self.noise else []),
        ]
        return "\n\n".join(lines)


def bench(
    bundle: Path,
    device: str = "auto",
    *,
    examples: Examples | None = None,
    backend: str | None = None,
    backend_options: Options | None = None,
    threads: int | None = None,
    tuned: tuple[Tried, ...] = (),
    lazy: bool = False,
    thresholds: int = 7,
    queries: int = 200,
    seconds: float = 10.0,
    warmup: int = 20,
    progress: Progress = silent,
) -> BenchResult:
    """Measures a bundle on this device; on ``examples``, or on the bundle's golden inputs (then without a score).

    ``thresholds``: how many to try, spread over the average exit layers that the data allows. ``queries`` and
    ``seconds``: the least each operating point, and the whole, is measured. ``tuned``: what ``tune`` found; its fastest
    runs the bundle. ``lazy``: as in ``EarlyExitRunner.load``; it changes what memory is measured, not the times, which
    are taken with all layers loaded.

    Raises InputError for labels on which the metric measures nothing, BerxitError for exits that differ too much from
    the checkpoint's or have no score.
    """
    if tuned:
        backend, backend_options, threads = tuned[0].backend, tuned[0].backend_options, tuned[0].threads
    runner = EarlyExitRunner.load(
        bundle, device, backend=backend, backend_options=backend_options, threads=threads, lazy=lazy
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
    largest = float(np.max(differences(runner.backend, golden, manifest.model.pad_token_id, manifest.parity.scale)))
    allowed = allowed_difference(manifest, runner.backend)
    if not largest <= allowed:
        raise BerxitError(
            f"{bundle}: on this device an exit is {largest:.1e} off the checkpoint, {allowed:.0e} allowed:"
            " its numbers would mean nothing. Export the bundle again, or upgrade the back end"
        )
    layers = manifest.model.layers
    before = devices.read_sensors()
    logits, lte = stored_pass(runner, inputs)
    tried = spread_thresholds(runner.policy, manifest.exits, logits, lte, thresholds)
    policies: dict[str, ExitPolicy] = {f"layer {i}": runner.policy.at_depth(i) for i in manifest.exits}
    policies.update({f"threshold {t}": runner.policy.with_threshold(t) for t in tried})
    if manifest.calibration is not None:
        policies[CALIBRATED] = runner.policy
    rounds = rounds_for(runner, inputs, len(policies), queries=queries, seconds=seconds)
    score = _scorer(runner, examples) if examples else None
    constant, warnings = _chance(manifest, logits, examples.labels) if examples else (None, ())
    with progress(rounds * len(inputs) * len(policies)) as bar:
        found, noise = measure(runner, inputs, policies, rounds=rounds, warmup=warmup, score=score, advance=bar.update)
    return BenchResult(
        bundle=bundle.resolve().name,
        target=manifest.target,
        backend=runner.backend.name,
        precision=manifest.precision,
        task=manifest.model.task,
        metric=manifest.model.metric if examples else None,
        layers=layers,
        device=runner.device.name if runner.device else device,
        machine=devices.this_machine(),
        threads=runner.backend.threads,
        inputs=len(inputs),
        rounds=rounds,
        boundary="from text to prediction, tokenization included",
        self_check=largest,
        by_layer={i: found[f"layer {i}"] for i in manifest.exits},
        by_threshold={t: found[f"threshold {t}"] for t in tried},
        criterion=runner.policy.criterion,
        policy=found.get(CALIBRATED),
        line=Line.through(list(found.values())),
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
    )


@click.command("bench")
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option("--device", default="auto", show_default=True, help="A name that `berxit devices` lists.")
@click.option("--data", type=click.Path(path_type=Path), help="Labelled inputs: a file, or a folder with splits.")
@click.option("--split", default="dev", show_default=True, help="The split, where --data is a folder.")
@click.option("--limit", type=click.IntRange(min=1), help="Use the first N inputs only.")
@click.option("--backend", help="Backend, if the target has several.  [default: the first installed]")
@click.option(
    "--backend-option",
    "option_flags",
    multiple=True,
    metavar="OPTION",
    help=f"Option of the backend, can be repeated. {options_help()}",
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads.  [default: the bundle's, or the cores, at most 4]"
)
@click.option(
    "--tune",
    "tuning",
    is_flag=True,
    help="Try the installed backends of the bundle's precision, and thread counts; take the fastest.",
)
@click.option("--accept-noise", is_flag=True, help="With --tune: take the fastest even on a busy machine.")
@click.option(
    "--lazy", is_flag=True, help="Load a layer when an input first gets there, and see what memory that saves."
)
@click.option("--thresholds", default=7, show_default=True, type=click.IntRange(min=1), help="How many to try.")
@click.option("--queries", default=200, show_default=True, type=click.IntRange(min=1), help="At least, per point.")
@click.option("--seconds", default=10.0, show_default=True, type=click.FloatRange(min=0), help="At least, in all.")
@click.option("--output", type=click.Path(path_type=Path), help="Folder of the results; BUNDLE-bench by default.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
@debug_option
def command(
    bundle: Path | None,
    device: str,
    data: Path | None,
    split: str,
    limit: int | None,
    backend: str | None,
    option_flags: tuple[str, ...],
    threads: int | None,
    tuning: bool,
    accept_noise: bool,
    lazy: bool,
    thresholds: int,
    queries: int,
    seconds: float,
    output: Path | None,
    quiet: bool,
) -> None:
    """Measure BUNDLE on this device: latency against average exit layer.

    Writes bench.json, bench.md and, where matplotlib is installed, bench.png.
    """
    bundle = bundle or _bundle_here(device)
    examples = None
    if data is not None:
        model = read_manifest(bundle, verify=False).model
        path = find_split(data, split)
        examples = read_examples_for(model, path).head(limit)

    backend_options = parse_option_flags(option_flags) or None
    tuned: tuple[Tried, ...] = ()
    if tuning:
        tuned = tune(
            bundle,
            read_manifest(bundle),
            backend=backend,
            backend_options=backend_options,
            threads=threads,
            accept_noise=accept_noise,
            progress=progress_bar("tuning", quiet),
        )
    result = bench(
        bundle,
        device,
        examples=examples,
        backend=backend,
        backend_options=backend_options,
        threads=threads,
        tuned=tuned,
        lazy=lazy,
        thresholds=thresholds,
        queries=queries,
        seconds=seconds,
        progress=progress_bar("measuring", quiet),
    )
    click.echo("\n" + result.text() + "\n")
    here = bundle.resolve()
    folder = output or here.with_name(f"{here.name}-bench")
    click.echo(f"written: {', '.join(map(str, write_result(result, folder)))}")


def write_result(result: BenchResult, folder: Path) -> list[Path]:
    """bench.json, bench.md and, where a plug-in can draw, bench.png."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / "bench.json", folder / "bench.md"]
        write_json(dataclasses.asdict(result), files[0])
        write_text(files[1], result.text() + "\n")
    except OSError as error:
        raise BerxitError(f"cannot write results to {folder}: {error.strerror}. Choose another --output") from error
    for plugin in metadata.entry_points(group="berxit.figures"):
        if plugin.name == "bench":  # drawing lives above the runtime, which knows no matplotlib
            try:
                files.append(plugin.load()(result, folder / "bench.png"))
            except ModuleNotFoundError as error:
                click.echo(
                    f"no figure: {error.name} is not installed here: {devices.install_command('report')}", err=True
                )
    return files


def _scorer(runner: EarlyExitRunner, examples: Examples) -> Callable[[Sequence[Prediction]], float]:
    model = runner.manifest.model
    metric = METRICS[model.metric]

    def score(answers: Sequence[Prediction]) -> float:
        values = [a.label if model.regression else model.labels.index(str(a.label)) for a in answers]
        return metric(np.array(values), examples.labels)

    return score


def _chance(manifest: Manifest, logits: npt.NDArray, labels: npt.NDArray) -> tuple[float, tuple[str, ...]]:
    """The constant prediction's score, and a warning where full depth is no better: logits (N, E, C), labels (N,)."""
    metric, classes = manifest.model.metric, logits.shape[2]
    check_outputs(metric, logits, manifest.exits, "the labelled inputs")
    last = logits[:, -1, 0] if manifest.model.regression else logits[:, -1].argmax(axis=1)
    constant = constant_prediction(metric, labels, classes)
    if not at_chance(metric, last, labels, classes):
        return constant.score, ()
    message = chance_message("full depth", metric, METRICS[metric](last, labels), constant, len(labels))
    return constant.score, (f"{message}. Scores mean nothing here: give --data with more rows, or train again",)


def _bundle_here(device: str) -> Path:
    for folder in (Path(), Path("bundle")):
        if (folder / "manifest.json").is_file():
            return folder
    device_here(device)  # on another machine that comes first
    raise InputError(
        f"which bundle? python -m runtime.bench --device {device} BUNDLE, a folder that berxit-export wrote"
    )


def _latency(point: Measured) -> list[str]:
    return [f"{value:.2f}" for value in dataclasses.astuple(point.latency)]


def _versions() -> dict[str, str]:
    """Of what ran, under the names of the packages that brought it: module tensorrt_rtx_bindings comes as
    tensorrt-rtx-cu13-bindings, onnxruntime perhaps as onnxruntime-gpu."""
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


if __name__ == "__main__":
    run(command)
