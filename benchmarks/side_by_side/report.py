"""Markdown report of the side-by-side benchmark: the bars, then the measurements that they are computed from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from benchmarks.side_by_side.bars import MACHINE, OURS, OURS_INT8, Bar, Measurements, Timings, used_exits
from benchmarks.side_by_side.contenders import Case, Spec
from benchmarks.side_by_side.products import Shape
from berxit.runtime.tables import markdown_table, plural


def report(
    headline: str,
    made: Sequence[Bar],
    measured: Measurements,
    specs: Sequence[Spec],
    cases: Mapping[str, Case],
    shape: Shape,
) -> str:
    """Report as Markdown text."""
    parts = [headline, _bars(made), _ratios(made, measured, cases)]
    parts += [_times(run, specs, cases) for run in measured.runs]
    parts += [_machine(measured, specs, cases, shape), _answers(measured, specs), *_exits(measured), _memory(measured)]
    return "\n\n".join(part for part in parts if part)


def _bars(made: Sequence[Bar]) -> str:
    """Table with one row per bar, showing the case with the smallest margin."""
    promised = [bar for bar in made if bar.limit is not None]
    rows = []
    for what in dict.fromkeys(bar.what for bar in promised):
        those = [bar for bar in promised if bar.what == what]
        worst = min(those, key=lambda bar: bar.margin)
        held = sum(bar.holds for bar in those)
        holds = "yes" if held == len(those) else f"no, {held} of {len(those)} do" if held else "no"
        rows.append([what, f"{worst.found:.3f}", worst.wanted, holds, worst.where, worst.against])
    kept = sum(row[3] == "yes" for row in rows)
    title = f"## {kept} of {len(rows)} bars hold"
    return f"{title}\n\n" + markdown_table(["what", "found", "bar", "holds", "worst case", "compared with"], rows)


def _ratios(made: Sequence[Bar], measured: Measurements, cases: Mapping[str, Case]) -> str:
    """Table of all time ratios for every case, including the bars."""
    places = [f"{case}, {plural(run.threads, 'thread')}" for run in measured.runs for case in cases]
    rows = []
    shown = [bar for bar in made if bar.where in places]
    for what, against in dict.fromkeys((bar.what, _fixed(bar)) for bar in shown):
        found = {bar.where: bar.found for bar in shown if (bar.what, _fixed(bar)) == (what, against)}
        rows.append([what, against, *(f"{found[place]:.3f}" if place in found else "" for place in places)])
    return "## Ratios\n\n" + markdown_table(["what", "compared with", *places], rows)


def _fixed(bar: Bar) -> str:
    """Contender of the comparison, for ratios that are reported per graph; empty if it is the fastest in each case."""
    return bar.against if bar.what.startswith("all segments") else ""


def _times(run: Timings, specs: Sequence[Spec], cases: Mapping[str, Case]) -> str:
    columns = [
        (case.name, task)
        for case in cases.values()
        for task in (("full", "early") if not case.together else ("full or early",))
    ]
    rows = []
    for spec in specs:
        cells = []
        for case, task in columns:
            measured_task = task.replace("full or early", "early" if spec.ours else "full")
            ms = run.ms(case, measured_task, spec.name)
            cells.append("" if ms is None else f"{ms:.2f}")
        rows.append([spec.name, *cells])
    header = ["", *(case if task.startswith("full or") else f"{case}, {task}" for case, task in columns)]
    title = f"## Milliseconds per row, {plural(run.threads, 'thread')}, medians of {plural(run.rounds, 'round')}"
    return f"{title}\n\n" + markdown_table(header, rows)


def _machine(measured: Measurements, specs: Sequence[Spec], cases: Mapping[str, Case], shape: Shape) -> str:
    """Table of the share that matrix multiplications in the same precision have in the time of full depth."""
    names = [spec.name for spec in specs if spec.kind == "products"]
    places = [
        (run, case)
        for run in measured.runs
        for case in cases.values()
        if any(run.ms(case.name, "full", name) for name in names)
    ]
    rows = []
    for spec in specs:
        cells = []
        for run, case in places:
            mine = run.ms(case.name, "full", spec.name)
            limit = run.ms(case.name, "full", MACHINE.format(spec.precision))
            if mine is None or limit is None:
                cells.append("")
            elif spec.kind == "products":
                speed = shape.flops(max(map(len, case.ids))) / mine / 1e6  # a batch is padded to its longest row
                cells.append(f"{speed:.0f} GFLOP/s, {run.ways[f'{case.name} | {spec.name}']}")
            else:
                cells.append(f"{limit / mine:.2f}")
        if any(cells):
            rows.append([spec.name, *cells])
    if not rows:
        return ""
    header = ["", *(f"{case.name}, {plural(run.threads, 'thread')}" for run, case in places)]
    title = "## Full depth: share of the matrix multiplications in the time"
    return f"{title}\n\n" + markdown_table(header, rows)


def _answers(measured: Measurements, specs: Sequence[Spec]) -> str:
    rows = []
    for spec in specs:
        if spec.name not in measured.differs:
            continue
        cells = [f"{measured.differs[spec.name]:.1e}"]
        if measured.scores:
            mine = measured.scores[spec.name]
            cells += [f"{mine.full:.4f}"]
            if mine.early is not None:
                cells += [f"{mine.early:.4f}", f"{mine.average_exit_layer:.2f}"]
            else:
                cells += ["", ""]
        rows.append([spec.name, *cells])
    more = [f"{measured.metric}, full depth", "early", "average exit layer"] if measured.scores else []
    return "## Outputs and scores\n\n" + markdown_table(["", "largest difference of a logit", *more], rows)


def _exits(measured: Measurements) -> Iterator[str]:
    if not measured.scores:
        return
    fp32, int8 = measured.scores[OURS], measured.scores[OURS_INT8]
    used = used_exits(int8)
    rows = []
    for layer, scores in enumerate(zip(fp32.by_exit, int8.by_exit, strict=True), start=1):
        shares = (f"{one.leaving[layer - 1] / sum(one.leaving):.1%}" for one in (fp32, int8))
        lost = f"{100 * (scores[0] - scores[1]):.2f}"
        rows.append([str(layer), *(f"{score:.4f}" for score in scores), lost, *shares, "yes" if layer in used else ""])
    header = ["exit", "fp32", "int8", "points lost", "share, fp32", "share, int8", "in use"]
    yield f"## Exits: {measured.metric} if all rows exit there, and share of rows\n\n" + markdown_table(header, rows)


def _memory(measured: Measurements) -> str:
    if not measured.memory_mib:
        return ""
    stages = list(next(iter(measured.memory_mib.values())))
    rows = [[name, *(f"{held[stage]:.0f}" for stage in stages)] for name, held in measured.memory_mib.items()]
    return "## Resident memory of the whole process in MiB\n\n" + markdown_table(["", *stages], rows)
