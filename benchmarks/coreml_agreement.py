"""Does a CoreML bundle answer as the evaluation said? Its packages, executed in numpy on any machine, row by row.

    python benchmarks/coreml_agreement.py CHECKPOINT BUNDLE --data DATA [--split dev] [--limit N]

Every row goes through all layers, in PyTorch and in the saved packages: how far hidden states, logits and LTE are apart
at each layer, and how many rows leave at the same layer with the same answer under the bundle's policy. Ends with
status 1 where fewer than --at-least of the rows do. It verifies graph and weights, and says nothing of Apple's runtime.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from runtime.bundle import read_manifest
from runtime.console import progress_bar, run
from runtime.errors import BerxitError
from runtime.policies import certainties, exit_layers
from runtime.tables import markdown_table
from runtime.tokenization import TextTokenizer
from toolkit.commands.options import PATH, hush_libraries


@click.command()
@click.argument("checkpoint", type=PATH)
@click.argument("bundle", type=PATH)
@click.option("--data", type=PATH, required=True)
@click.option("--split", default="dev", show_default=True)
@click.option("--limit", type=click.IntRange(min=1), help="The first N rows only.")
@click.option("--at-least", default=0.99, show_default=True, help="Share of rows that must agree.")
def command(checkpoint: Path, bundle: Path, data: Path, split: str, limit: int | None, at_least: float) -> None:
    hush_libraries()
    import torch

    from exporters.coreml import checking_backend
    from train.checkpoint import load_checkpoint
    from train.tasks import task_of

    model, _ = load_checkpoint(checkpoint)
    examples = task_of(model.config).read(data, split).head(limit)
    manifest = read_manifest(bundle)
    tokenizer = TextTokenizer(bundle / manifest.tokenizer.file, manifest.model.max_length, manifest.model.pad_token_id)
    backend = checking_backend(bundle, manifest, None)
    layers = manifest.model.layers
    gaps = np.zeros((len(examples), layers + 1, 4))  # hidden states: largest gap, mean gap, largest; logits and LTE
    expected: list[np.ndarray] = []
    found: list[np.ndarray] = []
    with progress_bar("PyTorch and numpy")(len(examples)) as bar:
        for row, text in enumerate(examples.texts):
            batch = tokenizer([text])
            with torch.no_grad():
                outputs = model(
                    torch.from_numpy(batch.input_ids).long(),
                    torch.from_numpy(batch.attention_mask).long(),
                    torch.from_numpy(batch.token_type_ids).long(),
                    output_hidden_states=True,
                )
            state = backend.embed(batch)
            heads = []
            for layer in range(layers + 1):
                if layer:
                    state, logits, lte = backend.layer(layer, state)
                    heads.append(np.concatenate([logits[0], [] if lte is None else lte]))
                gaps[row, layer, :3] = _hidden_gap(state.rows[0]["hidden"], outputs.hidden_states[layer].numpy())
            torch_heads = outputs.logits[0].numpy()
            if outputs.certainties is not None:
                torch_heads = np.concatenate([torch_heads, outputs.certainties[0].numpy()[:, None]], axis=1)
            expected.append(torch_heads)
            found.append(np.stack(heads))
            gaps[row, 1:, 3] = np.abs(found[-1] - expected[-1]).max(axis=1)
            bar.update(1)
    largest, mean = gaps.max(axis=0), gaps.mean(axis=0)
    rows = [
        [
            str(i) if i else "embeddings",
            f"{largest[i, 2]:.1f}",
            f"{largest[i, 0]:.1e}",
            f"{mean[i, 1]:.1e}",
            f"{largest[i, 3]:.1e}" if i else "",
        ]
        for i in range(layers + 1)
    ]
    heads = [
        "layer",
        "hidden: largest value",
        "largest difference",
        "mean difference",
        "logits, LTE: largest difference",
    ]
    click.echo(markdown_table(heads, rows))
    where, what = (_decide(manifest, np.stack(outputs)) for outputs in (expected, found))
    same = (where[0] == what[0]) & _same(where[1], what[1], manifest.model.regression)
    margins = np.abs(where[2][:, :-1] - np.array(manifest.policy.thresholds)).min(axis=1)
    click.echo(
        f"{same.sum()} of {len(same)} rows agree ({100 * same.mean():.2f}%): same exit layer, same answer"
        f" ({manifest.target} {manifest.precision} in numpy against PyTorch fp32, {manifest.policy.criterion}, average"
        f" exit layer {what[0].mean():.2f} of {layers} against {where[0].mean():.2f})"
    )
    for row in np.flatnonzero(~same):
        click.echo(
            f"row {row}: layer {what[0][row]} instead of {where[0][row]}"
            f"{', another answer' if what[0][row] == where[0][row] else ''};"
            f" a certainty was {margins[row]:.1e} from its threshold"
        )
    if same.mean() < at_least:
        raise BerxitError(f"only {100 * same.mean():.2f}% of the rows agree, {100 * at_least:g}% wanted")


def _hidden_gap(found: np.ndarray, expected: np.ndarray) -> tuple[float, float, float]:
    """(1, S', d) or (1, d, 1, S'), padding at the end, against (1, S, d): largest gap, mean gap, largest expected."""
    rows = found[:, :, 0].transpose(0, 2, 1) if found.ndim == 4 else found
    gap = np.abs(rows[:, : expected.shape[1]].astype(np.float32) - expected)
    return float(gap.max()), float(gap.mean()), float(np.abs(expected).max())


def _decide(manifest, outputs: np.ndarray):  # type: ignore[no-untyped-def]
    """Outputs (N, n, C [+ 1 for LTE]) -> exit layers (N,), answers (N,), certainties (N, n)."""
    lte = outputs[..., -1] if manifest.model.lte else None
    logits = outputs[..., :-1] if manifest.model.lte else outputs
    certainty = certainties(manifest.policy, logits, lte)
    layers = exit_layers(manifest.policy, certainty)
    last = logits[np.arange(len(logits)), layers - 1]
    return layers, last[:, 0] if manifest.model.regression else last.argmax(axis=1), certainty


def _same(a: np.ndarray, b: np.ndarray, regression: bool) -> np.ndarray:
    return np.abs(a - b) < 1e-2 if regression else a == b


if __name__ == "__main__":
    run(command)
