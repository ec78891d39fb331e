"""Every install line that pages, messages and ``berxit doctor`` print, resolved by pip for the machines that see it.

pip resolves a line as it would on the machine: for its platform and its Python version, from wheels only, without
installing anything. These tests need a package index and the marker ``index``; without an index they are skipped.

Limitation: pip evaluates conditions such as ``platform_machine == "aarch64"`` for the machine that runs the test. The
packages for training depend on them, so their lines are resolved for this machine's platform only.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from packaging.version import Version
from test_advice import PAGES, ROOT, SOURCES

from berxit.devices import Machine, fitting_extra, installation, not_available
from berxit.runtime.backends import BACKENDS
from berxit.runtime.console import EXTRAS
from berxit.toolkit.commands.doctor import NEEDED_FOR

HOST_ONLY = {"train", "export", "study", "tensorboard", "demo"}
"""Extras with conditions that pip evaluates for the machine that runs the test."""
TIMEOUT = 300
"""Seconds for one line. A test that takes longer is skipped."""


@dataclass(frozen=True)
class Kind:
    """A kind of machine that users have."""

    name: str
    machine: Machine
    python: str
    tags: tuple[str, ...]
    """Platform tags of its wheels, the newest first."""


def manylinux(glibc: int, architecture: str) -> tuple[str, ...]:
    old = {"x86_64": ("manylinux2014", "manylinux2010", "manylinux1", "linux"), "aarch64": ("manylinux2014", "linux")}
    newest = [f"manylinux_2_{minor}_{architecture}" for minor in range(glibc, 4, -1)]
    return (*newest, *(f"{name}_{architecture}" for name in old[architecture]))


JETSON = Machine("Linux", "aarch64", "", 6, 7.4, "NVIDIA Jetson Orin Nano Developer Kit", "")
DESKTOP = Machine("Linux", "x86_64", "CPU", 8, 32.0, "", "NVIDIA GeForce RTX 4070")
MACOS = tuple(f"macosx_{major}_0_{kind}" for major in range(14, 10, -1) for kind in ("arm64", "universal2"))
KINDS = (
    Kind("jetpack6.0", replace(JETSON, jetpack=6, cuda="12.2"), "3.10", manylinux(35, "aarch64")),
    Kind("jetpack6.2", replace(JETSON, jetpack=6, cuda="12.6"), "3.10", manylinux(35, "aarch64")),
    Kind("jetpack7.2", replace(JETSON, jetpack=7, cuda="13.2"), "3.12", manylinux(39, "aarch64")),
    Kind("desktop, driver 550", replace(DESKTOP, cuda="12.4"), "3.12", manylinux(35, "x86_64")),
    Kind("desktop, driver 580", replace(DESKTOP, cuda="13.0"), "3.12", manylinux(35, "x86_64")),
    Kind("raspberry-pi", replace(JETSON, board="Raspberry Pi 5"), "3.11", manylinux(36, "aarch64")),
    Kind("cpu", replace(DESKTOP, gpu=""), "3.10", manylinux(35, "x86_64")),
    Kind("mac", Machine("Darwin", "arm64", "Apple M2", 8, 16.0, "", ""), "3.12", MACOS),
)


def written_extras() -> set[str]:
    """Extras in the install lines of pages and of install.py, without ``dev``: install.py installs it beside a build of
    torch that indexes may not have."""
    files = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "install.py"]
    texts = [file.read_text(encoding="utf-8") for file in files]
    lines = [found for text in texts for found in re.findall(r"-e[ \",']+\.\[([a-z0-9,-]+)\]", text)]
    return {extra for line in lines for extra in line.split(",")} - {"dev"}


def advised_extras() -> set[str]:
    """Extras that messages and doctor pass to ``install_command``."""
    named = {info.extra for known in BACKENDS.values() for info in known} | set(EXTRAS.values()) | set(NEEDED_FOR)
    for path in SOURCES:
        named |= set(re.findall(r"install_command\(['\"]([a-z-]+)['\"]\)", path.read_text(encoding="utf-8")))
    return named


def lines_of(kind: Kind) -> Iterator[str]:
    """Extras of the lines that this kind of machine sees, as in pyproject.toml."""
    here = (kind.machine.system, kind.machine.architecture) == (platform.system(), platform.machine())
    for extra in sorted((written_extras() - set(installation.GPU_EXTRAS)) | advised_extras()):
        if extra in HOST_ONLY and not (here and kind.name == "cpu"):
            continue
        if not_available(extra, kind.machine) is None:
            yield fitting_extra(extra, kind.machine)


def requirements(extra: str) -> list[str]:
    """Requirements of an extra in pyproject.toml; of the project itself for an empty name."""
    start = rf"^{extra} = \[" if extra else r"^dependencies = \["
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (listed,) = re.findall(start + r"(.*?)\]$", text, re.DOTALL | re.MULTILINE)
    return re.findall(r'"([^"]+)"', listed)


Found = dict[str, tuple[str, bool]]
"""Package -> its version, and whether it is yanked."""


@pytest.fixture(scope="module")
def pip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a pip that resolves without downloading wheels. Skips the test if no index is reachable."""
    folder = tmp_path_factory.mktemp("pip")
    command = [sys.executable, "-m", "pip", "install", "-q", "--target", folder, "pip>=24.1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    if done.returncode:
        pytest.skip(f"no package index is reachable: {done.stderr.strip().splitlines()[-1]}")
    return folder


_resolved: dict[tuple[str, ...], Found | str] = {}
"""Arguments of pip -> its result. Several kinds of machines have the same platform and Python."""


def resolve(pip: Path, kind: Kind, *wanted: str) -> Found | str:
    """The packages that pip would install for ``wanted``, or the name of the one that it cannot find. Fails the test
    for any other error."""
    tags = [word for tag in kind.tags for word in ("--platform", tag)]
    arguments = ("--python-version", kind.python, *tags, *wanted)
    if arguments not in _resolved:
        _resolved[arguments] = _run(pip, *arguments)
    return _resolved[arguments]


def _run(pip: Path, *arguments: str) -> Found | str:
    report = pip / "report.json"
    command = [
        *(sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--only-binary=:all:"),
        *("--no-build-isolation", "--no-input", "--quiet", "--use-feature=fast-deps", "--target", str(pip / "none")),
        *("--report", str(report), *arguments),
    ]
    environment = {**os.environ, "PYTHONPATH": str(pip)}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"the package index is too slow: pip did not resolve {arguments[-1]} within {TIMEOUT} s")
    if done.returncode == 0:
        found = json.loads(report.read_text(encoding="utf-8"))["install"]
        return {each["metadata"]["name"].lower(): (each["metadata"]["version"], each["is_yanked"]) for each in found}
    missing = re.search(r"No matching distribution found for ([A-Za-z0-9_.-]+?)[\[<>=!~ ]", done.stderr + " ")
    assert missing is not None, done.stderr[-1000:]
    return missing[1].lower()


def problems(kind: Kind, found: Found) -> list[str]:
    """The reasons why the resolved packages do not work on this kind of machine."""
    wrong = [f"{name} {version} is yanked" for name, (version, yanked) in found.items() if yanked]
    driver = Version(kind.machine.cuda or "0")
    for name in ("cuda-python", "cuda-bindings"):
        if name in found and kind.machine.cuda and Version(found[name][0]).major > driver.major:
            wrong.append(f"{name} {found[name][0]} needs a newer driver than one for CUDA {driver}")
    if "Jetson" in kind.machine.board:
        wrong += [f"{name} shadows JetPack's" for name in found if name.startswith("tensorrt")]
        if Version(found["numpy"][0]).major > 1 and "cuda-python" in found:
            wrong.append(f"numpy {found['numpy'][0]} breaks JetPack's packages")
        if kind.machine.jetpack == 6 and "cuda-python" in found and found["cuda-python"][0] not in KNOWN_GOOD:
            wrong.append(f"cuda-python {found['cuda-python'][0]} is not known to work on JetPack 6")
    return wrong


KNOWN_GOOD = ("12.6.2.post1", "12.8.0")
"""Versions of cuda-python that were run on stand-ins for the drivers of JetPack 6."""


SOURCE_ONLY = ("spark",)
"""Extras with a package that has no wheels (pyspark): pip resolves another platform from wheels only. Such a package
contains no compiled code, so pip builds it anywhere."""


@pytest.mark.index
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_install_lines_without_gpu_resolve(kind: Kind, pip: Path) -> None:
    """All extras at once: if they resolve together, each line resolves."""
    left_out = {*installation.GPU_EXTRAS, *SOURCE_ONLY}
    extras = [extra for extra in lines_of(kind) if extra and extra not in left_out]
    found = resolve(pip, kind, "-e", f".[{','.join(extras)}]")
    if isinstance(found, str):
        pytest.fail(f"{kind.name}: no wheel of {found} for one of {', '.join(extras)}")
    assert [line for line in problems(kind, found) if "yanked" in line] == []


@pytest.mark.index
@pytest.mark.parametrize(
    ("kind", "extra"),
    [(kind, extra) for kind in KINDS for extra in lines_of(kind) if extra in installation.GPU_EXTRAS],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_install_lines_for_gpu_fit_the_driver(kind: Kind, extra: str, pip: Path) -> None:
    found = resolve(pip, kind, "-e", f".[{extra}]")
    missing = found if isinstance(found, str) else None
    if missing is not None:
        assert missing.startswith("tensorrt-cu"), f"{kind.name}: no wheel of {missing}"
        others = [line for line in [*requirements(""), *requirements(extra)] if not line.startswith("tensorrt")]
        found = resolve(pip, kind, *others)
        assert not isinstance(found, str), f"{kind.name}: no wheel of {found}"
    assert "cuda-python" in found or extra == "onnxruntime-gpu"
    if extra != "tensorrt-rtx" or kind.machine.cuda >= "13":  # Without a driver for CUDA 13, it builds for other GPUs.
        assert problems(kind, found) == []
    if missing is not None:
        pytest.skip(f"this index has no wheel of {missing}, NVIDIA's has; the other packages of the line fit")


@pytest.mark.index
def test_pinned_packages_of_pages_exist_for_raspberry_pi(pip: Path) -> None:
    pins = re.findall(r"`pip install ([a-z-]+==[\d.]+)`", "".join(page.read_text(encoding="utf-8") for page in PAGES))
    kind = next(kind for kind in KINDS if kind.name == "raspberry-pi")
    for pin in pins:
        found = resolve(pip, kind, pin)
        assert isinstance(found, dict), pin
        assert problems(kind, found) == []


@pytest.mark.index
@pytest.mark.parametrize("extra", ["coreml", "onnxruntime-gpu"])
def test_not_available_is_what_the_index_does_not_have(extra: str, pip: Path) -> None:
    kind = next(kind for kind in KINDS if kind.name == "jetpack6.2")
    assert not_available(extra, kind.machine) is not None
    assert resolve(pip, kind, *requirements(extra)) == requirements(extra)[0].partition(">")[0]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_kind_of_machine_sees_one_line_for_tensorrt(kind: Kind) -> None:
    lines = list(lines_of(kind))
    assert {"onnxruntime", "openvino", "report"} <= set(lines)
    expected = {"jetpack6": "jetson", "jetpack7": "jetson7", "desktop, driver 580": "tensorrt-cu13", "mac": None}
    extra = next((extra for name, extra in expected.items() if kind.name.startswith(name)), "tensorrt-cu12")
    assert [line for line in lines if line in installation.TENSORRT_EXTRAS] == ([extra] if extra else [])


def test_pages_name_extras_that_exist() -> None:
    assert {"onnxruntime", "coreml", "jetson", "tensorrt-cu12"} <= written_extras()
    for extra in written_extras():
        assert requirements(extra)


@pytest.mark.parametrize(
    ("name", "packages", "expected"),
    [
        ("jetpack6.2", {"cuda-python": "13.4.4"}, ["needs a newer driver", "not known to work"]),
        ("jetpack6.2", {"cuda-python": "12.9.10"}, ["not known to work"]),
        ("jetpack6.0", {"cuda-python": "12.8.0", "numpy": "2.2.6"}, ["numpy 2.2.6 breaks"]),
        ("jetpack6.2", {"cuda-python": "12.8.0", "tensorrt": "11.4.0"}, ["shadows JetPack's"]),
        ("desktop, driver 550", {"cuda-python": "13.0.0"}, ["needs a newer driver"]),
        ("desktop, driver 580", {"cuda-python": "13.4.4", "numpy": "2.4.0"}, []),
        ("jetpack6.2", {"cuda-python": "12.6.2.post1", "cuda-bindings": "13.4.4"}, ["cuda-bindings 13.4.4 needs"]),
    ],
)
def test_problems_finds_packages_that_do_not_fit(name: str, packages: dict[str, str], expected: list[str]) -> None:
    kind = next(kind for kind in KINDS if kind.name == name)
    found = {package: (version, False) for package, version in {"numpy": "1.26.4", **packages}.items()}
    wrong = problems(kind, found)
    assert len(wrong) == len(expected)
    assert all(part in line for part, line in zip(expected, wrong, strict=True))
    assert "is yanked" in problems(kind, {**found, "click": ("8.0", True)})[0]
