"""Recorded Jetson boards as trees of files: see boards/README.md."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from berxit.devices import Machine
from berxit.devices.machine import read_machine

FOLDER = Path(__file__).parent / "boards"
NAMES = sorted(file.stem for file in FOLDER.glob("*.json"))
MASKED = ("proc/device-tree/model", "etc/nv_tegra_release")
"""Files of the host that a container does not see unless they are mounted."""


@dataclass(frozen=True)
class Board:
    """A recorded board. ``watts`` and ``gpu_mhz``: what its sensors measure. ``mode``: its power mode."""

    device: str
    kernel: str
    cuda: tuple[int, int]
    python: str
    mode: str
    clocks_fixed: bool
    watts: float
    gpu_mhz: float
    extra: str
    l4t: str
    driver: str
    jetpack: int
    nvpmodel: str
    tegrastats: str
    files: dict[str, str]

    def tree(self, root: Path, *, inside: bool = False, mounted: Collection[str] = ()) -> Path:
        """Writes the board's files below ``root``. ``inside``: those that a container sees, and those in ``mounted``;
        ``tmp/nv_jetson_model`` contains the model."""
        files = {name: text for name, text in self.files.items() if not inside or name not in MASKED or name in mounted}
        if "tmp/nv_jetson_model" in mounted:
            files["tmp/nv_jetson_model"] = self.files["proc/device-tree/model"]
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text, encoding="utf-8")
        return root

    def machine(self, root: Path, *, inside: bool = False, mounted: Collection[str] = ()) -> Machine:
        """The machine that the tree describes."""
        return read_machine(
            self.tree(root, inside=inside, mounted=mounted),
            architecture="aarch64",
            kernel=self.kernel,
            jetson_gpu=lambda: False,
        )

    @property
    def rails(self) -> dict[str, float]:
        """Rail -> watts in the line of tegrastats."""
        words = self.tegrastats.split()
        return {
            name: float(value.partition("mW")[0]) / 1e3
            for name, value in pairwise(words)
            if name.startswith(("VDD", "VIN"))
        }


def board(name: str) -> Board:
    return Board(**json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")))
