"""Criteria, metrics and strategies in a user's own Python file, named as FILE.py:NAME or MODULE:NAME.

Importing a file executes it. ``load_object`` therefore reads names that a person gives to a command or function, never
names that are stored in a checkpoint or a bundle.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from berxit.runtime.errors import InputError, first_line

FORMS = "FILE.py:NAME or MODULE:NAME"


class UnregisteredError(InputError):
    """Name of a criterion or metric that is neither built in nor registered."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        """``kind``: criterion or metric. ``known``: the names among which a user can choose."""
        self._remedy = f"(--register FILE.py:NAME, or runtime.register_{kind} in an app)"
        self._what = f"{kind} '{name}'"
        super().__init__(f"unknown {self._what}: choose one of {', '.join(known)}, or register your own {self._remedy}")

    def in_file(self, path: Path) -> StoredNameError:
        """The error for a name that a file contains."""
        return StoredNameError(f"{path} uses the {self._what}, which is not part of berxit", self._remedy)


class StoredNameError(InputError):
    """Name of a criterion or metric in a checkpoint or a bundle that is neither built in nor registered."""

    def __init__(self, found: str, remedy: str) -> None:
        self._found = found
        super().__init__(f"{found}: register it {remedy}")

    def where_none_is_registered(self, reader: str) -> InputError:
        """The error of a ``reader`` in whose processes a user cannot register anything."""
        return InputError(
            f"{self._found}, and {reader} cannot register it: calibrate with another --criterion, then export again"
        )


def is_reference(text: str) -> bool:
    """True for FILE.py:NAME and MODULE:NAME, False for the name of a registry."""
    return ":" in text


def load_object(reference: str) -> Any:
    """The object that a reference names. Its module is executed.

    A file is executed again at each call, so that a notebook sees an edited file. The file's folder, or the working
    directory for a module, is on the import path meanwhile. Raises InputError if the module cannot be imported or does
    not define the name.
    """
    source, _, name = reference.rpartition(":")
    if not source or not name:
        raise InputError(f"'{reference}' names no object: give {FORMS}")
    module = _file(Path(source)) if source.endswith(".py") else _module(source)
    if not hasattr(module, name):
        defined = [each for each, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        found = f": it defines {', '.join(defined)}" if defined else ""
        raise InputError(f"{source} has no '{name}'{found}. Give {FORMS}")
    return getattr(module, name)


def check_name(name: object, where: str, built_in: frozenset[str]) -> str:
    """The name of a user's object. Raises InputError for one that is missing, malformed or built in."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,39}", name):
        raise InputError(f"{where} has the name {name!r}: set 'name' to letters, digits, '-', '_' and '.'")
    if name in built_in:
        raise InputError(f"{where} has the name '{name}', which is built in: choose another name")
    return name


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"no file {path}: give {FORMS}")
    name = f"berxit_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # the suffix is .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and the stages of a strategy look their module up by name
    with _importing(str(path), path.resolve().parent):
        spec.loader.exec_module(module)
    return module


def _module(name: str) -> ModuleType:
    with _importing(name, Path.cwd()):
        return importlib.import_module(name)


@contextmanager
def _importing(what: str, folder: Path) -> Iterator[None]:
    """Puts ``folder`` on the import path, and converts every exception of a user's file to one line."""
    sys.path.insert(0, str(folder))
    try:
        yield
    except Exception as error:
        line = f" (line {error.lineno})" if isinstance(error, SyntaxError) and error.lineno else ""
        raise InputError(
            f"cannot import {what}: {type(error).__name__}: {first_line(error)}{line}. Fix it, or give {FORMS}"
        ) from error
    finally:
        sys.path.remove(str(folder))
