from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_backend import StoredBackend, batch_of

from berxit.runtime.errors import InputError
from berxit.runtime.loop import exit_loop
from berxit.runtime.policies import (
    CRITERIA,
    ExitPolicy,
    Parameters,
    Streak,
    certainties,
    exit_layers,
    exit_layers_at,
    softmax,
)

LN2, LN3 = math.log(2), math.log(3)


def certainty(criterion: str, logits: list[list[float]], temperature: float = 1.0) -> npt.NDArray:
    policy = ExitPolicy(criterion, (), (temperature,))
    return policy.certainty(1, np.array(logits, dtype=np.float32), None, None)[0]


def looped(policy: ExitPolicy, logits: npt.NDArray, lte: npt.NDArray | None) -> tuple[npt.NDArray, npt.NDArray]:
    """Exit layer of each row and its certainty there, from the exit loop."""
    layers = np.zeros(len(logits), dtype=int)
    sure = np.zeros(len(logits))
    for result in exit_loop(StoredBackend(logits, lte), batch_of(len(logits)), policy):
        layers[result.rows[result.exits]] = result.layer
        sure[result.rows[result.exits]] = result.certainty[result.exits]
    return layers, sure


def test_softmax_does_not_overflow() -> None:
    np.testing.assert_allclose(softmax(np.array([[0.0, LN3], [1000.0, -1000.0]])), [[0.25, 0.75], [1.0, 0.0]])


def test_confidence_is_highest_class_probability() -> None:
    found = certainty("confidence", [[0, LN3, -1000], [0, LN2, math.log(5)], [7, 7, 7]])
    np.testing.assert_allclose(found, [3 / 4, 5 / 8, 1 / 3], rtol=1e-6)


def test_confidence_does_not_overflow() -> None:
    np.testing.assert_array_equal(certainty("confidence", [[1000, -1000], [-1000, -1000]]), [1, 0.5])


def test_entropy_is_in_nats() -> None:
    found = certainty("entropy", [[0, LN3], [2, 2]])
    np.testing.assert_allclose(found, [0.25 * math.log(4) + 0.75 * math.log(4 / 3), LN2], rtol=1e-6)


def test_entropy_does_not_overflow() -> None:
    found = certainty("entropy", [[1000, 0, 0], [1000, 1000, -1000], [-1000, -1000, -1000]])
    np.testing.assert_allclose(found, [0, LN2, LN3], rtol=1e-6, atol=1e-7)


def test_lte_certainty_is_output_of_segment() -> None:
    policy = ExitPolicy.uniform("lte", 0.5, layers=2)
    found, memory = policy.certainty(1, np.zeros((2, 3)), np.array([0.2, 0.9]), None)
    np.testing.assert_array_equal(found, [0.2, 0.9])
    assert memory is None


def test_patience_counts_layers_with_same_class() -> None:
    classes = np.array([[0, 0, 1, 1, 1], [2, 2, 2, 2, 0]])
    logits = np.eye(3, dtype=np.float32)[classes]
    found = certainties(ExitPolicy.uniform("patience", 2, layers=5), logits, None)
    np.testing.assert_array_equal(found, [[0, 1, 0, 1, 2], [0, 1, 2, 3, 0]])


def test_patience_counts_regression_values_within_tolerance() -> None:
    values = np.array([[1.0, 1.25, 1.75, 2.0, 1.875]], dtype=np.float32)[..., None]
    policy = ExitPolicy.uniform("patience", 2, layers=5, tolerance=0.5)
    np.testing.assert_array_equal(certainties(policy, values, None), [[0, 1, 0, 1, 2]])
    wider = ExitPolicy.uniform("patience", 2, layers=5, tolerance=0.51)
    np.testing.assert_array_equal(certainties(wider, values, None), [[0, 1, 2, 3, 4]])


def test_patience_memory_keeps_continuing_rows() -> None:
    kept = Streak(np.array([4, 5, 6]), np.array([0, 1, 2])).keep(np.array([True, False, True]))
    assert kept.prediction.tolist() == [4, 6]
    assert kept.value.tolist() == [0, 2]


@pytest.mark.parametrize(("criterion", "expected"), [("confidence", 0.75), ("entropy", 0.5623351)])
def test_certainty_uses_temperature_of_layer(criterion: str, expected: float) -> None:
    policy = ExitPolicy(criterion, (0.5,), (2.0, 4.0))
    logits = np.array([[[0, 2 * LN3], [0, 4 * LN3]]], dtype=np.float32)
    np.testing.assert_allclose(certainties(policy, logits, None), [[expected, expected]], rtol=1e-6)


def test_temperature_does_not_change_regression_values() -> None:
    policy = ExitPolicy("patience", (1.0,), (8.0, 8.0), tolerance=0.5)
    assert certainties(policy, np.array([[[1.0], [3.0]]]), None).tolist() == [[0, 0]]


@pytest.mark.parametrize(
    ("criterion", "measured", "leaves"),
    [
        ("confidence", [0.7, 0.8, 0.9], [False, False, True]),
        ("lte", [0.7, 0.8, 0.9], [False, False, True]),
        ("entropy", [0.7, 0.8, 0.9], [True, False, False]),
    ],
)
def test_exits_excludes_certainty_equal_to_threshold(criterion: str, measured: list[float], leaves: list[bool]) -> None:
    assert ExitPolicy.uniform(criterion, 0.8, layers=2).exits(1, np.array(measured)).tolist() == leaves


def test_exits_includes_patience_equal_to_threshold() -> None:
    policy = ExitPolicy.uniform("patience", 2, layers=3)
    assert policy.exits(1, np.array([1, 2, 3])).tolist() == [False, True, True]


def test_policy_has_one_threshold_per_layer() -> None:
    policy = ExitPolicy("confidence", (0.9, 0.6), (1.0, 1.0, 1.0))
    assert policy.exits(1, np.array([0.7])).tolist() == [False]
    assert policy.exits(2, np.array([0.7])).tolist() == [True]
    assert exit_layers(policy, np.array([[0.7, 0.7, 0.7], [0.95, 0.5, 0.5], [0.5, 0.5, 0.5]])).tolist() == [2, 1, 3]


@pytest.mark.parametrize(
    ("criterion", "unsure"), [("confidence", 0.1), ("lte", 0.0), ("entropy", 9.0), ("patience", 0)]
)
def test_every_row_exits_at_last_layer(criterion: str, unsure: float) -> None:
    policy = ExitPolicy.uniform(criterion, 1, layers=2)
    assert policy.exits(2, np.array([unsure])).tolist() == [True]
    assert exit_layers(policy, np.array([[unsure, unsure]])).tolist() == [2]


def test_full_depth_exits_at_last_layer() -> None:
    certain = np.tile(np.array([1000.0, -1000.0], dtype=np.float32), (1, 4, 1))
    assert looped(ExitPolicy.full_depth(4), certain, None)[0].tolist() == [4]
    same_values = np.zeros((1, 4, 1), dtype=np.float32)
    assert looped(ExitPolicy.full_depth(4, regression=True), same_values, None)[0].tolist() == [4]


def test_at_depth_exits_at_depth_with_same_certainty() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 4, 2)).astype(np.float32)
    policy = ExitPolicy.uniform("confidence", 0.1, layers=4)
    layers, sure = looped(policy.at_depth(3), logits, None)
    assert layers.tolist() == [3, 3, 3]
    np.testing.assert_array_equal(sure, certainties(policy, logits, None)[:, 2])


def test_exit_layers_of_fixed_depth_equal_depth() -> None:
    policy = ExitPolicy.uniform("confidence", 0.1, layers=4).at_depth(3)
    assert exit_layers(policy, np.full((2, 4), 0.9)).tolist() == [3, 3]


@pytest.mark.parametrize("depth", [0, 4, -1])
def test_at_depth_rejects_depth_out_of_range(depth: int) -> None:
    with pytest.raises(InputError, match=rf"depth {depth} .* layers 1 to 3"):
        ExitPolicy.uniform("confidence", 0.5, layers=3).at_depth(depth)


def test_with_threshold_changes_only_thresholds() -> None:
    policy = ExitPolicy("patience", (1.0, 2.0), (1.0, 2.0, 3.0), tolerance=0.25)
    assert policy.with_threshold(2) == ExitPolicy("patience", (2.0, 2.0), (1.0, 2.0, 3.0), tolerance=0.25)


def test_policy_rejects_unknown_criterion() -> None:
    with pytest.raises(InputError, match=r"'magic'.*confidence, entropy, lte, patience"):
        ExitPolicy("magic", (0.5,), (1.0, 1.0))


def test_policy_rejects_wrong_number_of_thresholds() -> None:
    with pytest.raises(InputError, match="2 thresholds and 2 temperatures"):
        ExitPolicy("confidence", (0.5, 0.5), (1.0, 1.0))


@pytest.mark.parametrize(
    ("criterion", "threshold"),
    [
        ("confidence", 1.01),
        ("confidence", -0.01),
        ("confidence", math.nan),
        ("lte", 1.01),
        ("lte", -0.01),
        ("entropy", -0.01),
        ("entropy", math.inf),
        ("patience", 0),
        ("patience", 0.5),
    ],
)
def test_policy_rejects_threshold_out_of_range(criterion: str, threshold: float) -> None:
    with pytest.raises(InputError, match="out of range"):
        ExitPolicy.uniform(criterion, threshold, layers=3)


@pytest.mark.parametrize(("criterion", "threshold"), [("confidence", 0), ("lte", 1), ("entropy", 5), ("patience", 1)])
def test_policy_accepts_thresholds_at_bounds(criterion: str, threshold: float) -> None:
    assert ExitPolicy.uniform(criterion, threshold, layers=3).thresholds == (float(threshold),) * 2


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_policy_rejects_invalid_temperature(temperature: float) -> None:
    with pytest.raises(InputError, match="temperatures"):
        ExitPolicy("confidence", (0.5,), (1.0, temperature))


@pytest.mark.parametrize(
    ("criterion", "regression", "lte", "fits"),
    [
        ("confidence", False, False, True),
        ("confidence", True, True, False),
        ("entropy", True, True, False),
        ("lte", True, True, True),
        ("lte", False, False, False),
        ("patience", True, False, True),
        ("patience", False, False, True),
    ],
)
def test_policy_check_rejects_unsuitable_criterion(criterion: str, regression: bool, lte: bool, fits: bool) -> None:
    policy = ExitPolicy.uniform(criterion, 1, layers=2)
    if fits:
        assert policy.check(regression=regression, lte=lte) is None
    else:
        with pytest.raises(InputError, match=f"'{criterion}' needs"):
            policy.check(regression=regression, lte=lte)


@pytest.mark.parametrize("criterion", ["lte", "entropy"])
def test_thresholds_are_compared_in_float32(criterion: str) -> None:
    """The float32 value of 0.8 is above its float64 value, that of 0.7 below."""
    policy = ExitPolicy(criterion, (0.8, 0.7), (1.0, 1.0, 1.0))
    on_them = np.array([[0.8, 0.7, 0.5]], dtype=np.float32)
    assert [policy.exits(layer, on_them[:, layer - 1]).item() for layer in (1, 2)] == [False, False]
    assert exit_layers(policy, on_them).tolist() == [3]


def test_fractional_patience_exits_equally_everywhere() -> None:
    logits = np.zeros((1, 4, 2), dtype=np.float32)
    policy = ExitPolicy.uniform("patience", 1.5, layers=4)
    assert looped(policy, logits, None)[0].tolist() == exit_layers(policy, certainties(policy, logits, None)).tolist()


@st.composite
def stored_passes(draw: st.DrawFn) -> tuple[ExitPolicy, npt.NDArray, npt.NDArray]:
    """Random policy, logits (B, n, C) and LTE (B, n). Some thresholds are equal to the certainty of a row."""
    criterion = draw(st.sampled_from(sorted(CRITERIA)))
    rows, layers = draw(st.integers(1, 7)), draw(st.integers(1, 6))
    outputs = draw(st.integers(1 if CRITERIA[criterion].for_regression else 2, 10))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.1, 1.0, 5.0, 1000.0]))
    logits = (scale * rng.normal(size=(rows, layers, outputs))).astype(np.float32)
    lte = rng.random((rows, layers)).astype(np.float32)
    temperatures = tuple(draw(st.sampled_from([0.5, 1.0, 1.7])) for _ in range(layers))
    if criterion == "patience":
        thresholds = tuple(float(draw(st.integers(1, layers))) for _ in range(layers - 1))
        return ExitPolicy(criterion, thresholds, temperatures, tolerance=scale), logits, lte
    unset = ExitPolicy(criterion, (1.0,) * (layers - 1), temperatures)
    measured = certainties(unset, logits, lte)
    thresholds = tuple(
        draw(st.one_of(st.floats(0, 1), st.sampled_from(measured[:, i].astype(float).tolist())))
        for i in range(layers - 1)
    )
    return ExitPolicy(criterion, thresholds, temperatures), logits, lte


@settings(deadline=None, max_examples=300)
@given(stored_passes())
def test_exit_layers_equal_those_of_exit_loop(
    drawn: tuple[ExitPolicy, npt.NDArray, npt.NDArray],
) -> None:
    policy, logits, lte = drawn
    measured = certainties(policy, logits, lte)
    expected = exit_layers(policy, measured)
    rows = np.arange(len(logits))

    together, sure = looped(policy, logits, lte)
    np.testing.assert_array_equal(together, expected)
    np.testing.assert_array_equal(sure, measured[rows, expected - 1])

    alone = [looped(policy, logits[row : row + 1], lte[row : row + 1])[0].item() for row in rows]
    np.testing.assert_array_equal(alone, expected)


def test_exit_layers_at_equals_exit_layers_of_each_threshold() -> None:
    rng = np.random.default_rng(4)
    certainty = rng.random((50, 6), dtype=np.float32)
    thresholds = [0.0, 0.3, 0.5, 0.9, 1.0]
    policy = ExitPolicy.uniform("lte", 0.5, 6)
    found = exit_layers_at(policy, certainty, thresholds)
    assert found.shape == (5, 50)
    for row, threshold in zip(found, thresholds, strict=True):
        assert row.tolist() == exit_layers(policy.with_threshold(threshold), certainty).tolist()
    with pytest.raises(InputError, match="out of range"):
        exit_layers_at(policy, certainty, [0.5, 2.0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_entropy_of_zero_probability_is_zero(dtype: type) -> None:
    logits = np.array([[0, -np.inf], [0, -1000], [0, 0]], dtype)
    found, _ = CRITERIA["entropy"].certainty(logits, None, None, Parameters())
    assert found.tolist() == pytest.approx([0, 0, np.log(2)])
