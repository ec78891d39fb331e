"""Every command on wrong usage, bad input, a missing package and an interruption: one line, the exit status, no half
result."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import one_line, run, train_arguments

from berxit.runtime.console import status_of
from berxit.toolkit.cli import berxit


def test_commands_reject_an_output_that_cannot_be_written_before_they_work(
    checkpoint: Path,
    bundle: Path,
    backbone_folders: dict[str, Path],
    data_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    task = ["--task", "custom", "--data", data_folder, "--quiet"]
    for suffix, name, *arguments in (
        ("", "train", "--model", backbone_folders["bert"], *task),
        ("", "sweep", "--model", backbone_folders["bert"], *task),
        ("", "eval", checkpoint, "--data", data_folder),
        ("", "study", "layerwise", checkpoint, "--data", data_folder),
        ("", "export", checkpoint, "--target", "onnxruntime"),
        ("", "triton", bundle),
        ("", "bench", bundle),
        (".csv", "predict", bundle, data_folder / "dev.tsv"),
        (".json", "compare", bundle, bundle),
        (".html", "report", tmp_path),
        ("", "score", bundle, data_folder / "dev.tsv", "--engine", "ray"),
    ):
        assert run(name, *arguments, "--output", tmp_path / "file" / f"new{suffix}") == 2, name
        assert "file is not a folder. Choose another --output" in one_line(capsys), name
    assert run("predict", bundle, data_folder / "dev.tsv", "--report", tmp_path / "file") == 2
    assert "cannot write results to" in one_line(capsys)
    assert run("compare", bundle, bundle, "--output", tmp_path / "file") == 2
    assert "the result is a .json file" in one_line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("module", "task", "options", "message"),
    [
        ("torch.utils.tensorboard", "custom", ["--tensorboard", "logs"], "--tensorboard needs tensorboard: "),
        ("datasets", "rte", [], "downloading data needs datasets: "),
    ],
)
def test_train_finds_a_missing_package_before_any_other_line(
    module: str,
    task: str,
    options: list[object],
    message: str,
    backbone_folders: dict[str, Path],
    data_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BERXIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, module, None)
    data = ["--data", data_folder] if task == "custom" else []
    arguments = ["--model", backbone_folders["bert"], "--task", task, *data, "--output", "output", "--quiet"]
    assert run("train", *arguments, *options) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("train", ["--warm-up-steps", 2], "--warm-up-steps 2 is not below the 2 steps of the training"),
        ("train", ["--tensorboard", "file"], "cannot write results to file: "),
        ("calibrate", ["--patience", 4], "patience is 4: it must be a number of exits, from 1 to 3"),
        ("calibrate", ["--accept-noise"], "--accept-noise goes with --budget-ms"),
        ("export", ["--accept-noise"], "--accept-noise goes with --exits auto"),
        ("bench", ["--accept-noise"], "--accept-noise goes with --tune: add it, or omit --accept-noise"),
        ("bench", ["--limit", 2], "--limit goes with --data: add it, or omit --limit"),
        ("bench", ["--split", "dev"], "--split goes with a folder as --data: give a folder, or omit --split"),
        ("bench", ["--split", "test", "--data", "DEV_FILE"], "--split goes with a folder as --data"),
        ("calibrate", ["--split", "test", "--data", "DEV_FILE"], "--split goes with a folder as --data"),
        ("calibrate", ["--criterion", "fixed", "--off", 1], "--criterion fixed excludes every option of an adaptive"),
        ("eval", ["--split", "test", "--data", "DEV_FILE"], "--split goes with a folder as --data"),
        ("study", ["--split", "test", "--data", "DEV_FILE"], "--split goes with a folder as --data"),
        ("study", ["--length", 8], "--length goes with flops, not with layerwise: omit --length"),
        ("study", ["--criterion", "lte"], "--criterion goes with tradeoff, criteria, not with layerwise: omit"),
        ("compare", ["--split", "dev"], "--split goes with a folder as --data"),
        ("compare", ["--split", "test", "--data", "DEV_FILE"], "--split goes with a folder as --data"),
        ("predict", ["--no-labels", "--label-column", "label"], "--label-column and --no-labels exclude each other"),
        ("predict", ["--no-scores"], "--no-scores goes with --output: add it, or omit --no-scores"),
        ("predict", ["--force"], "--force goes with --output: add it, or omit --force"),
        ("push", ["--include-data"], "--include-data goes with a checkpoint, and "),
        ("serve", ["--full-depth", "--shadow", 0.1], "--full-depth and --shadow exclude each other: choose one"),
        ("bench", ["--seconds", "nan"], "'--seconds': nan is not a finite number"),
        ("export", ["--most-flips", "nan"], "'--most-flips': nan is not a finite number"),
        ("compare", ["--fail-above", "nan"], "'--fail-above': nan is not a finite number"),
        ("sweep", ["--minutes", "inf"], "'--minutes': inf is not a finite number"),
        ("triton", ["--backend", "none"], "no backend 'none' runs bundles for onnxruntime: choose onnxruntime or"),
        ("triton", ["--threads", 257], "threads is 257: it must be at least 1 and at most 256"),
        ("export", ["--threads", 257], "threads is 257: it must be at least 1 and at most 256"),
        ("export", ["--data", "missing"], "no data at missing"),
    ],
)
def test_commands_reject_options_without_the_effect_that_they_promise(
    name: str,
    options: list[object],
    message: str,
    copy: Path,
    bundle: Path,
    backbone_folders: dict[str, Path],
    data_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    output = tmp_path / "output"
    arguments = {
        "train": train_arguments(backbone_folders["bert"], data_folder, output),
        "calibrate": [copy, "--data", data_folder, "--quiet"],
        "eval": [copy, "--data", data_folder, "--quiet"],
        "study": ["layerwise", copy, "--data", data_folder, "--output", output, "--quiet"],
        "predict": [bundle, data_folder / "dev.tsv", "--quiet"],
        "push": [bundle, "org/model"],
        "serve": [bundle],
        "export": [copy, "--target", "onnxruntime", "--output", output, "--quiet"],
        "bench": [bundle, "--output", output, "--quiet"],
        "compare": [bundle, bundle, "--quiet"],
        "sweep": ["--model", backbone_folders["bert"], "--task", "custom", "--data", data_folder, "--output", output],
        "triton": [bundle, "--output", output],
    }[name]
    before = (copy / "exit_policy.json").read_bytes()
    options = [data_folder / "dev.tsv" if option == "DEV_FILE" else option for option in options]
    assert run(name, *arguments, *options) == 2
    assert message in one_line(capsys)
    assert (copy / "exit_policy.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "file"]


@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer_config.json"])
def test_train_names_the_missing_file_of_a_checkpoint_that_it_continues(
    missing: str, copy: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / missing).unlink()
    assert run("train", *train_arguments(copy, data_folder, tmp_path / "output")) == 1
    assert f"has no {missing}: copy the complete folder, or retrain" in one_line(capsys)


MISUSES: dict[str, tuple[list[str], str]] = {
    "an unknown task": (["train", "--model", "M", "--task", "cola", "--data", "DATA", "--output", "O"], "'cola'"),
    "a missing option": (["train", "--task", "rte"], "--model"),
    "an unknown strategy": (
        ["train", "--model", "M", "--task", "custom", "--data", "DATA", "--output", "O", "--strategy", "luck"],
        "unknown --strategy 'luck'",
    ),
    "an unknown exit head": (
        ["train", "--model", "MODEL", "--task", "custom", "--data", "DATA", "--output", "O", "--exit-head", "deep"],
        "deep",
    ),
    "columns of a fixed task": (
        ["train", "--model", "M", "--task", "rte", "--data", "DATA", "--output", "O", "--text-column", "a"],
        "go with --task custom",
    ),
    "data of another task": (
        ["train", "--model", "MODEL", "--task", "rte", "--data", "DATA", "--output", "O"],
        "no column 'sentence1'",
    ),
    "data that is not there": (["eval", "CHECKPOINT", "--data", "nowhere"], "no data at nowhere"),
    "a split that is not there": (["eval", "CHECKPOINT", "--data", "DATA", "--split", "test"], "no test split"),
    "a batch of none": (["eval", "CHECKPOINT", "--data", "DATA", "--batch-size", "0"], "--batch-size"),
    "an unknown criterion": (["eval", "CHECKPOINT", "--data", "DATA", "--criterion", "luck", "--quiet"], "'luck'"),
    "a share above one": (["calibrate", "CHECKPOINT", "--data", "DATA", "--keep", "1.5", "--quiet"], "--keep 1.5"),
    "two rules at once": (
        ["calibrate", "CHECKPOINT", "--data", "DATA", "--keep", "0.9", "--risk", "0.1"],
        "--keep and --risk exclude each other",
    ),
    "a probability without a guarantee": (
        ["calibrate", "CHECKPOINT", "--data", "DATA", "--optimistic", "--delta", "0.1"],
        "--delta goes",
    ),
    "an optimistic risk": (
        ["calibrate", "CHECKPOINT", "--data", "DATA", "--optimistic", "--risk", "0.1"],
        "--optimistic goes with --keep",
    ),
    "a budget without a bench": (["calibrate", "CHECKPOINT", "--data", "DATA", "--budget-ms", "5"], "needs --bench"),
    "a bench without a budget": (["calibrate", "CHECKPOINT", "--data", "DATA", "--bench", "b.json"], "--bench goes"),
    "a bench that is not there": (
        ["calibrate", "CHECKPOINT", "--data", "DATA", "--budget-ms", "5", "--bench", "b.json"],
        "no bench at b.json",
    ),
    "a risk above one": (["calibrate", "CHECKPOINT", "--data", "DATA", "--risk", "1.5"], "--risk 1.5 is out of range"),
    "too few examples for a risk": (
        ["calibrate", "CHECKPOINT", "--data", "DATA", "--risk", "0.01", "--quiet"],
        "needs at least 230 examples",
    ),
    "the training file": (["calibrate", "CHECKPOINT", "--data", "DATA", "--split", "train"], "was trained on"),
    "a model folder that is not there": (
        ["train", "--model", "./none", "--task", "custom", "--data", "DATA", "--output", "O"],
        "no folder ./none: --model is a model folder",
    ),
    "an unknown target": (["export", "CHECKPOINT", "--target", "abacus", "--output", "O"], "'abacus' is not one of"),
    "an unknown precision": (
        ["export", "CHECKPOINT", "--target", "onnxruntime", "--precision", "fp7", "--output", "O"],
        "no precision 'fp7'",
    ),
    "neither target nor device": (["export", "CHECKPOINT", "--output", "O"], "the target is missing: give --target"),
    "a device that does not run the target": (
        ["export", "CHECKPOINT", "--device", "iphone", "--target", "onnxruntime", "--output", "O"],
        "device 'iphone' runs bundles for coreml, not for onnxruntime",
    ),
    "lengths that are no numbers": (
        ["export", "CHECKPOINT", "--target", "onnxruntime", "--lengths", "8,long", "--output", "O"],
        "'8,long': give numbers of tokens",
    ),
    "an output that is there": (
        ["export", "CHECKPOINT", "--target", "onnxruntime", "--output", "DATA"],
        "exists: choose another --output",
    ),
    "an unknown device": (["bench", "BUNDLE", "--device", "toaster"], "unknown device 'toaster'"),
    "two policies of a service": (["serve", "BUNDLE", "--threshold", "0.9", "--full-depth"], "exclude each other"),
    "a threshold out of range": (["serve", "BUNDLE", "--threshold", "7"], "threshold 7.0 is out of range"),
    "an address of another machine": (
        ["serve", "BUNDLE", "--host", "203.0.113.1"],
        "cannot listen on 203.0.113.1:8000: Cannot assign requested address. Choose another --port or --host",
    ),
    "a deadline of none": (["serve", "BUNDLE", "--port", "0", "--deadline-ms", "0"], "deadline_ms is 0.0"),
    "a limit of none": (["serve", "BUNDLE", "--max-texts", "0"], "the limit of texts is 0"),
    "more shadow runs than texts": (["serve", "BUNDLE", "--port", "0", "--shadow", "2"], "shadow is 2.0"),
    "a port that is none": (["demo", "BUNDLE", "--port", "70000"], "--port"),
    "a model folder that is there": (["triton", "BUNDLE", "--output", "DATA"], "exists: choose another --output"),
    "a model's threshold out of range": (
        ["triton", "BUNDLE", "--output", "O", "--threshold", "7"],
        "threshold 7.0 is out of range",
    ),
    "an unknown command": (["fly"], "fly"),
    "an unknown option": (["inspect", "BUNDLE", "--colour"], "--colour"),
}


@pytest.mark.parametrize("name", MISUSES)
def test_wrong_usage_prints_one_line_and_returns_status_2(
    name: str,
    checkpoint: Path,
    bundle: Path,
    data_folder: Path,
    backbone_folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments, message = MISUSES[name]
    places = {"CHECKPOINT": checkpoint, "BUNDLE": bundle, "DATA": data_folder, "MODEL": backbone_folders["bert"]}
    monkeypatch.chdir(tmp_path)
    before = sorted(path.name for path in checkpoint.iterdir())
    assert status_of(berxit, [str(places.get(argument, argument)) for argument in arguments]) == 2
    assert message in one_line(capsys)
    assert list(tmp_path.iterdir()) == []
    assert sorted(path.name for path in checkpoint.iterdir()) == before


FAILURES: dict[str, tuple[list[str], str]] = {
    "no model in the folder": (
        ["train", "--model", "DATA", "--task", "custom", "--data", "DATA", "--output", "O"],
        "cannot load --model",
    ),
    "no checkpoint to evaluate": (["eval", "none", "--data", "DATA"], "no checkpoint at none"),
    "no checkpoint to calibrate": (["calibrate", "none", "--data", "DATA"], "none"),
    "a plain model to export": (["export", "MODEL", "--target", "onnxruntime", "--output", "O"], "model without exits"),
    "no bundle": (["inspect", "none"], "no bundle at none"),
    "no bundle to serve": (["serve", "none"], "none: write one with berxit-export"),
    "no bundle to show": (["demo", "none"], "none: write one with berxit-export"),
    "no bundle for Triton": (["triton", "none", "--output", "O"], "no bundle at none"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failure_prints_one_line_and_returns_status_1(
    name: str,
    data_folder: Path,
    backbone_folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments, message = FAILURES[name]
    places = {"DATA": data_folder, "MODEL": backbone_folders["bert"]}
    monkeypatch.chdir(tmp_path)
    assert status_of(berxit, [str(places.get(argument, argument)) for argument in arguments]) == 1
    assert message in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


BAD_ROWS: dict[str, tuple[bytes, str]] = {
    "a ragged row": (b"the cat\tcat\tcat\n", "line 98: 3 columns, but the header has 2. Fix or delete it"),
    "no UTF-8": (b"the caf\xe9\tcat\n", "line 98: not UTF-8"),
    "an empty text": (b"\tcat\n", "line 98: column 'text' is empty"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_row_prints_one_line_and_writes_nothing(
    name: str,
    backbone_folders: dict[str, Path],
    data_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    row, message = BAD_ROWS[name]
    (tmp_path / "train.tsv").write_bytes((data_folder / "train.tsv").read_bytes() + row)
    assert run("train", *train_arguments(backbone_folders["bert"], tmp_path, tmp_path / "checkpoint")) == 2
    assert message in one_line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["train.tsv"]


def test_nan_loss_prints_one_line_and_returns_status_1(
    backbone_folders: dict[str, Path], data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = train_arguments(backbone_folders["bert"], data_folder, tmp_path / "checkpoint")
    assert run("train", *arguments, "--learning-rate", 1e30, "--max-steps", 10) == 1
    assert "the loss is nan at step 10: use a lower --learning-rate" in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_prints_one_line_and_the_same_command_continues(
    backbone_folders: dict[str, Path],
    data_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from berxit.train.objectives import Alternating

    arguments = [*train_arguments(backbone_folders["bert"], data_folder, tmp_path / "checkpoint"), "--max-steps", 10]
    steps: list[int] = []
    combine = Alternating.combine

    def interrupted(self: Alternating, step: int, losses: Any) -> Any:
        steps.append(step)
        if len(steps) == 7:  # in the second of three epochs
            os.kill(os.getpid(), signal.SIGINT)
        return combine(self, step, losses)

    monkeypatch.setattr(Alternating, "combine", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore SIGINT
    try:
        assert run("train", *arguments) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "interrupted: no partial output was written. Rerun the same command" in one_line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == [".checkpoint.training"]
    assert run("train", *arguments) == 0
    assert steps == [1, 2, 3, 4, 5, 6, 7, 5, 6, 7, 8, 9, 10]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    record = json.loads((tmp_path / "checkpoint" / "training.json").read_text(encoding="utf-8"))
    assert record["steps"] == 10


def test_debug_prints_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", tmp_path / "none", "--debug") == 1
    assert "Traceback" in capsys.readouterr().err
