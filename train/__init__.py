"""Fine-tuning of multi-exit encoders, evaluation in one pass, and calibration of the exit policy.

``from berxit.train import MultiExitModel`` registers the model with transformers' Auto classes.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from berxit.train.configuration import MultiExitConfig
    from berxit.train.modeling import MultiExitModel

__all__ = ["MultiExitConfig", "MultiExitModel"]

_MODULES = {"MultiExitConfig": "berxit.train.configuration", "MultiExitModel": "berxit.train.modeling"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    import_module("berxit.train.modeling")
    return getattr(import_module(_MODULES[name]), name)
