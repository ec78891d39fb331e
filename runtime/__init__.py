"""The part that runs on the device: numpy, tokenizers and one back end; never torch, transformers or onnx."""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - JetPack 5 comes with 3.8
    sys.exit("error: berxit needs Python 3.10 or newer; what to do on JetPack 5 says docs/tensorrt.md")

from runtime.errors import BerxitError, InputError
from runtime.policies import ExitPolicy
from runtime.runner import Answer, EarlyExitRunner

__all__ = ["Answer", "BerxitError", "EarlyExitRunner", "ExitPolicy", "InputError"]
