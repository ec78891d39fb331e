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
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from berxit.devices import default_threads, this_machine
from berxit.runtime.backends import BACKENDS, allowed_difference, choose_backend, open_backend
from berxit.runtime.bundle import Manifest, files_of
from berxit.runtime.bundle_files import BundleFolder
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
class Tried:
    """Backend and thread count, with the measured latency at full depth."""

    backend: str
    threads: int
    median_ms: float
    """Lower median of two runs; excludes tokenization."""

    def __str__(self) -> str:
        return f"--backend {self.backend} --threads {self.threads}"


def tune(
    bundle: Path | BundleFolder,
    manifest: Manifest,
    *,
    backend: str | None = None,
    threads: int | None = None,
    seconds: float = RUN_SECONDS,
    accept_noise: bool = False,
    progress: Progress = silent,
) -> tuple[Tried, ...]:
    """Measures every installed backend with every suitable thread count, and returns the results, fastest first.

    ``backend`` and ``threads`` restrict the candidates. A backend that computes in another precision than the bundle is
    measured only if ``backend`` names it. ``seconds``: minimum duration of a run.

    Omits backends that do not run on this machine, whose exits differ too much from the checkpoint, or that change
    process-wide state. Raises InputError if ``backend`` changes process-wide state, BerxitError if no backend remains,
    NoisyError on a busy machine unless ``accept_noise``.
    """
    candidates = candidates_of(bundle, manifest, backend, threads)
    golden = read_golden(bundle, manifest)
    inputs = golden.one_by_one(manifest.model.pad_token_id)
    times: dict[tuple[str, int], list[list[list[float]]]] = {}
    """Candidate -> run -> input -> latencies in milliseconds."""
    meter = CpuMeter()
    refused: dict[str, str] = {}
    with progress(2 * len(candidates)) as bar:
        for name, count in [*candidates, *reversed(candidates)]:
            if name not in refused:
                try:
                    found = _measure(
                        open_backend(bundle, manifest, count, backend=name), manifest, golden, inputs, seconds
                    )
                    times.setdefault((name, count), []).append(found)
                except PoolError as error:  # the process causes it, not the backend: nothing to cache
                    raise BerxitError(f"{bundle} cannot be tuned here: {error}") from error
                except BerxitError as error:
                    refused[name] = str(error)
            bar.update(1)
    times = {(name, count): runs for (name, count), runs in times.items() if name not in refused}
    if not times:
        raise BerxitError(f"{bundle}: no installed backend can run it: {next(iter(refused.values()))}")
    works = [np.concatenate(work) for runs in times.values() for work in zip(*runs, strict=True)]
    problems = Noise.of(works, meter, max(count for _, count in times)).problems()
    if problems and not accept_noise:
        raise NoisyError(f"{noisy(str(bundle), problems)}: no backend is chosen. {QUIET}")
    tried = [
        Tried(name, count, min(float(np.median(np.concatenate(run))) for run in runs))
        for (name, count), runs in times.items()
    ]
    return tuple(sorted(tried, key=lambda each: each.median_ms))


def candidates_of(
    bundle: Path | BundleFolder, manifest: Manifest, backend: str | None, threads: int | None
) -> list[tuple[str, int]]:
    """Backends and thread counts that ``tune`` measures. Raises InputError as ``tune`` does."""
    choose_backend(bundle, manifest.target, backend)  # raises for an unknown name, and if no backend is installed
    installed = [info for info in BACKENDS[manifest.target] if info.installed and backend in (None, info.name)]
    if backend is not None and installed[0].changes_process:
        raise InputError(
            f"backend '{backend}' cannot be tuned, because it changes process-wide state: use --threads instead of"
            " --tune"
        )
    return [
        (info.name, count)
        for info in installed
        if not info.changes_process and (info.same_precision or backend is not None)
        for count in ([threads] if threads else thread_counts() if info.cpu else [1])
    ]


def fastest(
    bundle: Path | BundleFolder,
    manifest: Manifest,
    *,
    backend: str | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> Tried:
    """Fastest result of ``tune``, from the device's cache folder if it was measured before. The cache key covers the
    bundle's files, the machine, the candidates and the versions of their packages.

    Logs a warning before it measures, because that takes seconds, and if the cache cannot be written; the result is
    then cached in this process only. Raises the errors of ``tune``.
    """
    from berxit.runtime.backends.tensorrt.engines import (
        cache_folder,
    )  # imported late, because its package is slow to import

    packages = {info.package for info in BACKENDS[manifest.target] if info.installed}
    candidates = candidates_of(bundle, manifest, backend, threads)
    depends = (sorted(files_of(manifest).items()), str(this_machine()), candidates, _versions(packages))
    digest = sha256(repr(depends).encode()).hexdigest()[:24]
    file = cache_folder() / "tuned" / f"{digest}.json"
    if file in _this_process:
        return _this_process[file]
    with suppress(BerxitError):  # not cached, or the file is damaged
        remembered: Tried = parse(Tried, read_json(file), str(file))
        return remembered
    log.warning(
        "measuring %d combinations of backend and threads for %s (once, %.0f s or more)",
        len(candidates),
        bundle,
        2 * RUN_SECONDS * len(candidates),
    )
    found = tune(bundle, manifest, backend=backend, threads=threads, progress=progress)[0]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(asdict(found), file)
    except OSError as error:
        _this_process[file] = found
        log.warning(
            "cannot write %s (%s): the next process will measure again. Set BERXIT_CACHE to a writable folder, or"
            " load with backend='%s', threads=%d instead of tune=True",
            file,
            error.strerror,
            found.backend,
            found.threads,
        )
    return found


_this_process: dict[Path, Tried] = {}
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
    if not largest <= allowed_difference(manifest, backend.name):
        raise BerxitError(f"with backend {backend.name} an exit differs from the checkpoint by {largest:.1e}")
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
