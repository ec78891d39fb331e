"""The runner for JavaScript on real texts: its agreement with the Python runtime, and its latency in headless Chromium.

    python -m benchmarks.javascript BUNDLE ... --data FILE.tsv ... --output javascript

The package must be built (npm ci and npm run build in runners/js). The texts are the first columns of the files, which
have a header. Every bundle predicts all texts in Node (onnxruntime-node, one thread) and in Chromium (wasm, with the
threads that the page gets). Chromium fetches the files from a local server: the layers and the rows of the word
embedding table when the first text needs them, and then everything else. Latencies are those of single texts at the
bundle's own thresholds, tokenization included; the first 10 texts are not counted.
"""

from __future__ import annotations

import csv
import json
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.agreement import compare
from berxit.runtime.bundle import read_manifest
from berxit.runtime.console import debug_option, run
from berxit.runtime.errors import BerxitError
from berxit.runtime.results import write_results
from berxit.runtime.tables import markdown_table

RUNNER = Path(__file__).resolve().parents[1] / "runners" / "js"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WARM_UP = 10
PREDICT_ALL = """async (texts) => {
  const { EarlyExitRunner } = await import("berxit");
  const start = performance.now();
  const runner = await EarlyExitRunner.load(new URL("bundle/", location.href), { lazy: true });
  const first = await runner.predict(texts[0]);
  const seconds = (performance.now() - start) / 1e3;
  const bytes = performance.getEntriesByType("resource").reduce((sum, each) => sum + each.encodedBodySize, 0);
  await runner.warmUp();
  const records = [];
  for (const text of texts) {
    const { label, exitLayer, latencyMs } = await runner.predict(text);
    const certainties = [];
    for await (const { certainty } of runner.stream(text)) certainties.push(certainty);
    records.push({ label, exit_layer: exitLayer, ms: latencyMs, certainties });
  }
  const deep = [];
  for (const text of texts.slice(0, 200)) {
    let last;
    for await (const each of runner.stream(text)) last = each;
    deep.push(last.latencyMs);
  }
  return { seconds, bytes, records, deep, isolated: crossOriginIsolated, version: navigator.userAgent, first };
}"""


def read_texts(files: Sequence[Path]) -> list[str]:
    found = []
    for file in files:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
        found += [row[0] for row in csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)][1:]
    return found


def agreement(bundle: Path, texts: list[str], records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found = compare(
        bundle,
        texts,
        [each["label"] for each in records],
        [each["exit_layer"] for each in records],
        [each["certainties"] for each in records],
    )
    return asdict(found)


def in_node(bundle: Path, texts: list[str], folder: Path) -> dict[str, Any]:
    (folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    command = ["node", str(RUNNER / "tests" / "predict.mjs"), str(bundle), str(folder / "texts.json")]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, encoding="utf-8").stdout
    first, *records = map(json.loads, output.splitlines())
    return {"golden_differences": first["differences"], **agreement(bundle, texts, records)}


@contextmanager
def served(bundle: Path, folder: Path) -> Iterator[str]:
    """Address of the demo page with the bundle."""
    subprocess.run(["node", "demo/build.mjs", str(bundle.resolve()), str(folder / "site")], cwd=RUNNER, check=True)
    command = ["node", "demo/serve.mjs", str(folder / "site"), "0"]
    with subprocess.Popen(command, cwd=RUNNER, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


def in_chromium(bundle: Path, texts: list[str], folder: Path) -> dict[str, Any]:
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        raise BerxitError(f"no browser here: install one of {', '.join(BROWSERS)}")
    with served(bundle, folder) as address, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(1e6)
        page.goto(f"{address}?bundle=none")  # the page itself loads no bundle
        found = page.evaluate(PREDICT_ALL, texts)
        gpu = page.evaluate("async () => !!(await navigator.gpu?.requestAdapter())")
        browser.close()
    milliseconds = [each["ms"] for each in found["records"]][WARM_UP:]
    return {
        "browser": found["version"],
        "threads_allowed": found["isolated"],
        "gpu_adapter": gpu,
        "bytes_before_first_prediction": found["bytes"],
        "seconds_to_first_prediction": found["seconds"],
        "median_ms": statistics.median(milliseconds),
        "p90_ms": float(np.percentile(milliseconds, 90)),
        "full_depth_median_ms": statistics.median(found["deep"][WARM_UP:]),
        "average_exit_layer": statistics.mean(each["exit_layer"] for each in found["records"]),
        **agreement(bundle, texts, found["records"]),
    }


def report(found: dict[str, Any]) -> str:
    header = ["bundle", "where", "rows", "different", "near a threshold", "largest difference of a certainty"]
    rows = [
        [
            name,
            where,
            str(each["rows"]),
            str(len(each["different"])),
            str(len(each["near"])),
            f"{each['largest_difference']:.1e}",
        ]
        for name, places in found.items()
        for where, each in places.items()
    ]
    timed = [
        [
            name,
            f"{each['bytes_before_first_prediction'] / 1e6:.1f}",
            f"{each['seconds_to_first_prediction']:.1f}",
            *(f"{each[key]:.1f}" for key in ("median_ms", "p90_ms", "full_depth_median_ms", "average_exit_layer")),
        ]
        for name, places in found.items()
        for where, each in places.items()
        if where == "chromium"
    ]
    columns = [
        "bundle",
        "MB before the first prediction",
        "s to it",
        "median ms",
        "p90 ms",
        "full depth ms",
        "average exit layer",
    ]
    return "\n\n".join([markdown_table(header, rows), markdown_table(columns, timed)])


@click.command(help=__doc__)
@click.argument("bundles", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--data", "files", multiple=True, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--output", required=True, type=click.Path(path_type=Path))
@debug_option
def command(bundles: tuple[Path, ...], files: tuple[Path, ...], output: Path) -> None:
    texts = read_texts(files)
    start = time.monotonic()
    found: dict[str, Any] = {}
    for bundle in bundles:
        manifest = read_manifest(bundle)
        name = f"{manifest.model.layers} layers, {manifest.precision}"
        with tempfile.TemporaryDirectory() as folder:
            node = in_node(bundle, texts, Path(folder))
            found[name] = {"node": node, "chromium": in_chromium(bundle, texts, Path(folder))}
        click.echo(f"{name}: {time.monotonic() - start:.0f} s", err=True)
    text = report(found)
    write_results(output, "javascript", {"texts": len(texts), "bundles": found}, text)
    click.echo(text)


if __name__ == "__main__":
    run(command)
