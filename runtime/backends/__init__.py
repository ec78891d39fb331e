"""Backends: each runs the segment files of one target. A target may have several.

A new backend is one module here and one entry in BACKENDS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from berxit.devices import install_command
from berxit.runtime.arguments import as_threads
from berxit.runtime.backend_options import BackendOption, Options, OptionValue, backend_label
from berxit.runtime.backends import forking
from berxit.runtime.bundle import Manifest, open_bundle
from berxit.runtime.bundle_files import BundleFolder
from berxit.runtime.errors import ANOTHER_BACKEND, BerxitError, InputError, one_line_errors
from berxit.runtime.progress import Progress, silent

if TYPE_CHECKING:
    from berxit.runtime.loop import Backend


@dataclass(frozen=True)
class BackendInfo:
    """A backend with its options, before anything of it is imported."""

    name: str
    module: str
    """The module with ``open_backend(folder, manifest, threads, **options)``. It may have ``unusable_here(**options)``:
    the reason why this machine cannot run the backend, or None."""
    package: str
    """The package that the module imports."""
    extra: str
    """The extra of berxit that installs it, as ``install_command`` accepts it."""
    options: tuple[BackendOption, ...] = ()
    """Keywords of ``open_backend``."""
    lazy: bool = False
    """True if ``open_backend`` accepts ``lazy``: load a layer when an input first reaches it."""
    builds: bool = False
    """True if ``open_backend`` accepts ``progress``: it may have to build engines first."""
    other_package: str | None = None
    """Another name under which the package may be installed."""
    cpu: bool = True
    """True if it computes on the CPU, so that the number of threads matters."""
    reopens: bool = False
    """True if a forked child process can open the segments again; otherwise the backend raises an error there."""

    @property
    def installed(self) -> bool:
        return any(find_spec(name) is not None for name in (self.package, self.other_package) if name)

    @property
    def install(self) -> str:
        """The command that installs it here."""
        return install_command(self.extra)

    @property
    def syntax(self) -> str:
        """Name and options as on the command line: openvino [bf16]."""
        return " ".join([self.name, *(f"[{option.syntax}]" for option in self.options)])

    def problem(self, options: Options | None = None) -> str | None:
        """The reason why this machine cannot run it with ``options``, with a remedy if there is one; None if it can."""
        if not self.installed:
            return f"{self.package} is not installed: {self.install}"
        try:
            module = import_module(self.module)
        except (ImportError, OSError) as error:  # A library that the package needs is missing.
            return f"{self.package} cannot be imported: {' '.join(str(error).split())}"
        check = getattr(module, "unusable_here", None)
        return check(**(options or {})) if check else None

    def with_options(self, options: Options | None) -> ChosenBackend:
        """The backend with checked options. Raises InputError for an unknown option or value."""
        chosen: dict[str, OptionValue] = {}
        known = {option.name: option for option in self.options}
        for name, value in (options or {}).items():
            if name not in known:
                others = " or ".join(sorted(_backends_with(name)))
                raise InputError(
                    f"backend '{self.name}' has no option '{name}': it has"
                    f" {', '.join(option.syntax for option in self.options) or 'none'}"
                    + (f". --backend {others} has it" if others else "")
                )
            known[name].check(value)
            if value is not False:
                chosen[name] = value
        return ChosenBackend(self, chosen)

    def variants(self) -> list[ChosenBackend]:
        """The backend with every combination of options that keeps the bundle's precision and the state of the
        process."""
        free = [o for o in self.options if o.atol == 0 and not o.changes_process]
        settings = product(*([{}, *option.settings] for option in free))
        return [
            ChosenBackend(self, {k: v for setting in combined for k, v in setting.items()}) for combined in settings
        ]


@dataclass(frozen=True)
class ChosenBackend:
    """A backend with the options that it is opened with."""

    info: BackendInfo
    options: Mapping[str, OptionValue] = field(default_factory=dict)

    @property
    def _used(self) -> list[BackendOption]:
        return [option for option in self.info.options if option.name in self.options]

    @property
    def label(self) -> str:
        return backend_label(self.info.name, self.options)

    @property
    def atol(self) -> float:
        """Largest difference of an exit from the checkpoint if an option lowers the precision, else 0."""
        return max((option.atol for option in self._used), default=0.0)

    @property
    def changes_process(self) -> bool:
        """True if opening it changes process-wide state."""
        return any(option.changes_process for option in self._used)


BACKENDS: dict[str, tuple[BackendInfo, ...]] = {
    "onnxruntime": (
        BackendInfo(
            "onnxruntime",
            "berxit.runtime.backends.onnxruntime",
            "onnxruntime",
            "onnxruntime",
            options=(
                BackendOption(
                    "shared_pool",
                    "one thread pool for all sessions of the process; sessions of the app must then use it, too",
                    changes_process=True,
                ),
            ),
            lazy=True,
            reopens=True,
        ),
        BackendInfo(
            "openvino",
            "berxit.runtime.backends.openvino",
            "openvino",
            "openvino",
            options=(
                BackendOption(
                    "bf16",
                    "compute in bfloat16, on CPUs that support it",
                    atol=0.1,  # A bfloat16 number has 8 significant bits.
                ),
            ),
            lazy=True,
        ),
    ),
    "tensorrt": (
        BackendInfo(
            "tensorrt",
            "berxit.runtime.backends.tensorrt",
            "tensorrt",
            "tensorrt",
            options=(
                BackendOption(
                    "cuda_graphs",
                    "run the layers of a single row as CUDA graphs (TensorRT 8.6 and later)",
                    experimental=True,
                ),
                BackendOption("run_ahead", "start layer i + 1 while the policy evaluates exit i", experimental=True),
                BackendOption(
                    "zero_copy",
                    "let the GPU read inputs and write outputs in the host's memory, which a Jetson shares",
                    experimental=True,
                ),
            ),
            builds=True,
            cpu=False,
        ),
        BackendInfo(
            "tensorrt-rtx",
            "berxit.runtime.backends.tensorrt.rtx",
            "tensorrt_rtx_bindings",
            "tensorrt-rtx",
            builds=True,
            other_package="tensorrt_rtx",
            cpu=False,
        ),
        BackendInfo(
            "onnxruntime-gpu",
            "berxit.runtime.backends.onnxruntime_gpu",
            "onnxruntime",
            "onnxruntime-gpu",
            cpu=False,
        ),
    ),
    "coreml": (
        BackendInfo(
            "coreml",
            "berxit.runtime.backends.coreml",
            "coremltools",
            "coreml",
            options=(
                BackendOption(
                    "units",
                    "compute units besides the CPU: Neural Engine, GPU or none; default: the profile of the Mac",
                    values=("ne", "gpu", "cpu"),
                ),
                BackendOption("embeddings_on_cpu", "run the embeddings on the CPU, the layers on the compute units"),
            ),
        ),
    ),
}
"""Target name in the manifest -> the backends that run it, the default first."""


def open_backend(
    folder: Path | BundleFolder,
    manifest: Manifest,
    threads: int | None = None,
    *,
    backend: str | None = None,
    backend_options: Options | None = None,
    lazy: bool = False,
    progress: Progress = silent,
) -> Backend:
    """Loads a bundle's segments with the backend called ``backend``, or the first that is installed. ``folder``: as
    ``open_bundle`` opened it, or a path, whose files are then checked as they are opened. ``progress`` receives
    the build of engines.

    ``backend_options``: options of this backend, as in BACKENDS.

    Raises InputError for a name that does not run this target, an option that the backend does not have, or a backend
    that cannot be ``lazy``; BerxitError if this machine has no backend for the bundle.
    """
    if threads is not None:
        threads = as_threads(threads)
    chosen = choose_backend(folder, manifest.target, backend, backend_options)
    info = chosen.info
    if lazy and not info.lazy:
        raise InputError(f"backend '{info.name}' opens all layers at once: omit lazy, or use another backend")

    def opened(bundle: Path | BundleFolder) -> Backend:
        keywords = {
            **chosen.options,
            **({"lazy": True} if lazy else {}),
            **({"progress": progress} if info.builds else {}),
        }
        with one_line_errors(f"backend '{chosen.label}' cannot open {bundle}", ANOTHER_BACKEND):
            backend_of_target: Backend = import_module(info.module).open_backend(bundle, manifest, threads, **keywords)
        backend_of_target.options = chosen.options
        return backend_of_target

    path = folder.path if isinstance(folder, BundleFolder) else folder  # An open folder keeps its files open.

    def opened_again() -> Backend:
        bundle, found = open_bundle(path)
        if found != manifest:
            raise BerxitError(f"{path} was replaced after it was loaded: load it again in this forked process")
        return opened(bundle)

    backend_here = opened(folder)
    forking.watch(backend_here, opened_again if info.reopens and not chosen.changes_process else None)
    return backend_here


def allowed_difference(manifest: Manifest, backend: Backend) -> float:
    """Largest difference of an exit from the checkpoint's if ``backend`` runs the bundle."""
    infos = [info for info in BACKENDS[manifest.target] if info.name == backend.name]
    return max([manifest.parity.atol, *(info.with_options(backend.options).atol for info in infos)])


def choose_backend(
    folder: Path | BundleFolder, target: str, name: str | None, options: Options | None = None
) -> ChosenBackend:
    """The backend that will run the bundle ``folder``, exported for ``target``. Raises as ``open_backend`` does."""
    known = BACKENDS.get(target)
    if known is None:
        raise BerxitError(
            f"{folder} was exported for '{target}', which this berxit cannot run:"
            f" it runs {', '.join(BACKENDS)}. Upgrade berxit, or export for one of these"
        )
    named = [info for info in known if name in (None, info.name)]
    if not named:
        raise InputError(
            f"no backend '{name}' runs bundles for {target}: choose {' or '.join(info.syntax for info in known)}"
        )
    installed = next((info for info in named if info.installed), None)
    chosen = (installed or named[0]).with_options(options)
    if installed is None:
        raise BerxitError(f"{folder} needs {named[0].package}, which is not installed here: {named[0].install}")
    return chosen


def options_help() -> str:
    """The options of every backend, for the help of commands."""
    infos = (info for known in BACKENDS.values() for info in known if info.options)
    return "; ".join(f"{info.name}: {', '.join(map(_with_state, info.options))}" for info in infos)


def _with_state(option: BackendOption) -> str:
    return f"{option.syntax} (experimental)" if option.experimental else option.syntax


def _backends_with(option: str) -> set[str]:
    """Names of the backends that have the option."""
    infos = (info for known in BACKENDS.values() for info in known)
    return {info.name for info in infos if option in {each.name for each in info.options}}
