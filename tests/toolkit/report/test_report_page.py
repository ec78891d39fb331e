"""The report page without a browser: its content, its data, its errors."""

from __future__ import annotations

import base64
import gzip
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_benches import made_bench, made_evaluation, made_pass, per_class

from berxit.runtime.bench_report import write_result
from berxit.runtime.bench_result import BenchResult
from berxit.runtime.console import status_of
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.policies import ExitPolicy, exit_layers
from berxit.runtime.speed_up import SpeedUp
from berxit.toolkit.cli import load
from berxit.toolkit.report.pass_data import calibrated_exits, latency_by_exit, pass_data, slider_thresholds
from berxit.toolkit.report.report_page import LARGEST, page_of
from berxit.toolkit.report.sources import BenchSource, bench_source, read_source
from berxit.toolkit.report.verdicts import verdicts


def sides_of(page: str) -> list[dict[str, Any]]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    sides: list[dict[str, Any]] = json.loads(found[1])["sides"]
    return sides


def stored(data: str) -> str:
    return gzip.decompress(base64.b64decode(data)).decode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a bench."""
    folder = tmp_path_factory.mktemp("secret") / "bench"
    write_result(made_bench(), folder)
    return folder


def test_page_needs_no_other_file_and_has_no_path(folder: Path) -> None:
    page = page_of([read_source(folder)])
    assert len(page.encode()) < LARGEST
    assert not re.findall(r'(?:src|href)="(?!#|data:,)', page)
    assert not re.findall(r"url\((?!#)|@import|https?://(?!www\.w3\.org/2000/svg)", page)
    assert "secret" not in page
    assert str(Path.cwd()) not in page
    assert "<b>marks" not in page  # texts are data, never HTML
    assert page == page_of([read_source(folder)])


def test_page_contains_the_raw_files(folder: Path) -> None:
    (side,) = sides_of(page_of([read_source(folder)]))
    assert json.loads(stored(side["raw"]["bench.json"])) == json.loads((folder / "bench.json").read_text("utf-8"))
    assert stored(side["raw"]["queries.json"]) == (folder / "queries.json").read_text("utf-8")


def test_page_contains_the_recorded_command(folder: Path, tmp_path: Path) -> None:
    data = json.loads((folder / "bench.json").read_text("utf-8"))
    data["made_by"] = {"command": "berxit bench my-bundle --threads 2"}
    (results := tmp_path / "my-results").mkdir()
    (results / "bench.json").write_text(json.dumps(data), encoding="utf-8")
    (side,) = sides_of(page_of([read_source(results)]))
    assert side["reproduce"] == ["berxit bench my-bundle --threads 2", "berxit report my-results"]


def test_page_without_texts_contains_none(folder: Path) -> None:
    page = page_of([read_source(folder)], texts=False)
    (side,) = sides_of(page)
    assert side["pass"]["texts"] is None
    assert list(side["raw"]) == ["bench.json"]
    assert "ml\u00e4uts" not in page


def test_page_of_a_stored_bench_equals_that_of_the_result(folder: Path) -> None:
    stored_side, measured = (sides_of(page_of([each]))[0] for each in (read_source(folder), bench_source(made_bench())))
    for key in ("headline", "verdicts", "points", "quality", "telemetry"):
        assert stored_side[key] == measured[key]
    assert stored_side["pass"]["passed"] == measured["pass"]["passed"]


@pytest.mark.parametrize(
    "policy",
    [
        ExitPolicy.uniform("confidence", 0.7, 4),
        ExitPolicy.uniform("entropy", 0.6, 4),
        ExitPolicy.uniform("patience", 2, 4),
        replace(ExitPolicy.uniform("confidence", 0.6, 4), patience=2, off=(2,)),
        per_class(),
    ],
    ids=["confidence", "entropy", "patience", "settings", "per class"],
)
def test_pass_data_has_the_exits_of_every_threshold(policy: ExitPolicy) -> None:
    records = made_bench(policy=policy).records
    assert records is not None
    outputs = records.outputs
    data = pass_data(outputs, metric="accuracy", latency_ms=None, calibrated=True, texts=True)
    passed = np.frombuffer(base64.b64decode(data["passed"]), np.uint8).reshape(-1, 4)
    thresholds = slider_thresholds(outputs, calibrated=True)
    assert len(thresholds) == len(data["thresholds"]) == len(data["scores"]) <= 255
    averages = []
    for position, threshold in enumerate(thresholds):
        expected = exit_layers(policy.with_threshold(threshold), outputs.certainty)
        assert ((passed > position).argmax(axis=1) + 1 == expected).all()
        right = outputs.predictions[np.arange(60), expected - 1] == outputs.labels
        assert data["scores"][position] == pytest.approx(right.mean())
        averages.append(expected.mean())
    assert averages == sorted(averages)
    assert averages[-1] == 4
    own = exit_layers(policy, outputs.certainty, made_pass().logits) - 1
    assert (calibrated_exits(outputs) == own).all()
    assert base64.b64decode(data["calibrated"]["exits"]) == own.astype(np.uint8).tobytes()


def test_large_pass_stays_below_the_limit() -> None:
    result = made_bench(found=made_pass(rows=4000, layers=12))
    page = page_of([bench_source(result)])
    assert len(page.encode()) < LARGEST
    (side,) = sides_of(page)
    assert side["pass"]["rows"] == 4000
    assert len(side["pass"]["thresholds"]) <= 203
    assert side["pass"]["texts"][-1] is None or len(side["pass"]["texts"]) == 4000


def with_speed_up(low: float, high: float) -> BenchResult:
    result = made_bench()
    return replace(result, speed_ups={"full depth": SpeedUp(1.2, low, high)})


@pytest.mark.parametrize(("low", "high", "state"), [(1.1, 1.3, "good"), (0.7, 0.9, "bad"), (0.9, 1.3, "open")])
def test_verdict_follows_the_confidence_interval(low: float, high: float, state: str) -> None:
    full, _, graph = verdicts(with_speed_up(low, high))
    assert (full["state"], full["value"]) == (state, "1.20x")
    assert (full["label"] == "No measurable difference") == (state == "open")
    assert f"{low:.2f}x to {high:.2f}x" in full["text"]
    assert (graph["state"], graph["value"]) == ("open", "not measured")


def test_verdict_names_the_best_fixed_exit() -> None:
    result = made_bench()
    layer = result.best_fixed
    assert layer is not None
    fixed = verdicts(result)[1]
    assert f"Layer {layer} for all inputs" in fixed["text"]
    assert verdicts(made_bench(labelled=False))[1]["value"] == "not measured"
    assert result.policy is not None
    better = replace(result, policy=replace(result.policy, score=1.01))
    scores = {layer: point.score or 0.0 for layer, point in result.by_layer.items()}
    best = max(scores, key=lambda layer: scores[layer])
    assert verdicts(better)[1]["value"] == "no competitor"
    assert f"The best is layer {best} with {scores[best]:.4f}" in verdicts(better)[1]["text"]


def test_evaluation_is_added_to_its_bench(folder: Path, tmp_path: Path) -> None:
    evaluation = made_evaluation(tmp_path / "eval-dev", made_pass())
    (side,) = sides_of(page_of([read_source(folder), read_source(evaluation)]))
    assert {"confidence", "entropy", "patience"} <= set(side["curves"])
    assert set(side["quality"]) == set(side["curves"])
    assert side["quality"]["confidence"][0]["auroc"] > 0.5
    assert {"bench.json", "queries.json", "eval.json"} == set(side["raw"])


@pytest.mark.parametrize("classes", [3, 1])
def test_evaluation_alone_has_a_page(tmp_path: Path, classes: int) -> None:
    found = made_pass(classes=classes)
    folder = tmp_path / "eval-dev"
    if classes == 1:
        from berxit.toolkit.evaluation_files import write_evaluation
        from berxit.toolkit.evaluation_report import evaluate

        write_evaluation(evaluate(found), found, folder)
    else:
        made_evaluation(folder, found)
    (side,) = sides_of(page_of([read_source(folder)]))
    assert (side["kind"], side["regression"], side["pass"]["latency"]) == ("evaluation", classes == 1, None)


def test_bench_of_an_older_version_has_a_page(folder: Path, tmp_path: Path) -> None:
    data = json.loads((folder / "bench.json").read_text("utf-8"))
    for key in ("validity", "cold_start", "throughput", "speed_ups", "size_mib", "calibration", "calibration_warnings"):
        del data[key]
    (tmp_path / "bench.json").write_text(json.dumps(data), encoding="utf-8")
    (side,) = sides_of(page_of([read_source(tmp_path)]))
    assert (side["pass"], side["validity"], side["telemetry"]["start"]) == (None, None, None)
    assert side["verdicts"][0]["state"] == "good"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder, tmp: [tmp / "nowhere"], "does not exist"),
        (lambda folder, tmp: [tmp], "has neither bench.json nor eval.json"),
        (lambda folder, tmp: [folder / "queries.json"], "is neither a bench.json nor an eval.json"),
        (lambda folder, tmp: [folder] * 3, "compares at most 2"),
    ],
)
def test_wrong_source_is_one_line_and_writes_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Any, message: str
) -> None:
    output = tmp_path / "report.html"
    paths = [str(path) for path in make(folder, tmp_path)]
    assert status_of(load("report"), [*paths, "--output", str(output)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not output.exists()


def test_damaged_source_is_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bench.json").write_text("{", encoding="utf-8")
    assert status_of(load("report"), [str(tmp_path)]) == 1
    assert "bench.json is damaged" in capsys.readouterr().err
    (tmp_path / "bench.json").write_text((folder / "bench.json").read_text("utf-8"), encoding="utf-8")
    write_result(replace(made_bench(), bundle="another"), tmp_path / "other")
    queries = (tmp_path / "other" / "queries.json").read_text("utf-8").replace('"my-bundle"', '"another"')
    (tmp_path / "queries.json").write_text(queries, encoding="utf-8")
    with pytest.raises(BerxitError, match="is of another bench"):
        read_source(tmp_path)


def test_evaluation_of_another_model_is_rejected(folder: Path, tmp_path: Path) -> None:
    evaluation = made_evaluation(tmp_path / "eval", made_pass(layers=3))
    with pytest.raises(InputError, match="give those of one model"):
        page_of([read_source(folder), read_source(evaluation)])


def test_benches_with_different_metrics_are_rejected(folder: Path) -> None:
    source = read_source(folder)
    assert isinstance(source, BenchSource)
    other = replace(source, name="other", result=replace(source.result, metric="f1"))
    with pytest.raises(InputError, match=r"have different metrics .*, other has f1.: compare benches of one task"):
        page_of([source, other])


def test_latency_by_exit_is_the_median_of_the_queries_that_exited_there() -> None:
    records = made_bench().records
    assert records is not None
    found = latency_by_exit(records)
    for row, place in ((0, 0), (7, 2), (59, 3)):
        samples = np.concatenate(
            [q.latency_ms[q.exit_layers[:, row] == place + 1, row] for q in records.queries.values()]
        )
        assert len(samples) >= 3
        assert found[row, place] == np.median(samples)
