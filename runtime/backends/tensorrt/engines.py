"""Engines from segment files. An engine works with one TensorRT version and one GPU, so it is built on the device. It
is cached under a key of everything that it depends on, and built again if any of that changes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from berxit.runtime.backends.tensorrt.cuda import Gpu
from berxit.runtime.backends.tensorrt.plan import shape_of
from berxit.runtime.backends.tensorrt.versions import Api
from berxit.runtime.bundle import Manifest, Segment
from berxit.runtime.bundle_files import BundleFile, BundleFolder
from berxit.runtime.errors import BerxitError
from berxit.runtime.progress import Progress, silent
from berxit.runtime.storage import replacing

RECIPE = 2
"""Version of the build settings. A new version makes older engines invalid. 2: no TF32."""
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

    def read(self, key: EngineKey) -> bytes | None:
        return _read(self.path(key))

    def write(self, key: EngineKey, engine: bytes) -> None:
        """Stores the engine, and its key as JSON for a reader."""
        _write(self.path(key).with_suffix(".json"), json.dumps(asdict(key), indent=1).encode())
        _write(self.path(key), engine)

    def forget(self, key: EngineKey) -> None:
        self.path(key).unlink(missing_ok=True)

    def kept_path(self, kind: str, api: Api, gpu: Gpu) -> Path:
        """``kind``: timing (the builder's timing cache), or kernels (compiled by TensorRT-RTX at run time)."""
        name = sha256(repr((api.builder, api.version, gpu)).encode()).hexdigest()[:24]
        return self.folder / f"{name}.{kind}"

    def read_kept(self, kind: str, api: Api, gpu: Gpu) -> bytes:
        return _read(self.kept_path(kind, api, gpu)) or b""

    def write_kept(self, kind: str, api: Api, gpu: Gpu, content: bytes) -> None:
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
) -> dict[str, bytes]:
    """Segment file -> its engine, from the cache or newly built. Raises BerxitError if one cannot be built."""
    if not manifest.lengths:
        raise BerxitError(f"{folder}: its manifest has no lengths, which an engine needs: export it again")
    segments, bundle = files_to_build(manifest), BundleFolder.at(folder)
    files = {file: bundle.file(segment, verify=True) for file, segment in segments.items()}  # Keys contain the sha256.
    keys = {file: key_of(manifest, segment, api, gpu) for file, segment in segments.items()}
    engines = {file: engine for file, key in keys.items() if (engine := cache.read(key)) is not None}
    missing = [file for file in segments if file not in engines]
    if missing:
        report(f"{api.title} builds {len(missing)} of {len(segments)} engines for {gpu.name} into {cache.folder}")
        with progress(len(missing)) as bar:
            for file in missing:
                engines[file] = _build_one(files[file], manifest, segments[file], api, gpu, cache, workspace_mib)
                cache.write(keys[file], engines[file])
                bar.update(1)
    return engines


def _build_one(
    file: BundleFile, manifest: Manifest, segment: Segment, api: Api, gpu: Gpu, cache: EngineCache, workspace_mib: int
) -> bytes:
    builder = api.trt.Builder(api.logger)
    network = api.network(builder)
    parser = api.parse(network, file)
    config = builder.create_builder_config()
    api.set_workspace(config, workspace_mib)
    api.set_precision(config, network, manifest.precision)
    api.set_capability(config, gpu.capability)
    timings = api.timing_cache(config, cache.read_kept("timing", api, gpu))  # Identical layers are timed once.
    for profile in profiles(api, builder, manifest, segment):
        api.add_profile(config, profile)
    engine = builder.build_serialized_network(network, config)
    del parser
    if engine is None:
        raise BerxitError(
            f"{api.title} could not build {file}: {api.said()}. Give it more memory"
            " (--workspace), or export with a --target-version or --precision that it knows"
        )
    if timings is not None:
        cache.write_kept("timing", api, gpu, bytes(memoryview(config.get_timing_cache().serialize())))
    return bytes(memoryview(engine))


def profiles(api: Api, builder: Any, manifest: Manifest, segment: Segment) -> Iterator[Any]:
    """One optimization profile per input length, tuned for a single row. Kernels for a fixed length are faster than
    kernels for a range."""
    for length in manifest.lengths:
        profile = builder.create_optimization_profile()
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


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as scratch:
            scratch.write_bytes(content)
    except OSError as error:
        raise BerxitError(f"cannot write {path}: {error.strerror}. Set BERXIT_CACHE to a folder with room") from error
