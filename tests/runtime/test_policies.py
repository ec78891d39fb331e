from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_backend import StoredBackend, batch_of

from berxit.runtime.deadline import Deadline, StepEstimator
from berxit.runtime.errors import InputError
from berxit.runtime.json_data import parse, to_json
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
from berxit.runtime.policies.learned import feature_names

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
        assert policy.check(outputs=1 if regression else 3, lte=lte) is None
    else:
        with pytest.raises(InputError, match=f"'{criterion}' needs"):
            policy.check(outputs=1 if regression else 3, lte=lte)


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
    criterion = CRITERIA[draw(st.sampled_from(sorted(CRITERIA)))]
    rows, layers = draw(st.integers(1, 7)), draw(st.integers(1, 6))
    outputs = draw(st.integers(1 if criterion.for_regression else 2, 10))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.1, 1.0, 5.0, 1000.0]))
    logits = (scale * rng.normal(size=(rows, layers, outputs))).astype(np.float32)
    lte = rng.random((rows, layers)).astype(np.float32)
    weights = rng.normal(size=(layers - 1, len(feature_names(outputs)) + 1)).tolist() if criterion.fitted else ()
    unset = ExitPolicy(
        criterion.name,
        (1.0,) * (layers - 1),
        temperatures=tuple(draw(st.sampled_from([0.5, 1.0, 1.7])) for _ in range(layers)),
        tolerance=scale,
        patience=1 if criterion.counts else draw(st.integers(1, layers)),
        off=tuple(layer for layer in range(1, layers) if draw(st.integers(0, 3)) == 0),
        weights=tuple(map(tuple, weights)),
    )
    measured = certainties(unset, logits, lte).astype(float)

    def threshold(layer: int) -> float:
        if criterion.counts:
            return float(draw(st.integers(1, layers)))
        return float(draw(st.one_of(st.floats(0, 1), st.sampled_from(measured[:, layer - 1].tolist()))))

    per_class = outputs > 1 and draw(st.booleans())
    thresholds = tuple(
        tuple(threshold(layer) for _ in range(outputs)) if per_class else threshold(layer) for layer in range(1, layers)
    )
    return replace(unset, thresholds=thresholds), logits, lte


@settings(deadline=None, max_examples=300)
@given(stored_passes())
def test_exit_layers_equal_those_of_exit_loop(
    drawn: tuple[ExitPolicy, npt.NDArray, npt.NDArray],
) -> None:
    policy, logits, lte = drawn
    measured = certainties(policy, logits, lte)
    expected = exit_layers(policy, measured, logits)
    rows = np.arange(len(logits))

    together, sure = looped(policy, logits, lte)
    np.testing.assert_array_equal(together, expected)
    np.testing.assert_array_equal(sure, measured[rows, expected - 1])

    alone = [looped(policy, logits[row : row + 1], lte[row : row + 1])[0].item() for row in rows]
    np.testing.assert_array_equal(alone, expected)

    table = [[t if isinstance(t, tuple) else (t,) * max(2, logits.shape[2]) for t in policy.thresholds]]
    if policy.layers > 1:
        predicted = logits[..., 0].astype(int) * 0 if logits.shape[2] == 1 else logits.argmax(axis=-1)
        at_once = exit_layers_at(CRITERIA[policy.criterion], measured, table, predicted, policy.off)[0]
        np.testing.assert_array_equal(at_once, expected)


@settings(deadline=None, max_examples=100)
@given(stored_passes())
def test_every_policy_is_the_same_after_json_and_in_a_deadline(
    drawn: tuple[ExitPolicy, npt.NDArray, npt.NDArray],
) -> None:
    policy, logits, lte = drawn
    assert parse(ExitPolicy, json.loads(json.dumps(to_json(policy))), "policy") == policy
    assert policy.check(outputs=logits.shape[2], lte=True) is None
    exits = range(1, policy.layers + 1)
    for end, expected in ((1e9, looped(policy, logits, lte)[0]), (-1.0, np.ones(len(logits)))):
        deadline = Deadline(policy, exits, end, StepEstimator(), clock=lambda: 0.0)
        np.testing.assert_array_equal(looped(deadline, logits, lte)[0], expected)
    streamed, sure = looped(policy.at_depth(policy.layers), logits, lte)
    assert (streamed == policy.layers).all()
    np.testing.assert_array_equal(sure, certainties(policy, logits, lte)[:, -1])


def test_agreement_sums_confidence_while_exits_agree() -> None:
    probabilities = np.array([[0.9, 0.6, 0.2, 0.1]])
    logits = np.log(np.stack([probabilities, 1 - probabilities], axis=-1)).astype(np.float32)
    found = certainties(ExitPolicy.uniform("agreement", 1.0, 4), logits, None)
    np.testing.assert_allclose(found, [[0.9, 1.5, 0.8, 1.7]], rtol=1e-6)


def test_patience_of_a_policy_needs_consecutive_exits_above_the_threshold() -> None:
    lte = np.array([[0.9, 0.3, 0.8, 0.7, 0.9]], np.float32)
    policy = replace(ExitPolicy.uniform("lte", 0.5, 5), patience=2)
    found = certainties(policy, np.zeros((1, 5, 2), np.float32), lte)
    np.testing.assert_array_equal(found, np.array([[0.0, 0.3, 0.3, 0.7, 0.7]], np.float32))
    assert exit_layers(policy, found).tolist() == [4]
    falling = replace(ExitPolicy.uniform("entropy", 1e30, 3), patience=2)
    logits = np.array([[[9.0, 0.0], [0.0, 0.0], [0.0, 9.0]]], np.float32)
    found = certainties(falling, logits, None)
    assert found[0, 1] == pytest.approx(LN2)
    assert exit_layers(falling, found).tolist() == [2]


def test_exits_that_are_switched_off_are_skipped_as_if_they_did_not_exist() -> None:
    logits = np.eye(2, dtype=np.float32)[np.array([[0, 1, 0, 0]])]
    policy = replace(ExitPolicy.uniform("patience", 1, 4), off=(2,))
    found = certainties(policy, logits, None)
    assert exit_layers(policy, found).tolist() == [3]
    assert looped(policy, logits, None)[0].tolist() == [3]
    fewer = policy.at_exits((1, 3, 4))
    assert fewer.off == ()
    np.testing.assert_array_equal(certainties(fewer, logits[:, [0, 2, 3]], None), found[:, [0, 2, 3]])


def test_threshold_per_class_depends_on_the_predicted_class() -> None:
    policy = ExitPolicy("confidence", ((0.6, 1.0), (0.6, 1.0)), (1.0,) * 3)
    logits = np.tile(np.array([[[3.0, 0.0]], [[0.0, 3.0]]], np.float32), (1, 3, 1))
    assert looped(policy, logits, None)[0].tolist() == [1, 3]
    assert policy.with_threshold(0.6).thresholds == (0.6, 0.6)


def test_learned_is_a_logistic_model_of_its_features() -> None:
    """Three exits with probabilities 0.8, 0.6 and 0.7 of the class that each predicts, checked by hand."""
    second = np.array([[0.8, 0.4, 0.3]])  # probabilities of class 0
    logits = np.log(np.stack([second, 1 - second], axis=-1)).astype(np.float32)
    lte = np.array([[0.5, 0.25, 0.75]], np.float32)
    weights = ((0.1, 1.0, 0.5, 0.2, 2.0, 3.0, 4.0),) * 2
    policy = replace(ExitPolicy.uniform("confidence", 0.5, 3), criterion="learned", weights=weights)
    scores = [
        0.1 + 0.8 + 0.5 * math.log(0.8 / 0.2) + 4 * 0.5,
        0.1 + 0.6 + 0.5 * math.log(0.6 / 0.4) + 2 * 0.2 + 4 * 0.25,
    ]
    expected = [*(1 / (1 + math.exp(-score)) for score in scores), 1.0]
    np.testing.assert_allclose(certainties(policy, logits, lte), [expected], rtol=1e-6)
    three = np.repeat(logits, 3, axis=0), np.repeat(lte, 3, axis=0)
    np.testing.assert_allclose(certainties(policy, *three), [expected] * 3, rtol=1e-6)


def test_learned_of_regression_reads_value_differences() -> None:
    values, lte = np.array([[[1.0], [2.0], [2.5]]], np.float32), np.array([[0.5, 0.8, 0.9]], np.float32)
    policy = ExitPolicy(
        "learned", (0.5, 0.5, 0.5), (1.0,) * 4, tolerance=0.5, weights=((0.1, 1.0, 2.0, 0.3, 0.01, 0.5),) * 3
    )
    values, lte = np.concatenate([values, values[:, -1:]], axis=1), np.concatenate([lte, lte[:, -1:]], axis=1)
    scores = [
        0.1 + 0.3 * 2 + 0.01 * 4,
        0.1 + math.log(2.01) + 0.3 * 4 + 0.01 * 16 + 0.5 * math.log(4),
        0.1 + math.log(1.01) + 2 * math.log(3.01) + 0.3 * 5 + 0.01 * 25 + 0.5 * math.log(9),
    ]
    found = certainties(policy, values, lte)[0]
    np.testing.assert_allclose(found[:3], [1 / (1 + math.exp(-score)) for score in scores], rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patience": 0}, "patience is 0"),
        ({"patience": 4}, "patience is 4: it must be a number of exits, from 1 to 3"),
        ({"criterion": "patience", "thresholds": (1.0, 1.0), "patience": 2}, "'patience' counts layers"),
        ({"off": (3,)}, "exit 3 cannot be switched off"),
        ({"off": (0,)}, "exit 0 cannot be switched off"),
        ({"criterion": "learned"}, "'learned' has 0 rows of weights for 3 layers: it needs 2"),
        ({"criterion": "learned", "weights": ((0.0,) * 7, (math.nan,) * 7)}, "finite numbers"),
        ({"weights": ((0.0,) * 7,) * 2}, "'confidence' has no weights"),
        ({"thresholds": ((0.5, 2.0), 0.5)}, "threshold 2.0 is out of range"),
    ],
)
def test_policy_rejects_settings_that_contradict_each_other(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        replace(ExitPolicy.uniform("confidence", 0.5, 3), **change)


@pytest.mark.parametrize(
    ("change", "outputs", "message"),
    [
        ({"thresholds": ((0.5, 0.6, 0.7), 0.5)}, 2, "a threshold has 3 numbers: it needs one number, or one per class"),
        ({"criterion": "lte", "thresholds": ((0.5,), 0.5)}, 1, "a threshold has 1 numbers"),
        ({"criterion": "learned", "weights": ((0.0,) * 6,) * 2}, 2, "'learned' has 6 weights at a layer: this model"),
        ({"criterion": "learned", "weights": ((0.0,) * 6,) * 2, "tolerance": 0.0}, 1, "needs a tolerance above 0"),
        ({"criterion": "agreement"}, 1, "'agreement' needs class probabilities"),
    ],
)
def test_policy_check_rejects_what_does_not_fit_the_model(change: dict[str, Any], outputs: int, message: str) -> None:
    policy = replace(ExitPolicy.uniform("confidence", 0.5, 3), **change)
    with pytest.raises(InputError, match=re.escape(message)):
        policy.check(outputs=outputs, lte=True)


def test_schema_version_is_2_for_features_that_readers_of_version_1_do_not_know() -> None:
    plain = ExitPolicy.uniform("confidence", 0.5, 3)
    assert plain.schema_version == replace(plain, temperatures=(2.0, 1.5, 1.0)).schema_version == 1
    assert replace(plain, thresholds=(0.5, 0.7)).schema_version == 1
    changes: list[dict[str, Any]] = [
        {"patience": 2},
        {"off": (1,)},
        {"thresholds": ((0.5, 0.6), 0.5)},
        {"criterion": "agreement"},
        {"criterion": "learned", "weights": ((0.0,) * 7,) * 2},
    ]
    assert [replace(plain, **change).schema_version for change in changes] == [2] * len(changes)


def test_spread_over_is_the_opposite_of_at_exits() -> None:
    policy = replace(ExitPolicy("confidence", (0.5, 0.7), (2.0, 1.5, 1.0)), off=(1,))
    wide = policy.spread_over((2, 4, 6))
    assert (wide.layers, wide.off) == (6, (2,))
    assert wide.thresholds == (0.5, 0.5, 0.7, 0.7, 0.7)
    assert wide.temperatures == (2.0, 2.0, 1.5, 1.5, 1.0, 1.0)
    assert wide.at_exits((2, 4, 6)) == policy
    assert ExitPolicy("confidence", (), (1.0,)).spread_over((3,)).thresholds == (1.0, 1.0)


def test_exit_layers_at_equals_exit_layers_of_each_threshold() -> None:
    rng = np.random.default_rng(4)
    certainty = rng.random((50, 6), dtype=np.float32)
    thresholds = [0.0, 0.3, 0.5, 0.9, 1.0]
    policy = ExitPolicy.uniform("lte", 0.5, 6)
    found = exit_layers_at(CRITERIA[policy.criterion], certainty, thresholds)
    assert found.shape == (5, 50)
    for row, threshold in zip(found, thresholds, strict=True):
        assert row.tolist() == exit_layers(policy.with_threshold(threshold), certainty).tolist()
    with pytest.raises(InputError, match="out of range"):
        exit_layers_at(CRITERIA[policy.criterion], certainty, [0.5, 2.0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_entropy_of_zero_probability_is_zero(dtype: type) -> None:
    logits = np.array([[0, -np.inf], [0, -1000], [0, 0]], dtype)
    found, _ = CRITERIA["entropy"].certainty(logits, None, None, Parameters())
    assert found.tolist() == pytest.approx([0, 0, np.log(2)])
