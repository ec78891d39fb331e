"""``--kind multilabel`` from training to every way to run a bundle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import WORDS, trained

import berxit
from berxit.runtime import EarlyExitRunner
from berxit.runtime.bundle import read_manifest
from berxit.runtime.kinds import KINDS, from_bits
from berxit.runtime.policies import CRITERIA, ExitPolicy
from berxit.toolkit.cli import berxit as berxit_command
from berxit.toolkit.serving.wire import response


def run(name: str, *arguments: object) -> None:
    berxit_command.main([name, *map(str, arguments)], standalone_mode=False)


LABELS = ("cat", "dog", "tree")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts with the words of LABELS that they contain, in two formats, with empty sets."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("sets")
    others = [word for word in WORDS if word not in LABELS]
    for split, count in (("train", 160), ("dev", 64)):
        with (folder / f"{split}.jsonl").open("w") as stream:
            for row in range(count):
                names = [name for name in LABELS if rng.random() < 0.4]
                words = [split, *rng.permutation([*names, *rng.choice(others, size=3)]).tolist()]
                label = names if row % 2 else "|".join(names)
                stream.write(json.dumps({"text": " ".join(words), "label": label}) + "\n")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, backbone_folders: dict[str, Path], data: Path) -> Path:
    return trained(tmp_path_factory, "multilabel", backbone_folders["bert"], data, kind="multilabel")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    return berxit.export(checkpoint, tmp_path_factory.mktemp("bundles") / "bundle", target="onnxruntime").bundle


def test_multilabel_manifest_has_kind_and_schema_version_3(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert (manifest.model.kind, manifest.model.labels, manifest.schema_version) == ("multilabel", LABELS, 3)
    assert manifest.model.metric == "micro-f1"


def test_multilabel_runner_predicts_as_the_evaluation(bundle: Path, checkpoint: Path, data: Path) -> None:
    (found,) = berxit.evaluate(checkpoint, data)
    runner = EarlyExitRunner.load(bundle)
    texts = [json.loads(line)["text"] for line in (data / "dev.jsonl").open()]
    full = runner.answer(texts, runner.policy.at_depth(3))
    expected = found.predictions.predicted()[:, -1]
    assert [each.labels for each in full] == [
        tuple(np.array(LABELS)[row.astype(bool)].tolist()) for row in from_bits(expected, 3)
    ]
    assert all(each.label == "|".join(each.labels or ()) for each in full)
    assert all((each.scores[name] > 0.5) == (name in (each.labels or ())) for each in full for name in LABELS)
    least = [min(max(p, 1 - p) for p in each.scores.values()) for each in full]
    assert [each.certainty for each in full] == pytest.approx(least, abs=1e-6)
    early = runner.predict_batch(texts)
    one_by_one = [runner.predict(text) for text in texts]
    assert [each.exit_layer for each in early] == [each.exit_layer for each in one_by_one]
    assert min(each.exit_layer for each in early) < 3


def test_multilabel_evaluation_has_scores_per_label_and_average_precision(checkpoint: Path, data: Path) -> None:
    (found,) = berxit.evaluate(checkpoint, data)
    evaluation = found.evaluation
    assert evaluation.layer_scores[-1] > evaluation.constant_score
    assert set(evaluation.also) == {"multilabel-macro-f1", "average precision"}
    assert set(evaluation.curves) == {"confidence", "entropy", "lte", "patience", "agreement"}
    assert evaluation.policy is not None
    assert [each.name for each in evaluation.policy.classes] == list(LABELS)
    assert "confusion" not in evaluation.text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "learned"}, "'learned' needs one class per text"),
        ({"fit_temperatures": True}, "--fit-temperatures needs one class per text"),
        ({"full_depth_classes": ["cat"]}, "--full-depth-class needs one class per text"),
        ({"risk": 0.5, "per": "class"}, "--per class needs a classification model"),
    ],
)
def test_calibrate_refuses_what_needs_one_class(
    checkpoint: Path, data: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(berxit.InputError, match=message):
        berxit.calibrate(checkpoint, data, **options)  # type: ignore[arg-type]


def test_calibrate_bounds_the_missed_labels_of_a_set(tmp_path: Path, checkpoint: Path, data: Path) -> None:
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    calibration = berxit.calibrate(copy, data, risk=0.4, risk_of="misses:cat", criterion="lte")
    assert "misses" in calibration.description


@pytest.mark.parametrize("criterion", [name for name in CRITERIA if name != "learned"])
def test_policy_of_a_batch_exits_as_single_texts_do(criterion: str) -> None:
    rng = np.random.default_rng(1)
    layers = [np.stack([np.zeros((5, 4)), rng.normal(size=(5, 4))], axis=-1).astype(np.float32) for _ in range(4)]
    lte = rng.random((5, 4)).astype(np.float32)
    threshold = {"patience": 1.0, "fixed": 2.0, "agreement": 0.9}.get(criterion, 0.6)
    policy = ExitPolicy.uniform(criterion, threshold, 4)

    def exits(rows: slice) -> list[int]:
        memory, found, left = None, np.zeros(len(layers[0][rows]), dtype=int), np.arange(len(layers[0][rows]))
        for layer, logits in enumerate(layers, start=1):
            certainty, memory = policy.certainty(layer, logits[rows][left], lte[rows, layer - 1][left], memory)
            out = policy.exits(layer, certainty, logits[rows][left])
            found[left[out]] = layer
            left, memory = left[~out], memory.keep(~out) if memory is not None else None
        return found.tolist()

    assert exits(slice(5)) == [exits(slice(row, row + 1))[0] for row in range(5)]


def test_multilabel_predict_writes_sets_and_scores(
    bundle: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("predict", bundle, data / "dev.jsonl", "--output", tmp_path / "out.csv", "--flips")
    out = capsys.readouterr().out
    assert "micro-f1" in out
    assert "| cat" in out
    header = (tmp_path / "out.csv").read_text().splitlines()[0]
    assert header.endswith("score_cat,score_dog,score_tree")


def test_empty_set_of_labels_has_a_name_in_reports_but_not_in_files(
    bundle: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = KINDS["multilabel"]
    assert [kind.shown(number, LABELS) for number in (0, 3)] == ["no label", "cat|dog"]
    (tmp_path / "two.jsonl").write_text('{"text": "a", "label": ["cat"]}\n{"text": "cat", "label": []}\n')
    run("predict", bundle, tmp_path / "two.jsonl", "--output", tmp_path / "out.csv", "--threshold", "1")
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert any("no label" in cell for row in rows for cell in row)
    assert "no label" not in (tmp_path / "out.csv").read_text()


@pytest.mark.slow
def test_multilabel_bench_report_and_compare(
    bundle: Path, checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bench"
    run("bench", bundle, "--data", data, "--output", folder, "--seconds", 0.2, "--queries", 1, "--thresholds", 1)
    assert json.loads((folder / "bench.json").read_text())["metric"] == "micro-f1"
    run("report", folder, "--output", tmp_path / "page.html")
    run("compare", checkpoint, bundle, "--data", data / "dev.jsonl")
    assert "64 of 64 rows agree" in capsys.readouterr().out


def test_multilabel_monitor_counts_labels(bundle: Path, data: Path) -> None:
    runner = EarlyExitRunner.load(bundle)
    monitor = runner.monitor(shadow=1.0)
    runner.predict_batch([json.loads(line)["text"] for line in (data / "dev.jsonl").open()])
    assert len(monitor.report().predictions) == len(LABELS) + 1
    assert runner.recalibrate(["the cat sat"] * 100, risk=0.1).policy.criterion == runner.policy.criterion


def test_response_of_multilabel_has_labels(bundle: Path) -> None:
    runner = EarlyExitRunner.load(bundle)
    (fields,) = response("m", runner.manifest.model, [runner.predict("the cat saw a dog")], 5)["data"]
    assert fields["label"] == "|".join(fields["labels"])
