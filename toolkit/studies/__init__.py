"""The paper's experiments. A study is one module with ``study(request) -> Findings``, and one line in STUDIES."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from berxit.runtime.errors import InputError

if TYPE_CHECKING:
    from berxit.toolkit.studies.findings import Findings
    from berxit.toolkit.studies.request import Request

STUDIES = {
    "layerwise": "the score of every layer, strategy by strategy (figures 2, 3, 10, 11)",
    "tradeoff": "relative score against average exit layer, and the area between the curves (figures 4, 5, table 2)",
    "lte": "learning to exit against leaving at a fixed layer, and against patience (figure 6, table 3)",
    "certainty": "the learned certainty of every layer beside the layer's score (figure 7)",
    "probe": "confidence against word overlap: BLEU-4 of the two sentences (figure 8)",
    "limit": "what the first layers could reach alone (figure 9)",
    "runtime": "seconds for the whole dev set, bundle by bundle, on this device (table 4)",
    "flops": "what a layer, a classifier and LTE compute, counted (appendix D)",
}
"""Name of a module here -> what it shows."""


def find_study(name: str) -> Callable[[Request], Findings]:
    """Imports a study. Raises InputError with the list for an unknown one."""
    if name not in STUDIES:
        raise InputError(f"no study '{name}': choose one of {', '.join(STUDIES)}")
    found: Callable[[Request], Findings] = import_module(f"berxit.toolkit.studies.{name}").study
    return found
