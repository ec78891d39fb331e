"""Fine-tunes multi-exit encoders, evaluates them in one pass, and calibrates when they stop."""

from berxit.train.configuration import MultiExitConfig
from berxit.train.modeling import MultiExitModel

__all__ = ["MultiExitConfig", "MultiExitModel"]
