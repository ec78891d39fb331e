"""Early-exiting BERT-family models on edge devices: the public Python API.

Every name is imported on first use, so that ``from berxit import EarlyExitRunner`` imports numpy and tokenizers but no
training library.
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
    from berxit.exporters.options import ExportOptions as ExportOptions
    from berxit.runtime.errors import BerxitError as BerxitError
    from berxit.runtime.errors import InputError as InputError
    from berxit.runtime.metrics import register_metric as register_metric
    from berxit.runtime.policies import ExitPolicy as ExitPolicy
    from berxit.runtime.policies import register_criterion as register_criterion
    from berxit.runtime.prediction import Prediction as Prediction
    from berxit.runtime.runner import EarlyExitRunner as EarlyExitRunner
    from berxit.toolkit.api import bench as bench
    from berxit.toolkit.api import calibrate as calibrate
    from berxit.toolkit.api import compare as compare
    from berxit.toolkit.api import evaluate as evaluate
    from berxit.toolkit.api import export as export
    from berxit.toolkit.api import fine_tune as fine_tune
    from berxit.toolkit.api import predict as predict
    from berxit.toolkit.publishing import push_to_hub as push_to_hub
    from berxit.toolkit.scoring.batch_scorer import BatchScorer as BatchScorer
    from berxit.train.options import TrainingOptions as TrainingOptions
    from berxit.train.user_strategies import register_strategy as register_strategy

_MODULES = {
    "BatchScorer": "berxit.toolkit.scoring.batch_scorer",
    "BerxitError": "berxit.runtime.errors",
    "EarlyExitRunner": "berxit.runtime.runner",
    "ExitPolicy": "berxit.runtime.policies",
    "ExportOptions": "berxit.exporters.options",
    "InputError": "berxit.runtime.errors",
    "Prediction": "berxit.runtime.prediction",
    "TrainingOptions": "berxit.train.options",
    "bench": "berxit.toolkit.api",
    "calibrate": "berxit.toolkit.api",
    "compare": "berxit.toolkit.api",
    "evaluate": "berxit.toolkit.api",
    "export": "berxit.toolkit.api",
    "fine_tune": "berxit.toolkit.api",
    "predict": "berxit.toolkit.api",
    "push_to_hub": "berxit.toolkit.publishing",
    "register_criterion": "berxit.runtime.policies",
    "register_metric": "berxit.runtime.metrics",
    "register_strategy": "berxit.train.user_strategies",
}
"""Public name -> the module that defines it. No name equals a package of ``berxit``: ``berxit.train`` is the package,
and ``berxit.fine_tune`` trains."""

__all__ = [
    "BatchScorer",
    "BerxitError",
    "EarlyExitRunner",
    "ExitPolicy",
    "ExportOptions",
    "InputError",
    "Prediction",
    "TrainingOptions",
    "bench",
    "calibrate",
    "compare",
    "evaluate",
    "export",
    "fine_tune",
    "predict",
    "push_to_hub",
    "register_criterion",
    "register_metric",
    "register_strategy",
]


if not TYPE_CHECKING:  # Type checkers must report unknown names.

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module 'berxit' has no attribute '{name}'")
        return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*__all__]
