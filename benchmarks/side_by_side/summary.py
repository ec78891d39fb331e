"""One table over several tasks: our int8 with early exit against the fastest full-depth int8 graph.

    python -m benchmarks.side_by_side.summary mrpc=mrpc/side_by_side.json sst2=sst2/side_by_side.json --output summary

The rival is the fastest int8 graph of ONNX Runtime or OpenVINO, whoever quantized it and with whatever session options.
A ratio is the median over the rounds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from berxit.runtime.console import debug_option, run
from berxit.runtime.errors import InputError
from berxit.runtime.results import write_results
from berxit.runtime.tables import markdown_table

OURS = ("ours, ONNX Runtime int8", "ours, ONNX Runtime int8, one pool", "ours, OpenVINO int8")


def of_task(data: dict[str, Any]) -> list[dict[str, Any]]:
    """One entry per number of threads."""
    found = []
    for each in data["runs"]:
        times = {tuple(name.split(" | ")): np.array(values) for name, values in each["times"].items()}
        early = {name: times["inputs", "early", name] for name in OURS}
        graphs = {
            name: values
            for (where, task, name), values in times.items()
            if (where, task) == ("inputs", "full") and name.startswith("one graph") and "int8" in name
        }
        ours = min(early, key=lambda name: np.median(early[name]))
        rival = min(graphs, key=lambda name: np.median(graphs[name]))
        scores = data["scores"][ours]
        layers = len(scores["leaving"])
        average = float(np.dot(scores["leaving"], np.arange(1, layers + 1)) / sum(scores["leaving"]))
        found.append(
            {
                "threads": each["threads"],
                "ours": ours,
                "early_ms": float(np.median(early[ours])),
                "full_ms": float(np.median(times["inputs", "full", ours])),
                "rival": rival,
                "rival_ms": float(np.median(graphs[rival])),
                "ratio": float(np.median(graphs[rival] / early[ours])),
                "segments": float(np.median(times["inputs", "full", ours] / graphs[rival])),
                "layers": layers,
                "average_exit_layer": average,
                "saved_layers": 1 - average / layers,
                "score_full": scores["full"],
                "score_early": scores["early"],
            }
        )
    return found


@click.command(help=__doc__)
@click.argument("tasks", nargs=-1, required=True, metavar="NAME=side_by_side.json ...")
@click.option("--output", type=click.Path(path_type=Path), required=True)
@debug_option
def command(tasks: Sequence[str], output: Path) -> None:
    found: dict[str, list[dict[str, Any]]] = {}
    for given in tasks:
        name, _, path = given.partition("=")
        if not Path(path).is_file():
            raise InputError(f"'{given}': give NAME=FILE with a side_by_side.json of real weights")
        found[name] = of_task(json.loads(Path(path).read_text(encoding="utf-8")))
    rows, means = [], {}
    for threads in sorted({each["threads"] for entries in found.values() for each in entries}):
        chosen = {name: each for name, entries in found.items() for each in entries if each["threads"] == threads}
        rows += [
            [
                name,
                str(threads),
                f"{each['early_ms']:.2f}",
                f"{each['full_ms']:.2f}",
                f"{each['rival_ms']:.2f}",
                f"{each['ratio']:.2f}x",
                f"{each['segments']:.2f}",
                f"{each['saved_layers']:.0%}",
                f"{each['score_early']:.4f} / {each['score_full']:.4f}",
            ]
            for name, each in chosen.items()
        ]
        means[str(threads)] = float(np.exp(np.mean([np.log(each["ratio"]) for each in chosen.values()])))
    header = ["task", "threads", "early, ms", "all segments, ms", "fastest int8 graph, ms"]
    header += ["graph / early", "segments / graph", "saved layers", "score, early / full"]
    text = markdown_table(header, rows)
    text += "\n\n" + "; ".join(f"geometric mean, {threads} threads: {mean:.2f}x" for threads, mean in means.items())
    write_results(output, "summary", {"tasks": found, "geometric_means": means}, text)
    click.echo(text)


if __name__ == "__main__":
    run(command)
