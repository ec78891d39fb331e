"""Fine-tunes multi-exit encoders, evaluates them in one pass, and calibrates when they stop."""

from train.configuration import MultiExitConfig
from train.modeling import MultiExitModel

__all__ = ["MultiExitConfig", "MultiExitModel"]
