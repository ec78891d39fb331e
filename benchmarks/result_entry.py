"""The commands behind stored files, and the names that several of them use."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

OUTPUT = "build/results"
ENCODERS = {"minilm": "$MINILM", "bge": "$MODELS/bge-small-en"}


@dataclass(frozen=True)
class Entry:
    """The commands behind one or several stored files."""

    name: str
    files: tuple[str, ...]
    """JSON files below results/."""
    minutes: int
    """Duration on two cores, estimated from the training and measuring times of the runs that were stored."""
    commands: tuple[str, ...]
    """Shell commands in the project's folder. $DATA and $MODELS name the inputs."""

    after: tuple[str, ...] = ()
    """Entries whose checkpoints and bundles the commands read."""

    def missing(self, folders: Mapping[str, str]) -> list[str]:
        """The inputs of the commands that do not exist, as they are named there."""
        text = "\n".join(self.commands)
        found = [
            f"${variable}/{name}"
            for variable, name in sorted(set(re.findall(r"\$(DATA|MODELS)/([\w.-]+)", text)))
            if not folders.get(variable) or not (Path(folders[variable]) / name).exists()
        ]
        return [*found, *(["$MINILM"] if "$MINILM" in text and not folders.get("MINILM") else [])]
