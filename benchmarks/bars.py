"""What side_by_side.py measured, as tables, and whether what this project promises holds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from contenders import SHALLOW, Case, Shape, Spec

from runtime.tables import markdown_table

OURS = "ours, ONNX Runtime fp32"
LAZY = f"{OURS}, lazy, nothing past layer {SHALLOW}"
MATMULS = "matrix products alone, torch fp32"


@dataclass(frozen=True)
class Bar:
    """Something that should hold, and what was found."""

    what: str
    case: str
    found: float
    wanted: str
    """At most or at least so much."""
    holds: bool


@dataclass(frozen=True)
class Found:
    """Everything that was measured. Times are ms per row, one per round; contenders go by their names."""

    rounds: int
    times: dict[str, list[float]]
    """ "CASE | TASK | NAME"; tasks: full (batch 1, full depth), early (batch 1, under the policy), batch."""
    memory_mib: dict[str, float]
    """What the process held in the end."""
    differs: dict[str, float]
    """Largest difference of a last-exit logit to our fp32 segments'."""
    average_exit_layer: dict[str, float]
    """ "CASE | NAME": of the inputs of the case."""
    scores: dict[str, float]
    """ "NAME | full" and "NAME | early"; empty without labels."""

    def ms(self, case: str, task: str, name: str) -> float | None:
        """The median over the rounds; None where the contender had no part in it."""
        series = self.times.get(f"{case} | {task} | {name}")
        return statistics.median(series) if series else None

    def ratio(self, case: str, over: tuple[str, str], under: tuple[str, str]) -> float:
        """(task, name) over (task, name): the median of the rounds' own ratios, which noise moves least."""
        pair = (self.times[f"{case} | {task} | {name}"] for task, name in (over, under))
        return statistics.median(a / b for a, b in zip(*pair, strict=True))


def tables(found: Found, specs: Sequence[Spec], cases: dict[str, Case], shape: Shape) -> list[str]:
    """One per case, then what each contender holds, in Markdown."""
    made = []
    for case, inputs in cases.items():
        if case == "scores":
            continue
        tasks = ["batch"] if case.startswith("batch") else ["full", "early"]
        tokens = [len(ids) for ids in inputs.ids[: inputs.full_rows]]
        flops = statistics.fmean(shape.flops(n) for n in tokens)
        limit = found.ms(case, tasks[0], MATMULS)
        rows = []
        for spec in specs:
            first, *rest = (found.ms(case, task, spec.name) for task in tasks)
            if first is None:
                continue
            early_batch = tasks == ["batch"] and spec.kind == "segments"  # it did not do all of the work
            rows.append(
                [
                    spec.name,
                    f"{first:.2f}",
                    *(f"{ms:.2f}" if ms else "" for ms in rest),
                    "" if early_batch else f"{flops / first / 1e6:.0f}",
                    "" if early_batch or not limit else f"{limit / first:.2f}",
                ]
            )
        names = ["ms per row"] if tasks == ["batch"] else ["ms at full depth", "ms with early exit"]
        made.append(f"### {case}\n\n" + markdown_table(["", *names, "GFLOP/s", "of torch's matmuls, fp32"], rows))
    return [*made, _what_each_is(found, specs, cases)]


def _what_each_is(found: Found, specs: Sequence[Spec], cases: dict[str, Case]) -> str:
    scored = bool(found.scores)
    case = "scores" if scored else next(iter(cases))
    rows = []
    for spec in specs:
        if spec.name in found.differs:
            cells: list[tuple[dict[str, float], str, str]] = [
                (found.differs, spec.name, ".1e"),
                (found.average_exit_layer, f"{case} | {spec.name}", ".2f"),
                (found.memory_mib, spec.name, ".0f"),
            ]
            if scored:
                cells += [(found.scores, f"{spec.name} | {task}", ".4f") for task in ("full", "early")]
            rows.append([spec.name, *(format(of[key], style) if key in of else "" for of, key, style in cells)])
    header = ["", "off our fp32", "average exit layer", "MiB resident"]
    return "### Answers\n\n" + markdown_table(
        [*header, *(["score, full depth", "score, early"] if scored else [])], rows
    )


def bars(found: Found, specs: Sequence[Spec], cases: dict[str, Case], shape: Shape) -> list[Bar]:
    """What the project promises of this target, for each case where it can be told."""
    made: list[Bar] = []
    names = {spec.name for spec in specs}
    ours = [spec for spec in specs if spec.ours]

    def most(what: str, case: str, value: float, limit: float) -> None:
        made.append(Bar(what, case, value, f"<= {limit:g}", value <= limit))

    def least(what: str, case: str, value: float, limit: float) -> None:
        made.append(Bar(what, case, value, f">= {limit:g}", value >= limit))

    def layer_speed_up(case: str, name: str) -> float:
        return shape.layers / found.average_exit_layer[f"{case} | {name}"]

    def fastest(case: str, task: str, among: Sequence[Spec]) -> Spec:
        return min(among, key=lambda spec: found.ms(case, task, spec.name) or float("inf"))

    for case in (name for name in cases if name != "scores" and not name.startswith("batch")):
        for precision in ("fp32", "int8"):
            mine, graph = f"ours, ONNX Runtime {precision}", f"one graph, ONNX Runtime {precision}"
            if mine in names:
                wide = shape.hidden >= 768 and len(cases[case].ids[0]) >= 128
                value = found.ratio(case, ("full", mine), ("full", graph))
                most(f"all segments / one graph, {precision}", case, value, 1.03 if wide else 1.06)
                value = found.ratio(case, ("full", mine), ("early", mine)) / layer_speed_up(case, mine)
                least(f"wall-clock speed-up / layer speed-up, {precision}", case, value, 0.95)
                if "PyTorch eager" in names:
                    value = found.ratio(case, ("early", "PyTorch eager"), ("early", mine))
                    least(f"eager early exit / ours, {precision}", case, value, 2 if precision == "fp32" else 4)
        if "ours, ONNX Runtime int8" in names:
            value = found.ratio(case, ("full", OURS), ("full", "ours, ONNX Runtime int8"))
            least("fp32 segments / int8 segments", case, value, 2)
        able = [spec for spec in ours if _keeps_score(found, spec)]
        best = fastest(case, "early", able or ours)
        rival = fastest(case, "full", [spec for spec in specs if spec.kind == "openvino"])
        for what, graph, limit in (
            ("one int8 graph", "one graph, ONNX Runtime int8", 1.5),
            (rival.name, rival.name, 1.3),
        ):
            value = found.ratio(case, ("full", graph), ("early", best.name))
            least(f"{what} / {best.name}, early exit", case, value, limit)
            if not able:
                lost = made.pop()
                made.append(replace(lost, what=f"{lost.what} (99% of the score not kept)", holds=False))
    for case in (name for name in cases if name.startswith("batch")):
        value = found.ratio(case, ("batch", "one graph, ONNX Runtime fp32"), ("batch", OURS)) / layer_speed_up(
            case, OURS
        )
        least("one graph / ours with regrouping, over n / average exit layer", case, value, 0.9)
    if full := found.scores.get(f"{OURS} | full"):
        for spec in ours:
            least(f"score kept, {spec.name}", "scores", found.scores[f"{spec.name} | early"] / full, 0.99)
    graph_mib = found.memory_mib["one graph, ONNX Runtime fp32"]
    most("resident memory / one graph's, fp32", "whole process", found.memory_mib[OURS] / graph_mib, 1.1)
    if shape.layers > SHALLOW:
        what = f"resident memory / one graph's, lazy, nothing past layer {SHALLOW}"
        most(what, "whole process", found.memory_mib[LAZY] / graph_mib, 0.5)
    return made


def _keeps_score(found: Found, spec: Spec) -> bool:
    """Whether it keeps 99% of the fp32 model's score at full depth; taken as true where there are no scores."""
    full = found.scores.get(f"{OURS} | full")
    return full is None or found.scores[f"{spec.name} | early"] >= 0.99 * full


def bars_table(made: Sequence[Bar]) -> str:
    rows = [[bar.what, bar.case, f"{bar.found:.3f}", bar.wanted, "yes" if bar.holds else "no"] for bar in made]
    held = sum(bar.holds for bar in made)
    return f"### {held} of {len(made)} bars hold\n\n" + markdown_table(["what", "case", "found", "bar", "holds"], rows)
