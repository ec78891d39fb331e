"""Exits of CoreML bundles under coarser float16 arithmetic than that of the export's check.

    python benchmarks/coreml_float16.py CHECKPOINT [--inputs 8] [--layout ane] [--precision fp16]

Exports the checkpoint in float16, executes the package in numpy on the shortest golden inputs, and prints the largest
difference from PyTorch and the smallest PSNR over all exits. Sums in float16 are rounded after every term, which is
coarser than any known device. It takes some seconds per input.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from berxit.runtime.console import run
from berxit.runtime.tables import markdown_table
from berxit.toolkit.commands.options import PATH, silence_library_logs


@click.command()
@click.argument("checkpoint", type=PATH)
@click.option("--inputs", default=8, show_default=True)
@click.option("--layout", type=click.Choice(["tokens", "ane"]), default="ane", show_default=True)
@click.option("--precision", default="fp16", show_default=True)
def command(checkpoint: Path, inputs: int, layout: str, precision: str) -> None:
    silence_library_logs()
    from berxit.exporters.coreml.executor import Arithmetic
    from berxit.exporters.coreml.target import checking_backend
    from berxit.exporters.export import export
    from berxit.exporters.options import ExportOptions
    from berxit.runtime.golden import deviations, read_golden

    options = ExportOptions(precision, layout=layout)
    rows = []
    with TemporaryDirectory() as scratch:
        bundle = Path(scratch) / "bundle"
        manifest = export(checkpoint, "coreml", bundle, options=options, scores=False)
        golden = read_golden(bundle, manifest)
        chosen = sorted(range(len(golden.texts)), key=lambda row: len(golden.input_ids[row]))[:inputs]
        names = ("texts", "input_ids", "token_type_ids", "logits", *(["lte"] if golden.lte else []))
        golden = replace(golden, **{name: [getattr(golden, name)[row] for row in chosen] for name in names})
        for sums, flush in product((False, True), repeat=2):
            backend = checking_backend(bundle, manifest, None, Arithmetic(sums, flush))
            found = deviations(backend, golden, manifest.model.pad_token_id, manifest.parity.scale)
            rows.append(
                [
                    "float16" if sums else "float32",
                    "yes" if flush else "no",
                    f"{max(each.max_diff for each in found):.1e}",
                    f"{min(each.psnr for each in found):.0f}",
                ]
            )
    tokens = max(len(ids) for ids in golden.input_ids)
    click.echo(f"{checkpoint.name}, {precision}, layout {layout}, {len(chosen)} inputs of up to {tokens} tokens")
    click.echo(markdown_table(["sums", "flush to zero", "largest difference", "smallest PSNR (dB)"], rows))


if __name__ == "__main__":
    run(command)
