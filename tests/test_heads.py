"""Named heads (``--head NAME=COLUMN``) from training to every way to run a bundle."""

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
from berxit.runtime.golden import differences, read_golden
from berxit.runtime.heads import classes_in
from berxit.runtime.kinds import KINDS
from berxit.toolkit.cli import berxit as berxit_command
from berxit.toolkit.serving.wire import response

ANIMALS, LIGHT = ("cat", "dog", "none"), ("off", "on")
LABELS = ("animal=cat", "animal=dog", "animal=none", "light=off", "light=on")


def run(name: str, *arguments: object) -> None:
    berxit_command.main([name, *map(str, arguments)], standalone_mode=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts with at most one animal, with or without the word "light". The heads have 3 and 2 classes."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("heads")
    others = [word for word in WORDS if word not in ("cat", "dog", "light")]
    for split, count in (("train", 160), ("dev", 64)):
        with (folder / f"{split}.jsonl").open("w") as stream:
            for _ in range(count):
                animal, light = str(rng.choice(ANIMALS)), str(rng.choice(LIGHT))
                words = [*rng.choice(others, size=3), *([animal] if animal != "none" else [])]
                words = [split, *rng.permutation(words + (["light"] if light == "on" else [])).tolist()]
                stream.write(json.dumps({"text": " ".join(words), "pet": animal, "light": light}) + "\n")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, backbone_folders: dict[str, Path], data: Path) -> Path:
    return trained(
        tmp_path_factory,
        "heads",
        backbone_folders["bert"],
        data,
        distillation=0.5,
        heads={"animal": "pet", "light": "light"},
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    return berxit.export(checkpoint, tmp_path_factory.mktemp("bundles") / "bundle", target="onnxruntime").bundle


@pytest.fixture(scope="module")
def texts(data: Path) -> list[str]:
    return [json.loads(line)["text"] for line in (data / "dev.jsonl").open()]


def test_heads_manifest_names_heads_labels_and_columns(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    model = manifest.model
    assert (model.kind, model.labels, model.label_column) == ("heads", LABELS, "pet|light")
    assert (manifest.schema_version, model.metric) == (3, "heads-accuracy")
    runner = EarlyExitRunner.load(bundle)
    golden = read_golden(bundle, manifest)
    assert len(golden.logits[0][0]) == len(LABELS)
    assert max(differences(runner.backend, golden, model.pad_token_id)) < 1e-4


def test_heads_evaluation_has_the_score_of_each_head_and_their_mean(checkpoint: Path, data: Path) -> None:
    (found,) = berxit.evaluate(checkpoint, data)
    evaluation, predictions = found.evaluation, found.predictions
    assert evaluation.layer_scores[-1] > 0.9 > evaluation.constant_score
    of_heads = [evaluation.also[f"accuracy of {name}"] for name in ("animal", "light")]
    assert np.mean(of_heads, axis=0) == pytest.approx(evaluation.layer_scores)
    right = classes_in(predictions.predicted()[:, 0], 2) == classes_in(predictions.labels, 2)
    assert [scores[0] for scores in of_heads] == pytest.approx(right.mean(axis=0).tolist())
    assert evaluation.also["accuracy"][0] == pytest.approx(right.all(axis=1).mean())
    assert evaluation.policy is not None
    assert [each.name for each in evaluation.policy.classes] == list(LABELS)
    assert "animal=none" in evaluation.text()


def test_heads_runner_predicts_as_the_evaluation(bundle: Path, checkpoint: Path, data: Path, texts: list[str]) -> None:
    (found,) = berxit.evaluate(checkpoint, data)
    runner = EarlyExitRunner.load(bundle)
    full = runner.answer(texts, runner.policy.at_depth(3))
    expected = [found.predictions.text(number) for number in found.predictions.predicted()[:, -1].tolist()]
    assert [each.label for each in full] == expected
    assert all(each.heads and list(each.heads) == ["animal", "light"] for each in full)
    first = full[0].heads or {}
    assert list(first["animal"].scores) == list(ANIMALS)
    assert sum(first["light"].scores.values()) == pytest.approx(1)
    least = [min(max(head.scores.values()) for head in (each.heads or {}).values()) for each in full]
    assert [each.certainty for each in full] == pytest.approx(least, abs=1e-6)
    assert list(full[0].scores) == list(LABELS)


def test_predict_with_heads_exits_when_the_requested_heads_are_certain(bundle: Path, texts: list[str]) -> None:
    runner = EarlyExitRunner.load(bundle)
    every = {name: runner.predict_batch(texts, heads=(name,)) for name in ("animal", "light")}
    both = runner.predict_batch(texts)
    assert [list(each.heads or {}) for each in every["light"]] == [["light"]] * len(texts)
    assert set(every["light"][0].scores) == {"light=off", "light=on"}
    deepest = [max(a.exit_layer, b.exit_layer) for a, b in zip(*every.values(), strict=True)]
    assert all(layer >= deep for layer, deep in zip([each.exit_layer for each in both], deepest, strict=True))
    assert sum(each.exit_layer for each in every["light"]) < sum(each.exit_layer for each in both)
    with pytest.raises(berxit.InputError, match="no head 'lamp': it has animal, light"):
        runner.predict("the cat", heads=("lamp",))


def test_requesting_heads_of_another_kind_fails_in_one_line() -> None:
    with pytest.raises(berxit.InputError, match="a multilabel model has no named heads"):
        KINDS["multilabel"].requesting(("intent",))


def test_calibrate_bounds_the_misses_of_a_class_of_a_head(tmp_path: Path, checkpoint: Path, data: Path) -> None:
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    assert "misses" in berxit.calibrate(copy, data, risk=0.4, risk_of="misses:animal=cat").description
    assert berxit.calibrate(copy, data, keep=0.7, criterion="lte").saved_layers > 0


def test_heads_predict_writes_a_column_per_head(
    bundle: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("predict", bundle, data / "dev.jsonl", "--output", tmp_path / "out.csv", "--flips")
    assert "heads-accuracy" in capsys.readouterr().out
    header, first = (tmp_path / "out.csv").read_text().splitlines()[:2]
    assert "prediction_animal,prediction_light,score_animal=cat" in header
    row = dict(zip(header.split(","), first.split(","), strict=True))
    assert row["prediction"] == f"animal={row['prediction_animal']}|light={row['prediction_light']}"


def test_heads_monitor_and_recalibration_run(bundle: Path, texts: list[str]) -> None:
    runner = EarlyExitRunner.load(bundle)
    monitor = runner.monitor(shadow=1.0)
    runner.predict_batch(texts)
    runner.predict_batch(texts, heads=("light",))
    report = monitor.report()
    assert (report.inputs, report.not_compared) == (len(texts), len(texts))
    assert runner.recalibrate(["the cat sat"] * 100, risk=0.1).policy.criterion == runner.policy.criterion


def test_response_of_heads_has_the_class_of_each_head(bundle: Path) -> None:
    runner = EarlyExitRunner.load(bundle)
    (fields,) = response("m", runner.manifest.model, [runner.predict("the cat saw a dog")], 5)["data"]
    assert fields["label"] == "|".join(f"{name}={head['label']}" for name, head in fields["heads"].items())
    assert json.dumps(fields)


@pytest.mark.slow
def test_heads_bench_report_and_compare(
    bundle: Path, checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bench"
    run("bench", bundle, "--data", data, "--output", folder, "--seconds", 0.2, "--queries", 1, "--thresholds", 1)
    assert json.loads((folder / "bench.json").read_text())["metric"] == "heads-accuracy"
    run("report", folder, "--output", tmp_path / "page.html")
    run("inspect", bundle)
    run("compare", checkpoint, bundle, "--data", data / "dev.jsonl")
    assert "64 of 64 rows agree" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--head", "animal=pet", "--kind", "multilabel"], "--kind multilabel is given"),
        (["--head", "animal=pet", "--label-column", "pet"], "omit --label-column"),
        (["--kind", "heads"], "add --head NAME=COLUMN"),
        (["--head", "animal=pet", "--head", "animal=light"], "names 'animal' twice"),
        (["--head", "a|b=pet"], "give NAME=COLUMN"),
        (["--head", "animal=bird"], "no column 'bird'"),
        (["--head", "animal=pet", "--metric", "f1"], "is not a metric of heads"),
        (["--head", "animal=pet", "--class-weights", "balanced"], "needs one class per text"),
    ],
)
def test_train_refuses_wrong_heads_in_one_line(
    options: list[str], message: str, data: Path, tmp_path: Path, backbone_folders: dict[str, Path]
) -> None:
    arguments = ["--model", backbone_folders["bert"], "--task", "custom", "--data", data, "--output", tmp_path / "out"]
    arguments += ["--max-length", 16]
    with pytest.raises(berxit.InputError) as found:
        run("train", *arguments, *options)
    assert message in str(found.value)
    assert "\n" not in str(found.value)
