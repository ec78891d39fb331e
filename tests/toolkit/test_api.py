"""The public functions of berxit: paths and data in memory, typed results, no printing."""

from __future__ import annotations

import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

import berxit
from berxit.runtime.bench_report import write_result
from berxit.runtime.examples import read_rows

ROOT = Path(__file__).resolve().parents[2]
QUICK: dict[str, Any] = {"threads": 1, "queries": 1, "seconds": 0, "thresholds": 2}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BERXIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tables(data_folder: Path) -> dict[str, list[dict[str, str]]]:
    """The rows of ``data_folder`` by split."""
    return {
        split: [dict(row) for _, row in read_rows(data_folder / f"{split}.tsv", ("text", "label"))]
        for split in ("train", "dev")
    }


def options_of(model: Path) -> berxit.TrainingOptions:
    return berxit.TrainingOptions(str(model), max_steps=2, batch_size=4, max_length=16, limit_train=16)


TABLES: dict[str, Callable[[list[dict[str, str]]], Any]] = {
    "list of dictionaries": list,
    "dictionary of columns": lambda rows: {name: [row[name] for row in rows] for name in rows[0]},
    "data frame": pd.DataFrame,
    "datasets.Dataset": datasets.Dataset.from_list,
}


def test_importing_berxit_imports_no_library() -> None:
    code = "import sys, berxit; dir(berxit); print(*{n.partition('.')[0] for n in sys.modules} & {'numpy', 'torch'})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_every_public_name_is_defined() -> None:
    assert dir(berxit) == sorted(berxit.__all__)
    assert all(getattr(berxit, name) is not None for name in berxit.__all__)
    with pytest.raises(AttributeError, match="module 'berxit' has no attribute 'leave'"):
        _ = berxit.leave  # type: ignore[attr-defined]


def test_public_names_are_no_packages() -> None:
    packages = {module.name for module in pkgutil.iter_modules(berxit.__path__)}
    assert {"devices", "exporters", "runtime", "toolkit", "train"} <= packages
    assert not set(berxit.__all__) & packages


def test_berxit_train_is_the_package() -> None:
    code = "import berxit; berxit.fine_tune; import berxit.train.options; print(berxit.train.options.TrainingOptions)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "TrainingOptions" in done.stdout


def test_functions_run_from_data_in_memory_to_a_bench(
    backbone_folders: dict[str, Path],
    tables: dict[str, list[dict[str, str]]],
    tmp_path: Path,
    quiet_machine: None,
    capfd: pytest.CaptureFixture[str],
) -> None:
    trained = berxit.fine_tune(options_of(backbone_folders["bert"]), tables, tmp_path / "checkpoint")
    assert trained.calibration_data == trained.data
    assert (trained.checkpoint, trained.main_process) == (tmp_path / "checkpoint", True)
    chosen = berxit.calibrate(trained.checkpoint, tables["dev"], keep=0.5)
    assert chosen.examples == 48
    exported = berxit.export(trained.checkpoint, target="onnxruntime")
    assert exported.bundle == tmp_path / "checkpoint-onnxruntime"
    assert len([line for line in exported.report if line.startswith("-[✓] layer")]) == 3
    result = berxit.bench(exported.bundle, tables["dev"], limit=4, **QUICK)
    assert (result.inputs, result.metric) == (4, "accuracy")
    write_result(result, tmp_path / "bench")
    benches = berxit.compare(tmp_path / "bench" / "bench.json", str(tmp_path / "bench"))
    assert benches.regressions(0) == []
    models = berxit.compare(str(trained.checkpoint), exported.bundle, tables["dev"], limit=4)
    assert "4 of 4 rows agree" in models.text()
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("kind", TABLES)
def test_evaluate_of_a_table_equals_evaluate_of_its_file(
    kind: str, copy: Path, data_folder: Path, tables: dict[str, list[dict[str, str]]]
) -> None:
    (of_file,) = berxit.evaluate(copy, data_folder)
    (of_table,) = berxit.evaluate(str(copy), TABLES[kind](tables["dev"]))
    assert of_table.evaluation == of_file.evaluation
    assert of_table.file.name == "dev.jsonl"


def test_evaluate_writes_only_when_asked(copy: Path, data_folder: Path, tmp_path: Path) -> None:
    before = set(copy.rglob("*"))
    (result,) = berxit.evaluate(copy, data_folder)
    assert set(copy.rglob("*")) == before
    files = result.write(tmp_path / "out")
    assert {"eval.json", "eval.md", "predictions.npz"} <= {file.name for file in files}
    assert json.loads((tmp_path / "out" / "eval.json").read_text(encoding="utf-8"))["examples"] == 48


def test_fine_tune_without_a_dev_split_returns_no_calibration_data(
    backbone_folders: dict[str, Path], tables: dict[str, list[dict[str, str]]], tmp_path: Path
) -> None:
    lines: list[str] = []
    options = options_of(backbone_folders["bert"])
    whole = replace(options, dev_fraction=0)
    trained = berxit.fine_tune(whole, tables["train"], tmp_path / "checkpoint", report=lines.append)
    assert trained.calibration_data is None
    assert "dev split: none, so there is no data to calibrate exits on" in lines[-1]


def test_fine_tune_on_one_table_holds_out_rows_that_evaluate_uses(
    backbone_folders: dict[str, Path], tables: dict[str, list[dict[str, str]]], tmp_path: Path
) -> None:
    options = options_of(backbone_folders["bert"])
    trained = berxit.fine_tune(options, tables["train"], tmp_path / "checkpoint")
    assert trained.calibration_data == tmp_path / "checkpoint" / "dev.jsonl"
    (result,) = berxit.evaluate(trained.checkpoint, tables["train"])
    assert (result.file, result.evaluation.examples) == (trained.calibration_data, 10)


def test_export_for_a_device_uses_its_profile(copy: Path) -> None:
    exported = berxit.export(copy, device="cpu", options=berxit.ExportOptions(threads=1))
    assert exported.device is not None
    assert (exported.device.name, exported.manifest.target, exported.manifest.threads) == ("cpu", "onnxruntime", 1)


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "two rules": (lambda folder: berxit.calibrate(folder, keep=0.9, risk=0.1), "--keep and --risk exclude each other"),
    "no target": (berxit.export, "the target is missing: give --target"),
    "an unknown device": (lambda folder: berxit.export(folder, device="toaster"), "unknown device 'toaster'"),
    "a target of another device": (
        lambda folder: berxit.export(folder, target="coreml", device="cpu"),
        "device 'cpu' runs bundles for onnxruntime",
    ),
    "no data": (berxit.evaluate, "--data is missing"),
    "data of no kind": (lambda folder: berxit.evaluate(folder, 3), "the dev data is int"),  # type: ignore[arg-type]
    "a bench and a model": (lambda folder: berxit.compare(folder / "training.json", folder), "only one of them"),
    "columns of a built-in task": (
        lambda folder: berxit.fine_tune(
            berxit.TrainingOptions("m"), None, folder / "o", task="rte", text_columns=["text"]
        ),
        "go with --task custom",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_argument_raises_one_line_input_error(kind: str, copy: Path) -> None:
    call, message = WRONG[kind]
    with pytest.raises(berxit.InputError, match=message) as error:
        call(copy)
    assert "\n" not in str(error.value)


CLIENT = """
from pathlib import Path

import berxit

options = berxit.TrainingOptions("encoder", epochs=3, learning_rate=2e-5)
rows = [{"text": "turn it on", "label": "lights"}, {"text": "stop", "label": "music"}]
trained = berxit.fine_tune(options, {"train": rows, "dev": rows}, Path("checkpoint"), force=True)
scores: tuple[float, ...] = berxit.evaluate(trained.checkpoint, "dev.tsv")[0].evaluation.layer_scores
threshold: float = berxit.calibrate("checkpoint", trained.calibration_data, keep=0.99).threshold
bundle: Path = berxit.export("checkpoint", target="onnxruntime", options=berxit.ExportOptions("int8")).bundle
milliseconds: float = berxit.bench(bundle, {"text": ["a"], "label": ["b"]}, limit=10).full_depth.latency.mean
worse: list[str] = berxit.compare("a/bench.json", "b/bench.json").regressions(5.0)
with berxit.EarlyExitRunner.from_pretrained("org/bundle", revision="main") as runner:
    label: str | float = runner.predict("stop", deadline_ms=8).label
    layers: list[int] = [each.exit_layer for each in runner.predict_batch(["a", "b"])]
"""
MISTAKES = """
import berxit

berxit.fine_tune("encoder", [], "checkpoint")
berxit.evaluate("checkpoint", 3)
berxit.calibrate("checkpoint", share=0.9)
berxit.bench("bundle", limit="10")
label: bytes = berxit.EarlyExitRunner.load("bundle").predict("stop").label
berxit.finetune(berxit.TrainingOptions("encoder"), [], "checkpoint")
"""


def test_types_of_a_client_program(tmp_path: Path) -> None:
    """mypy accepts a correct program and reports every mistake of a wrong one."""
    pytest.importorskip("mypy")
    package = tmp_path / "types" / "berxit"
    package.mkdir(parents=True)
    for path in (
        *(ROOT / "berxit").glob("*.*"),
        *(ROOT / n for n in ("devices", "exporters", "runtime", "toolkit", "train")),
    ):
        (package / path.name).symlink_to(path)
    (tmp_path / "client.py").write_text(CLIENT, encoding="utf-8")
    (tmp_path / "mistakes.py").write_text(MISTAKES, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", "cache"]
    done = subprocess.run(
        [*command, "--follow-imports", "silent", "client.py", "mistakes.py"],
        cwd=tmp_path,
        check=False,
        env={**os.environ, "MYPYPATH": str(tmp_path / "types")},
        capture_output=True,
        text=True,
    )
    found = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert [line for line in found if not line.startswith("mistakes.py:")] == []
    wrong = [
        number for number, line in enumerate(MISTAKES.splitlines(), 1) if line.strip() and not line.startswith("import")
    ]
    assert {int(line.split(":")[1]) for line in found} == set(wrong), done.stdout
