"""Back ends: each runs one target's segment files for the exit loop. A target may have several.

A new one is one module here and one entry in BACKENDS.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from berxit.devices import install_command, tensorrt_command
from berxit.runtime.arguments import as_threads
from berxit.runtime.backends import forking
from berxit.runtime.bundle import Manifest, open_bundle
from berxit.runtime.bundle_files import BundleFolder
from berxit.runtime.errors import ANOTHER_BACKEND, BerxitError, InputError, one_line_errors
from berxit.runtime.progress import Progress, silent

if TYPE_CHECKING:
    from berxit.runtime.loop import Backend


@dataclass(frozen=True)
class BackendInfo:
    name: str
    module: str
    """The module here that has ``open_backend(folder, manifest, threads)``."""
    package: str
    """What it imports; not there -> the user is told how to install it."""
    extra: str
    """The extra of berxit that brings it."""
    options: dict[str, Any] = field(default_factory=dict)
    """What ``open_backend`` is told besides, where one module is several back ends."""
    atol: float = 0.0
    """Largest difference from the checkpoint for a backend that computes in a lower precision than the files'; 0 for
    others, which the bundle's own tolerance applies to."""
    lazy: bool = False
    """Whether its ``open_backend`` takes ``lazy``: open a layer when an input first gets there."""
    builds: bool = False
    """True if its ``open_backend`` accepts ``progress``: it may have to build engines first."""
    other_package: str | None = None
    """Another name that the package may be installed under."""
    cpu: bool = True
    """Whether it computes on the CPU, so that threads matter."""
    reopens: bool = False
    """True if a forked child process can open the segments again; otherwise the backend raises an error there."""
    changes_process: bool = False
    """Whether the process is another once it was opened, so that it is never tried unasked."""

    @property
    def same_precision(self) -> bool:
        """True unless it computes in another precision than the bundle's files; such a one is used only by its name."""
        return self.atol == 0

    @property
    def installed(self) -> bool:
        return any(find_spec(name) is not None for name in (self.package, self.other_package) if name)

    @property
    def install(self) -> str:
        """The command that installs it here."""
        return tensorrt_command() if self.extra == "tensorrt" else install_command(self.extra)

    def problem(self) -> str | None:
        """The reason why this machine cannot run it, with a remedy where there is one; None where it can."""
        if not self.installed:
            return f"{self.package} is not installed: {self.install}"
        try:
            module = import_module(self.module)
        except (ImportError, OSError) as error:  # installed, but a library that it needs is not
            return f"{self.package} cannot be imported: {' '.join(str(error).split())}"
        check = getattr(module, "unusable_here", None)
        return check(**self.options) if check else None


def _tensorrt(name: str, module: str, package: str, extra: str, other_package: str | None = None) -> list[BackendInfo]:
    """As it is, with CUDA graphs, with the next layer started ahead, with both: which pays, ``--tune`` measures."""
    plain = BackendInfo(name, module, package, extra, other_package=other_package, builds=True, cpu=False)
    more = (("graphs",), ("ahead",), ("graphs", "ahead"))
    return [plain, *(replace(plain, name="-".join((name, *m)), options=dict.fromkeys(m, True)) for m in more)]


BACKENDS: dict[str, tuple[BackendInfo, ...]] = {
    "onnxruntime": (
        BackendInfo(
            "onnxruntime",
            "berxit.runtime.backends.onnxruntime",
            "onnxruntime",
            "onnxruntime",
            lazy=True,
            reopens=True,
        ),
        BackendInfo(
            "onnxruntime-pool",
            "berxit.runtime.backends.onnxruntime",
            "onnxruntime",
            "onnxruntime",
            options={"one_pool": True},
            lazy=True,
            changes_process=True,
        ),
        BackendInfo("openvino", "berxit.runtime.backends.openvino", "openvino", "openvino", lazy=True),
        BackendInfo(
            "openvino-bf16",
            "berxit.runtime.backends.openvino",
            "openvino",
            "openvino",
            options={"precision": "bf16"},
            lazy=True,
            atol=0.1,  # bf16 keeps 8 bits of a number
        ),
    ),
    "tensorrt": (
        *_tensorrt(
            "tensorrt",
            "berxit.runtime.backends.tensorrt",
            "tensorrt",
            "tensorrt",
        ),
        *_tensorrt(
            "tensorrt-rtx",
            "berxit.runtime.backends.tensorrt.rtx",
            "tensorrt_rtx_bindings",
            "tensorrt-rtx",
            other_package="tensorrt_rtx",
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
        BackendInfo("coreml", "berxit.runtime.backends.coreml", "coremltools", "coreml"),
        *(
            BackendInfo(
                f"coreml-{units}",
                "berxit.runtime.backends.coreml",
                "coremltools",
                "coreml",
                options={"units": units},
            )
            for units in ("ne", "gpu", "cpu")
        ),
    ),
}
"""Target name in the manifest -> the back ends that run it, the one to take first."""


def open_backend(
    folder: Path | BundleFolder,
    manifest: Manifest,
    threads: int | None = None,
    *,
    backend: str | None = None,
    lazy: bool = False,
    progress: Progress = silent,
) -> Backend:
    """Loads a bundle's segments with the back end called ``backend``, or the first that is installed. ``folder``: as
    ``open_bundle`` opened it, or a path, whose files are then checked as they are opened. ``progress`` receives the
    build of engines.

    Raises InputError for a name that does not run this target or cannot be ``lazy``, BerxitError where this machine has
    no back end for it.
    """
    if threads is not None:
        threads = as_threads(threads)
    info = choose_backend(folder, manifest.target, backend)
    if lazy and not info.lazy:
        raise InputError(f"back end '{info.name}' opens all layers at once: leave lazy away, or take another back end")
    options = {**info.options, **({"lazy": True} if lazy else {}), **({"progress": progress} if info.builds else {})}

    def opened(bundle: Path | BundleFolder) -> Backend:
        with one_line_errors(f"backend '{info.name}' cannot open {bundle}", ANOTHER_BACKEND):
            backend_of_target: Backend = import_module(info.module).open_backend(bundle, manifest, threads, **options)
        return backend_of_target

    path = folder.path if isinstance(folder, BundleFolder) else folder  # an open folder keeps its files open

    def opened_anew() -> Backend:
        bundle, found = open_bundle(path)
        if found != manifest:
            raise BerxitError(f"{path} was replaced after it was loaded: load it again in this forked process")
        return opened(bundle)

    backend_here = opened(folder)
    forking.watch(backend_here, opened_anew if info.reopens else None)
    return backend_here


def allowed_difference(manifest: Manifest, backend: str) -> float:
    """Largest difference of an exit from the checkpoint's if the backend of that name runs the bundle."""
    return max([manifest.parity.atol, *(info.atol for info in BACKENDS[manifest.target] if info.name == backend)])


def choose_backend(folder: Path | BundleFolder, target: str, name: str | None) -> BackendInfo:
    """The back end that will run the bundle ``folder``, exported for ``target``. Raises as ``open_backend`` does."""
    known = BACKENDS.get(target)
    if known is None:
        raise BerxitError(
            f"{folder} was exported for '{target}', which this berxit cannot run:"
            f" it runs {', '.join(BACKENDS)}. Upgrade berxit, or export for one of these"
        )
    asked = [info for info in known if name in (None, info.name)]
    if not asked:
        raise InputError(
            f"no back end '{name}' runs bundles for {target}: choose {' or '.join(info.name for info in known)}"
        )
    for info in asked:
        if info.installed:
            return info
    raise BerxitError(f"{folder} needs {asked[0].package}, which is not installed here: {asked[0].install}")
