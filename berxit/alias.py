"""Makes ``runtime`` another name for ``berxit.runtime``: ``runtime.X`` and ``berxit.runtime.X`` are one module."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import CodeType, ModuleType

ALIAS, PACKAGE = "runtime", "berxit.runtime"


class AliasLoader(Loader):
    """Loads ``runtime.X`` by importing ``berxit.runtime.X``."""

    def __init__(self, target: ModuleSpec) -> None:
        self.target = target

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return import_module(self.target.name)

    def exec_module(self, module: ModuleType) -> None:
        """The module was executed under its own name, whose spec the import system replaced with the alias's."""
        module.__spec__ = self.target
        module.__loader__ = self.target.loader

    def get_code(self, fullname: str) -> CodeType | None:
        """For ``python -m runtime.X``, which executes the code as ``__main__``."""
        code: CodeType | None = self.target.loader.get_code(self.target.name)  # type: ignore[union-attr]
        return code


class AliasFinder(MetaPathFinder):
    """Finds ``runtime.X``; every other name is left to the other finders."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(f"{ALIAS}."):
            return None
        found = find_spec(f"{PACKAGE}.{fullname.removeprefix(f'{ALIAS}.')}")
        if found is None:
            return None
        spec = ModuleSpec(fullname, AliasLoader(found), origin=found.origin)
        spec.has_location = found.has_location
        return spec


def install_alias() -> None:
    """Replaces the module ``runtime`` in ``sys.modules`` with ``berxit.runtime``. Called by ``runtime`` itself."""
    if not any(isinstance(finder, AliasFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, AliasFinder())
    sys.modules[ALIAS] = import_module(PACKAGE)
