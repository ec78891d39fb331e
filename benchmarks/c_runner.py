"""The C runner beside the Python runner and one graph, interleaved, on the same bundles.

    python -m benchmarks.c_runner BUNDLE... --data FILE.tsv [--threads 1 --threads 2] --output c-runner

For each bundle and number of threads:

- Calls: the C runner and the Python runner predict the same texts, interleaved in blocks, with a pause between them,
  because the threads of a pool wait busily for a moment. The latency of a call includes tokenization.
- Segments: all layers in C and the same model as one graph in C, interleaved; the time outside of ONNX Runtime.

Builds the runner with the tests' own functions (tests/runners/native.py).
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

import click
import numpy as np
import onnx

from berxit.runtime import EarlyExitRunner
from berxit.runtime.bundle import read_manifest
from berxit.runtime.console import debug_option, run
from berxit.runtime.examples import read_texts
from berxit.runtime.results import write_results
from berxit.runtime.tables import markdown_table
from berxit.runtime.tokenization import Text

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests" / "runners"))
BLOCK = 20
PAUSE_S = 0.05


class CRunner:
    """The C runner in a process of its own, which reads one text at a time."""

    def __init__(self, bundle: Path, threads: int) -> None:
        import native

        self._case = native.case
        command = [native.built("release") / "berxit-vectors", "latency", bundle, native.library(), str(threads), "1"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def latency_us(self, text: Text) -> float:
        stdin: IO[bytes] | None = self._process.stdin
        stdout: IO[bytes] | None = self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(self._case(text))
        stdin.flush()
        return float(stdout.readline().split()[0])

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def calls(bundle: Path, texts: list[Text], threads: int) -> dict[str, Any]:
    """Median latencies per call in microseconds, of the same texts."""
    other = CRunner(bundle, threads)
    found: dict[str, list[float]] = {"c": [], "python": []}
    with EarlyExitRunner.load(bundle, backend="onnxruntime", threads=threads) as runner:
        for start in range(0, len(texts), BLOCK):
            block = texts[start : start + BLOCK]
            time.sleep(PAUSE_S)
            found["c"] += [other.latency_us(text) for text in block]
            time.sleep(PAUSE_S)
            found["python"] += [1e3 * runner.predict_batch([text])[0].latency_ms for text in block]
    other.close()
    medians = {name: float(np.median(values[BLOCK:])) for name, values in found.items()}
    return {**medians, "c_per_python": medians["c"] / medians["python"], "texts": len(texts)}


def segments(bundle: Path, threads: int, length: int, seconds: float, folder: Path) -> dict[str, Any]:
    """Medians of all segments and of one graph, in microseconds; the time outside of ONNX Runtime per segment."""
    import native

    from benchmarks.side_by_side.whole_graph import write_whole_graph

    graph = folder / "whole.onnx"
    write_whole_graph(bundle, read_manifest(bundle).segments, graph)
    logits = onnx.load(str(graph), load_external_data=False).graph.output[0].name
    program, numbers = native.built("release") / "berxit-vectors", map(str, (threads, length, seconds))
    found: dict[str, Any] = json.loads(native.run(program, "speed", bundle, native.library(), *numbers, graph, logits))
    return {**found, "segments_per_graph": found["segments"] / found["one_graph"]}


@click.command()
@click.argument("bundles", type=click.Path(path_type=Path, exists=True), nargs=-1, required=True)
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Texts, one per row.")
@click.option("--texts", "count", default=400, help="Number of texts.")
@click.option("--threads", multiple=True, type=int, default=(1, 2))
@click.option("--length", "lengths", multiple=True, type=int, default=(16, 128), help="Tokens of the segments' input.")
@click.option("--seconds", default=10.0, help="Duration of each measurement of the segments.")
@click.option("--output", type=click.Path(path_type=Path), required=True)
@debug_option
def command(
    bundles: tuple[Path, ...],
    data: Path,
    count: int,
    threads: tuple[int, ...],
    lengths: tuple[int, ...],
    seconds: float,
    output: Path,
) -> None:
    """Measure the C runner."""
    import tempfile

    records, rows = [], []
    for bundle in bundles:
        texts = read_texts(data, read_manifest(bundle).model.text_columns).texts[:count]
        for number in threads:
            record: dict[str, Any] = {"bundle": bundle.name, "threads": number, "calls": calls(bundle, texts, number)}
            with tempfile.TemporaryDirectory() as folder:
                record["segments"] = {str(n): segments(bundle, number, n, seconds, Path(folder)) for n in lengths}
            records.append(record)
            own = record["segments"]
            rows.append(
                [
                    bundle.name,
                    number,
                    "{c:.0f} / {python:.0f} ({c_per_python:.2f})".format(**record["calls"]),
                    " / ".join(f"{own[str(n)]['segments_per_graph']:.3f}" for n in lengths),
                    " / ".join(f"{own[str(n)]['outside_per_segment']:.2f}" for n in lengths),
                ]
            )
            click.echo(rows[-1])
    header = [
        "bundle",
        "threads",
        "call, C / Python in us (ratio)",
        f"segments / one graph, {' / '.join(map(str, lengths))} tokens",
        "us outside per segment",
    ]
    write_results(output, "c-runner", {"records": records}, markdown_table(header, rows))


if __name__ == "__main__":
    run(command)
