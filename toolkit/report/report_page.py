"""Assembles the report: one HTML file with its data, styles and scripts."""

from __future__ import annotations

import base64
import gzip
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from berxit.runtime.backend_options import backend_label
from berxit.runtime.bench_records import BenchRecords
from berxit.runtime.bench_report import headline
from berxit.runtime.bench_result import CALIBRATED, BenchResult
from berxit.runtime.bench_telemetry import machine_lines
from berxit.runtime.errors import InputError
from berxit.runtime.json_data import to_json
from berxit.runtime.policies import CRITERIA
from berxit.runtime.storage import write_text
from berxit.runtime.tables import plural
from berxit.toolkit.report.pass_data import latency_by_exit, page_classes, pass_data, quality_data
from berxit.toolkit.report.sources import BenchSource, EvaluationSource
from berxit.toolkit.report.verdicts import verdicts

PAGE = Path(__file__).parent / "page"
LARGEST = 1_000_000
"""Largest size of a report, in bytes."""
MOST_SIDES = 2
QUANTILES = 200


def write_report(path: Path, sources: Sequence[BenchSource | EvaluationSource], *, texts: bool = True) -> Path:
    """Writes the page for one source, for a bench with its evaluation, or for two benches side by side.

    ``texts``: include the inputs' texts. Raises InputError for another combination of sources.
    """
    write_text(path, page_of(sources, texts=texts))
    return path


def page_of(sources: Sequence[BenchSource | EvaluationSource], *, texts: bool = True) -> str:
    """The page as HTML, smaller than LARGEST: queries.json is omitted if it is too large."""
    benches = [source for source in sources if isinstance(source, BenchSource)]
    evaluations = [source for source in sources if isinstance(source, EvaluationSource)]
    _check(benches, evaluations)
    sides = [_bench_side(bench, texts=texts) for bench in benches]
    if not benches:
        sides = [_evaluation_side(each) for each in evaluations]
    elif evaluations:
        _add_evaluation(sides[0], evaluations[0])
    names = [side["name"] for side in sides]
    if len(set(names)) < len(names):
        for side, letter in zip(sides, "AB", strict=False):
            side["name"] = f"{letter}: {side['name']}"
    page = _html(sides)
    if len(page.encode()) > LARGEST:
        for side in sides:
            side["raw"] = {name: data for name, data in side["raw"].items() if name != "queries.json"}
        page = _html(sides)
    if len(page.encode()) > LARGEST:
        raise InputError(
            f"the report is {len(page.encode()) / 1e6:.1f} MB, at most {LARGEST / 1e6:.0f} MB is allowed: bench fewer"
            " inputs (--limit), or omit the texts (--no-texts)"
        )
    return page


def _check(benches: Sequence[BenchSource], evaluations: Sequence[EvaluationSource]) -> None:
    if not benches and not evaluations:
        raise InputError("a report needs a bench or an evaluation")
    if len(benches) > MOST_SIDES or len(evaluations) > MOST_SIDES:
        raise InputError(f"a report compares at most {MOST_SIDES} benches or evaluations: give fewer")
    if benches and evaluations and (len(benches) > 1 or len(evaluations) > 1):
        raise InputError("an evaluation is added to one bench: give one of each, two benches, or two evaluations")
    metrics = {bench.name: bench.result.metric for bench in benches if bench.result.metric}
    if len(set(metrics.values())) > 1:
        scored = ", ".join(f"{name} has {metric}" for name, metric in metrics.items())
        raise InputError(f"the benches have different metrics ({scored}): compare benches of one task")
    for bench in benches:
        for evaluation in evaluations:
            found = len(evaluation.data["layer_scores"]), evaluation.data["metric"]
            if found[0] < bench.result.layers or (bench.result.metric or found[1]) != found[1]:
                raise InputError(
                    f"the evaluation {evaluation.name} has {found[0]} layers and metric {found[1]}, the bench"
                    f" {bench.name} {bench.result.layers} and {bench.result.metric}: give those of one model"
                )


def _html(sides: Sequence[dict[str, Any]]) -> str:
    title = " and ".join(side["name"] for side in sides)
    data = json.dumps({"sides": sides}, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    parts = {
        "title": html.escape(f"{title}: early-exit report"),
        "style": (PAGE / "report.css").read_text(encoding="utf-8"),
        "script": "\n".join((PAGE / name).read_text(encoding="utf-8") for name in ("charts.js", "report.js")),
        "data": data.replace("<", "\\u003c"),
    }
    page = (PAGE / "index.html").read_text(encoding="utf-8")
    for name, content in parts.items():
        page = page.replace(f"<!--{name}-->", content)
    return page


def _bench_side(source: BenchSource, *, texts: bool) -> dict[str, Any]:
    result, records = source.result, source.records
    raw = {"bench.json": json.dumps(source.data, indent=1, ensure_ascii=False)}
    passed, quality, distributions, composition = None, {}, {}, None
    if records is not None:
        latency = latency_by_exit(records)
        passed = pass_data(
            records.outputs,
            metric=result.metric,
            latency_ms=latency,
            calibrated=result.policy is not None and len(records.outputs.exits) > 1,
            texts=texts,
        )
        quality = {name: [to_json(each) for each in exits] for name, exits in quality_data(records.outputs).items()}
        shown = ["one graph", CALIBRATED, *(f"layer {layer}" for layer in records.outputs.exits)]
        distributions = {
            name: np.round(np.quantile(records.queries[name].latency_ms, np.linspace(0, 1, QUANTILES + 1)), 4).tolist()
            for name in shown
            if name in records.queries
        }
        composition = _composition(records, latency)
        if texts:
            raw["queries.json"] = records.to_text()
    return {
        "kind": "bench",
        "name": source.name,
        "headline": headline(result),
        "validity": to_json(result.validity),
        "warnings": [*result.warnings, *result.calibration_warnings],
        "verdicts": verdicts(result),
        "metric": result.metric,
        "layers": result.layers,
        "criterion": _criterion(result.criterion),
        "classes": page_classes(records.outputs, records.classes) if records else [],
        "regression": records is not None and not records.classes,
        "constant_score": result.constant_score,
        "pass": passed,
        "points": _points(result),
        "distributions": distributions,
        "composition": composition,
        "curves": {},
        "quality": quality,
        "telemetry": _telemetry(result),
        "conditions": _conditions(result),
        "notes": machine_lines(result),
        "reproduce": _commands(source.data, _bench_command(result), source.folder),
        "raw": {name: _compressed(text) for name, text in raw.items()},
    }


def _composition(records: BenchRecords, latency: npt.NDArray) -> dict[str, float] | None:
    """Largest relative difference between the measured mean latency of a threshold and the one that is composed of the
    latency (N, E) of each input at its exit."""
    rows, differences = np.arange(len(latency)), []
    for name, each in records.queries.items():
        if name == CALIBRATED or name.startswith("threshold"):
            places = np.searchsorted(records.outputs.exits, each.exit_layers[0])
            differences.append(abs(latency[rows, places].mean() / each.latency_ms.mean() - 1))
    return {"points": len(differences), "largest": round(float(max(differences)), 4)} if differences else None


def _evaluation_side(source: EvaluationSource) -> dict[str, Any]:
    data, outputs = source.data, source.outputs
    passed = None
    if outputs is not None:
        passed = pass_data(outputs, metric=data["metric"], latency_ms=None, calibrated=False, texts=True)
    side: dict[str, Any] = {
        "kind": "evaluation",
        "name": source.name,
        "headline": f"{data['metric']} {data['layer_scores'][-1]:.4f} at full depth, on {data['examples']} examples",
        "validity": None,
        "warnings": list(data["warnings"]),
        "verdicts": [],
        "metric": data["metric"],
        "layers": len(data["layer_scores"]),
        "criterion": _criterion(outputs.policy.criterion if outputs else data["criterion"]),
        "classes": page_classes(outputs, source.classes) if outputs else list(source.classes),
        "regression": outputs is not None and not source.classes,
        "constant_score": data["constant_score"],
        "pass": passed,
        "points": [],
        "distributions": {},
        "curves": {},
        "quality": {},
        "telemetry": {},
        "conditions": [["examples", str(data["examples"])], ["metric", data["metric"]]],
        "notes": [],
        "reproduce": _commands(data, "berxit eval CHECKPOINT --data DATA", source.name),
        "raw": {"eval.json": _compressed(json.dumps(data, ensure_ascii=False))},
    }
    _add_evaluation(side, source)
    return side


def _add_evaluation(side: dict[str, Any], source: EvaluationSource) -> None:
    """Adds the curves of all criteria, their quality, and the flips with their texts."""
    data = source.data
    side["quality"] = {**data["quality"], **side["quality"]}
    side["curves"] = {
        name: _thinned([[point["average_exit_layer"], point["score"]] for point in points])
        for name, points in data["curves"].items()
    }
    side["evaluated"] = {"name": source.name, "examples": data["examples"]}
    if data.get("policy"):
        side["flips"] = data["policy"]["flips"]
    side["raw"].setdefault("eval.json", _compressed(json.dumps(data, ensure_ascii=False)))


def _thinned(points: list[list[float]], count: int = 60) -> list[list[float]]:
    points = sorted(points)
    chosen = np.unique(np.linspace(0, len(points) - 1, min(count, len(points))).astype(int))
    return [[round(points[i][0], 4), round(points[i][1], 6)] for i in chosen.tolist()]


def _criterion(name: str) -> dict[str, Any]:
    kind = CRITERIA[name]
    return {"name": name, "higher": kind.higher_is_more_certain, "probability": kind.probability}


def _points(result: BenchResult) -> list[dict[str, Any]]:
    """Measured operating points."""
    named = [("layer", f"layer {layer}", point) for layer, point in result.by_layer.items()]
    named += [("threshold", f"{threshold:.4g}", point) for threshold, point in result.by_threshold.items()]
    named += [(CALIBRATED, CALIBRATED, result.policy)] if result.policy else []
    named += [("one graph", "one graph", result.one_graph)] if result.one_graph else []
    return [
        {
            "kind": kind,
            "name": name,
            "average": round(point.average_exit_layer, 4),
            "latency": {key: round(value, 4) for key, value in to_json(point.latency).items()},
            "score": point.score,
            "queries": point.queries,
        }
        for kind, name, point in named
    ]


def _telemetry(result: BenchResult) -> dict[str, Any]:
    return {
        "size_mib": result.size_mib,
        "start": to_json(result.cold_start),
        "throughput": to_json(result.throughput),
        "energy": to_json(result.energy),
    }


def _conditions(result: BenchResult) -> list[list[str]]:
    machine = result.machine
    rows = [
        ["device", f"{result.device}: {', '.join(filter(None, (str(machine), machine.software)))}"],
        ["bundle", f"{result.bundle}, {result.target} {result.precision}"],
        ["task", result.task + (f", metric {result.metric}" if result.metric else "")],
        ["backend", f"{backend_label(result.backend, result.backend_options)}, {plural(result.threads, 'thread')}"],
        ["queries", f"{plural(result.inputs, 'input')}, {plural(result.rounds, 'round')}, batch 1, in shuffled order"],
        ["measured", result.boundary],
        ["criterion", result.criterion],
        *([["thresholds", result.calibration]] if result.calibration else []),
        ["self-check", f"exits within {result.self_check:.0e} of the checkpoint on this device"],
        ["versions", ", ".join(f"{name} {version}" for name, version in result.versions.items())],
    ]
    return rows


def _commands(data: dict[str, Any], default: str, folder: str) -> list[str]:
    """The commands that repeat a result: the recorded one, or ``default``; then the report."""
    return [(data.get("made_by") or {}).get("command") or default, f"berxit report {folder}"]


def _bench_command(result: BenchResult) -> str:
    options = [f"--threads {result.threads}", f"--backend {result.backend}"]
    options += ["--data DATA"] if result.metric else []
    options += [f"--preset {result.validity.preset}"] if result.validity else []
    return f"berxit bench {result.bundle} --device {result.device} {' '.join(options)}"


def _compressed(text: str) -> str:
    """Base64 of the gzipped text; equal texts give equal pages."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
