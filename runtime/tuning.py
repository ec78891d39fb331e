"""Selection of the fastest backend and thread count on this machine, measured on the golden inputs at full depth and
batch size 1.

One candidate is loaded at a time, so that tuning needs no more memory than running. All candidates are measured in two
runs, the second in reverse order, so that a slow phase of the machine rarely affects only one. The result holds for one
device only, so it is stored in the cache folder of the device and never in the bundle.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from berxit.devices import default_threads, this_machine
from berxit.runtime.backend_options import Options, OptionValue, backend_label, option_flags
from berxit.runtime.backends import BACKENDS, ChosenBackend, allowed_difference, choose_backend, open_backend
from berxit.runtime.bundle import Manifest, files_of
from berxit.runtime.bundle_files import BundleFolder
from berxit.runtime.cache import cache_folder
from berxit.runtime.errors import BerxitError, InputError, NoisyError, PoolError
from berxit.runtime.golden import Golden, differences, read_golden
from berxit.runtime.json_data import parse, read_json, write_json
from berxit.runtime.loop import Backend, every_exit
from berxit.runtime.noise import QUIET, CpuMeter, Noise, noisy
from berxit.runtime.progress import Progress, silent
from berxit.runtime.tokenization import TokenBatch

log = logging.getLogger(__name__)

RUN_SECONDS = 0.5
"""Minimum duration of each of the two runs of a candidate."""


@dataclass(frozen=True)
class TuningResult:
    """Latency of an input at full depth with one backend, its options and one number of threads."""

    backend: str
    threads: int
    median_ms: float
    """Lower median of two runs; excludes tokenization."""
    backend_options: dict[str, OptionValue] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Backend and options, for reports."""
        return backend_label(self.backend, self.backend_options)

    def __str__(self) -> str:
        options = "".join(f" --backend-option {flag}" for flag in option_flags(self.backend_options))
        return f"--backend {self.backend}{options} --threads {self.threads}"


def tune(
    bundle: Path | BundleFolder,
    manifest: Manifest,
    *,
    backend: str | None = None,
    backend_options: Options | None = None,
    threads: int | None = None,
    seconds: float = RUN_SECONDS,
    accept_noise: bool = False,
    progress: Progress = silent,
) -> tuple[TuningResult, ...]:
    """Measures every installed backend with every option and suitable thread count; returns the results, fastest first.

    ``backend``, ``backend_options`` and ``threads`` restrict the candidates. An option that lowers the precision is
    measured only if ``backend_options`` contains it. An option that changes process-wide state is never measured.
    ``seconds``: minimum duration of a run. Omits candidates that do not run on this machine, or whose exits differ too
    much from the checkpoint, and logs a warning with the reason.

    Raises InputError if the requested options change process-wide state, BerxitError if no backend remains, NoisyError
    on a busy machine unless ``accept_noise``.
    """
    candidates = candidates_of(bundle, manifest, backend, backend_options, threads)
    golden = read_golden(bundle, manifest)
    inputs = golden.one_by_one(manifest.model.pad_token_id)
    times: dict[int, list[list[list[float]]]] = {}
    """Index of the candidate -> run -> input -> latencies in milliseconds."""
    meter = CpuMeter()
    failures: dict[str, str] = {}
    with progress(2 * len(candidates)) as bar:
        order = range(len(candidates))
        for place in [*order, *reversed(order)]:
            chosen, count = candidates[place]
            if chosen.label not in failures:
                try:
                    opened = open_backend(
                        bundle, manifest, count, backend=chosen.info.name, backend_options=chosen.options
                    )
                    times.setdefault(place, []).append(_measure(opened, manifest, golden, inputs, seconds))
                    del opened  # One backend is loaded at a time.
                except PoolError as error:  # A fact about the process, which is not stored.
                    raise BerxitError(f"{bundle} cannot be tuned here: {error}") from error
                except BerxitError as error:
                    failures[chosen.label] = str(error)
            bar.update(1)
    times = {place: runs for place, runs in times.items() if candidates[place][0].label not in failures}
    reasons = dict.fromkeys(failures.values())
    if not times:
        raise BerxitError(f"{bundle}: no backend here can run it: {'; '.join(reasons)}")
    for reason in reasons:
        labels = [label for label, other in failures.items() if other == reason]
        log.warning("not measured: %s: %s", ", ".join(labels), reason)
    works = [np.concatenate(work) for runs in times.values() for work in zip(*runs, strict=True)]
    problems = Noise.of(works, meter, max(candidates[place][1] for place in times)).problems()
    if problems and not accept_noise:
        raise NoisyError(f"{noisy(str(bundle), problems)}: no backend is chosen. {QUIET}")
    tried = [
        TuningResult(chosen.info.name, count, median, dict(chosen.options))
        for (chosen, count), median in (
            (candidates[place], min(float(np.median(np.concatenate(run))) for run in runs))
            for place, runs in times.items()
        )
    ]
    return tuple(sorted(tried, key=lambda each: each.median_ms))


def candidates_of(
    bundle: Path | BundleFolder,
    manifest: Manifest,
    backend: str | None,
    backend_options: Options | None,
    threads: int | None,
) -> list[tuple[ChosenBackend, int]]:
    """Backends, options and thread counts that ``tune`` measures. Raises InputError as ``tune`` does."""
    first = choose_backend(bundle, manifest.target, backend, backend_options)
    if first.changes_process:
        raise InputError(
            f"backend '{first.label}' cannot be tuned: it changes process-wide state. Give --threads, without --tune"
        )
    if backend_options is not None:
        chosen = [first]
    else:
        installed = [info for info in BACKENDS[manifest.target] if info.installed and backend in (None, info.name)]
        chosen = [variant for info in installed for variant in info.variants()]
    return [
        (each, count)
        for each in chosen
        for count in ([threads] if threads else thread_counts() if each.info.cpu else [1])
    ]


def fastest(
    bundle: Path | BundleFolder,
    manifest: Manifest,
    *,
    backend: str | None = None,
    backend_options: Options | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> TuningResult:
    """Fastest result of ``tune``, from the device's cache folder if it was measured before. The cache key covers the
    bundle's files, the machine, the candidates and the versions of their packages.

    Logs a warning before it measures, because that takes seconds, and if the cache cannot be written; the result is
    then cached in this process only. Raises the errors of ``tune``.
    """
    packages = {info.package for info in BACKENDS[manifest.target] if info.installed}
    candidates = candidates_of(bundle, manifest, backend, backend_options, threads)
    names = [(chosen.label, count) for chosen, count in candidates]
    depends = (sorted(files_of(manifest).items()), str(this_machine()), names, _versions(packages))
    digest = sha256(repr(depends).encode()).hexdigest()[:24]
    file = cache_folder() / "tuned" / f"{digest}.json"
    if file in _this_process:
        return _this_process[file]
    with suppress(BerxitError):  # not cached, or the file is damaged
        cached: TuningResult = parse(TuningResult, read_json(file), str(file))
        if (cached.label, cached.threads) in names:  # else the file was edited: the caller's choice counts
            return cached
    log.warning(
        "measuring %d combinations of backend and threads for %s (once, %.0f s or more)",
        len(candidates),
        bundle,
        2 * RUN_SECONDS * len(candidates),
    )
    found = tune(
        bundle, manifest, backend=backend, backend_options=backend_options, threads=threads, progress=progress
    )[0]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(asdict(found), file)
    except OSError as error:
        _this_process[file] = found
        log.warning(
            "cannot write %s (%s): the next process measures again. Set BERXIT_CACHE to a writable folder, or"
            " load with backend='%s', backend_options=%s, threads=%d instead of tune=True",
            file,
            error.strerror,
            found.backend,
            found.backend_options,
            found.threads,
        )
    return found


_this_process: dict[Path, TuningResult] = {}
"""Results of this process, used if the cache cannot be written."""


def _versions(packages: Iterable[str]) -> list[str]:
    found = []
    for name in sorted(packages):
        with suppress(PackageNotFoundError):  # the distribution has another name than the package
            found.append(f"{name} {version(name)}")
    return found


def thread_counts() -> list[int]:
    """Thread counts to measure: 1, 2, 4, ... and the default thread count of this machine."""
    most = default_threads()
    return [count for count in (1, 2, 4, 8, 16) if count < most] + [most]


def full_depth(backend: Backend, batch: TokenBatch) -> None:
    """Runs all layers on ``batch``."""
    for _ in every_exit(backend, batch):
        pass


def _measure(
    backend: Backend, manifest: Manifest, golden: Golden, inputs: Sequence[TokenBatch], seconds: float
) -> list[list[float]]:
    """Latencies in milliseconds of each input. Raises BerxitError if an exit differs too much from the checkpoint."""
    largest = float(np.max(differences(backend, golden, manifest.model.pad_token_id, manifest.parity.scale)))
    if not largest <= allowed_difference(manifest, backend):
        raise BerxitError(f"with {backend.label} an exit differs from the checkpoint by {largest:.1e}")
    for batch in inputs:  # warm-up: the first run of each input length takes longer
        full_depth(backend, batch)
    taken: list[list[float]] = [[] for _ in inputs]
    until = time.perf_counter() + seconds
    while not taken[0] or time.perf_counter() < until:
        for times, batch in zip(taken, inputs, strict=True):
            start = time.perf_counter()
            full_depth(backend, batch)
            times.append(1e3 * (time.perf_counter() - start))
    return taken
