from __future__ import annotations

from pathlib import Path

import pytest
from long_text import UNITS, measure


@pytest.mark.parametrize("unit", list(UNITS))
def test_measure_reports_latency_memory_and_overruns(unit: str, bundle: Path) -> None:
    milliseconds, peak, overrun, other = map(float, measure(bundle, 1000.0, 10_000, unit))
    assert milliseconds > 0
    assert peak > 10
    assert overrun == other == 0.0
