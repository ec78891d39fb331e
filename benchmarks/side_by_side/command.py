"""Comparison of early exit on this CPU with alternatives, on the same weights, inputs and threads.

    python -m benchmarks.side_by_side --threads 1,2 --output side-by-side                          random weights, times
    python -m benchmarks.side_by_side --checkpoint ckpt --data SST-2/ --threads 2 --output real    and scores

The contenders are our segments (ONNX Runtime and OpenVINO), the same model as one graph (ONNX Runtime fp32 and int8,
OpenVINO fp32, bf16 and int8), PyTorch eager with a Python exit loop, and matrix multiplications only. For the method,
see benchmarks/README.md. Writes side_by_side.json, .md and .png to --output, even if bars fail.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import numpy.typing as npt

from benchmarks.side_by_side.bars import OURS, OURS_INT8, Bar, Measurements, Scored, Timings, bars, lazy
from benchmarks.side_by_side.cases import Labelled, growing_cases, labelled, random_cases
from benchmarks.side_by_side.contenders import STATUS, Case, Spec, work
from berxit import devices
from berxit.runtime import BerxitError, ExitPolicy, InputError
from berxit.runtime.console import debug_option, progress_bar
from berxit.runtime.results import write_results
from berxit.runtime.tables import plural
from berxit.toolkit.commands.options import PATH, silence_library_logs

if TYPE_CHECKING:
    from benchmarks.side_by_side.products import Shape
    from berxit.runtime.bundle import Manifest

# Every process of a contender imports this file, so that large packages are imported where they are used.

PAUSE_S = 0.01
"""Pause between the tasks of two processes, in seconds, so that the threads of the first stop spinning."""
ROUNDS = 3
"""Minimum number of rounds. The matrix multiplications, which no ratio needs, run in this number of rounds only."""


@click.command()
@click.option("--checkpoint", type=PATH, help="Checkpoint to measure.  [default: random weights]")
@click.option("--data", type=PATH, help="Labelled inputs for the scores; needs --checkpoint.")
@click.option("--split", default="dev", show_default=True)
@click.option("--limit", type=click.IntRange(min=4), help="Use the first N rows of --data only.  [default: all]")
@click.option("--keep", default=0.99, show_default=True, help="Share of the score that the calibration must keep.")
@click.option("--layers", default=12, show_default=True, type=click.IntRange(min=2), help="Layers of random weights.")
@click.option(
    "--hidden",
    default=768,
    show_default=True,
    type=click.IntRange(min=64),
    help="Hidden size of random weights, a multiple of 64.",
)
@click.option("--lengths", default="16,128", show_default=True, help="Input lengths in tokens, for random weights.")
@click.option("--threads", default="1,2", show_default=True, help="Comma-separated thread counts.")
@click.option("--seconds", default=90.0, show_default=True, help="Minimum duration per thread count.")
@click.option("--memory/--no-memory", default=True, show_default=True, help="Measure resident memory; Linux only.")
@click.option("--quick", is_flag=True, help="Smoke test: a tiny model, two lengths, three rounds.")
@click.option("--output", type=PATH, required=True, help="Folder of the results.")
@click.option("--quiet", is_flag=True, help="Show no progress bars.")
@debug_option
def command(
    checkpoint: Path | None,
    data: Path | None,
    split: str,
    limit: int | None,
    keep: float,
    layers: int,
    hidden: int,
    lengths: str,
    threads: str,
    seconds: float,
    memory: bool,
    quick: bool,
    output: Path,
    quiet: bool,
) -> None:
    """Compare early exit on this CPU with alternatives."""
    if (checkpoint is None) != (data is None):
        raise InputError("scores need both --checkpoint and --data: give both or none")
    if quick:
        layers, hidden, lengths, seconds = 3, 64, "8,16", 0.0
    tokens, counts = _numbers("--lengths", lengths), _numbers("--threads", threads)
    if hidden % 64:
        raise InputError(f"--hidden {hidden}: it must be a multiple of 64")
    silence_library_logs()
    from benchmarks.side_by_side.figure import draw
    from benchmarks.side_by_side.prepare import prepare, random_checkpoint, shape_of
    from benchmarks.side_by_side.report import report
    from berxit.train.checkpoint import read_config

    before = devices.read_sensors()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        folder = checkpoint or random_checkpoint(scratch / "checkpoint", layers, hidden, max(128, *tokens))
        manifest, specs = prepare(folder, scratch, progress_bar("exporting", quiet))
        vocabulary = read_config(folder)["backbone"]["vocab_size"]
        shape = shape_of(folder, manifest)
        rows: Labelled | None = None
        scores: dict[str, Scored] = {}
        policies: Policies = {}
        if data is not None:
            rows = labelled(scratch / "fp32", manifest, data, split, limit)
            scores, policies, cases = score(specs, rows, folder, keep, max(counts), quiet)
        else:
            cases = random_cases(manifest, tokens, vocabulary)
        if not seconds:
            cases = {name: replace(case, turn_s=0.0) for name, case in cases.items()}
        found = [compare(specs, cases, policies, count, seconds, quiet) for count in counts]
        differs = found[0][1]
        held = measure_memory(specs, manifest, vocabulary, max(counts), quiet) if memory and STATUS.exists() else {}
        measured = Measurements([each for each, _ in found], differs, held, scores, rows.metric if rows else "")
    made = bars(measured, specs, cases, shape)
    inputs = (
        f"{data.name}, {split}, {len(rows.examples)} rows, calibrated to keep {keep:g}"
        if rows and data
        else "random token ids"
    )
    model = checkpoint.name if checkpoint else f"random weights, {layers} layers, d = {hidden}"
    conditions = {
        "model": model,
        "data": inputs,
        "machine": dataclasses.asdict(devices.this_machine()),
        "versions": {n: metadata.version(n) for n in ("berxit", "onnxruntime", "openvino", "torch", "numpy")},
        "before": dataclasses.asdict(before),
        "after": dataclasses.asdict(devices.read_sensors()),
    }
    headline = f"{model}; {inputs}; {devices.this_machine()}; one process per contender, interleaved"
    text = report(headline, made, measured, specs, cases, shape)
    numbers = {**conditions, "bars": list(map(_bar_data, made)), **_plain(measured)}
    files = write_results(
        output,
        "side_by_side",
        numbers,
        text,
        figure=lambda path: draw(measured.runs, specs, cases, model, path),
    )
    click.echo(f"\n{text}\n\nwritten: {', '.join(map(str, files))}")


def _numbers(option: str, text: str) -> list[int]:
    try:
        numbers = [int(number) for number in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise InputError(f"{option} {text}: give comma-separated numbers above 0, such as 16,32")
    return numbers


def _bar_data(bar: Bar) -> dict[str, Any]:
    return {**dataclasses.asdict(bar), "holds": bar.holds if bar.limit is not None else None}


def _plain(measured: Measurements) -> dict[str, Any]:
    return {**dataclasses.asdict(measured), "scores": {n: one._asdict() for n, one in measured.scores.items()}}


class Worker:
    """Process of a contender. It is idle except during ``run``."""

    def __init__(self, spec: Spec, threads: int, cases: dict[str, Case]) -> None:
        context = multiprocessing.get_context("spawn")
        self.spec = spec
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(spec, threads, cases, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._loaded = False

    def wait(self) -> None:
        """Waits until the contender is loaded."""
        if not self._loaded:
            self._loaded = True
            self._receive()

    def run(self, task: str, case: str) -> Any:
        """Runs a task on a case, and returns its result. Raises BerxitError if it fails."""
        self.wait()
        time.sleep(PAUSE_S)
        self._pipe.send((task, case))
        return self._receive()

    def close(self) -> None:
        with suppress(OSError):  # the process has ended already
            self._pipe.send(None)
        self._process.join(timeout=20)
        if self._process.is_alive():
            self._process.kill()

    def _receive(self) -> Any:
        try:
            state, result = self._pipe.recv()
        except EOFError:
            state, result = "failed", f"ended with status {self._process.exitcode}"
        if state == "failed":
            raise BerxitError(f"{self.spec.name}: {result}")
        return result


Policies = dict["Path | Shape", ExitPolicy]
"""Spec.model -> calibrated policy of this bundle, which replaces the policy of a case."""


@contextmanager
def workers_of(
    specs: Sequence[Spec], threads: int, cases: dict[str, Case], policies: Policies, quiet: bool
) -> Iterator[list[Worker]]:
    with ExitStack() as stack:
        workers = []
        with progress_bar("loading", quiet)(len(specs)) as bar:
            for spec in specs:
                own = {
                    name: replace(case, policy=policies.get(spec.model, case.policy)) for name, case in cases.items()
                }
                worker = Worker(spec, threads, own)
                stack.callback(worker.close)
                workers.append(worker)
            for worker in workers:
                worker.wait()
                bar.update(1)
        yield workers


@dataclass(frozen=True)
class Turn:
    """Measurement that runs once per round."""

    worker: Worker
    task: str
    case: str

    @property
    def key(self) -> str:
        return f"{self.case} | {self.task} | {self.worker.spec.name}"

    def take(self) -> float:
        return self.worker.run(self.task, self.case)


def compare(
    specs: Sequence[Spec],
    cases: dict[str, Case],
    policies: Policies,
    threads: int,
    seconds: float,
    quiet: bool,
) -> tuple[Timings, dict[str, float]]:
    """Measures all contenders interleaved, in reverse order in every other round, for at least ``seconds``.

    Returns the measurements, and the largest difference of each contender's logits from those of our fp32 segments.
    """
    with workers_of(specs, threads, cases, policies, quiet) as workers:
        plan = [
            Turn(worker, task, case.name)
            for case in cases.values()
            for task in ("full", "early")
            for worker in workers
            if _takes_part(worker.spec, task, case)
        ]
        with progress_bar("warming up", quiet)(len(plan)) as bar:
            for turn in plan:
                turn.take()
                bar.update(1)
        differs = _check(workers, next(iter(cases)))
        layers, ways = {}, {}
        for worker in workers:
            for case in cases.values():
                if _takes_part(worker.spec, "early", case):
                    exits = worker.run("exits", case.name)
                    layers[f"{case.name} | {worker.spec.name}"] = float(exits.mean())
                if worker.spec.kind == "products" and _takes_part(worker.spec, "full", case):
                    ways[f"{case.name} | {worker.spec.name}"] = worker.run("way", case.name)
        times: dict[str, list[float]] = {turn.key: [] for turn in plan}
        rounds, start = 0, time.perf_counter()
        with progress_bar(f"measuring, {plural(threads, 'thread')}", quiet)(1000) as bar:
            shown = 0
            while rounds < ROUNDS or time.perf_counter() - start < seconds:
                for turn in plan[:: 1 if rounds % 2 == 0 else -1]:
                    if rounds < ROUNDS or turn.worker.spec.kind != "products":
                        times[turn.key].append(turn.take())
                rounds += 1
                share = min(rounds / ROUNDS, (time.perf_counter() - start) / seconds if seconds else 1.0, 1.0)
                bar.update(int(1000 * share) - shown)
                shown = int(1000 * share)
    return Timings(threads, rounds, times, layers, ways), differs


def _takes_part(spec: Spec, task: str, case: Case) -> bool:
    if spec.kind == "products":  # its weights are packed for every shape, so that one shape per case is measured
        return task == "full" and (case.alike or case.together)
    if case.together:
        return task == "early" if spec.ours else task == "full" and spec.kind != "eager"
    return task == "full" or spec.early


def _check(workers: Sequence[Worker], case: str) -> dict[str, float]:
    """Largest difference of each contender's logits from those of our fp32 segments.

    Raises BerxitError if an fp32 contender differs, because it then computes another model.
    """
    differs = {}
    reference = workers[0].run("outputs", case)[0][:, -1]
    for worker in workers:
        spec = worker.spec
        if spec.kind == "products":
            continue
        differs[spec.name] = float(np.abs(worker.run("outputs", case)[0][:, -1] - reference).max())
        if spec.precision == "fp32" and not differs[spec.name] < 1e-2:
            raise BerxitError(
                f"the logits of {spec.name} differ from those of our fp32 segments by {differs[spec.name]:.1e}, at most"
                " 1e-2 is allowed: it does not compute the same model"
            )
    return differs


def score(
    specs: Sequence[Spec], rows: Labelled, checkpoint: Path, keep: float, threads: int, quiet: bool
) -> tuple[dict[str, Scored], Policies, dict[str, Case]]:
    """Scores of all contenders on all rows, the policy of each bundle, and the cases to time.

    Of contenders with equal outputs only one runs. All fp32 contenders have equal outputs, which ``compare`` checks.
    """
    representatives = {spec.outputs_key: spec for spec in reversed(specs) if spec.kind != "products"}
    found: dict[tuple[str, str], Scored] = {}
    policies: dict[Path | Shape, tuple[ExitPolicy, ExitPolicy]] = {}
    cases: dict[str, Case] = {}
    reference: npt.NDArray | None = None
    """(N, C) logits of fp32 at full depth: the first contender."""
    with progress_bar("scoring", quiet)(len(representatives)) as bar:
        for spec in sorted(representatives.values(), key=specs.index):
            with closing(Worker(spec, threads, {"scores": rows.case})) as worker:
                logits, lte = worker.run("outputs", "scores")
            reference = logits[:, -1] if reference is None else reference
            by_exit = [rows.score(logits[:, i]) for i in range(logits.shape[1])]
            early, leaving = None, []
            if spec.ours:
                if spec.model not in policies:
                    policies[spec.model] = rows.policies(logits, lte, checkpoint, reference, keep)
                layers = rows.exit_layers_of(policies[spec.model], logits, lte)
                cases = cases or rows.timed(policies[spec.model][1], layers)
                early = rows.score(logits[np.arange(len(logits)), layers - 1])
                leaving = np.bincount(layers - 1, minlength=logits.shape[1]).tolist()
            found[spec.outputs_key] = Scored(by_exit[-1], by_exit, early, leaving)
            bar.update(1)
    scores = {}
    for spec in specs:
        if spec.kind != "products":
            mine = found[spec.outputs_key]
            scores[spec.name] = mine if spec.early else mine._replace(early=None, leaving=[])
    return scores, {model: second for model, (_, second) in policies.items()}, cases


def measure_memory(
    specs: Sequence[Spec], manifest: Manifest, vocabulary: int, threads: int, quiet: bool
) -> dict[str, dict[str, float]]:
    """Resident memory of new processes, one at a time: after loading, after inputs of increasing length, after batches.

    Returns name -> stage -> MiB.
    """
    singles, batches = growing_cases(manifest, vocabulary)
    stages = {
        "loaded": [],
        f"after inputs of {_lengths(singles)}": singles,
        f"after batches of {len(batches[0].ids)}, {_lengths(batches)}": batches,
    }
    cases = {case.name: case for case in (*singles, *batches)}
    ours = [spec for spec in specs if spec.name in (OURS, OURS_INT8)]
    measured = [
        *ours,
        *(replace(spec, name=lazy(spec.name), lazy=True) for spec in ours),
        *(spec for spec in specs if spec.kind == "onnxruntime"),
    ]
    held: dict[str, dict[str, float]] = {}
    with progress_bar("measuring memory", quiet)(len(measured)) as bar:
        for spec in measured:
            held[spec.name] = {}
            with closing(Worker(spec, threads, cases)) as worker:
                for stage, inputs in stages.items():
                    for case in inputs:
                        worker.run("shallow" if spec.lazy else "once", case.name)
                    held[spec.name][stage] = worker.run("resident", "")
            bar.update(1)
    return held


def _lengths(cases: Sequence[Case]) -> str:
    tokens = [len(case.ids[0]) for case in cases]
    return f"{min(tokens)} to {max(tokens)} tokens"
