"""``berxit-push``: publishes a checkpoint or a bundle on the Hugging Face hub, with a model card."""

from __future__ import annotations

from pathlib import Path

import click

from berxit.runtime.console import debug_option, register_option
from berxit.toolkit.commands.options import PATH, say, silence_library_logs
from berxit.toolkit.publishing import push_to_hub


@click.command("push")
@click.argument("folder", type=PATH)
@click.argument("repository")
@click.option("--bench", type=PATH, help="bench.json of this model: the card then states its latency.")
@click.option("--public", is_flag=True, help="Create a public repository.  [default: a private one]")
@click.option("--include-data", is_flag=True, help="Checkpoints: also upload the files with texts of the data.")
@click.option("--message", help="Commit message.")
@register_option
@debug_option
def command(
    folder: Path, repository: str, bench: Path | None, public: bool, include_data: bool, message: str | None
) -> None:
    """Upload FOLDER, a checkpoint or a bundle, to REPOSITORY (owner/name) on the Hugging Face hub.

    A model card is generated unless FOLDER contains a README.md. Log in first: hf auth login.
    """
    if (folder / "config.json").is_file():  # a checkpoint, which transformers reads
        silence_library_logs()
    published = push_to_hub(
        folder, repository, bench=bench, public=public, include_data=include_data, message=message, report=say
    )
    click.echo(f"uploaded: {', '.join(published.files)}")
    click.echo(f"commit: {published.url}")
