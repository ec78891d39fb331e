"""What a user may ask of an export. Each target takes some of it, and says which."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from types import ModuleType

from berxit.runtime.errors import InputError


@dataclass(frozen=True)
class ExportOptions:
    """None, or empty, leaves the choice to the target."""

    precision: str | None = None
    lengths: tuple[int, ...] = ()
    """Input lengths in tokens that the segments are made for; inputs are padded to the next."""
    max_batch: int | None = None
    """Rows that a segment takes at most."""
    target_version: str | None = None
    """The oldest software that must be able to read it: jetpack6, ios18, ..."""
    layout: str | None = None
    """How hidden states lie in memory, where a target knows several."""
    exits: tuple[int, ...] | str = ()
    """The layers that get an exit, beside the last; "auto": where measurement says that they pay. Empty: all."""

    threads: int | None = None
    """CPU threads that the bundle asks for, unless its user says otherwise."""

    def checked_for(self, target: str, writer: ModuleType) -> ExportOptions:
        """With the target's first precision filled in. Raises InputError for what the target does not take."""
        for field in fields(self):
            if field.name != "precision" and getattr(self, field.name) and field.name not in writer.OPTIONS:
                raise InputError(f"--{field.name.replace('_', '-')} does not go with target {target}")
        precision = self.precision or next(iter(writer.PRECISIONS))
        if precision not in writer.PRECISIONS:
            raise InputError(f"target {target} has no precision '{precision}': choose {' or '.join(writer.PRECISIONS)}")
        return replace(self, precision=precision)
