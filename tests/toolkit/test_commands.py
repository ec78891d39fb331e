"""Every command: its files, its output and its help. For errors, see test_command_errors.py."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from command_line import one_line, run, train_arguments

from berxit import devices
from berxit.runtime.console import status_of
from berxit.runtime.json_data import to_json
from berxit.runtime.kinds import KINDS
from berxit.runtime.policies import CRITERIA
from berxit.runtime.runner import EarlyExitRunner
from berxit.toolkit.cli import COMMANDS, berxit, load
from berxit.train.calibration import read_policy, stored_pass, stored_texts
from berxit.train.evaluation import Predictions
from berxit.train.families import exits_under


def test_train_writes_a_checkpoint(
    backbone_folders: dict[str, Path], data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "checkpoint"
    options = ["--no-lte", "--exit-head", "pooler", "--pooling", "mean", "--strategy", "raw", "--seed", 7]
    assert run("train", *train_arguments(backbone_folders["bert"], data_folder, output), *options) == 0
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in output.iterdir()}
    config = json.loads((output / "config.json").read_text(encoding="utf-8"))
    assert (config["exit_head"], config["pooling"], config["strategy"]) == ("pooler", "mean", "raw")
    assert config["lte"] is False
    record = json.loads((output / "training.json").read_text(encoding="utf-8"))
    assert (record["steps"], record["train_examples"], record["options"]["seed"]) == (2, 16, 7)
    out = capsys.readouterr().out
    assert f"checkpoint: {output}" in out
    assert f"next: berxit-calibrate {output} --data {data_folder}" in out


def test_train_accepts_regression_on_pairs(backbone_folders: dict[str, Path], tmp_path: Path) -> None:
    rows = "".join(f"the cat {i}\ta dog\t{i / 4}\n" for i in range(16))
    (tmp_path / "train.tsv").write_text("left\tright\tvalue\n" + rows, encoding="utf-8")
    columns = ["--text-column", "left", "--text-column", "right", "--label-column", "value", "--regression"]
    arguments = train_arguments(backbone_folders["distilbert"], tmp_path, tmp_path / "checkpoint")
    assert run("train", *arguments, *columns, "--metric", "pearson") == 0
    config = json.loads((tmp_path / "checkpoint" / "config.json").read_text(encoding="utf-8"))
    assert (config["problem_type"], config["metric"]) == ("regression", "pearson")
    assert config["text_columns"] == ["left", "right"]


def test_eval_writes_scores_and_tables(copy: Path, data_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("eval", copy, "--data", data_folder, "--criterion", "lte", "--quiet") == 0
    written = {path.name for path in (copy / "eval-dev").iterdir()}
    assert {"predictions.npz", "eval.json", "eval.md"} <= written
    data = json.loads((copy / "eval-dev" / "eval.json").read_text(encoding="utf-8"))
    assert (data["criterion"], data["examples"]) == ("lte", 48)
    assert list(data["curves"]) == ["confidence", "entropy", "lte", "patience", "agreement"]
    out = capsys.readouterr().out
    assert "accuracy on 48 examples" in out
    assert "| patience " in out


@pytest.mark.parametrize("name", ["compare", "report"])
def test_commands_create_the_folder_of_their_output(
    name: str, checkpoint: Path, bundle: Path, data_folder: Path, tmp_path: Path
) -> None:
    assert run("eval", checkpoint, "--data", data_folder, "--output", tmp_path / "eval", "--quiet") == 0
    sources = [bundle, bundle, "--limit", 2] if name == "compare" else [tmp_path / "eval"]
    output = tmp_path / "new" / "a ü" / ("found.json" if name == "compare" else "found.html")
    assert run(name, *sources, "--output", output) == 0
    assert [path.name for path in output.parent.iterdir()] == [output.name]


def test_eval_without_a_policy_lists_classes_confusions_and_wrong_rows_at_full_depth(
    copy: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "exit_policy.json").unlink()
    lines = (data_folder / "dev.tsv").read_text(encoding="utf-8").splitlines()
    lines[1] = lines[1].split("\t")[0] + "\tcat"  # the text has no cat
    (tmp_path / "dev.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert run("eval", copy, "--data", tmp_path, "--output", tmp_path / "out", "--quiet") == 0
    out = capsys.readouterr().out
    data = json.loads((tmp_path / "out" / "eval.json").read_text(encoding="utf-8"))
    wrong = {row["text"]: row for row in data["wrong_rows"]["rows"]}[lines[1].split("\t")[0]]
    assert (wrong["label"], wrong["prediction"], wrong["exit_layer"]) == ("cat", "other", 3)
    assert sum(map(sum, data["policy"]["confusion"])) == 48
    assert f"wrong rows, {data['wrong_rows']['count']} of 48, the most certain first" in out
    for title in ("scores per class at full depth (berxit-calibrate", "confusion matrix, one row per true label"):
        assert title in out


def test_eval_of_another_file_keeps_the_dev_results(copy: Path, data_folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copy(data_folder / "dev.tsv", tmp_path / "test.tsv"))
    assert run("eval", copy, "--data", other, "--quiet") == 0
    assert [path.name for path in copy.glob("eval-*")] == ["eval-test"]


def test_eval_of_mnli_evaluates_both_dev_splits(copy: Path, data_folder: Path, tmp_path: Path) -> None:
    for name in ("dev_matched", "dev_mismatched"):
        shutil.copy(data_folder / "dev.tsv", tmp_path / f"{name}.tsv")
    assert run("eval", copy, "--data", tmp_path, "--quiet") == 0
    assert sorted(path.name for path in copy.glob("eval-*")) == ["eval-dev_matched", "eval-dev_mismatched"]
    assert run("eval", copy, "--data", tmp_path, "--output", tmp_path / "out", "--quiet") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["dev_matched", "dev_mismatched"]
    assert run("eval", copy, "--data", tmp_path, "--split", "dev_mismatched", "--output", tmp_path / "one") == 0
    assert (tmp_path / "one" / "eval.json").is_file()


def test_eval_skips_bad_rows_with_the_option(
    copy: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "dev.tsv"
    bad.write_text((data_folder / "dev.tsv").read_text(encoding="utf-8") + "half\n", encoding="utf-8")
    assert run("eval", copy, "--data", bad, "--quiet") == 2
    assert "line 50: 1 columns, but the header has 2" in one_line(capsys)
    assert run("eval", copy, "--data", bad, "--skip-bad-rows", "--quiet") == 0
    said = capsys.readouterr()
    assert "skipped 1 bad row of" in said.err
    assert "accuracy on 48 examples" in said.out


def test_calibrate_writes_the_policy(copy: Path, data_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "exit_policy.json").unlink()
    arguments = [copy, "--data", data_folder, "--criterion", "entropy", "--keep", 0.95, "--quiet"]
    assert run("calibrate", *arguments) == 0
    policy = json.loads((copy / "exit_policy.json").read_text(encoding="utf-8"))["policy"]
    assert policy["criterion"] == "entropy"
    assert "entropy threshold" in capsys.readouterr().out


POLICIES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "learned": (["--criterion", "learned"], {"criterion": "learned"}),
    "agreement": (["--criterion", "agreement", "--off", "1"], {"criterion": "agreement", "off": [1]}),
    "patience": (["--criterion", "entropy", "--patience", "2"], {"criterion": "entropy", "patience": 2}),
    "per class": (["--full-depth-class", "cat"], {"criterion": "confidence"}),
    "temperatures": (["--fit-temperatures", "--thresholds-per-exit"], {"criterion": "confidence"}),
}


@pytest.mark.parametrize(("options", "expected"), POLICIES.values(), ids=POLICIES)
def test_calibrated_policy_exits_on_the_device_as_in_its_record(
    options: list[str], expected: dict[str, Any], copy: Path, data_folder: Path, tmp_path: Path
) -> None:
    data = tmp_path / "both.tsv"
    train, dev = ((data_folder / f"{split}.tsv").read_text(encoding="utf-8") for split in ("train", "dev"))
    data.write_text(dev + train.split("\n", 1)[1], encoding="utf-8")
    keep = ["--keep", "0.9", "--optimistic", "--quiet"]
    assert run("calibrate", copy, "--data", data, *options, *keep) == 0
    policy = json.loads((copy / "exit_policy.json").read_text(encoding="utf-8"))["policy"]
    assert policy.items() >= expected.items()
    bundle = tmp_path / "bundle"
    assert run("export", copy, "--target", "onnxruntime", "--output", bundle, "--quiet") == 0
    assert run("inspect", bundle) == 0
    runner = EarlyExitRunner.load(bundle)
    assert json.loads(json.dumps(to_json(runner.policy))) == policy
    calibrated = read_policy(copy)
    assert calibrated is not None
    stored = stored_pass(copy, calibrated)
    examples = stored_texts(copy, calibrated.calibration)
    assert examples is not None
    texts = examples.texts
    found = runner.predict_batch(texts)
    assert [each.exit_layer for each in found] == exits_under(stored, calibrated.policy).tolist()
    assert [runner.predict(text).exit_layer for text in texts[:20]] == [each.exit_layer for each in found[:20]]
    streamed = list(runner.stream(texts[0]))
    assert [each.exit_layer for each in streamed] == [1, 2, 3]
    assert streamed[found[0].exit_layer - 1].certainty == pytest.approx(found[0].certainty, abs=1e-6)


def test_calibrate_accepts_a_risk(copy: Path, data_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("calibrate", copy, "--data", data_folder, "--risk", 0.4, "--delta", 0.2, "--quiet") == 0
    record = json.loads((copy / "exit_policy.json").read_text(encoding="utf-8"))["calibration"]
    assert record["requirement"] == {"risk": 0.4, "delta": 0.2, "of": "disagreement", "per": "all"}
    assert "by at most 0.4 on average, with probability 0.8" in capsys.readouterr().out


def test_calibrate_reads_a_budget_from_a_bench(
    copy: Path, bundle: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ["--queries", 1, "--seconds", 0, "--thresholds", 2, "--threads", 1, "--quiet"]
    assert run("bench", bundle, "--output", tmp_path, *quick) == 0
    path = tmp_path / "bench.json"
    bench = json.loads(path.read_text(encoding="utf-8"))
    bench["line"] = {
        "intercept_ms": 1.0,
        "ms_per_layer": 2.0,
        "r_squared": 1.0,
    }  # latencies of a tiny model are mostly noise
    path.write_text(json.dumps(bench), encoding="utf-8")
    budget = ["--budget-ms", 5.5, "--bench", path, "--quiet"]
    assert run("calibrate", copy, "--data", data_folder, "--accept-noise", *budget) == 0
    record = json.loads((copy / "exit_policy.json").read_text(encoding="utf-8"))["calibration"]
    assert record["requirement"]["budget_ms"] == 5.5
    assert record["average_exit_layer"] <= 2.25
    assert "within 5.5 ms on average, predicted as 1 ms + 2 ms per layer" in capsys.readouterr().out
    assert run("export", copy, "--target", "onnxruntime", "--output", tmp_path / "b", "--quiet") == 0
    assert run("inspect", tmp_path / "b") == 0
    assert "within 5.5 ms on average" in capsys.readouterr().out


def test_export_writes_a_bundle_beside_the_checkpoint(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", copy, "--target", "onnxruntime", "--quiet") == 0
    bundle = copy.with_name("checkpoint-onnxruntime")
    assert (bundle / "manifest.json").is_file()
    out = capsys.readouterr().out
    assert out.count("-[✓] layer") == 3
    assert f"bundle: {bundle}" in out
    assert "not calibrated" not in out


def test_export_for_a_device_uses_its_profile(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("coremltools", reason="coremltools is not installed here: pip install -e '.[coreml]'")
    assert run("export", copy, "--device", "iphone", "--quiet") == 0
    bundle = copy.with_name("checkpoint-coreml")
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["target"], manifest["precision"], manifest["lengths"]) == ("coreml", "fp16", [32])
    out = capsys.readouterr().out
    assert "Apple's runtime was not run" in out
    assert run("inspect", bundle) == 0
    package = sum(file.stat().st_size for file in (bundle / "segments").rglob("*") if file.is_file())
    assert (
        f"| segments/model.mlpackage | {package / 2**20:.1f} |" in capsys.readouterr().out
    )  # all files of the package
    assert package > 2**16  # more than the size of the folder's entry
    hidden = next(o for o in manifest["segments"][1]["outputs"] if o["role"] == "hidden")
    assert (hidden["dtype"], hidden["shape"]) == ("float16", [1, 32, 1, 32])  # the Neural Engine's layout


def test_export_accepts_target_options(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("coremltools", reason="coremltools is not installed here: pip install -e '.[coreml]'")
    options = ["--lengths", "8,16", "--target-options", "fixed-shapes,full-depth", "--quiet"]
    assert run("export", copy, "--target", "coreml", *options) == 0
    assert "-[✓] one graph (without exits)" in capsys.readouterr().out
    manifest = json.loads((copy.with_name("checkpoint-coreml") / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["segments"][1]["functions"] == ["layer_01_s8", "layer_01_s16"]
    assert manifest["full"]["functions"] == ["full_s8", "full_s16"]
    assert run("export", copy, "--target", "coreml", "--target-options", "fast") == 2
    assert "target coreml has no target option 'fast': choose fixed-shapes" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["iphone", "ipad"])
def test_export_for_an_older_phone_system_writes_one_file_per_layer(device: str, copy: Path) -> None:
    pytest.importorskip("coremltools", reason="coremltools is not installed here: pip install -e '.[coreml]'")
    assert run("export", copy, "--device", device, "--target-version", "ios16", "--quiet") == 0
    manifest = json.loads((copy.with_name("checkpoint-coreml") / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["lengths"], manifest["model"]["max_length"]) == ([], 32)
    assert manifest["segments"][1]["file"] == "segments/layer_01.mlpackage"


def test_export_options_override_the_device_profile(copy: Path) -> None:
    assert run("export", copy, "--device", "mac", "--target", "onnxruntime", "--quiet") == 0
    manifest = json.loads((copy.with_name("checkpoint-onnxruntime") / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["target"], manifest["precision"], manifest["lengths"]) == ("onnxruntime", "fp32", [])


def test_export_with_fewer_exits_recalibrates(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", copy, "--target", "onnxruntime", "--exits", "2", "--threads", "1", "--quiet") == 0
    said = capsys.readouterr().out
    assert "calibrated for these exits: confidence threshold" in said
    assert "layer 01" not in said
    bundle = copy.with_name(f"{copy.name}-onnxruntime")
    assert json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["threads"] == 1
    assert run("inspect", bundle) == 0
    said = capsys.readouterr().out
    assert "layers 1 to 2" in said
    assert "| layer 3 " in said
    assert run("bench", bundle, "--seconds", "0", "--queries", "1", "--quiet") == 0
    header = next(line for line in capsys.readouterr().out.splitlines() if "share that exits at layer" in line)
    assert header.replace("|", " ").split() == ["share", "that", "exits", "at", "layer", "2", "3"]


def test_inspect_shows_the_expected_latency_of_placed_exits(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--target", "onnxruntime", "--exits", "auto", "--accept-noise", "--quiet", "--output", tmp_path / "b"]
    assert run("export", copy, *arguments) == 0
    placed = json.loads((tmp_path / "b" / "manifest.json").read_text(encoding="utf-8"))["calibration"]["placement"]
    capsys.readouterr()
    assert run("inspect", tmp_path / "b") == 0
    assert f"automatically: {placed['expected_ms']:.2f} ms expected per input" in capsys.readouterr().out


def test_export_and_inspect_report_the_score_loss_of_int8(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    int8 = ["export", copy, "--target", "onnxruntime", "--precision", "int8", "--quiet", "--output", tmp_path / "int8"]
    assert run(*int8) == 0
    said = capsys.readouterr().out
    assert "int8 costs " in said
    assert "calibrated on the bundle's own outputs: confidence threshold" in said
    assert run("inspect", tmp_path / "int8") == 0
    said = capsys.readouterr().out
    assert "an exit that the policy uses loses " in said
    header = next(line for line in said.splitlines() if line.startswith("| segment"))
    assert [cell.strip() for cell in header.split("|")[-3:-1]] == ["accuracy of the checkpoint", "accuracy here"]
    scores = json.loads((tmp_path / "int8" / "manifest.json").read_text(encoding="utf-8"))["scores"]
    row = next(line for line in said.splitlines() if line.startswith("| layer 2"))
    shown = [cell.strip() for cell in row.split("|")[-3:-1]]
    assert shown == [f"{scores['checkpoint'][1]:.4f}", f"{scores['bundle'][1]:.4f}"]
    assert run(*int8, "--force", "--no-scores") == 0
    assert "costs" not in capsys.readouterr().out
    assert run("inspect", tmp_path / "int8") == 0
    assert "the policy uses" not in capsys.readouterr().out


def test_export_reports_a_missing_calibration(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "exit_policy.json").unlink()
    assert run("export", copy, "--target", "onnxruntime", "--output", tmp_path / "b", "--quiet") == 0
    assert "not calibrated: the bundle never exits early" in capsys.readouterr().out
    assert run("inspect", tmp_path / "b") == 0
    assert "never early: not calibrated" in capsys.readouterr().out


def test_bench_writes_its_results(
    bundle: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ["--limit", 4, "--queries", 1, "--seconds", 0, "--thresholds", 2, "--threads", 1, "--quiet"]
    assert run("bench", bundle, "--data", data_folder, "--output", tmp_path / "bench", *quick) == 0
    assert {"bench.json", "bench.md"} <= {path.name for path in (tmp_path / "bench").iterdir()}
    data = json.loads((tmp_path / "bench" / "bench.json").read_text(encoding="utf-8"))
    assert (data["inputs"], data["metric"], list(data["by_layer"])) == (4, "accuracy", ["1", "2", "3"])
    assert "exit layer" in capsys.readouterr().out


def test_inspect_shows_the_contents_of_a_bundle(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", bundle) == 0
    out = capsys.readouterr().out
    for text in (
        "custom, classification: cat, other",
        "bert, 3 layers",
        "confidence is above",
        "segments/layer_03.onnx",
    ):
        assert text in out


def test_inspect_shows_the_rule_of_a_bundle_of_an_older_version(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    manifest = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
    record = manifest["calibration"]
    record["rule"], record["asked"] = record.pop("description"), record.pop("requirement")
    (copy / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert run("inspect", copy) == 0
    assert f"{record['rule']}: {record['score']:.4f}" in capsys.readouterr().out


def test_inspect_rejects_a_damaged_bundle(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    (copy / "segments" / "layer_02.onnx").write_bytes(b"")
    assert run("inspect", copy) == 1
    assert "checksum differs" in one_line(capsys)


def test_devices_marks_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("devices") == 0
    out = capsys.readouterr().out
    assert all(device.name in out for device in devices.DEVICES)
    assert out.count("this machine |") == 1


def test_doctor_lists_usable_parts(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor") == 0
    out = capsys.readouterr().out
    assert "run bundles on a CPU" in out
    assert "torch sees:" in out


def test_triton_writes_a_model_folder(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "models" / "intents"
    assert run("triton", bundle, "--output", output, "--threads", 1, "--max-batch", 8) == 0
    assert {path.name for path in output.rglob("*")} >= {"config.pbtxt", "model.py", "manifest.json"}
    assert "max_batch_size: 8" in (output / "config.pbtxt").read_text(encoding="utf-8")
    said = capsys.readouterr().out
    assert f"model: {output}" in said
    assert f"next: tritonserver --model-repository {output.parent}," in said


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(berxit, [name, "--help"]) == 0
    assert "Usage:" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["eval", "calibrate"])
def test_help_of_data_names_the_held_out_rows(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(berxit, [name, "--help"]) == 0
    assert "default: the rows that training held out" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("command", ["eval CHECKPOINT --data DATA", "study tradeoff CHECKPOINT --data DATA"])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_curves_reject_exactly_the_criteria_that_their_help_omits(
    command: str,
    criterion: str,
    checkpoint: Path,
    data_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name, *arguments = (
        command.replace("CHECKPOINT", str(checkpoint)).replace("DATA", str(data_folder / "dev.tsv")).split()
    )
    assert status_of(berxit, [name, "--help"]) == 0
    listed = re.search(r"--criterion NAME (.*?), or your own", " ".join(capsys.readouterr().out.split()))
    assert listed is not None
    known = criterion in listed[1].split(", ")
    assert run(name, *arguments, "--criterion", criterion, "--output", tmp_path / "output", "--quiet") in (0, 2)
    assert known == (f"--criterion {criterion} has no thresholds" not in capsys.readouterr().err)


@pytest.mark.parametrize("name", ["train", "sweep"])
def test_help_states_the_default_label_column_of_every_kind(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(berxit, [name, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    found = re.search(r"column with labels\. \[default: (.*?)\]", text)
    assert found is not None
    general, *exceptions = found[1].split("; ")
    columns = dict(each.split(": ") for each in exceptions)
    assert {kind: columns.get(kind, general) for kind in KINDS} == {
        kind: one.label_column for kind, one in KINDS.items()
    }


def programs() -> dict[str, str]:
    """Program -> the function behind it, of pyproject.toml, without a TOML reader, which Python 3.10 lacks."""
    text = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    table = text.split("[project.scripts]")[1].split("\n[")[0]
    return dict(re.findall(r'^([\w-]+) = "([\w.:]+)"$', table, re.MULTILINE))


def test_every_command_has_a_program() -> None:
    assert set(programs()) == {"berxit", *(f"berxit-{name}" for name in COMMANDS)}


@pytest.mark.parametrize("name", COMMANDS)
def test_program_runs_its_command(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, _, function = programs()[f"berxit-{name}"].partition(":")
    monkeypatch.setattr(sys, "argv", [f"berxit-{name}", "--help"])
    with pytest.raises(SystemExit) as end:
        getattr(import_module(module), function)()
    assert end.value.code == 0
    first_sentence = str(load(name).help).split(".")[0]
    assert " ".join(first_sentence.split()) in " ".join(capsys.readouterr().out.split())


def test_train_downloads_nothing_before_the_options_are_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BERXIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("berxit.train.hub.fetch", lambda *_: pytest.fail("fetched"))
    arguments = ["--model", "M", "--task", "rte", "--quiet"]
    assert run("train", *arguments, "--output", tmp_path / "o", "--epochs", 0) == 2
    assert "--epochs is 0" in one_line(capsys)
    assert run("train", *arguments, "--output", tmp_path) == 2
    assert "exists: choose another --output" in one_line(capsys)


def test_one_process_per_machine_downloads_while_the_others_wait(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    class Processes:
        is_main_process = True

        @contextmanager
        def local_main_process_first(self) -> Iterator[None]:
            done.append("others wait")
            yield
            done.append("others go on")

    monkeypatch.setenv("BERXIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("berxit.train.trainer.processes_here", Processes)
    monkeypatch.setattr("berxit.train.hub.fetch", lambda task, split: done.append(f"fetch {task} {split}") or tmp_path)
    monkeypatch.setattr("berxit.train.fine_tuning.fine_tune", lambda task, data, *_, **__: done.append("train"))
    assert run("train", "--model", "M", "--task", "rte", "--output", tmp_path / "o") == 0
    assert done == ["others wait", "fetch rte train", "others go on", "train"]


def test_help_does_not_import_torch() -> None:
    heavy = ("torch", "transformers", "onnx", "onnxruntime", "matplotlib", "sklearn", "scipy")
    code = f"""
import sys
from berxit.runtime.console import status_of
from berxit.toolkit.cli import berxit
status = status_of(berxit, ["--help"])
print([name for name in {heavy} if name in sys.modules])
sys.exit(status)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)
    assert "..." not in done.stdout.replace("[ARGS]...", "")  # no sentence is cut off
    assert done.stdout.splitlines()[-1] == "[]"


def one_class(path: Path) -> Path:
    path.write_text("text\tlabel\n" + "the dog\tother\n" * 12, encoding="utf-8")
    return path


def at_random(data_folder: Path, path: Path) -> Path:
    """The dev split with labels that do not depend on the texts."""
    header, *rows = (data_folder / "dev.tsv").read_text(encoding="utf-8").splitlines()
    rows = [f"{row.split(chr(9))[0]}\t{('cat', 'other')[i // 2 % 2]}" for i, row in enumerate(rows)]
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("command", ["eval", "calibrate"])
def test_commands_reject_data_of_one_class(
    command: str, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in copy.iterdir())
    assert run(command, copy, "--data", one_class(tmp_path / "one.tsv"), "--quiet") == 2
    assert "one.tsv: accuracy cannot be measured: all labels are of one class" in one_line(capsys)
    assert sorted(path.name for path in copy.iterdir()) == before


def test_eval_calibrate_and_export_warn_about_scores_at_chance(
    copy: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = at_random(data_folder, tmp_path / "random.tsv")
    assert run("eval", copy, "--data", data, "--quiet") == 0
    assert "warning: full depth is at chance: accuracy 0.5" in capsys.readouterr().err
    stored = json.loads((copy / "eval-random" / "eval.json").read_text(encoding="utf-8"))
    assert (stored["constant_score"], stored["constant_prediction"]) == (0.5, "cat")
    assert run("calibrate", copy, "--data", data, "--quiet") == 0
    warning = capsys.readouterr().err.strip()
    assert warning.startswith("warning: full depth is at chance")
    record = json.loads((copy / "exit_policy.json").read_text(encoding="utf-8"))["calibration"]
    assert [f"warning: {line}" for line in record["warnings"]] == [warning]
    for more in ([], ["--precision", "int8"], ["--exits", "2"]):
        arguments = ["--target", "onnxruntime", "--output", tmp_path / "b", "--force", "--quiet", *more]
        assert run("export", copy, *arguments) == 0
        assert "warning: full depth is at chance" in capsys.readouterr().err
        manifest = json.loads((tmp_path / "b" / "manifest.json").read_text(encoding="utf-8"))
        assert manifest["calibration"]["warnings"]


def test_positive_is_recorded_in_config_manifest_evaluation_and_calibration(
    backbone_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "".join(f"the {'cat' if i % 3 else 'dog'} sat\t{'ok' if i % 3 else 'fraud'}\n" for i in range(24))
    for split in ("train", "dev"):
        (tmp_path / f"{split}.tsv").write_text(f"text\tlabel\n{split} {rows}", encoding="utf-8")
    checkpoint, f1 = tmp_path / "checkpoint", ["--metric", "f1"]
    arguments = train_arguments(backbone_folders["bert"], tmp_path, checkpoint)
    assert run("train", *arguments, *f1) == 2
    assert "has 'fraud' and 'ok': add --positive 'fraud' or --positive 'ok'" in one_line(capsys)
    assert run("train", *arguments, *f1, "--positive", "scam") == 2
    assert "--positive scam is not a class" in one_line(capsys)
    assert run("train", *arguments, "--positive", "fraud") == 2
    assert "--positive fraud has no effect on accuracy" in one_line(capsys)
    assert not checkpoint.exists()
    assert run("train", *arguments, *f1, "--positive", "fraud") == 0
    assert run("eval", checkpoint, "--data", tmp_path, "--quiet") == 0
    assert run("calibrate", checkpoint, "--data", tmp_path, "--risk", "0.9", "--quiet") == 0
    assert run("export", checkpoint, "--target", "onnxruntime", "--output", tmp_path / "bundle", "--quiet") == 0
    bundle = json.loads((tmp_path / "bundle" / "manifest.json").read_text(encoding="utf-8"))
    records = [
        json.loads((checkpoint / "config.json").read_text(encoding="utf-8")),
        json.loads((checkpoint / "eval-dev" / "eval.json").read_text(encoding="utf-8")),
        json.loads((checkpoint / "exit_policy.json").read_text(encoding="utf-8"))["calibration"],
        bundle["calibration"],
        bundle["model"],
    ]
    assert [record["positive"] for record in records] == ["fraud"] * 5
    assert bundle["model"]["labels"] == ["ok", "fraud"]
    stored = Predictions.load(checkpoint / "eval-dev" / "predictions.npz")
    truth, predicted = stored.labels == 1, stored.predicted()[:, -1] == 1
    assert truth.sum() == 8  # fraud
    expected = 2 * (truth & predicted).sum() / (truth.sum() + predicted.sum())
    assert records[1]["layer_scores"][-1] == pytest.approx(expected)


def test_positive_requires_a_custom_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "--model", "m", "--task", "mrpc", "--output", tmp_path / "o", "--positive", "equivalent") == 2
    assert "--positive go with --task custom, not mrpc" in one_line(capsys)


def test_checkpoint_without_positive_scores_the_second_class(copy: Path, data_folder: Path) -> None:
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    del config["positive"]
    config["metric"] = "f1"
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert run("eval", copy, "--data", data_folder, "--quiet") == 0
    assert json.loads((copy / "eval-dev" / "eval.json").read_text(encoding="utf-8"))["positive"] == "other"
