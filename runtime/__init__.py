"""Runtime that runs on the device. It needs numpy, tokenizers and one backend; never torch, transformers or onnx."""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - JetPack 5 comes with 3.8
    sys.exit("error: berxit needs Python 3.10 or newer; for JetPack 5, see docs/tensorrt.md")

if __name__ == "runtime":  # imported from inside the checkout: every class must exist only once, in berxit.runtime
    from berxit.alias import install_alias

    install_alias()
else:
    from berxit.runtime.errors import BerxitError, InputError
    from berxit.runtime.metrics import register_metric
    from berxit.runtime.policies import ExitPolicy, register_criterion
    from berxit.runtime.prediction import Prediction
    from berxit.runtime.runner import EarlyExitRunner

    __all__ = [
        "BerxitError",
        "EarlyExitRunner",
        "ExitPolicy",
        "InputError",
        "Prediction",
        "register_criterion",
        "register_metric",
    ]
