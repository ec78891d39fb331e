"""Monitoring of a runner: counting, alarms, shadow runs, threads, errors; and recalibration without labels."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from berxit.runtime import EarlyExitRunner, InputError
from berxit.runtime.examples import read_examples
from berxit.runtime.monitoring import MonitorReport, wilson
from berxit.runtime.recalibration import every_output
from berxit.runtime.tokenization import Text


@pytest.fixture(scope="module")
def loaded(bundle: Path) -> EarlyExitRunner:
    return EarlyExitRunner.load(bundle, threads=1)


@pytest.fixture
def runner(loaded: EarlyExitRunner, bundle: Path) -> Iterator[EarlyExitRunner]:
    """The same loaded segments for every test; policy and monitor are new."""
    yield EarlyExitRunner(loaded.manifest, loaded.tokenizer, loaded.backend, loaded.device)


@pytest.fixture(scope="module")
def texts(data_folder: Path) -> list[Text]:
    return list(read_examples(data_folder / "dev.tsv", ("text",), "label", ("cat", "other")).texts)


def test_monitor_counts_what_the_runner_predicts(runner: EarlyExitRunner, texts: list[Text]) -> None:
    monitor = runner.monitor()
    assert str(monitor.report()) == "no input was compared with the calibration data yet"
    predictions = runner.predict_batch(texts)
    report = monitor.report()
    assert (report.inputs, report.not_compared, report.drifted) == (len(texts), 0, False)
    assert report.average_exit_layer == pytest.approx(np.mean([p.exit_layer for p in predictions]))
    assert report.average_exit_layer == pytest.approx(report.calibrated_exit_layer)  # these are the calibration data
    assert report.predictions == report.calibrated_predictions
    assert "48 inputs: the inputs look like the calibration data; average exit layer" in str(report)
    monitor.restart()
    assert monitor.report().inputs == 0
    runner.predict_batch(texts[:1])
    assert str(monitor.report()).startswith("1 input: ")


def test_monitor_reports_inputs_of_one_class_once(
    runner: EarlyExitRunner, texts: list[Text], caplog: pytest.LogCaptureFixture
) -> None:
    received: list[MonitorReport] = []
    monitor = runner.monitor(on_drift=received.append)
    of_one_class = [text for text in texts if runner.predict_batch([text])[0].label == "cat"]
    monitor.restart()
    with caplog.at_level(logging.WARNING):
        for _ in range(200 // len(of_one_class) + 1):
            runner.predict_batch(of_one_class)
    assert monitor.drifted and len(received) == 1 and received[0].drifted_at is not None
    assert received[0].drifted_at <= 200
    assert [record.message for record in caplog.records] == [str(received[0])]
    assert f"the inputs differ from the calibration data (alarm after {received[0].drifted_at})" in str(received[0])


def test_monitor_excludes_calls_with_another_policy(runner: EarlyExitRunner, texts: list[Text]) -> None:
    monitor = runner.monitor(shadow=1.0)
    runner.predict_batch(texts[:3], threshold=0.1)
    runner.policy = runner.policy.with_threshold(0.2)
    runner.predict_batch(texts[:4])
    report = monitor.report()
    assert (report.inputs, report.not_compared, report.shadow) == (0, 7, None)


def test_monitor_excludes_predictions_that_a_deadline_stopped(runner: EarlyExitRunner, texts: list[Text]) -> None:
    monitor = runner.monitor(shadow=1.0)
    predictions = runner.predict_batch(texts, deadline_ms=1e-3)
    stopped = sum(prediction.stopped_by == "deadline" for prediction in predictions)
    report = monitor.report()
    assert stopped > 0 and (report.not_compared, report.inputs) == (stopped, len(texts) - stopped)
    assert report.shadow is None  # a shadow run would exceed the caller's deadline


def test_shadow_runs_measure_the_disagreement_with_full_depth(runner: EarlyExitRunner, texts: list[Text]) -> None:
    always = runner.policy.with_threshold(0.0)
    full = runner.answer(texts, runner.policy.at_depth(runner.backend.layers))
    early = runner.answer(texts, always)
    differing = sum(a.label != b.label for a, b in zip(early, full, strict=True))
    runner.policy = always
    runner._reference = always, runner.manifest.calibration.reference  # type: ignore[union-attr, assignment]
    monitor = runner.monitor(shadow=1.0)
    runner.predict_batch(texts)
    shadow = monitor.report().shadow
    assert shadow is not None and (shadow.runs, shadow.disagreement) == (len(texts), differing / len(texts))
    assert shadow.interval == wilson(differing / len(texts), len(texts))
    assert "in 48 shadow runs" in str(monitor.report())


def test_shadow_runs_are_a_random_share(runner: EarlyExitRunner, texts: list[Text]) -> None:
    monitor = runner.monitor(shadow=0.25)
    for _ in range(10):
        runner.predict_batch(texts)
    shadow = monitor.report().shadow
    assert shadow is not None and 80 < shadow.runs < 160  # 480 x 0.25, four standard deviations


def test_monitor_counts_every_input_of_eight_threads(runner: EarlyExitRunner, texts: list[Text]) -> None:
    monitor = runner.monitor(shadow=0.1)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: runner.predict_batch([text]), texts * 8))
    assert monitor.report().inputs == len(texts) * 8


@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 1.0])
def test_wilson_covers_the_share_with_the_stated_probability(share: float) -> None:
    low, high = wilson(share, 400)
    assert 0 <= low <= share <= high <= 1
    if 0 < share < 1:
        assert (high - low) / 2 == pytest.approx(stats.norm.ppf(0.95) * (share * (1 - share) / 400) ** 0.5, rel=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shadow": 1.5}, "shadow is 1.5: give the share of inputs to run to full depth, from 0 to 1"),
        ({"false_alarms": 0.0}, "false_alarms is 0.0: give a probability above 0 and below 1"),
    ],
)
def test_monitor_rejects_values_out_of_range(runner: EarlyExitRunner, options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        runner.monitor(**options)  # type: ignore[arg-type]


def test_monitor_rejects_a_policy_that_was_not_calibrated(runner: EarlyExitRunner) -> None:
    runner.policy = runner.policy.with_threshold(0.3)
    with pytest.raises(InputError, match="the runner's policy is not the calibrated one"):
        runner.monitor()


def test_monitor_rejects_a_bundle_without_histograms(loaded: EarlyExitRunner) -> None:
    manifest = loaded.manifest
    assert manifest.calibration is not None
    older = replace(manifest, calibration=replace(manifest.calibration, reference=None))
    with pytest.raises(InputError, match="this bundle has no histograms of its calibration data"):
        EarlyExitRunner(older, loaded.tokenizer, loaded.backend).monitor()


def test_recalibrate_chooses_a_threshold_that_keeps_the_risk(runner: EarlyExitRunner, texts: list[Text]) -> None:
    before = runner.policy
    monitor = runner.monitor()
    found = runner.recalibrate(texts, risk=0.3, delta=0.1)
    assert runner.policy == found.policy != before
    predictions = runner.predict_batch(texts)
    full = runner.answer(texts, runner.policy.at_depth(runner.backend.layers))
    disagreement = np.mean([a.label != b.label for a, b in zip(predictions, full, strict=True)])
    assert found.disagreement == pytest.approx(disagreement) and disagreement <= 0.3
    assert found.average_exit_layer == pytest.approx(np.mean([p.exit_layer for p in predictions]))
    assert found.average_exit_layer < runner.backend.layers
    assert monitor.report().inputs == 0  # the monitor of the former policy received nothing
    again = runner.monitor()
    runner.predict_batch(texts)
    assert again.report().predictions == again.report().calibrated_predictions


def test_recalibrate_with_a_strict_risk_never_exits_early(runner: EarlyExitRunner, texts: list[Text]) -> None:
    found = runner.recalibrate(texts, risk=0.05, delta=0.1)
    logits, _ = every_output(runner.backend, runner.tokenizer, texts, runner.manifest.model.task_kind)
    predicted = logits.argmax(axis=-1)
    assert (predicted[:, 0] != predicted[:, -1]).any()  # exits do differ, so full depth is the choice of the rule
    assert found.average_exit_layer <= runner.backend.layers and found.disagreement <= 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"risk": 0.02}, "risk 0.02 with delta 0.1 needs at least 114 texts, and 48 were given"),
        ({"risk": 0.0}, "risk is 0.0: give a number above 0 and below 1"),
        ({"risk": 0.1, "delta": 1.0}, "delta is 1.0: give a number above 0 and below 1"),
        ({"risk": "0.1"}, "risk"),
    ],
)
def test_recalibrate_rejects_bad_input_and_keeps_the_policy(
    runner: EarlyExitRunner, texts: list[Text], arguments: dict[str, float], message: str
) -> None:
    before = runner.policy
    with pytest.raises(InputError, match=message):
        runner.recalibrate(texts, **arguments)  # type: ignore[arg-type]
    assert runner.policy is before


def test_recalibrate_rejects_a_policy_with_several_thresholds(runner: EarlyExitRunner, texts: list[Text]) -> None:
    runner.policy = replace(runner.policy, thresholds=((0.5, 0.9),) * len(runner.policy.thresholds))
    with pytest.raises(InputError, match="recalibrate chooses one threshold for all exits and classes"):
        runner.recalibrate(texts, risk=0.3)
