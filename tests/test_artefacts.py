"""All files of a run from training to reports: none contains a local path, and all have the mode of the umask."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from berxit.runtime.benchmark import bench
from berxit.runtime.console import status_of
from berxit.toolkit.cli import load
from berxit.toolkit.report.report_page import write_report
from berxit.toolkit.report.sources import bench_source

QUICK = ["--queries", "1", "--seconds", "0", "--thresholds", "2", "--threads", "1", "--limit", "4"]


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def run(name: str, *arguments: object) -> None:
    assert status_of(load(name), [*map(str, arguments), *([] if name in ("inspect",) else ["--quiet"])]) == 0


@pytest.fixture(scope="module")
def written(
    backbone_folders: dict[str, Path], data_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """The folder with all outputs of a run from training to reports, and the folder with its inputs."""
    inputs, out = tmp_path_factory.mktemp("secret-inputs"), tmp_path_factory.mktemp("secret-outputs") / "run"
    model = Path(shutil.copytree(backbone_folders["bert"], inputs / "encoder"))
    data = Path(shutil.copytree(data_folder, inputs / "data"))
    out.parent.mkdir(exist_ok=True)
    checkpoint = out / "checkpoint"
    sizes = ["--epochs", 2, "--batch-size", 16, "--max-length", 32, "--learning-rate", 3e-3, "--pooling", "mean"]
    with umask(0o027):
        out.mkdir()
        train = ["--model", model, "--task", "custom", *sizes]
        run("train", *train, "--data", data, "--output", checkpoint)
        run("train", *train, "--data", data / "train.tsv", "--dev-fraction", 0.2, "--output", out / "held-out")
        run("eval", checkpoint, "--data", data)
        run("calibrate", checkpoint, "--data", data, "--keep", 0.9)
        targets = [("onnxruntime", "fp32"), ("onnxruntime", "int8"), ("tensorrt", "fp16")]
        if find_spec("coremltools"):
            targets += [("coreml", "fp16")]
        for target, precision in targets:
            bundle = out / f"{target}-{precision}"
            run("export", checkpoint, "--target", target, "--precision", precision, "--output", bundle)
        bundle = out / "onnxruntime-fp32"
        run("bench", bundle, "--data", data, "--output", out / "bench", *QUICK)
        run("compare", bundle, out / "onnxruntime-int8", "--data", data, "--limit", 4, "--output", out / "compare.json")
        for study, paths in (("layerwise", [checkpoint]), ("runtime", [bundle]), ("flops", [checkpoint])):
            given = [] if study == "flops" else ["--data", data]
            run("study", study, *paths, *given, "--output", out / "studies")
        result = bench(bundle, threads=1, queries=1, seconds=0, thresholds=2)
        write_report(out / "report.html", [bench_source(result)])
    return out, inputs


def test_artefacts_contain_no_local_path(written: tuple[Path, Path]) -> None:
    out, inputs = written
    secrets = [str(inputs), str(out), "secret-inputs", "secret-outputs", str(Path.home()), str(Path.cwd())]
    found = []
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        contents = [path.read_bytes()]
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                contents += [archive.read(name) for name in archive.namelist()]
        found += [(path.relative_to(out), text) for text in secrets for content in contents if text.encode() in content]
    assert found == []
    names = {path.name for path in out.rglob("*")}
    assert {"config.json", "training.json", "exit_policy.json", "eval.json", "manifest.json", "bench.json"} <= names
    assert {"report.html", "compare.json", "dev.jsonl", "layerwise-custom.json", "calibration_texts.json"} <= names


def test_artefacts_have_the_mode_of_the_umask(written: tuple[Path, Path]) -> None:
    out, _ = written
    wrong = {
        str(path.relative_to(out)): oct(mode)
        for path in out.rglob("*")
        if (mode := path.stat().st_mode & 0o777) != (0o750 if path.is_dir() else 0o640)
    }
    assert wrong == {}
