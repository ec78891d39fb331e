"""Automatic exit placement. An exit costs time for every input that reaches it, and saves layers for those that exit.

``--exits auto`` measures the cost of a layer and of an exit, and keeps the exits with the least expected time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from berxit.devices import recognise, this_machine
from berxit.exporters.loading import LoadedCheckpoint
from berxit.exporters.options import Messages
from berxit.exporters.targets import Settings
from berxit.exporters.writing import write_files
from berxit.runtime.backends import open_backend
from berxit.runtime.calibration import Costs, ExitPlacement
from berxit.runtime.errors import InputError, NoisyError
from berxit.runtime.loop import Backend, exit_loop, run_embeddings
from berxit.runtime.noise import QUIET, CpuMeter, Noise, noisy
from berxit.runtime.policies import ExitPolicy
from berxit.runtime.progress import Progress, silent
from berxit.runtime.tokenization import Text, TokenBatch

SECONDS = 2.0
"""Minimum duration of the cost measurement."""
ATTEMPTS = 3
"""Measurements on a busy machine before ``--exits auto`` raises an error."""


def checked_exits(exits: Sequence[int] | str, layers: int) -> tuple[int, ...]:
    """The exits in ascending order, with the last layer. Raises InputError for a number that is no layer."""
    if isinstance(exits, str) or not all(1 <= layer <= layers for layer in exits):
        raise InputError(f"--exits {exits}: give layers from 1 to {layers} with commas between, or auto")
    return tuple(sorted({*exits, layers}))


def place_automatically(
    checkpoint: LoadedCheckpoint, settings: Settings, samples: Sequence[Text], messages: Messages, *, accept_noise: bool
) -> ExitPlacement:
    """The exits with the least expected time on this machine, with as many threads as the bundle will use.

    Measures two temporary bundles: one with all exits, one with the last exit only. Raises InputError for a checkpoint
    that is not calibrated and on a machine that does not run the target, NoisyError as ``quiet_costs`` does.
    """
    here = recognise(this_machine())
    if settings.target.name not in here.targets:
        raise InputError(
            f"--exits auto measures here, and a {here.name} does not run {settings.target.name}: name them, as"
            " --exits 2,4"
        )
    if checkpoint.calibrated is None:
        raise InputError(f"--exits auto needs a calibrated policy: run berxit-calibrate {checkpoint.path} first")
    _ = checkpoint.calibration_pass  # raises here, before the measurement, if it is missing
    segments, layers = checkpoint.segments, checkpoint.model.layers
    with TemporaryDirectory() as scratch:
        backends = []
        for name, kept, progress in (
            ("all", segments, messages.progress),
            ("last", segments.with_exits((layers,)), silent),
        ):
            folder = Path(scratch) / name
            folder.mkdir()
            written = write_files(checkpoint, settings, kept, samples, folder, progress)
            backends.append(open_backend(folder, written.draft, settings.threads or here.threads))
        inputs = written.golden.one_by_one(written.draft.model.pad_token_id)
        every, last = backends
        costs = quiet_costs(every, last, inputs, messages.progress, accept_noise=accept_noise)
    return place_exits(
        layers, lambda exits: checkpoint.calibrated_for(exits, estimate=False).calibration.histogram, costs
    )


Histogram = Callable[[tuple[int, ...]], Sequence[int]]
"""Exits -> (n,) number of inputs that exit at each layer, with the threshold that is chosen for these exits."""


def place_exits(layers: int, histogram: Histogram, costs: Costs) -> ExitPlacement:
    """The exits with the least expected time of an average input; each choice of exits has its own threshold.

    A local search: it adds or removes one exit at a time while that reduces the time. It starts from all exits or from
    the exits of ``cheapest_at``, whichever take less time. ``cheapest_at`` alone is not enough, because fewer exits get
    another threshold.
    """
    known: dict[tuple[int, ...], float] = {}

    def cost(exits: tuple[int, ...]) -> float:
        if exits not in known:
            known[exits] = costs.milliseconds(exits, histogram(exits))
        return known[exits]

    def neighbours(exits: tuple[int, ...]) -> list[tuple[int, ...]]:
        return [tuple(sorted({*exits} ^ {layer, layers} | {layers})) for layer in range(1, layers)]

    every = tuple(range(1, layers + 1))
    best = min((every, cheapest_at(histogram(every), costs)), key=cost)
    while (nearby := min(neighbours(best), key=cost, default=best)) != best and cost(nearby) < cost(best):
        best = nearby
    return ExitPlacement(best, costs, cost(best), cost(every))


def cheapest_at(histogram: Sequence[int], costs: Costs) -> tuple[int, ...]:
    """The exits with the least expected time of an average input at a fixed threshold.

    ``histogram`` (n,): number of inputs that exit at each layer if every layer has an exit. An input whose exit is
    removed takes the next one. Dynamic programming over the last exit so far: a segment from layer a to layer b costs
    (b - a) layers and one exit for all inputs that pass layer a.
    """
    n = len(histogram)
    past = 1 - np.cumsum([0, *histogram]) / sum(histogram)
    best, before = [0.0], [0]
    for b in range(1, n + 1):
        found = [best[a] + past[a] * ((b - a) * costs.layer_ms + costs.exit_ms) for a in range(b)]
        before.append(int(np.argmin(found)))
        best.append(float(min(found)))
    exits = [n]
    while before[exits[0]]:
        exits.insert(0, before[exits[0]])
    return tuple(exits)


def measure_costs(every: Backend, last: Backend, inputs: Sequence[TokenBatch], progress: Progress) -> Costs:
    """Measures a bundle with all n exits and one with the last exit only, alternately, input by input.

    Both run n layers; the first has n - 1 more exits. The embeddings are measured separately and subtracted.
    """
    n = every.layers
    policy = ExitPolicy.full_depth(n).at_depth(n)

    def seconds(backend: Backend | None, batch: TokenBatch) -> float:
        start = time.perf_counter()
        if backend is None:
            run_embeddings(last, batch)
        else:
            for _ in exit_loop(backend, batch, policy):
                pass
        return time.perf_counter() - start

    rounds: list[list[float]] = []
    meter = CpuMeter()
    with progress(100) as bar:
        shown, start = 0, time.perf_counter()
        while len(rounds) < 3 * len(inputs) or time.perf_counter() - start < SECONDS:
            batch = inputs[len(rounds) % len(inputs)]
            rounds.append([seconds(backend, batch) for backend in (every, last, None)])
            now = min(100, int(100 * (time.perf_counter() - start) / SECONDS))
            bar.update(now - shown)
            shown = now
    times = 1e3 * np.array(rounds[len(inputs) :])  # the first run of an input is warm-up
    all_exits, one_exit, embeddings = times.T
    exit_ms = max(0.0, float(np.median(all_exits - one_exit)) / max(1, n - 1))
    repeats = [times[place :: len(inputs), way] for place in range(len(inputs)) for way in range(2)]
    noise = Noise.of([work for work in repeats if len(work)], meter, every.threads)
    return Costs(max(1e-6, float(np.median(one_exit - embeddings) - exit_ms) / n), exit_ms, noise)


def quiet_costs(
    every: Backend, last: Backend, inputs: Sequence[TokenBatch], progress: Progress, *, accept_noise: bool
) -> Costs:
    """``measure_costs``, repeated up to ATTEMPTS times until the noise is within its limits.

    Raises NoisyError if it never is, unless ``accept_noise``.
    """
    for _ in range(ATTEMPTS):
        costs = measure_costs(every, last, inputs, progress)
        problems = costs.noise.problems() if costs.noise else []
        if accept_noise or not problems:
            return costs
    raise NoisyError(f"{noisy('--exits auto', problems)}, {ATTEMPTS} times. {QUIET}, or name the exits, as --exits 2,4")
