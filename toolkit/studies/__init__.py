"""The paper's experiments. A study is one module with ``study(request) -> Findings``, and one line in STUDIES."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import TYPE_CHECKING

from berxit.runtime.errors import InputError
from berxit.runtime.tables import listed

if TYPE_CHECKING:
    from berxit.toolkit.studies.findings import Findings
    from berxit.toolkit.studies.request import Request

STUDIES = {
    "layerwise": "the score of every layer, strategy by strategy (figures 2, 3, 10, 11)",
    "tradeoff": "relative score against average exit layer, and the area between the curves (figures 4, 5, table 2)",
    "lte": "learning to exit compared with a fixed exit layer and with patience (figure 6, table 3)",
    "criteria": "all exit criteria that fit the checkpoints, against one exit layer and against the default criterion",
    "certainty": "the learned certainty and the score of every layer (figure 7)",
    "probe": "correlation of confidence and word overlap, the BLEU-4 score of the two sentences (figure 8)",
    "limit": "the score of the first layers, fine-tuned alone (figure 9)",
    "runtime": "seconds for the whole split on this device, for every bundle (table 4)",
    "flops": "floating point operations of a layer, a classifier and LTE (appendix D)",
}
"""Name of a module in this folder -> its description."""
_PASSES = ("layerwise", "tradeoff", "lte", "criteria", "certainty", "probe", "limit")
READ_BY = {
    "data": (*_PASSES, "runtime"),
    "split": (*_PASSES, "runtime"),
    "relative_to": tuple(name for name in _PASSES if name != "limit"),
    "criterion": ("tradeoff", "criteria"),
    "length": ("flops",),
    "batch_size": _PASSES,
}
"""Field of a Request -> the studies that read it. The others reject its option."""


def check_options(name: str, given: Iterable[str]) -> None:
    """Raises InputError for an option that the study ``name`` does not read. ``given``: fields of a Request."""
    if unread := [field for field in given if field in READ_BY and name not in READ_BY[field]]:
        flag = "--" + unread[0].replace("_", "-")
        raise InputError(f"{flag} goes with {listed(READ_BY[unread[0]])}, not with {name}: omit {flag}")


def find_study(name: str) -> Callable[[Request], Findings]:
    """Imports a study. Raises InputError with the list of studies for an unknown name."""
    if name not in STUDIES:
        raise InputError(f"unknown study '{name}': choose one of {', '.join(STUDIES)}")
    found: Callable[[Request], Findings] = import_module(f"berxit.toolkit.studies.{name}").study
    return found
