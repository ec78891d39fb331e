"""Stress test: every prediction must come from one bundle only while two bundles are swapped.

    python benchmarks/swaps.py BUNDLE [--swaps 1000] [--threads 4] [--minutes 5] --output swaps

The second bundle is a copy of BUNDLE with other weights in every segment, so that its outputs differ at every layer.
The live path is swapped by renaming folders, by renaming a link, and by ``write_whole(force=True)``, which deletes the
old bundle. Meanwhile each thread loads the live path, with and without verification, and streams texts through all
layers, with pauses in which a lazy runner may open files. The outputs of all layers must equal those of one of the two
bundles. Each case (backend x eager or lazy x kind of swap) runs in a separate process.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import click
import numpy as np
import onnx
from onnx import numpy_helper

from berxit.runtime import EarlyExitRunner
from berxit.runtime.backend_options import parse_option_flags
from berxit.runtime.bundle import read_manifest, sha256
from berxit.runtime.console import debug_option, progress_bar, run
from berxit.runtime.errors import BerxitError
from berxit.runtime.golden import read_golden
from berxit.runtime.results import write_results
from berxit.runtime.storage import write_whole
from berxit.runtime.tables import markdown_table
from berxit.runtime.tokenization import Text

BACKENDS = ("onnxruntime", "onnxruntime:shared-pool", "openvino")
"""Backends as NAME or NAME:OPTION; OPTION is a ``--backend-option`` of the bench."""
WAYS = ("rename", "link", "force")
APART = 1e-3
"""Minimum difference between the scores of the two bundles at every layer, on at least one text."""
SAME = 1e-6
"""Largest difference between scores of the same bundle."""


@dataclass
class Counts:
    """Results of one case."""

    backend: str
    lazy: bool
    way: str
    swaps: int = 0
    loads: int = 0
    predictions: int = 0
    by_bundle: list[int] = field(default_factory=lambda: [0, 0])
    """Number of predictions from the first and from the second bundle."""
    mixed: int = 0
    """Number of predictions that equal those of neither bundle."""
    failures: list[str] = field(default_factory=list)
    """Errors of loads and predictions."""
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        return not self.mixed and not self.failures and all(self.by_bundle)


def other_bundle(bundle: Path, output: Path) -> Path:
    """Copies ``bundle`` with other weights in every segment, so that its outputs differ at every layer."""
    rng = np.random.default_rng(0)
    shutil.copytree(bundle, output)
    data = json.loads((output / "manifest.json").read_text(encoding="utf-8"))
    for file in {segment["file"] for segment in data["segments"]}:
        model = onnx.load(str(output / file))
        for weight in model.graph.initializer:
            if weight.data_type == onnx.TensorProto.FLOAT:
                values = numpy_helper.to_array(weight)
                noise = rng.normal(0, 0.05 + 0.3 * float(values.std()), values.shape)
                weight.CopyFrom(numpy_helper.from_array((values + noise).astype(np.float32), weight.name))
        onnx.save(model, str(output / file))
        for segment in data["segments"]:
            if segment["file"] == file:
                segment["sha256"] = sha256(output / file)
    (output / "manifest.json").write_text(json.dumps(data), encoding="utf-8")
    return output


def every_layer(runner: EarlyExitRunner, text: Text, pause: Callable[[], None] = lambda: None) -> list[list[float]]:
    """Scores at every layer."""
    found = []
    for step in runner.stream(*((text,) if isinstance(text, str) else text)):
        found.append(list(step.scores.values()))
        pause()
    return found


def swapper(way: str, bundles: tuple[Path, Path], live: Path) -> Callable[[int], None]:
    """Function that replaces the live bundle by bundle number i % 2; installs number 0 first."""
    spare = live.with_name("spare")

    def rename(turn: int) -> None:
        aside = live.with_name("aside")
        live.rename(aside)
        spare.rename(live)
        aside.rename(spare)

    def link(turn: int) -> None:
        new = live.with_name("new")
        new.symlink_to(bundles[turn % 2])
        new.replace(live)

    def force(turn: int) -> None:
        with write_whole(live, force=True) as folder:
            shutil.copytree(bundles[turn % 2], folder, dirs_exist_ok=True)

    if way == "link":
        live.symlink_to(bundles[0])
    else:
        shutil.copytree(bundles[0], live)
        shutil.copytree(bundles[1], spare)
    return {"rename": rename, "link": link, "force": force}[way]


def campaign(
    bundles: tuple[Path, Path], backend: str, lazy: bool, way: str, swaps: int, threads: int, seconds: float
) -> Counts:
    """Runs one case until ``swaps`` swaps are done and both bundles were used, or ``seconds`` are over."""
    texts = read_golden(bundles[0], read_manifest(bundles[0])).inputs[:4]
    counts, lock, over = Counts(backend, lazy, way), threading.Lock(), threading.Event()
    name, _, flag = backend.partition(":")
    load = partial(
        EarlyExitRunner.load, backend=name, backend_options=parse_option_flags([flag] if flag else []), threads=1
    )
    runners = [load(bundle) for bundle in bundles]
    expected = [[every_layer(runner, text) for text in texts] for runner in runners]
    distances = np.abs(np.array(expected[0]) - np.array(expected[1])).max(axis=(0, 2))
    if distances.min() < APART:
        raise BerxitError(
            f"the scores of the two bundles differ by less than {APART} at a layer: {distances}. Choose another BUNDLE"
        )
    del runners  # otherwise all sessions would be cached in the process

    def use(seed: int) -> None:
        rng = random.Random(seed)
        while not over.is_set():
            try:
                runner = load(live, lazy=lazy, verify=rng.random() < 0.7)
                with lock:
                    counts.loads += 1
                for number in rng.sample(range(len(texts)), 2):
                    found = every_layer(runner, texts[number], lambda: time.sleep(rng.choice((0, 0.002, 0.01))))
                    near = [bool(np.abs(np.array(found) - one[number]).max() < SAME) for one in expected]
                    with lock:
                        counts.predictions += 1
                        counts.mixed += not any(near)
                        counts.by_bundle[0] += near[0]
                        counts.by_bundle[1] += near[1]
            except Exception as error:
                with lock:
                    counts.failures.append(f"{type(error).__name__}: {error}")
                over.set()

    with tempfile.TemporaryDirectory(dir=bundles[0].parent) as place:
        live = Path(place) / "live"
        swap = swapper(way, bundles, live)
        workers = [threading.Thread(target=use, args=(seed,)) for seed in range(threads)]
        start = time.monotonic()
        for worker in workers:
            worker.start()
        while not over.is_set() and time.monotonic() - start < seconds:
            if counts.swaps >= swaps and all(counts.by_bundle):
                break
            counts.swaps += 1
            swap(counts.swaps)
            time.sleep(random.uniform(0, 0.01))
        over.set()
        for worker in workers:
            worker.join()
        counts.seconds = time.monotonic() - start
    return counts


def alone(*arguments: object) -> Counts:
    """Runs ``campaign`` in a separate process, because the ONNX Runtime thread pool changes process-wide state."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(campaign, *arguments).result()  # type: ignore[arg-type]


@click.command("swaps")
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.option("--swaps", default=1000, show_default=True, help="Number of swaps per case.")
@click.option("--threads", default=4, show_default=True, help="Number of threads that load and predict.")
@click.option("--minutes", default=5.0, show_default=True, help="Maximum duration of a case.")
@click.option("--backend", "chosen", multiple=True, default=BACKENDS, show_default=True)
@click.option("--way", "ways", multiple=True, default=WAYS, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
@click.option("--quiet", is_flag=True)
@debug_option
def command(
    bundle: Path,
    swaps: int,
    threads: int,
    minutes: float,
    chosen: tuple[str, ...],
    ways: tuple[str, ...],
    output: Path,
    quiet: bool,
) -> int:
    """Swap BUNDLE and another bundle while threads use them. The exit status is 1 if a prediction is mixed or fails."""
    cases = [(backend, lazy, way) for backend in chosen for lazy in (False, True) for way in ways]
    found = []
    with tempfile.TemporaryDirectory() as place, progress_bar("swapping", quiet)(len(cases)) as bar:
        first = Path(shutil.copytree(bundle, Path(place) / "first"))
        bundles = first, other_bundle(first, Path(place) / "second")
        for case in cases:
            found.append(alone(bundles, *case, swaps, threads, 60 * minutes))
            bar.update(1)
    rows = [
        [
            counts.backend,
            "lazy" if counts.lazy else "eager",
            counts.way,
            str(counts.swaps),
            str(counts.loads),
            str(counts.predictions),
            " / ".join(map(str, counts.by_bundle)),
            str(counts.mixed),
            str(len(counts.failures)),
        ]
        for counts in found
    ]
    header = ["backend", "load", "swap by", "swaps", "loads", "predictions", "first / second", "mixed", "failures"]
    text = markdown_table(header, rows)
    write_results(output, "swaps", {"cases": [asdict(counts) for counts in found], "cores": os.cpu_count()}, text)
    click.echo(text)
    for failure in sorted({failure for counts in found for failure in counts.failures}):
        click.echo(failure, err=True)
    return 0 if all(counts.good for counts in found) else 1


if __name__ == "__main__":
    run(command)
