"""Which back end and how many threads are fastest here: measured on the bundle's golden inputs, at full depth, batch 1.

One candidate is loaded at a time, so that tuning needs no more memory than running. All are visited twice, there and
back, so that a slow moment of the machine seldom falls on one alone. What wins on one device means nothing on the next,
and a bundle is the same everywhere: the winner is remembered in the device's cache folder, never in the bundle.
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
from berxit.runtime.cache import cache_folder
from berxit.runtime.errors import BerxitError, InputError, NoisyError, PoolError
from berxit.runtime.golden import Golden, differences, read_golden
from berxit.runtime.json_data import parse, read_json, write_json
from berxit.runtime.loop import Backend, every_exit
from berxit.runtime.noise import QUIET, CpuMeter, Noise, noisy
from berxit.runtime.progress import Progress, silent
from berxit.runtime.tokenization import TokenBatch

log = logging.getLogger(__name__)

VISIT_SECONDS = 0.5
"""The least time for which each of a candidate's two visits is measured."""


@dataclass(frozen=True)
class Tried:
    """One way to run the bundle, and what an input took at full depth."""

    backend: str
    threads: int
    median_ms: float
    """Of the better visit. Tokenisation is not in it."""

    def __str__(self) -> str:
        return f"--backend {self.backend} --threads {self.threads}"


def tune(
    bundle: Path | BundleFolder,
    manifest: Manifest,
    *,
    backend: str | None = None,
    threads: int | None = None,
    seconds: float = VISIT_SECONDS,
    accept_noise: bool = False,
    progress: Progress = silent,
) -> tuple[Tried, ...]:
    """Every installed backend of the bundle's precision under every thread count that makes sense here, the fastest
    first.

    ``backend`` and ``threads`` fix one of them; only ``backend`` takes one that computes in another precision.
    ``seconds``: the least that a visit measures. A backend that this machine cannot run, or whose exits differ too much
    from the checkpoint's, is omitted, and so is one that changes the process. Raises InputError where that is the
    requested one, BerxitError where none remains, NoisyError on a busy machine unless ``accept_noise``.
    """
    candidates = candidates_of(bundle, manifest, backend, threads)
    golden = read_golden(bundle, manifest)
    inputs = golden.one_by_one(manifest.model.pad_token_id)
    times: dict[tuple[str, int], list[list[list[float]]]] = {}
    """Candidate -> visit -> input -> milliseconds."""
    meter = CpuMeter()
    refused: dict[str, str] = {}
    with progress(2 * len(candidates)) as bar:
        for name, count in [*candidates, *reversed(candidates)]:
            if name not in refused:
                try:
                    found = _visit(
                        open_backend(bundle, manifest, count, backend=name), manifest, golden, inputs, seconds
                    )
                    times.setdefault((name, count), []).append(found)
                except PoolError as error:  # not this bundle's fault, and nothing to remember
                    raise BerxitError(f"{bundle} cannot be tuned here: {error}") from error
                except BerxitError as error:
                    refused[name] = str(error)
            bar.update(1)
    times = {(name, count): visits for (name, count), visits in times.items() if name not in refused}
    if not times:
        raise BerxitError(f"{bundle}: nothing here can run it: {next(iter(refused.values()))}")
    works = [np.concatenate(work) for visits in times.values() for work in zip(*visits, strict=True)]
    problems = Noise.of(works, meter, max(count for _, count in times)).problems()
    if problems and not accept_noise:
        raise NoisyError(f"{noisy(str(bundle), problems)}: no backend is chosen. {QUIET}")
    tried = [
        Tried(name, count, min(float(np.median(np.concatenate(visit))) for visit in visits))
        for (name, count), visits in times.items()
    ]
    return tuple(sorted(tried, key=lambda each: each.median_ms))


def candidates_of(
    bundle: Path | BundleFolder, manifest: Manifest, backend: str | None, threads: int | None
) -> list[tuple[str, int]]:
    """The backends, with thread counts, that ``tune`` measures. Raises InputError as ``tune`` does."""
    choose_backend(bundle, manifest.target, backend)  # an unknown name, or nothing installed: the error of load
    installed = [info for info in BACKENDS[manifest.target] if info.installed and backend in (None, info.name)]
    if backend is not None and installed[0].changes_process:
        raise InputError(
            f"backend '{backend}' cannot be tuned: it changes this process. Give --threads, without --tune"
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
    """The first of ``tune``, measured once: the device's cache folder keeps it under the bundle's files, the machine
    and the candidates.

    Logs a warning before it measures, since that takes seconds, and one where the cache cannot be written: the result
    then lasts as long as the process. Raises as ``tune`` does.
    """
    packages = {info.package for info in BACKENDS[manifest.target] if info.installed}
    candidates = candidates_of(bundle, manifest, backend, threads)
    depends = (sorted(files_of(manifest).items()), str(this_machine()), candidates, _versions(packages))
    digest = sha256(repr(depends).encode()).hexdigest()[:24]
    file = cache_folder() / "tuned" / f"{digest}.json"
    if file in _this_process:
        return _this_process[file]
    with suppress(BerxitError):  # not there, or damaged
        remembered: Tried = parse(Tried, read_json(file), str(file))
        return remembered
    log.warning(
        "measuring which of %d ways to run %s is fastest here (%.0f s or more, once)",
        len(candidates),
        bundle,
        2 * VISIT_SECONDS * len(candidates),
    )
    found = tune(bundle, manifest, backend=backend, threads=threads, progress=progress)[0]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(asdict(found), file)
    except OSError as error:
        _this_process[file] = found
        log.warning(
            "cannot write %s (%s): the next process measures again. Set BERXIT_CACHE to a writable folder, or"
            " load with backend='%s', threads=%d instead of tune=True",
            file,
            error.strerror,
            found.backend,
            found.threads,
        )
    return found


_this_process: dict[Path, Tried] = {}
"""Results of this process where the cache cannot be written."""


def _versions(packages: Iterable[str]) -> list[str]:
    found = []
    for name in sorted(packages):
        with suppress(PackageNotFoundError):  # a package that another distribution brings
            found.append(f"{name} {version(name)}")
    return found


def thread_counts() -> list[int]:
    """1, 2, 4, ... up to what a back end takes by default here."""
    most = default_threads()
    return [count for count in (1, 2, 4, 8, 16) if count < most] + [most]


def full_depth(backend: Backend, batch: TokenBatch) -> None:
    for _ in every_exit(backend, batch):
        pass


def _visit(
    backend: Backend, manifest: Manifest, golden: Golden, inputs: Sequence[TokenBatch], seconds: float
) -> list[list[float]]:
    """Milliseconds of every run of each input. Raises BerxitError for exits that are off the checkpoint."""
    largest = float(np.max(differences(backend, golden, manifest.model.pad_token_id, manifest.parity.scale)))
    if not largest <= allowed_difference(manifest, backend.name):
        raise BerxitError(f"by {backend.name} an exit is {largest:.1e} off the checkpoint")
    for batch in inputs:  # a length that is new costs more, once
        full_depth(backend, batch)
    taken: list[list[float]] = [[] for _ in inputs]
    until = time.perf_counter() + seconds
    while not taken[0] or time.perf_counter() < until:
        for times, batch in zip(taken, inputs, strict=True):
            start = time.perf_counter()
            full_depth(backend, batch)
            times.append(1e3 * (time.perf_counter() - start))
    return taken
