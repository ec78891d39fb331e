"""Comparison of int8 bundles: dependence of a prediction on its batch, score and latency.

    python benchmarks/int8_rows.py NEW OLD --data DATA [--threads 1 --threads 2] [--rounds 20] --output int8-rows

All bundles must be exports of the same checkpoint. To get the bundle of an older version, export it with the older
code:

    git worktree add ../older COMMIT
    PYTHONPATH=../older python -m berxit.toolkit export CHECKPOINT --target onnxruntime --precision int8 --output OLD

- Agreement: every row of DATA is predicted alone and in batches, under the policy of each bundle.
- Speed: the bundles are interleaved in every round. Full depth at batch size 1 starts with token ids, the other cases
  with texts. The thresholds of each bundle come from its export, which keeps the same share of the score, so the
  latencies of early exit are compared at equal score.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from berxit import devices
from berxit.runtime import EarlyExitRunner
from berxit.runtime.console import debug_option, progress_bar, run
from berxit.runtime.examples import Examples, find_split, read_examples_for
from berxit.runtime.loop import exit_loop
from berxit.runtime.metrics import METRICS
from berxit.runtime.noise import CpuMeter, Noise
from berxit.runtime.policies import ExitPolicy
from berxit.runtime.prediction import Prediction
from berxit.runtime.results import write_results
from berxit.runtime.tables import markdown_table
from berxit.runtime.tokenization import Text, TokenBatch

BATCHES = (1, 2, 8, 32, 408)
LENGTHS = (16, 32, 64, 128)
TURN_S = 0.05
"""Minimum duration of a measurement at one length, in seconds; it averages short calls."""


@dataclass(frozen=True)
class Agreement:
    """Differences between the predictions of ``predict_batch`` and ``predict``, over all rows of a data set."""

    bundle: str
    batch: int
    rows: int
    exits_differ: int
    labels_differ: int
    largest_difference: float
    """Largest difference of a score (probability), over the rows with the same exit layer."""
    margin: float
    """Smallest distance between a certainty and its threshold, over all rows predicted alone."""


@dataclass(frozen=True)
class Score:
    """Score of a bundle on a data set."""

    bundle: str
    metric: str
    full_depth: float
    early_exit: float
    average_exit_layer: float


@dataclass(frozen=True)
class Speed:
    """Latency of one case."""

    case: str
    threads: int
    milliseconds: tuple[float, ...]
    """Milliseconds per text of each bundle, median over the rounds."""
    ratio: float
    """Latency of the first bundle divided by that of the last: median of the ratios of the rounds."""


@click.command()
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--data", required=True, type=click.Path(path_type=Path), help="A file, or a folder with a dev file.")
@click.option("--backend", help="Backend that runs the segments.  [default: the first installed]")
@click.option("--threads", multiple=True, default=(1, 2), show_default=True, type=int)
@click.option("--rounds", default=20, show_default=True, type=int)
@click.option("--limit", type=int, help="Use the first N examples only.")
@click.option("--output", required=True, type=click.Path(path_type=Path))
@click.option("--quiet", is_flag=True)
@debug_option
def command(
    bundles: tuple[Path, ...],
    data: Path,
    backend: str | None,
    threads: tuple[int, ...],
    rounds: int,
    limit: int | None,
    output: Path,
    quiet: bool,
) -> None:
    """Compare BUNDLES by agreement over batch sizes, score and latency."""
    names = [bundle.name for bundle in bundles]

    def load(count: int) -> list[EarlyExitRunner]:
        return [EarlyExitRunner.load(bundle, backend=backend, threads=count) for bundle in bundles]

    runners = load(threads[0])
    path = find_split(data, "dev")
    examples = read_examples_for(runners[0].manifest.model, path).head(limit)
    agreements, scores = [], []
    with progress_bar("agreement", quiet)(len(bundles)) as bar:
        for name, runner in zip(names, runners, strict=True):
            alone = [runner.answer([text], runner.policy)[0] for text in examples.texts]
            agreements += [agreement(name, runner, examples.texts, alone, size) for size in BATCHES]
            scores.append(score(name, runner, examples, alone))
            bar.update(1)
    speeds: list[Speed] = []
    noises = {}
    with progress_bar("speed", quiet)(rounds * len(threads)) as bar:
        for count in threads:
            found, noise = measure(load(count), examples.texts, rounds, count, lambda: bar.update(1))
            speeds += found
            noises[count] = noise
    text = "\n\n".join(
        [
            f"{', '.join(names)} with {runners[0].backend.name} on {path}; {devices.this_machine()}; {rounds} rounds",
            *(f"{count} threads: {noise}{_problems(noise)}" for count, noise in noises.items()),
            _agreement_table(agreements),
            _score_table(scores),
            _speed_table(speeds, names),
        ]
    )
    measured = {
        "bundles": [str(bundle) for bundle in bundles],
        "backend": runners[0].backend.name,
        "data": str(path),
        "machine": dataclasses.asdict(devices.this_machine()),
        "rounds": rounds,
        "noise": {count: dataclasses.asdict(noise) for count, noise in noises.items()},
        "agreement": [dataclasses.asdict(each) for each in agreements],
        "scores": [dataclasses.asdict(each) for each in scores],
        "speed": [dataclasses.asdict(each) for each in speeds],
    }
    files = write_results(output, "int8-rows", measured, text)
    click.echo(f"\n{text}\n\nwritten: {', '.join(map(str, files))}")


def agreement(
    name: str, runner: EarlyExitRunner, texts: Sequence[Text], alone: Sequence[Prediction], size: int
) -> Agreement:
    """Compares predictions in batches of ``size`` with ``alone``, the predictions of single rows."""
    found = [p for start in range(0, len(texts), size) for p in runner.predict_batch(texts[start : start + size])]
    pairs = list(zip(found, alone, strict=True))
    differences = [
        abs(value - b.scores[key]) for a, b in pairs if a.exit_layer == b.exit_layer for key, value in a.scores.items()
    ]
    return Agreement(
        name,
        size,
        len(texts),
        sum(a.exit_layer != b.exit_layer for a, b in pairs),
        sum(a.label != b.label for a, b in pairs),
        max(differences, default=0.0),
        margin(runner, texts),
    )


def margin(runner: EarlyExitRunner, texts: Sequence[Text]) -> float:
    """Smallest distance between a certainty and the threshold of its layer; infinite without thresholds."""
    thresholds = runner.policy.thresholds
    return min(
        (
            abs(float(result.certainty[0]) - thresholds[result.layer - 1])
            for text in texts
            for result in exit_loop(runner.backend, runner.tokenizer([text]), runner.policy)
            if result.layer < runner.backend.layers
        ),
        default=np.inf,
    )


def score(name: str, runner: EarlyExitRunner, examples: Examples, alone: Sequence[Prediction]) -> Score:
    model = runner.manifest.model
    full = runner.answer(examples.texts, runner.policy.at_depth(runner.backend.layers))

    def of(predictions: Sequence[Prediction]) -> float:
        values = [p.label if model.regression else model.labels.index(str(p.label)) for p in predictions]
        return METRICS[model.metric](np.array(values), examples.labels)

    return Score(name, model.metric, of(full), of(alone), float(np.mean([p.exit_layer for p in alone])))


def measure(
    runners: Sequence[EarlyExitRunner], texts: Sequence[Text], rounds: int, threads: int, advance: Callable[[], None]
) -> tuple[list[Speed], Noise]:
    """Measures the bundles interleaved, in reverse order in every other round. The first round is a warm-up."""
    cases: dict[str, Callable[[EarlyExitRunner], float]] = {
        f"full depth, {length} tokens": lambda runner, length=length: _full_depth(runner, length)  # type: ignore[misc]
        for length in LENGTHS
        if length <= runners[0].manifest.model.max_length
    }
    cases["policy, one by one"] = lambda runner: _texts(runner, texts, 1, runner.policy)
    for size in (32, len(texts)):
        cases[f"policy, batches of {size}"] = lambda runner, size=size: _texts(runner, texts, size, runner.policy)  # type: ignore[misc]
    found: dict[str, list[list[float]]] = {case: [] for case in cases}
    meter = CpuMeter()
    for turn in range(rounds + 1):
        for case, run_case in cases.items():
            times = [0.0] * len(runners)
            for place in range(len(runners)) if turn % 2 else reversed(range(len(runners))):
                times[place] = run_case(runners[place])
            if turn:
                found[case].append(times)
        if turn:
            advance()
    speeds = [
        Speed(
            case,
            threads,
            tuple(1e3 * float(column) for column in np.median(times, axis=0)),
            float(np.median([row[0] / row[-1] for row in times])),
        )
        for case, times in found.items()
    ]
    return speeds, Noise.of([np.array(times)[:, 0] for times in found.values()], meter, threads)


def _full_depth(runner: EarlyExitRunner, length: int) -> float:
    """Seconds per pass over ``length`` token ids."""
    batch = TokenBatch.pad([[1] * length], [[0] * length], runner.manifest.model.pad_token_id)
    policy = runner.policy.at_depth(runner.backend.layers)
    for _ in exit_loop(runner.backend, batch, policy):  # warm-up of threads and caches
        pass
    calls, start = 0, time.perf_counter()
    while time.perf_counter() - start < TURN_S:
        for _ in exit_loop(runner.backend, batch, policy):
            pass
        calls += 1
    return (time.perf_counter() - start) / calls


def _texts(runner: EarlyExitRunner, texts: Sequence[Text], size: int, policy: ExitPolicy) -> float:
    """Seconds per text."""
    start = time.perf_counter()
    for first in range(0, len(texts), size):
        runner.answer(texts[first : first + size], policy)
    return (time.perf_counter() - start) / len(texts)


def _problems(noise: Noise) -> str:
    found = noise.problems()
    return f". NOISY, do not use the latencies: {'; '.join(found)}" if found else ""


def _agreement_table(agreements: Sequence[Agreement]) -> str:
    return markdown_table(
        ["bundle", "batch", "rows", "exits differ", "labels differ", "largest difference of a score", "margin"],
        [
            [
                a.bundle,
                a.batch,
                a.rows,
                a.exits_differ,
                a.labels_differ,
                f"{a.largest_difference:.1e}",
                f"{a.margin:.1e}",
            ]
            for a in agreements
        ],
    )


def _score_table(scores: Sequence[Score]) -> str:
    return markdown_table(
        ["bundle", "metric", "full depth", "early exit", "average exit layer"],
        [
            [s.bundle, s.metric, f"{s.full_depth:.4f}", f"{s.early_exit:.4f}", f"{s.average_exit_layer:.2f}"]
            for s in scores
        ],
    )


def _speed_table(speeds: Sequence[Speed], names: Sequence[str]) -> str:
    return markdown_table(
        ["case", "threads", *(f"{name}, ms" for name in names), "first / last"],
        [[s.case, s.threads, *(f"{ms:.3f}" for ms in s.milliseconds), f"{s.ratio:.3f}"] for s in speeds],
    )


if __name__ == "__main__":
    run(command)
