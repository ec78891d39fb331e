"""Options of a backend: their declaration, their values, and their form on the command line (``--backend-option``)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from berxit.runtime.errors import InputError

OptionValue = bool | str
Options = Mapping[str, OptionValue]
"""Option name -> True, or one of the option's values."""


@dataclass(frozen=True)
class BackendOption:
    """An option of a backend: a flag, or a choice between values."""

    name: str
    """Keyword in Python; with hyphens on the command line."""
    description: str
    values: tuple[str, ...] = ()
    """Empty for a flag."""
    atol: float = 0.0
    """Largest difference of an exit from the checkpoint, if the option lowers the precision of the computation; else 0,
    and the bundle's own tolerance applies."""
    changes_process: bool = False
    """True if it changes process-wide state. It is then used only on request."""
    experimental: bool = False
    """True if it was never measured on a device of its kind. ``--tune`` measures it, and compares every exit with the
    checkpoint first."""

    @property
    def syntax(self) -> str:
        """Form on the command line: shared-pool, units=ne|gpu|cpu."""
        return f"{_flag(self.name)}={'|'.join(self.values)}" if self.values else _flag(self.name)

    @property
    def settings(self) -> tuple[dict[str, OptionValue], ...]:
        """Every setting of the option that is not the default."""
        return tuple({self.name: value} for value in self.values or (True,))

    def check(self, value: Any) -> None:
        """Raises InputError unless the option accepts ``value``."""
        if self.values and value not in self.values:
            raise InputError(f"backend option {_flag(self.name)} is {value!r}: choose {' or '.join(self.values)}")
        if not self.values and not isinstance(value, bool):
            raise InputError(f"backend option {_flag(self.name)} is {value!r}: it is a flag, without a value")


def as_options(options: Any) -> dict[str, OptionValue] | None:
    """A copy of what an app passes as ``backend_options``. Raises InputError unless it is a mapping or None."""
    if options is None:
        return None
    if not isinstance(options, Mapping):
        raise InputError(f"backend_options is {options!r}: give a dict, as {{'shared_pool': True}}")
    return dict(options)


def option_flags(options: Options) -> list[str]:
    """The options as on the command line: shared-pool, units=ne."""
    return [_flag(name) if value is True else f"{_flag(name)}={value}" for name, value in sorted(options.items())]


def parse_option_flags(flags: Iterable[str]) -> dict[str, OptionValue]:
    """Inverse of ``option_flags``. Raises InputError for an option that occurs twice."""
    options: dict[str, OptionValue] = {}
    for flag in flags:
        name, assigned, value = flag.partition("=")
        key = name.strip().replace("-", "_")
        if key in options:
            raise InputError(f"--backend-option {name} occurs twice: give it once")
        options[key] = value.strip() if assigned else True
    return options


def backend_label(name: str, options: Options) -> str:
    """A backend with its options, for reports: openvino (bf16)."""
    return f"{name} ({', '.join(option_flags(options))})" if options else name


def _flag(name: str) -> str:
    return name.replace("_", "-")
