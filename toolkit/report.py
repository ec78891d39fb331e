"""Report of the quickstart: one HTML file without external files, with the main result as its headline."""

from __future__ import annotations

import base64
import html
import tempfile
from collections.abc import Sequence
from pathlib import Path

from berxit.runtime import Prediction
from berxit.runtime.bench_report import headline, tables
from berxit.runtime.bench_result import CALIBRATED, BenchResult
from berxit.runtime.calibration import Calibration
from berxit.runtime.storage import write_text
from berxit.runtime.tables import Table, plural

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>berxit report</title><style>
body {{ font: 16px/1.55 system-ui, sans-serif; max-width: 62rem; margin: 3rem auto; padding: 0 1.5rem; color: #111827 }}
h1 {{ font-size: 1.7rem; line-height: 1.3; margin: 0 0 .4rem }} h2 {{ font-size: 1.1rem; margin: 2.4rem 0 .6rem }}
.warning {{ border-left: 4px solid #dc2626; padding: .4rem 1rem; font-weight: 600 }}
.sub {{ color: #4b5563; margin: 0 }} img {{ max-width: 100% }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem }}
th, td {{ padding: .28rem .9rem .28rem 0; text-align: right; border-bottom: 1px solid #e5e7eb }}
th:first-child, td:first-child {{ text-align: left }} th {{ font-weight: 600; color: #4b5563 }}
tr.chosen td {{ color: #dc2626; font-weight: 600 }}
pre {{ background: #f3f4f6; padding: 1rem; border-radius: 6px; overflow-x: auto; font-size: .88rem }}
</style></head><body>
<h1>{headline}</h1>
<p class="sub">{measured}</p>
{warnings}{figure}
<h2>Exit layers</h2>{histogram}
<h2>Inputs that exit early and late</h2>{examples}
<h2>Thresholds</h2>{thresholds}
<h2>Layers</h2>{layers}
<h2>How the threshold was chosen</h2><p>{calibration}</p>
<h2>Use it</h2><pre>{code}</pre>
<h2>Conditions</h2><p>{conditions}</p>
</body></html>
"""

_CODE = """from berxit import EarlyExitRunner

# The folder is beside the report of the quickstart.
runner = EarlyExitRunner.load({bundle!r})
prediction = runner.predict("turn the kitchen lights off")
print(prediction.label, prediction.exit_layer, prediction.certainty, prediction.latency_ms)
"""


def write_report(
    path: Path,
    result: BenchResult,
    calibration: Calibration,
    bundle: Path,
    answers: Sequence[tuple[str, Prediction]],
) -> Path:
    """Writes the report page. ``answers``: texts with the calibrated bundle's predictions."""
    layers, thresholds, *histogram = (_html(table) for table in tables(result))
    machine = result.machine
    page = _PAGE.format(
        headline=html.escape(_sentence(headline(result))),
        measured=html.escape(
            f"Measured on {machine}; {result.inputs} held-out inputs, {plural(result.rounds, 'round')} in shuffled"
            f" turns, one at a time, {result.boundary}."
        ),
        warnings="".join(
            f'<p class="warning">Warning: {html.escape(line)}</p>' for line in (*result.warnings, *calibration.warnings)
        ),
        figure=_figure(result),
        histogram="".join(histogram),
        examples=_examples(answers),
        thresholds=thresholds,
        layers=layers,
        calibration=html.escape(f"{_sentence(calibration.description)} {_sentence(calibration.summary())}"),
        code=html.escape(_CODE.format(bundle=bundle.resolve().name)),
        conditions=html.escape(
            f"{result.target} {result.precision}, {result.threads} threads; "
            + ", ".join(f"{name} {version}" for name, version in result.versions.items())
            + f"; load of the last minute {result.before.load or 0:.1f} before, {result.after.load or 0:.1f} after."
            + f" Exits within {result.self_check:.0e} of the checkpoint."
        ),
    )
    write_text(path, page)
    return path


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _examples(answers: Sequence[tuple[str, Prediction]]) -> str:
    """Four inputs that exit earliest and four that exit latest."""
    by_depth = sorted(answers, key=lambda pair: pair[1].exit_layer)
    rows = [
        [text, str(answer.label), f"{answer.certainty:.2f}", answer.exit_layer]
        for text, answer in by_depth[:4] + by_depth[4:][-4:]
    ]
    return _html(Table(["input", "prediction", "certainty", "exit layer"], rows))


def _html(table: Table) -> str:
    """A table with the calibrated row highlighted."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.header)
    body = "".join(
        f"<tr{' class=chosen' if row[0] == CALIBRATED else ''}>"
        + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row)
        + "</tr>"
        for row in table.rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _figure(result: BenchResult) -> str:
    try:
        from berxit.toolkit.figures import bench_figure
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        return "<p>No figure: matplotlib was not installed where this report was written.</p>"
    with tempfile.TemporaryDirectory() as folder:
        data = bench_figure(result, Path(folder) / "bench.png").read_bytes()
    return f'<p><img alt="latency and score" src="data:image/png;base64,{base64.b64encode(data).decode()}"></p>'
