"""Claims that are judged again on stored curves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.stored_claims import lte_claims, strategy_claims
from berxit.runtime.errors import InputError

LAYERS = [1.0, 2.0, 3.0, 4.0]


def stored(folder: Path, name: str, content: dict[str, object], constant: float = 0.5) -> Path:
    (folder / "layerwise-rte.md").write_text(f"- m: 100% is 0.8; the best constant prediction scores {constant}\n")
    path = folder / f"{name}-rte.json"
    path.write_text(json.dumps(content))
    return path


def line(label: str, scores: list[float], model: str = "m") -> dict[str, object]:
    return {"model": model, "label": label, "reference": 0.8, "average_exit_layer": LAYERS, "relative": scores}


def test_strategy_claims_do_not_count_scores_below_the_constant_prediction(tmp_path: Path) -> None:
    """The constant prediction is at 62.5%. Joint is below it at layers 1 and 2, alternating is on it."""
    lines = [
        line("joint (mean of 3)", [22.5, 22.5, 82.5, 100]),
        line("alternating (mean of 3)", [62.5, 62.5, 62.5, 100]),
        line("alternating, mean pooling", [62.5, 62.5, 62.5, 100]),  # no joint with these options
        line("joint", [0, 0, 0, 0], model="other"),
    ]
    (claim,) = strategy_claims(stored(tmp_path, "tradeoff", {"curves": lines}))
    assert (claim.first, claim.second, claim.seeds) == ("alternating", "joint", (3, 3))
    assert claim.as_stored[0] == pytest.approx(40 + 40 * (2 / 3) / 2)
    assert claim.clipped == pytest.approx((0, 20 * (1 / 3) / 2 + 20 / 2))
    assert (claim.verdict, claim.reason) == ("undecided", "rows not stored")


def test_lte_claims_cover_the_early_half_and_patience(tmp_path: Path) -> None:
    curves = {
        name: {"average_exit_layer": LAYERS, "relative": scores}
        for name, scores in (("LTE", [80, 90, 95, 100]), ("layer-wise", [70, 80, 95, 100]), ("patience", [0] * 4))
    }
    content = {"lines": [{"model": "m", "label": "alternating", "reference": 0.8, "curves": curves}]}
    early, patience = lte_claims(stored(tmp_path, "lte", content))
    assert (early.second, early.clipped) == ("layer-wise, up to layer 2", pytest.approx((10, 0)))
    assert patience.clipped[0] < patience.as_stored[0]
    assert patience.reason == "one seed; the tolerance of patience was chosen on the reported rows"


def test_strategy_claims_need_the_constant_prediction(tmp_path: Path) -> None:
    path = stored(tmp_path, "tradeoff", {"curves": [line("joint", LAYERS), line("alternating", LAYERS)]})
    (tmp_path / "layerwise-rte.md").unlink()
    with pytest.raises(InputError, match="does not contain the constant prediction's score: rerun"):
        list(strategy_claims(path))
