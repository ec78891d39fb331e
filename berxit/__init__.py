"""Early-exiting BERT-family models on edge devices: the public Python API.

Every name is imported on first use, so that ``from berxit import EarlyExitRunner`` loads numpy and tokenizers and no
training stack.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

_HERE = Path(__file__).resolve().parent
if not (_HERE / "runtime").is_dir() and (_HERE.parent / "runtime" / "bundle.py").is_file():
    # In a checkout the packages are folders beside this one; a wheel contains them below it.
    __path__.append(str(_HERE.parent))

if TYPE_CHECKING:
    from berxit.runtime.errors import BerxitError as BerxitError
    from berxit.runtime.errors import InputError as InputError
    from berxit.runtime.policies import ExitPolicy as ExitPolicy
    from berxit.runtime.runner import EarlyExitRunner as EarlyExitRunner

_MODULES = {
    "BerxitError": "berxit.runtime.errors",
    "EarlyExitRunner": "berxit.runtime.runner",
    "ExitPolicy": "berxit.runtime.policies",
    "InputError": "berxit.runtime.errors",
}
"""Public name -> the module that defines it."""

__all__ = ["BerxitError", "EarlyExitRunner", "ExitPolicy", "InputError"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'berxit' has no attribute '{name}'")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*__all__]
