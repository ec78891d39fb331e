"""Results of a sweep: table, figure, and the command that trains the best setting on all rows."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from math import ceil, floor, log10
from pathlib import Path
from typing import TYPE_CHECKING, Any

from berxit.runtime.json_data import to_json
from berxit.runtime.tables import Table, plural
from berxit.toolkit.studies.findings import Findings
from berxit.toolkit.sweep.ranking import Measure
from berxit.toolkit.sweep.rows import SweepRows
from berxit.toolkit.sweep.search import SweepRequest, Trial, describe
from berxit.toolkit.sweep.space import options_of, searchable
from berxit.train.options import TrainingOptions, recorded_model
from berxit.train.tasks import TaskOptions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DEFAULTS = {field.name: field.default for field in fields(TrainingOptions)}
BEST, FIRST, OTHERS = "#dc2626", "#000000", "#9aa5b1"
"""Colours of the best trial, the first, and the others."""
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
"""Okabe and Ito's palette, one colour per strategy."""
MARKERS = {"first": "o", "mean": "s"}
"""Marker of each pooling."""


def best_of(trials: Sequence[Trial]) -> Trial:
    """The trial with the largest area; of equal ones, the first."""
    return max(trials, key=lambda trial: trial.area)


def train_command(
    sweep: SweepRequest,
    trial: Trial,
    task: TaskOptions,
    data: Path | None,
    output: Path,
    references: Mapping[str, str],
) -> str:
    """Command line that trains a trial's setting on all training rows. ``data``: None for the data of the hub.
    ``references``: a strategy's name -> what the user gave for it, such as FILE.py:NAME."""
    options = options_of(sweep.base, trial.setting)
    arguments = ["--model", options.model, "--task", sweep.task.name, *task.arguments()]
    arguments += ["--data", str(data)] if data is not None else []
    for name, default in DEFAULTS.items():
        value = sweep.base.dev_fraction if name == "dev_fraction" else getattr(options, name)
        if name == "model" or value == default:
            continue
        value = references.get(options.strategy, options.strategy) if name == "strategy" else value
        option = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append("--" + ("" if value else "no-") + option)
        else:
            arguments += [f"--{option}", f"{value:g}" if isinstance(value, float) else str(value)]
    return f"berxit-train {shlex.join([*arguments, '--output', str(output)])}"


def sweep_findings(sweep: SweepRequest, trials: Sequence[Trial], rows: SweepRows) -> Findings:
    """Table, numbers and panels of all trials."""
    best, metric = best_of(trials), sweep.task.metric
    conditions = [
        f"{plural(len(trials), 'trial')}, ranked by the area under the trade-off curve on {len(rows.ranking)} training"
        f" rows that no trial trains on; each trains on {len(rows.train)} rows",
        f"area: the mean {metric} over all average exit layers, from exiting at layer 1 to full depth; scores below the"
        " constant prediction's count as that",
        *_on_dev(trials, rows, metric),
        f"model {recorded_model(sweep.base.model)}; the best setting: {describe(best.setting)}",
    ]
    ranked = sorted(trials, key=lambda trial: -trial.area)
    return Findings(
        name="sweep",
        title=f"Sweep on {sweep.task.name}, {sweep.data.name}",
        conditions=conditions,
        tables=[(f"Trials by area ({metric})", _table(ranked, trials, metric))],
        data={"best": to_json(best), "trials": to_json(list(trials))},
        panels=[lambda axes: _curves(axes, trials, best, metric), lambda axes: _rates(axes, trials, best, metric)],
    )


def _on_dev(trials: Sequence[Trial], rows: SweepRows, metric: str) -> list[str]:
    """Scores of the best and the first trial on the dev split, which chose nothing."""
    best = best_of(trials)
    if rows.dev is None or best.on_dev is None:
        return ["no dev split scores the trials, so the best setting has no score on rows that did not choose it"]
    lines = [f"on the {len(rows.dev)} dev rows, which chose nothing, the best setting: {_scores(best.on_dev, metric)}"]
    if best is not trials[0] and trials[0].on_dev is not None:
        lines.append(f"on the dev rows, the first trial, with the given options: {_scores(trials[0].on_dev, metric)}")
    return lines


def _scores(found: Measure, metric: str) -> str:
    return f"area {found.area:.4f}, {metric} {found.full_depth:.4f} at full depth"


def _table(ranked: Sequence[Trial], trials: Sequence[Trial], metric: str) -> Table:
    def row(trial: Trial) -> list[str]:
        found, setting = trial.measured, trial.setting
        scores = ["failed"] * 3
        if found is not None:
            middle = found.layer_scores[(len(found.layer_scores) - 1) // 2]
            scores = [f"{value:.4f}" for value in (found.area, middle, found.full_depth)]
        return [
            str(trials.index(trial) + 1),
            *scores,
            setting["strategy"],
            setting["pooling"],
            f"{setting['learning_rate']:.1e}",
            f"{setting['head_learning_rate']:.1e}",
            f"{trial.seconds:.0f}",
        ]

    layers = next(len(trial.measured.layer_scores) for trial in ranked if trial.measured is not None)
    middle = f"{metric}, exit {(layers - 1) // 2 + 1}"
    header = ["trial", "area", middle, f"{metric}, full depth", "strategy", "pooling", "learning rate", "of the exits"]
    return Table([*header, "seconds"], [row(trial) for trial in ranked])


def _curves(axes: Axes, trials: Sequence[Trial], best: Trial, metric: str) -> None:
    """The trade-off curves of all trials on the ranking rows."""
    from berxit.toolkit.figures import draw_floor  # matplotlib is optional
    from berxit.toolkit.studies.drawing import whole_ticks

    drawn = [(trial, OTHERS, "other trials", 0.8) for trial in trials if trial is not best and trial is not trials[0]]
    drawn += [(trials[0], FIRST, "first trial", 1.4)] if trials[0] is not best else []
    for trial, color, label, width in [*drawn, (best, BEST, "best trial", 2.0)]:
        if trial.measured is not None:
            axes.plot(trial.measured.layers, trial.measured.scores, color=color, lw=width, label=label)
    assert best.measured is not None
    draw_floor(axes, best.measured.constant)
    whole_ticks(axes, len(best.measured.layer_scores))
    axes.set(xlabel="average exit layer", ylabel=metric)
    axes.set_title("trade-off curves on the ranking rows")
    _legend(axes)


def _rates(axes: Axes, trials: Sequence[Trial], best: Trial, metric: str) -> None:
    """Area against learning rate, by strategy and pooling."""
    rates = [trial.setting["learning_rate"] for trial in trials]
    for trial in trials:
        if trial.measured is not None:
            strategy, pooling = trial.setting["strategy"], trial.setting["pooling"]
            axes.scatter(
                trial.setting["learning_rate"],
                trial.area,
                color=COLORS[searchable().index(strategy) % len(COLORS)],
                marker=MARKERS[pooling],
                s=34,
                label=f"{strategy}, {pooling}",
            )
    ring: dict[str, Any] = {"s": 150, "facecolors": "none", "edgecolors": BEST}
    axes.scatter(best.setting["learning_rate"], best.area, **ring)
    axes.set_xscale("log")
    axes.xaxis.set_minor_formatter(lambda value, place: "")
    low, high = min(rates), max(rates)
    axes.set_xlim(
        min(low / 1.5, 10 ** floor(log10(low))), max(high * 1.5, 10 ** ceil(log10(high)))
    )  # two labelled ticks
    axes.set(xlabel="learning rate of the encoder", ylabel=f"area ({metric})")
    axes.set_title("area by learning rate, strategy and pooling")
    _legend(axes)


def _legend(axes: Axes) -> None:
    """A legend at the right of the panel, with one entry per label."""
    handles = dict(reversed(list(zip(*axes.get_legend_handles_labels()[::-1], strict=True))))
    axes.legend(handles.values(), handles.keys(), loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=7)
