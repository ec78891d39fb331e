"""Figure 6, table 3: learning to exit compared with one exit layer for all examples, and with patience (PABEE)."""

from __future__ import annotations

from berxit.runtime.errors import InputError
from berxit.toolkit.studies.criteria import LINE, compare
from berxit.toolkit.studies.findings import Findings
from berxit.toolkit.studies.request import Request
from berxit.train.sweeps import LAYER_WISE

LTE, PATIENCE = "LTE", "patience"


def study(request: Request) -> Findings:
    if missing := [run.folder for run in request.runs if run.predictions.lte is None]:
        raise InputError(f"{missing[0]} was trained without LTE: retrain it with --lte, or omit it")
    return compare(
        request,
        name="lte",
        title="learning to exit, patience and one exit layer",
        methods={LTE: "lte", LINE: LAYER_WISE, PATIENCE: "patience"},
        pairs=[(LTE, LINE), (LTE, PATIENCE)],
        early=[(LTE, LINE)],
    )
