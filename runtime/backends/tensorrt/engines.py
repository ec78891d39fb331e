"""Engines from segment files. An engine works with one TensorRT version and one GPU, so it is built on the device. It
is cached under a key of everything that it depends on, and built again if any of that changes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

from berxit.runtime.backends.tensorrt.cuda import Gpu
from berxit.runtime.backends.tensorrt.plan import shape_of
from berxit.runtime.backends.tensorrt.versions import Api
from berxit.runtime.bundle import Manifest, Segment
from berxit.runtime.bundle_files import BundleFile, BundleFolder
from berxit.runtime.errors import BerxitError
from berxit.runtime.progress import Bar, Progress, show_note, silent
from berxit.runtime.storage import replacing

Buffer = bytes | memoryview

RECIPE = 3
"""Version of the build settings. A new version makes older engines invalid. 2: no TF32. 3: float32 layers of TensorRT 8
by name, and profiles that contexts share."""
WORKSPACE_MIB = 1024
"""Default workspace of the builder; the device's profile can override it."""


@dataclass(frozen=True)
class EngineKey:
    """Everything that an engine depends on."""

    builder: str
    version: str
    gpu: str
    """The GPU's name; empty if an engine works on every GPU of the compute capability (TensorRT-RTX)."""
    capability: tuple[int, int]
    multiprocessors: int
    """0 if an engine works on every GPU of the compute capability."""
    precision: str
    lengths: tuple[int, ...]
    max_batch: int
    segment: str
    """sha256 of the segment file."""
    recipe: int = RECIPE

    @property
    def digest(self) -> str:
        return sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:24]


class EngineCache:
    """Engines and timing caches as files. A file is written completely or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "tensorrt"

    def path(self, key: EngineKey) -> Path:
        return self.folder / f"{key.digest}.engine"

    def write(self, key: EngineKey, engine: Buffer, seconds: float) -> None:
        """Stores the engine, and its key and the duration of its build as JSON for a reader."""
        record = asdict(key) | {"seconds": round(seconds, 2)}
        _write(self.path(key).with_suffix(".json"), json.dumps(record, indent=1).encode())
        _write(self.path(key), engine)

    def build_seconds(self, key: EngineKey) -> float | None:
        """Median duration of earlier builds with the same TensorRT for the same GPU; None if there was none."""
        found = []
        for file in self.folder.glob("*.json"):
            with suppress(OSError, ValueError, KeyError, TypeError):  # a file of an older version, or a damaged one
                record = json.loads(file.read_bytes())
                if all(record[name] == getattr(key, name) for name in ("builder", "version", "gpu", "multiprocessors")):
                    found.append(float(record["seconds"]))
        return median(found) if found else None

    def forget(self, key: EngineKey) -> None:
        self.path(key).unlink(missing_ok=True)

    def kept_path(self, kind: str, api: Api, gpu: Gpu) -> Path:
        """``kind``: timing (the builder's timing cache), or kernels (compiled by TensorRT-RTX at run time)."""
        name = sha256(repr((api.builder, api.version, gpu)).encode()).hexdigest()[:24]
        return self.folder / f"{name}.{kind}"

    def read_kept(self, kind: str, api: Api, gpu: Gpu) -> bytes:
        return _read(self.kept_path(kind, api, gpu)) or b""

    def write_kept(self, kind: str, api: Api, gpu: Gpu, content: Buffer) -> None:
        _write(self.kept_path(kind, api, gpu), content)


def key_of(manifest: Manifest, segment: Segment, api: Api, gpu: Gpu) -> EngineKey:
    return EngineKey(
        api.builder,
        api.version,
        "" if api.ahead_of_time else gpu.name,
        gpu.capability,
        0 if api.ahead_of_time else gpu.multiprocessors,
        manifest.precision,
        manifest.lengths,
        rows_of(manifest),
        segment.sha256,
    )


def rows_of(manifest: Manifest) -> int:
    """Largest number of rows per call of an engine."""
    return manifest.max_batch or 1


def files_to_build(manifest: Manifest) -> dict[str, Segment]:
    """Segment file -> the first segment that uses it. Layers with shared weights share an engine."""
    found: dict[str, Segment] = {}
    for segment in manifest.segments:
        found.setdefault(segment.file, segment)
    return found


def prepare_engines(
    folder: Path | BundleFolder,
    manifest: Manifest,
    api: Api,
    gpu: Gpu,
    cache: EngineCache,
    *,
    workspace_mib: int = WORKSPACE_MIB,
    progress: Progress = silent,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Path]:
    """Segment file -> the file of its engine in the cache. Builds the missing ones, with one builder, because each
    would load TensorRT's kernels again. Raises BerxitError if one cannot be built."""
    if not manifest.lengths:
        raise BerxitError(f"{folder}: its manifest has no lengths, which an engine needs: export it again")
    segments, bundle = files_to_build(manifest), BundleFolder.at(folder)
    api.check_files(manifest, str(bundle.path))
    files = {file: bundle.file(segment, verify=True) for file, segment in segments.items()}  # Keys contain the sha256.
    keys = {file: key_of(manifest, segment, api, gpu) for file, segment in segments.items()}
    missing = [file for file, key in keys.items() if not cache.path(key).exists()]
    if missing:
        expected = _expectation(cache.build_seconds(keys[missing[0]]), len(missing))
        share = f"{len(missing)} of {len(segments)}"
        report(f"{api.title} builds {share} engines for {gpu.name} into {cache.folder}: {expected}")
        builder = api.make_builder()
        with progress(len(missing)) as bar:
            for file in missing:
                start = time.perf_counter()
                build = partial(_build_one, files[file], manifest, segments[file], api, builder)
                engine = build(gpu, cache, workspace_mib, note=partial(_note, bar, Path(file).stem))
                cache.write(keys[file], engine, time.perf_counter() - start)
                bar.update(1)
    return {file: cache.path(key) for file, key in keys.items()}


def _expectation(seconds: float | None, engines: int) -> str:
    """Expected duration of a build, from the duration of an earlier one."""
    if seconds is None:
        return "no build on this GPU is recorded yet; it can take minutes"
    total = seconds * engines
    duration = f"{total:.0f} s" if total < 100 else f"{total / 60:.0f} min"
    return f"expected: {duration}, as an engine took {seconds:.1f} s in earlier builds"


def _note(bar: Bar, file: str, text: str) -> None:
    """Shows a step of the build of ``file`` beside the bar, if the bar can do that."""
    show_note(bar, f"{file}: {text}")


def _build_one(
    file: BundleFile,
    manifest: Manifest,
    segment: Segment,
    api: Api,
    builder: Any,
    gpu: Gpu,
    cache: EngineCache,
    workspace_mib: int,
    note: Callable[[str], None] = lambda text: None,
) -> Buffer:
    """The engine of a file, in the memory of TensorRT."""
    network = api.network(builder)
    parser = api.parse(network, file)
    config = api.config(builder)
    api.set_workspace(config, workspace_mib)
    api.set_precision(config, network, manifest.precision, exits=segment.layer > 0)
    api.set_capability(config, gpu.capability)
    timings = api.timing_cache(config, cache.read_kept("timing", api, gpu))  # Identical layers are timed once.
    for profile in profiles(api, builder, manifest, segment):
        api.add_profile(config, profile)
    engine = api.build(builder, network, config, str(file), note)
    del parser
    if timings is not None:
        cache.write_kept("timing", api, gpu, memoryview(config.get_timing_cache().serialize()))
    return memoryview(engine)


def read_engine(file: Path) -> bytes:
    """Raises BerxitError if the engine was deleted from the cache meanwhile."""
    content = _read(file)
    if content is None:
        raise BerxitError(f"{file} is missing: another process cleared the engine cache. Load the bundle again")
    return content


def profiles(api: Api, builder: Any, manifest: Manifest, segment: Segment) -> Iterator[Any]:
    """One optimization profile per input length, tuned for a single row. Kernels for a fixed length are faster than
    kernels for a range."""
    for length in manifest.lengths:
        profile = api.make_profile(builder)
        for tensor in segment.inputs:
            if any(isinstance(size, str) for size in tensor.shape):
                rows = (1, rows_of(manifest))
                api.set_shape(profile, tensor.name, *(shape_of(tensor, count, length) for count in rows))
        yield profile


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _write(path: Path, content: Buffer) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as scratch:
            scratch.write_bytes(content)
    except OSError as error:
        raise BerxitError(f"cannot write {path}: {error.strerror}. Set BERXIT_CACHE to a folder with room") from error
