"""Bars of the side-by-side benchmark, and their choice of the contender to compare with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks.side_by_side.bars import OURS, OURS_INT8, Measurements, Scored, Timings, bars, lazy
from benchmarks.side_by_side.contenders import Case, Spec
from benchmarks.side_by_side.products import Shape
from benchmarks.side_by_side.report import report
from berxit.runtime import ExitPolicy

GRAPH, TUNED, INT8, RIVAL, EAGER = (
    "one graph, ONNX Runtime fp32",
    "one graph, ONNX Runtime fp32, our options",
    "one graph, ONNX Runtime int8",
    "one graph, OpenVINO fp32",
    "PyTorch eager",
)
SPECS = [
    Spec("segments", OURS, Path("a"), "fp32"),
    Spec("segments", OURS_INT8, Path("b"), "int8"),
    Spec("onnxruntime", GRAPH, Path("c"), "fp32"),
    Spec("onnxruntime", TUNED, Path("c"), "fp32", tuned=True),
    Spec("onnxruntime", INT8, Path("d"), "int8"),
    Spec("openvino", RIVAL, Path("c"), "fp32"),
    Spec("eager", EAGER, Path("e"), "fp32"),
    *(Spec("products", f"matrix products alone, {kind}", Shape(3, 768, 3072, 12), kind) for kind in ("fp32", "int8")),
]
FULL = {OURS: 10.5, OURS_INT8: 5.0, GRAPH: 11.0, TUNED: 10.0, INT8: 4.8, RIVAL: 9.0, EAGER: 30.0}
EARLY = {OURS: 7.0, OURS_INT8: 3.1, EAGER: 21.0}
BASE = ExitPolicy.full_depth(3)
CASES = {"128 tokens": Case.of("128 tokens", [[1] * 128] * 3, BASE, 0, alike=True)}
LARGE, SMALL = Shape(3, 768, 3072, 12), Shape(3, 384, 1536, 12)


def measured() -> Measurements:
    """Measurements in which all times double in one round, as with noise; the ratios do not change."""
    times = {f"128 tokens | full | {name}": [ms, 2 * ms, ms] for name, ms in FULL.items()}
    times |= {f"128 tokens | early | {name}": [ms, 2 * ms, ms] for name, ms in EARLY.items()}
    run = Timings(2, 3, times, {f"128 tokens | {name}": 2.0 for name in EARLY}, {})
    return Measurements([run], {spec.name: 0.0 for spec in SPECS[:-2]}, {})


def bars_by_name(found: Measurements, shape: Shape = LARGE) -> dict[str, tuple[float, bool]]:
    return {bar.what: (round(bar.found, 3), bar.holds) for bar in bars(found, SPECS, CASES, shape) if bar.limit}


def test_bars_compare_ratios_with_limits() -> None:
    assert bars_by_name(measured()) == {
        "all segments / one graph, fp32": (1.05, False),  # the graph with our options is faster
        "wall-clock speed-up / layer speed-up, fp32": (1.0, True),
        "eager early exit / ours, fp32": (3.0, True),
        "all segments / one graph, int8": (1.042, False),
        "wall-clock speed-up / layer speed-up, int8": (1.075, True),
        "eager early exit / ours, int8": (6.774, True),
        "fp32 segments / int8 segments": (2.1, True),
        "one graph, int8 / our fastest, early exit": (1.548, True),
        "one graph, OpenVINO / our fastest, early exit": (2.903, True),
    }


def test_slower_graph_is_reported_without_limit() -> None:
    [beside] = [bar for bar in bars(measured(), SPECS, CASES, LARGE) if bar.limit is None]
    assert (beside.against, round(beside.found, 3), beside.limit) == (GRAPH, 0.955, None)


def test_small_model_has_wider_limit() -> None:
    assert bars_by_name(measured(), SMALL)["all segments / one graph, fp32"] == (1.05, True)


def test_batch_bar_is_relative_to_average_exit_layer() -> None:
    cases = {"batch": replace(CASES["128 tokens"], name="batch", together=True)}
    names = {"full": (GRAPH, TUNED, INT8), "early": (OURS, OURS_INT8)}
    times = {f"batch | {task} | {name}": [FULL[name]] for task in names for name in names[task]}
    run = Timings(1, 1, times, {f"batch | {OURS}": 2.0, f"batch | {OURS_INT8}": 2.9}, {})
    found = {
        bar.what[-4:]: (round(bar.found, 3), bar.holds)
        for bar in bars(Measurements([run], {}, {}), SPECS, cases, LARGE)
    }
    assert found == {"fp32": (0.635, False), "int8": (0.928, True)}


def scored(**early: float) -> Measurements:
    """Measurements with score 0.8 at full depth; in int8 0.797, and 0.78 at exit 2."""
    leaving = [300, 0, 700]
    scores = {name: Scored(0.8, [0.7, 0.79, 0.8], None, []) for name in FULL}
    scores |= {OURS: Scored(0.8, [0.7, 0.79, 0.8], early["fp32"], leaving)}
    scores |= {OURS_INT8: Scored(0.797, [0.696, 0.78, 0.797], early["int8"], leaving)}
    return replace(measured(), scores=scores, metric="accuracy")


def test_int8_score_bar_covers_exits_in_use_only() -> None:
    lost = [bar for bar in bars(scored(fp32=0.799, int8=0.796), SPECS, CASES, LARGE) if bar.what.startswith("points")]
    assert [(bar.where, round(bar.found, 3), bar.holds) for bar in lost] == [
        ("exit 1", 0.4, True),
        ("exit 3", 0.3, True),
    ]


def test_contender_below_score_limit_is_not_compared() -> None:
    """int8 is the fastest but keeps only 90% of the score, so that fp32 is compared."""
    found = bars(scored(fp32=0.799, int8=0.72), SPECS, CASES, LARGE)
    [bar] = [bar for bar in found if bar.what.startswith("one graph, int8")]
    assert bar.against == f"{INT8} / {OURS}"
    assert [bar.holds for bar in found if bar.what.startswith("score kept")] == [True, False]


def test_bar_fails_if_no_contender_keeps_score() -> None:
    found = bars(scored(fp32=0.72, int8=0.72), SPECS, CASES, LARGE)
    lost = [bar for bar in found if bar.against.endswith("which loses more than 1% of the score")]
    assert [(bar.holds, bar.found > 1.5) for bar in lost] == [(False, True), (False, True)]


def test_memory_bar_uses_graph_with_least_memory() -> None:
    names = (OURS, OURS_INT8, lazy(OURS), lazy(OURS_INT8), GRAPH, TUNED, INT8)
    held = dict(zip(names, (105.0, 50.0, 50.0, 30.0, 120.0, 100.0, 50.0), strict=True))
    found = replace(measured(), memory_mib={name: {"loaded": mib} for name, mib in held.items()})
    specs = [replace(spec) for spec in SPECS]
    large = {
        b.what: (b.found, b.holds) for b in bars(found, specs, CASES, replace(LARGE, layers=12)) if "memory" in b.what
    }
    assert large == {
        "resident memory / one graph's, fp32": (1.05, True),
        "resident memory / one graph's, lazy, nothing past layer 3, fp32": (0.5, True),
        "resident memory / one graph's, int8": (1.0, True),
        "resident memory / one graph's, lazy, nothing past layer 3, int8": (0.6, False),
    }
    assert not any("memory" in what for what in bars_by_name(found, SMALL))


def test_report_starts_with_bars() -> None:
    found = scored(fp32=0.799, int8=0.796)
    text = report("who, where", bars(found, SPECS, CASES, LARGE), found, SPECS, CASES, LARGE)
    assert text.startswith("who, where\n\n## 9 of 11 bars hold\n\n| what ")
    worst = next(line for line in text.splitlines() if line.startswith("| all segments / one graph, fp32"))
    assert [cell.strip() for cell in worst.split("|")[2:-1]] == [
        "1.050",
        "<= 1.03",
        "no",
        "128 tokens, 2 threads",
        TUNED,
    ]
    assert "| 2    | 0.7900 | 0.7800 |        1.00 |" in text
