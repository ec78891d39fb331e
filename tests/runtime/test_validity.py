from __future__ import annotations

import numpy as np
import pytest

from berxit.devices import Sampled
from berxit.runtime.queries import Queries
from berxit.runtime.validity import PRESETS, judge

STANDARD, SINGLE = PRESETS["standard"], PRESETS["single-stream"]


def queries(count: int, milliseconds: float = 1.0) -> Queries:
    return Queries(np.full((1, count), milliseconds), np.ones((1, count), np.int64))


def throttled(**reasons: float) -> Sampled:
    return Sampled("", max(reasons.values()), 0.0, float(max(reasons.values()) > 0), 9, reasons)


def test_enough_queries_on_a_quiet_machine_are_valid() -> None:
    found = judge(STANDARD, {"layer 1": queries(200)}, {"full depth": queries(200)}, {"throttled": None}, [])
    assert (found.valid, found.problems, str(found)) == (True, (), "VALID (preset standard)")


@pytest.mark.parametrize(
    ("least", "compared", "sensor", "noise", "problem"),
    [
        (
            queries(199),
            queries(199),
            None,
            [],
            "too few queries: 199 per operating point, at least 200 are needed. Bench more inputs",
        ),
        (
            queries(200),
            queries(200),
            throttled(fan=0.0, heat=0.25),
            [],
            "throttled: heat (25% of the time). Cool the device, or choose a power mode that it can keep",
        ),
        (
            queries(200),
            queries(200),
            throttled(heat=0.0),
            ["the machine is busy"],
            "noisy: the machine is busy. Bench again when no other process is busy",
        ),
    ],
)
def test_invalid_result_names_its_reason(
    least: Queries, compared: Queries, sensor: Sampled | None, noise: list[str], problem: str
) -> None:
    found = judge(STANDARD, {"layer 1": least}, {"full depth": compared}, {"throttled": sensor}, noise)
    assert (found.valid, found.problems) == (False, (problem,))
    assert str(found) == f"INVALID (preset standard): {problem}"


@pytest.mark.parametrize(
    ("count", "milliseconds", "problems"),
    [
        (1024, 59.0, ()),
        (1023, 59.0, ("too few queries: 1023 of full depth, at least 1024 are needed. Bench more inputs",)),
        (1024, 58.0, ("too short: 59.4 s of full depth, at least 60 s are needed. Bench more inputs",)),
    ],
)
def test_single_stream_needs_queries_and_time(count: int, milliseconds: float, problems: tuple[str, ...]) -> None:
    found = judge(SINGLE, {"layer 1": queries(200)}, {"full depth": queries(count, milliseconds)}, {}, [])
    assert found.problems == problems
