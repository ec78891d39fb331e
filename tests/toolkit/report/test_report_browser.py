"""The report page in headless Chromium, opened as a file, without a network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_benches import made_bench, made_evaluation, made_pass, per_class

from berxit.runtime.policies import ExitPolicy
from berxit.runtime.queries import ExitOutputs
from berxit.toolkit.report.pass_data import calibrated_exits, latency_by_exit, slider_thresholds
from berxit.toolkit.report.report_page import write_report
from berxit.toolkit.report.sources import BenchSource, EvaluationSource, bench_source, read_source

LONGEST_MS = 60_000
Open = Callable[..., Any]


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens the page of some sources in a new tab. The test fails if a script raises or the page makes a request."""
    problems: list[str] = []
    contexts = []

    def opened(*sources: BenchSource | EvaluationSource, width: int = 1200, dark: bool = False) -> Any:
        path = write_report(tmp_path / "report.html", sources)
        scheme = "dark" if dark else "light"
        context = browser.new_context(
            viewport={"width": width, "height": 900}, offline=True, color_scheme=scheme, accept_downloads=True
        )
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(LONGEST_MS)
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        tab.on(
            "request",
            lambda request: (
                None if request.url.startswith(("file:", "blob:", "data:")) else problems.append(request.url)
            ),
        )
        tab.goto(path.as_uri())
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert not problems


def move(page: Any, position: int) -> None:
    page.eval_on_selector(
        "#threshold", "(s, v) => { s.value = v; s.dispatchEvent(new Event('input', {bubbles: true})); }", position
    )


def numbers(page: Any) -> dict[str, str]:
    """Title -> value of the numbers above the charts."""
    return dict(
        page.eval_on_selector_all(
            "#numbers div",
            "all => all.map(d => [d.querySelector('dt').textContent, d.querySelector('dd').firstChild.textContent])",
        )
    )


def check_numbers(page: Any, outputs: ExitOutputs, exits: np.ndarray, latency: np.ndarray) -> None:
    """The page's numbers for a set of exits (N,), places from 0, against those that Python computes. Latencies have 16
    bits on the page."""
    rows = np.arange(len(exits))
    own, deep = outputs.predictions[rows, exits], outputs.predictions[:, -1]
    times, full = latency[rows, exits], latency[:, -1].mean()
    assert outputs.labels is not None
    found = numbers(page)
    assert found["Average exit layer"] == f"{(exits + 1).mean():.2f}"
    assert found["accuracy"] == f"{(own == outputs.labels).mean():.4f}"
    assert found["Flips"] == f"{100 * (own != deep).mean():.1f}%"
    for name, value, unit in (
        ("Mean latency", times.mean(), " ms"),
        ("p90", np.quantile(times, 0.9), " ms"),
        ("p99", np.quantile(times, 0.99), " ms"),
        ("Speed-up", full / times.mean(), "x"),
    ):
        assert float(found[name].removesuffix(unit)) == pytest.approx(value, abs=0.011)


@pytest.mark.parametrize(
    "policy", [ExitPolicy.uniform("confidence", 0.7, 4), per_class()], ids=["uniform", "per class"]
)
def test_slider_updates_every_number(show: Open, policy: ExitPolicy) -> None:
    result = made_bench(policy=policy)
    assert result.records is not None
    outputs, latency = result.records.outputs, latency_by_exit(result.records)
    page = show(bench_source(result))
    assert result.policy is not None
    found = numbers(page)
    assert found["Mean latency"] == f"{result.policy.latency.mean:.2f} ms"  # as measured, not composed
    assert found["Speed-up"] == f"{result.full_depth.latency.mean / result.policy.latency.mean:.2f}x"
    assert found["Average exit layer"] == f"{(calibrated_exits(outputs) + 1).mean():.2f}"
    assert "calibrated" in page.inner_text("#threshold-value")
    thresholds = slider_thresholds(outputs, calibrated=True)
    for position in (0, len(thresholds) // 3, len(thresholds) - 1):
        move(page, position)
        passes = outputs.criterion.exits(outputs.certainty, thresholds[position])
        passes[:, -1] = True
        check_numbers(page, outputs, passes.argmax(axis=1), latency)
        share = (passes.argmax(axis=1) == 0).mean()
        assert page.inner_text("#histogram .bar >> nth=0 >> .number").startswith(f"{100 * share:.1f}%")
    page.click("#to-calibrated")
    assert "calibrated" in page.inner_text("#threshold-value")


def test_classes_and_inputs_follow_the_slider(show: Open) -> None:
    result = made_bench()
    assert result.records is not None
    outputs = result.records.outputs
    page = show(bench_source(result))
    for position in (0, 1000):
        move(page, position)
        exit_place = 0 if position == 0 else 3
        matrix = page.eval_on_selector_all(
            "#confusion tbody tr", "rows => rows.map(r => [...r.cells].slice(1).map(c => +c.textContent))"
        )
        own = outputs.predictions[:, exit_place]
        assert matrix == [[int(((outputs.labels == a) & (own == b)).sum()) for b in range(3)] for a in range(3)]
        page.check("input[name=list][value=wrong]", force=True)
        wrong = int((own != outputs.labels).sum())
        assert page.inner_text("#list-caption").startswith(f"{wrong} prediction")
        assert page.locator("#rows > li").count() == min(wrong, 8)
    page.check("input[name=list][value=early]", force=True)
    assert page.locator("#rows > li >> nth=0 >> .cell").count() == 4
    assert page.inner_text("#rows .text >> nth=0").startswith("text ")
    assert page.inner_text("#rows .text >> nth=0").endswith("with <b>marks</b> & \u00fcml\u00e4uts")
    page.click("#more")
    assert page.locator("#rows > li").count() == 28


def test_trade_off_switches_its_axis(show: Open, tmp_path: Path) -> None:
    page = show(bench_source(made_bench()), read_source(made_evaluation(tmp_path / "eval", made_pass())))
    assert "mean latency" in page.get_attribute("#trade-off svg", "aria-label")
    page.select_option("#axis", "average")
    assert "average exit layer" in page.get_attribute("#trade-off svg", "aria-label")
    assert "patience (evaluation)" in page.inner_text("#trade-off .legend")
    assert page.locator("#quality thead th").count() > 3


def test_raw_json_is_downloaded(show: Open) -> None:
    page = show(bench_source(made_bench()))
    with page.expect_download() as download:
        page.click("#downloads button >> nth=0")
    assert download.value.suggested_filename == "bench.json"
    assert json.loads(Path(download.value.path()).read_text(encoding="utf-8"))["bundle"] == "my-bundle"


def test_two_benches_are_compared_side_by_side(show: Open) -> None:
    page = show(bench_source(made_bench()), bench_source(made_bench(slower=2.0)))
    rows = page.eval_on_selector_all(
        "#compare-table tbody tr", "rows => rows.map(r => [...r.cells].map(c => c.textContent))"
    )
    latency = next(row for row in rows if row[0] == "mean latency, full depth, ms")
    assert float(latency[2]) == pytest.approx(2 * float(latency[1]), rel=0.02)
    assert latency[3] == "2.000x"
    assert next(row for row in rows if row[0].startswith("energy"))[1:3] == ["not measured", "not measured"]
    before = numbers(page)["Mean latency"]
    page.check("input[name=side] >> nth=1", force=True)
    assert float(numbers(page)["Mean latency"].split()[0]) == pytest.approx(2 * float(before.split()[0]), rel=0.02)


def test_evaluations_and_regression_have_a_page(show: Open, tmp_path: Path) -> None:
    page = show(read_source(made_evaluation(tmp_path / "eval", made_pass())))
    assert "Mean latency" not in numbers(page)
    assert page.is_hidden("#device")
    page = show(bench_source(made_bench(found=made_pass(classes=1))))
    assert page.is_hidden("#classes")
    assert float(numbers(page)["pearson"]) > 0.5


def test_page_without_single_queries_shows_the_measured_points(show: Open) -> None:
    from dataclasses import replace

    page = show(bench_source(replace(made_bench(), records=None)))
    assert page.is_hidden("#explore")
    assert page.locator("#points tbody tr").count() == 6


@pytest.mark.parametrize("width", [390, 1200])
def test_page_fits_the_screen_and_prints(show: Open, width: int) -> None:
    page = show(bench_source(made_bench(found=made_pass(layers=12))), width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.emulate_media(media="print")
    assert page.is_hidden("#to-full")
    assert page.is_visible("#numbers")


def test_page_on_paper_is_not_cut_off(show: Open) -> None:
    page = show(bench_source(made_bench(found=made_pass(layers=12, classes=12))), width=700)
    page.emulate_media(media="print")
    wider = "[...document.querySelectorAll('.scroll, pre')].filter(each => each.scrollWidth > each.clientWidth)"
    assert page.evaluate(f"{wider}.map(each => each.ariaLabel)") == []


# Accessibility


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Script of axe-core: from AXE_CORE, a path of axe.min.js, or downloaded with npm."""
    if given := os.environ.get("AXE_CORE"):
        return Path(given).read_text(encoding="utf-8")
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm here, which downloads axe-core; or set AXE_CORE to axe.min.js")
    folder = tmp_path_factory.mktemp("axe")
    command = (npm, "pack", "axe-core@4", "--silent")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    archive = next(folder.glob("axe-core-*.tgz"), None)
    if done.returncode or archive is None:
        pytest.skip("axe-core cannot be downloaded here; set AXE_CORE to axe.min.js")
    with tarfile.open(archive) as files:
        script = files.extractfile("package/axe.min.js")
        assert script is not None
        return script.read().decode()


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("kind", ["bench", "benches", "evaluation"])
def test_page_has_no_serious_accessibility_problem(show: Open, axe: str, tmp_path: Path, kind: str, dark: bool) -> None:
    sources: dict[str, list[BenchSource | EvaluationSource]] = {
        "bench": [bench_source(made_bench())],
        "benches": [bench_source(made_bench()), bench_source(made_bench(slower=2.0))],
        "evaluation": [read_source(made_evaluation(tmp_path / "eval", made_pass()))],
    }
    page = show(*sources[kind], dark=dark)
    page.evaluate(axe)
    found = page.evaluate("axe.run(document)")
    serious = [
        (each["id"], [node["html"] for node in each["nodes"]][:3])
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
    ]
    assert serious == []
    assert len(found["passes"]) > 20
