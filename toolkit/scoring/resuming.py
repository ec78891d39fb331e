"""State of a run of ``berxit predict`` in ``.OUTPUT.predicting``, next to the output, from which it resumes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.json_data import read_json, write_json
from berxit.runtime.storage import used_alone, write_errors
from berxit.toolkit.scoring.outputs import Outputs

RUN_FILE = "run.json"
"""File with the run's key: everything on which its predictions depend."""


@dataclass(frozen=True)
class Parts:
    """The finished parts of one run. A part is one file, which is written atomically."""

    folder: Path

    @classmethod
    @contextmanager
    def of(cls, output: Path, key: dict[str, Any], force: bool) -> Iterator[Parts]:
        """Context manager of the parts of ``output``, which no other process can use meanwhile. They are deleted if the
        block ends without an error, or before the first part is finished.

        Parts of an interrupted run with the same ``key`` are kept. Raises InputError for those of another run; with
        ``force``, deletes them instead. Raises BerxitError if the folder cannot be written.
        """
        folder = output.with_name(f".{output.name}.predicting")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BerxitError(f"cannot write to {output.parent}: {error.strerror}. Choose another --output") from error
        with used_alone(folder):
            parts = cls(folder)
            parts._prepare(key, force)
            done = False
            try:
                yield parts
                done = True
            finally:
                if done or not parts.finished(0):
                    shutil.rmtree(folder, ignore_errors=True)

    def _prepare(self, key: dict[str, Any], force: bool) -> None:
        marker = self.folder / RUN_FILE
        known = read_json(marker) if marker.is_file() else {}
        if known == key:
            return
        if known and not force:
            other = next(name for name in {**key, **known} if key.get(name) != known.get(name))
            raise InputError(
                f"{self.folder} is an interrupted run with another {other}: rerun with its options to resume it, or add"
                " --force to delete it and start again"
            )
        with write_errors(self.folder):
            for path in self.folder.iterdir():
                path.unlink()
            write_json(key, marker)

    def path(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.npz"

    def finished(self, number: int) -> bool:
        return self.path(number).is_file()

    def save(self, number: int, outputs: Outputs) -> None:
        """Raises BerxitError if the folder cannot be written."""
        with write_errors(self.folder):
            outputs.save(self.path(number))

    def load(self, number: int) -> Outputs:
        """Raises BerxitError for a damaged part."""
        try:
            return Outputs.load(self.path(number))
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise BerxitError(f"{self.path(number)} is damaged ({error}): delete it, and rerun the command") from None
