"""Writes requirements/*.txt: the exact versions and sha256 sums of all packages that make installs.

    pip install uv
    python tools/lock.py

``install.py`` installs these files with ``--require-hashes``.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import install

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "requirements"


@dataclass(frozen=True)
class File:
    """A file of requirements."""

    name: str
    extras: tuple[str, ...] = ()
    """Extras of pyproject.toml, with all their dependencies."""
    alone: tuple[str, ...] = ()
    """Packages whose dependencies are not installed."""
    constraints: tuple[str, ...] = ()
    """Versions that are not those of pyproject.toml."""
    same_as: str | None = None
    """Name of a file with packages of the same environment."""

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.name}.txt"


FILES = (
    File("quickstart", ("export", "report"), (install.DEMO_MODEL,)),
    # numpy: coremltools accepts no newer one
    File("dev", ("export", "report", "dev"), constraints=("numpy<2.4",)),
    File("coreml", ("coreml",), same_as="dev"),
    File("tensorrt-rtx", alone=install.RTX),
)


def lock(file: File) -> None:
    """Resolves a file and writes it."""
    text = "# Written by tools/lock.py.\n"
    constraints = [f"torch=={install.TORCH}", *file.constraints]
    if file.same_as:
        constraints.append(f"-r {FOLDER / file.same_as}.txt")
    limits = FOLDER / ".constraints"
    limits.write_text("\n".join(constraints), encoding="utf-8")
    try:
        if file.extras:
            extras = [word for extra in file.extras for word in ("--extra", extra)]
            text += resolved("pyproject.toml", *extras, "-c", str(limits))
        if file.alone:
            source = FOLDER / ".in"
            source.write_text("\n".join(file.alone), encoding="utf-8")
            text += resolved(str(source), "--no-deps")
            source.unlink()
    finally:
        limits.unlink()
    file.path.write_text(text, encoding="utf-8")
    print(f"{file.path.name}: {text.count('==')} versions")


def resolved(*arguments: str) -> str:
    """The requirements with their hashes. uv reports what cannot be resolved."""
    options = "--universal --python-version 3.10 --generate-hashes --no-emit-package torch --no-header --no-annotate -q"
    command = ["uv", "pip", "compile", *arguments, "--config-file", str(FOLDER / "uv.toml"), *options.split()]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    for each in FILES:
        lock(each)
