"""The part that runs on the device: numpy, tokenizers and one back end; never torch, transformers or onnx."""

from runtime.errors import BerxitError, InputError
from runtime.policies import ExitPolicy
from runtime.runner import Answer, EarlyExitRunner

__all__ = ["Answer", "BerxitError", "EarlyExitRunner", "ExitPolicy", "InputError"]
