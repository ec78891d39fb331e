"""Does a CoreML bundle answer as the evaluation said? Its packages, executed in numpy on any machine, row by row.

    python benchmarks/coreml_agreement.py CHECKPOINT BUNDLE... --data DATA [--split dev] [--limit N] [--output FILE]

Every row goes through all layers, in PyTorch (once) and in the saved packages of every bundle: how far hidden states,
logits and LTE are apart at each layer that has an exit, and how many rows leave at the same layer with the same answer
under the bundle's policy. PyTorch computes in float64, so that only the bundle's own rounding counts; what float32 in
PyTorch is off is told beside it. Writes a table, and with --output all of it as JSON. Ends with status 1 where fewer
than --at-least of a bundle's rows agree. It verifies graph and weights, and says nothing of Apple's runtime.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

from berxit.runtime.bundle import Manifest, read_manifest
from berxit.runtime.console import progress_bar, run
from berxit.runtime.errors import BerxitError
from berxit.runtime.json_data import write_json
from berxit.runtime.loop import Backend
from berxit.runtime.policies import ExitPolicy, certainties, exit_layers
from berxit.runtime.tables import markdown_table
from berxit.runtime.tokenization import TextTokenizer, TokenBatch
from berxit.toolkit.commands.options import PATH, hush_libraries

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LayerGap:
    """How far a bundle is from PyTorch at one layer, over all rows. Absolute differences."""

    layer: int
    """0: the embeddings."""
    hidden_largest_value: float
    hidden_max: float
    hidden_mean: float
    hidden_relative: float
    """The largest difference, each divided by its value's size where that is above 1."""
    heads_max: float
    """Of logits and LTE; 0 for the embeddings."""


@dataclass(frozen=True)
class Differs:
    """A row that left elsewhere, or with another answer."""

    row: int
    exit_layer: int
    expected: int
    margin: float
    """How near one of its certainties in PyTorch came to its threshold."""


@dataclass(frozen=True)
class Agreement:
    bundle: str
    target: str
    precision: str
    made_with: dict[str, str]
    policy: ExitPolicy
    data: str
    rows: int
    same: int
    """Rows with the same exit layer and the same answer."""
    average_exit_layer: float
    expected_average_exit_layer: float
    layers: tuple[LayerGap, ...]
    pytorch_float32: tuple[LayerGap, ...]
    """PyTorch in float32 against itself in float64: what nobody who computes in float32 can be blamed for."""
    differ: tuple[Differs, ...]

    @property
    def share(self) -> float:
        return self.same / self.rows

    def __str__(self) -> str:
        rows = [
            [
                str(gap.layer) if gap.layer else "embeddings",
                f"{gap.hidden_largest_value:.1f}",
                f"{gap.hidden_max:.1e}",
                f"{gap.hidden_relative:.1e}",
                f"{gap.hidden_mean:.1e}",
                f"{torch.hidden_max:.1e}",
                f"{gap.heads_max:.1e}" if gap.layer else "",
            ]
            for gap, torch in zip(self.layers, self.pytorch_float32, strict=True)
        ]
        header = ["layer", "hidden: largest value", "largest difference", "relative", "mean", "PyTorch fp32", "heads"]
        lines = [
            f"{self.bundle}: {self.same} of {self.rows} rows agree ({100 * self.share:.2f}%): same exit layer, same"
            f" answer ({self.target} {self.precision} in numpy against PyTorch float64, {self.policy.criterion},"
            f" average exit layer {self.average_exit_layer:.2f} of {self.policy.layers} against"
            f" {self.expected_average_exit_layer:.2f})",
            "",
            markdown_table(header, rows),
        ]
        for each in self.differ:
            where = f"layer {each.exit_layer} instead of {each.expected}"
            said = "another answer" if each.exit_layer == each.expected else where
            lines.append(f"row {each.row}: {said}; a certainty was {each.margin:.1e} from its threshold")
        return "\n".join(lines)


class Gaps:
    """Differences at some layers, row after row."""

    def __init__(self, layers: Sequence[int]) -> None:
        self.layers = tuple(layers)
        self._found: list[list[tuple[float, ...]]] = []

    def add(self, found: Sequence[Array], expected: Sequence[Array], heads: Sequence[float]) -> None:
        """Hidden states (S, d) of one row at every layer, and how far its heads are off."""
        row = []
        for mine, real, head in zip(found, expected, heads, strict=True):
            gap, size = np.abs(mine - real), np.abs(real)
            row.append((size.max(), gap.max(), gap.mean(), (gap / np.maximum(1, size)).max(), head))
        self._found.append(row)

    def summary(self) -> tuple[LayerGap, ...]:
        largest, mean = np.max(self._found, axis=0), np.mean(self._found, axis=0)
        return tuple(
            LayerGap(layer, float(top[0]), float(top[1]), float(average[2]), float(top[3]), float(top[4]))
            for layer, top, average in zip(self.layers, largest, mean, strict=True)
        )


@click.command()
@click.argument("checkpoint", type=PATH)
@click.argument("bundles", type=PATH, nargs=-1, required=True)
@click.option("--data", type=PATH, required=True)
@click.option("--split", default="dev", show_default=True)
@click.option("--limit", type=click.IntRange(min=1), help="The first N rows only.")
@click.option("--at-least", default=0.99, show_default=True, help="Share of rows that must agree.")
@click.option("--output", type=PATH, help="A JSON file for all that was found.")
def command(
    checkpoint: Path,
    bundles: tuple[Path, ...],
    data: Path,
    split: str,
    limit: int | None,
    at_least: float,
    output: Path | None,
) -> None:
    hush_libraries()
    found = agreements(checkpoint, bundles, data, split, limit)
    click.echo("\n\n".join(map(str, found)))
    if output:
        write_json([asdict(each) for each in found], output)
        click.echo(f"written: {output}")
    if few := [each for each in found if each.share < at_least]:
        raise BerxitError(
            f"of {few[0].bundle} only {100 * few[0].share:.2f}% of the rows agree, {100 * at_least:g}% wanted"
        )


def agreements(
    checkpoint: Path, bundles: Sequence[Path], data: Path, split: str, limit: int | None
) -> tuple[Agreement, ...]:
    """One for each bundle, which must be of the checkpoint, with the same tokenizer and length."""
    from berxit.exporters.coreml.target import checking_backend
    from berxit.train.checkpoint import load_checkpoint
    from berxit.train.tasks import task_of

    single, _ = load_checkpoint(checkpoint)
    double, _ = load_checkpoint(checkpoint)
    double.double()
    examples = task_of(single.config).read(data, split).head(limit)
    manifests = [read_manifest(bundle) for bundle in bundles]
    backends = [checking_backend(bundle, manifest, None) for bundle, manifest in zip(bundles, manifests, strict=True)]
    if len({(manifest.tokenizer.sha256, manifest.model.max_length) for manifest in manifests}) > 1:
        raise BerxitError("the bundles differ in tokenizer or length: compare them one at a time")
    tokenizer = TextTokenizer(
        bundles[0] / manifests[0].tokenizer.file, manifests[0].model.max_length, manifests[0].model.pad_token_id
    )
    gaps = [(Gaps((0, *backend.exits)), Gaps((0, *backend.exits))) for backend in backends]
    heads: list[list[Array]] = [[] for _ in backends]
    real_heads: list[list[Array]] = [[] for _ in backends]
    with progress_bar("PyTorch and numpy")(len(examples)) as bar:
        for text in examples.texts:
            batch = tokenizer([text])
            (real, real_head), (near, near_head) = _pytorch(double, batch), _pytorch(single, batch)
            for i, (backend, (ours, pytorch)) in enumerate(zip(backends, gaps, strict=True)):
                exits = np.array(backend.exits) - 1
                states, head = _executed(backend, batch)
                expected, expected_head = [real[layer] for layer in ours.layers], real_head[exits]
                ours.add(states, expected, [0.0, *np.abs(head - expected_head).max(axis=1)])
                off = [0.0, *np.abs(near_head[exits] - expected_head).max(axis=1)]
                pytorch.add([near[layer] for layer in ours.layers], expected, off)
                heads[i].append(head)
                real_heads[i].append(expected_head)
            bar.update(1)
    return tuple(
        _compared(str(bundle), manifest, f"{data} {split}", np.stack(said), np.stack(expected), ours, pytorch)
        for bundle, manifest, said, expected, (ours, pytorch) in zip(
            bundles, manifests, heads, real_heads, gaps, strict=True
        )
    )


def _pytorch(model, batch: TokenBatch) -> tuple[list[Array], Array]:  # type: ignore[no-untyped-def]
    """Hidden states (S, d), n + 1 of them; and what the exits say (n, C [+ 1 for LTE]), of one row."""
    import torch

    with torch.no_grad():
        outputs = model(
            *(torch.from_numpy(part).long() for part in (batch.input_ids, batch.attention_mask, batch.token_type_ids)),
            output_hidden_states=True,
        )
    heads = outputs.logits[0].double().numpy()
    if outputs.certainties is not None:
        heads = np.concatenate([heads, outputs.certainties[0].double().numpy()[:, None]], axis=1)
    return [hidden[0].double().numpy() for hidden in outputs.hidden_states], heads


def _executed(backend: Backend, batch: TokenBatch) -> tuple[list[Array], Array]:
    """As ``_pytorch``, of the layers that the back end has exits at."""
    state = backend.embed(batch)
    hidden, heads = [_hidden(state, batch)], []
    for layer in backend.exits:
        state, logits, lte = backend.layer(layer, state)
        hidden.append(_hidden(state, batch))
        heads.append(np.concatenate([logits[0], [] if lte is None else lte]))
    return hidden, np.stack(heads)


def _hidden(state, batch: TokenBatch) -> Array:  # type: ignore[no-untyped-def]
    """(1, S', d) or (1, d, 1, S'), padding at the end -> (S, d)"""
    hidden = state.rows[0]["hidden"]
    rows = hidden[0, :, 0].T if hidden.ndim == 4 else hidden[0]
    return rows[: int(batch.lengths[0])].astype(np.float64)


def _compared(
    bundle: str, manifest: Manifest, data: str, said: Array, expected: Array, ours: Gaps, pytorch: Gaps
) -> Agreement:
    mine, real = (_decide(manifest, heads) for heads in (said, expected))
    regression = manifest.model.regression
    answers = np.abs(mine[1] - real[1]) < 1e-2 if regression else mine[1] == real[1]
    same = (mine[0] == real[0]) & answers
    thresholds = manifest.policy.at_exits(manifest.exits).thresholds
    margins = np.abs(real[2][:, :-1] - np.array(thresholds)).min(axis=1, initial=1e9)  # JSON has no infinity
    return Agreement(
        bundle=bundle,
        target=manifest.target,
        precision=manifest.precision,
        made_with=manifest.made_with,
        policy=manifest.policy,
        data=data,
        rows=len(same),
        same=int(same.sum()),
        average_exit_layer=float(mine[0].mean()),
        expected_average_exit_layer=float(real[0].mean()),
        layers=ours.summary(),
        pytorch_float32=pytorch.summary(),
        differ=tuple(
            Differs(int(row), int(mine[0][row]), int(real[0][row]), float(margins[row]))
            for row in np.flatnonzero(~same)
        ),
    )


def _decide(manifest: Manifest, heads: Array) -> tuple[npt.NDArray, Array, Array]:
    """What the n exits say (N, n, C [+ 1 for LTE]) -> exit layers (N,), answers (N,), certainties (N, n)."""
    lte = heads[..., -1] if manifest.model.lte else None
    logits = heads[..., :-1] if manifest.model.lte else heads
    policy = manifest.policy.at_exits(manifest.exits)
    certainty = certainties(policy, logits, lte)
    exits = exit_layers(policy, certainty) - 1
    last = logits[np.arange(len(logits)), exits]
    return np.array(manifest.exits)[exits], last[:, 0] if manifest.model.regression else last.argmax(axis=1), certainty


if __name__ == "__main__":
    run(command)
