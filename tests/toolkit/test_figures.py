"""Figures are written and are not empty."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image
from matplotlib import pyplot as plt

from berxit.runtime.bench_result import BenchResult
from berxit.runtime.benchmark import bench
from berxit.runtime.examples import read_examples
from berxit.toolkit.evaluation_report import evaluate
from berxit.toolkit.figures import bench_figure, evaluation_figure
from berxit.train.evaluation import Predictions


@pytest.fixture(scope="module")
def result(bundle: Path, data_folder: Path) -> BenchResult:
    examples = read_examples(data_folder / "dev.tsv", ("text",), "label", ("cat", "other")).head(8)
    return bench(bundle, examples=examples, threads=1, queries=1, seconds=0, warmup=1, thresholds=2)


def colours(path: Path) -> int:
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = image.imread(path)
    assert min(pixels.shape[:2]) > 300
    return len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0))


def test_bench_figure_is_written(result: BenchResult, tmp_path: Path) -> None:
    path = bench_figure(result, tmp_path / "bench.png")
    assert path == tmp_path / "bench.png"
    assert colours(path) > 20
    assert plt.get_fignums() == []


def test_bench_figure_without_labels_has_no_score_panel(result: BenchResult, tmp_path: Path) -> None:
    bare = replace(
        result,
        metric=None,
        policy=None,
        by_layer={k: replace(p, score=None) for k, p in result.by_layer.items()},
        by_threshold={k: replace(p, score=None) for k, p in result.by_threshold.items()},
    )
    wide = image.imread(bench_figure(result, tmp_path / "wide.png")).shape
    narrow_path = bench_figure(bare, tmp_path / "narrow.png")
    assert colours(narrow_path) > 20
    assert image.imread(narrow_path).shape[1] * 3 == pytest.approx(wide[1] * 2, abs=3)


def test_bench_figure_of_a_stored_result_has_no_distribution(result: BenchResult, tmp_path: Path) -> None:
    wide = image.imread(bench_figure(result, tmp_path / "wide.png")).shape
    narrow = image.imread(bench_figure(replace(result, records=None), tmp_path / "narrow.png")).shape
    assert narrow[1] * 3 == pytest.approx(wide[1] * 2, abs=3)


def test_evaluation_figure_is_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50, 4, 2)).astype(np.float32)
    evaluation = evaluate(Predictions(logits, None, rng.integers(0, 2, 50), "accuracy"))
    path = evaluation_figure(evaluation, tmp_path / "eval.png")
    assert colours(path) > 20
    assert plt.get_fignums() == []
