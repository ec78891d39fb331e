"""Appendix D: floating point operations of a layer, a classifier and LTE for one input, counted during execution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from berxit.runtime.errors import InputError
from berxit.runtime.tables import Table
from berxit.toolkit.studies.findings import Findings, Panel
from berxit.toolkit.studies.look import COLORS, line_style
from berxit.toolkit.studies.request import Request
from berxit.toolkit.studies.runs import label_of, read_training
from berxit.train.checkpoint import load_checkpoint
from berxit.train.modeling import MultiExitModel

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Flops:
    """Floating point operations for one input of ``tokens`` tokens. A multiplication and an addition count as two."""

    tokens: int
    layers: int
    embeddings: int
    layer: int
    """One transformer layer."""
    classifier: int
    """One exit's classifier."""
    lte: int
    """The LTE module of one exit; 0 without LTE."""
    pooling: int
    """Mean pooling of one exit; 0 if exits read the first token."""

    @property
    def exit(self) -> int:
        """One exit with its LTE module and pooling."""
        return self.classifier + self.lte + self.pooling

    @property
    def total(self) -> int:
        return self.embeddings + self.layers * (self.layer + self.exit)


def study(request: Request) -> Findings:
    models = [load_checkpoint(path)[0] for path in request.paths]
    trainings = [read_training(path, model.layers) for path, model in zip(request.paths, models, strict=True)]
    counted: dict[str, list[Flops]] = {}
    rows, described = [], {}
    for training, model in zip(trainings, models, strict=True):
        label = f"{training.model}, {label_of(training, trainings)}"
        if label in counted:
            continue  # only the seed differs
        longest = model.config.max_length
        length = min(128, longest) if request.length is None else request.length
        if not 1 <= length <= longest:
            raise InputError(f"--length {length} is out of range: give 1 to {longest} tokens for {training.folder}")
        lengths = sorted({8, 16, 32, 64, 128, 256, 512, length} - set(range(longest + 1, 513)))
        counted[label] = [count_flops(model, tokens) for tokens in lengths if tokens <= max(length, 128)]
        described[label] = {"model": training.model, "strategy": training.strategy, "options": training.options}
        flops = next(f for f in counted[label] if f.tokens == length)
        counts = [f"{value:,}" for value in (flops.embeddings, flops.layer, flops.classifier, flops.lte, flops.pooling)]
        rows.append(
            [
                label,
                str(flops.tokens),
                str(flops.layers),
                *counts,
                f"{flops.layer / flops.exit:,.0f}",
                f"{flops.layers * flops.exit / flops.total:.4%}",
            ]
        )
    header = ["model", "tokens", "layers", "embeddings", "one layer", "classifier", "LTE", "pooling"]
    return Findings(
        name="flops",
        title="Floating point operations of one input",
        conditions=[
            "counted by torch.utils.flop_counter while the checkpoint's modules run on one input; only matrix"
            " multiplications (a multiplication and an addition count as two), without norms, activations, softmax and"
            " embedding lookups",
            "an exit consists of its classifier, LTE and mean pooling, if the model has them; share: all exits of the"
            " model, of the model's total",
            "checkpoints that differ in the seed only are counted once",
        ],
        tables=[("One input", Table([*header, "layer / exit", "exits' share"], rows))],
        data={
            "models": {name: [asdict(flops) for flops in found] for name, found in counted.items()},
            "trainings": described,
        },
        panels=[_panel(name, found) for name, found in counted.items()],
    )


@torch.no_grad()
def count_flops(model: MultiExitModel, tokens: int) -> Flops:
    """Counts the operations of every part of the model during a pass over one input of ``tokens`` tokens."""
    model.set_attn_implementation("eager")  # The counter does not support the fused attention of a CPU.
    inputs = torch.ones(1, tokens, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=inputs, attention_mask=inputs, token_type_ids=torch.zeros_like(inputs))
    root = type(model).__name__
    counts = {name.removeprefix(f"{root}."): sum(found.values()) for name, found in counter.get_flop_counts().items()}
    total, backbone = counts[root], counts["backbone"]
    stack = sum(counts.get(name, 0) for name in _layer_modules(model.backbone))
    heads = sum(counts.get(f"heads.{i}", 0) for i in range(model.layers))
    lte = counts.get("lte", 0)
    n = model.layers
    return Flops(
        tokens=tokens,
        layers=n,
        embeddings=backbone - stack,
        layer=stack // n,
        classifier=heads // n,
        lte=lte // n,
        pooling=(total - backbone - heads - lte) // n,
    )


def _layer_modules(backbone: nn.Module) -> list[str]:
    """Names of the layers: the children of the encoder's outermost ModuleList. A shared layer runs n times (ALBERT)."""
    name, layers = next((name, part) for name, part in backbone.named_modules() if isinstance(part, nn.ModuleList))
    return [f"backbone.{name}.{child}" for child, _ in layers.named_children()]


def _panel(name: str, found: Sequence[Flops]) -> Panel:
    def draw(axes: Axes) -> None:
        from berxit.toolkit.figures import Key
        from berxit.toolkit.studies import drawing

        tokens = [flops.tokens for flops in found]
        key = Key()
        for place, (label, values) in enumerate(
            (
                ("one layer", [f.layer for f in found]),
                ("embeddings", [f.embeddings for f in found]),
                ("pooling, one exit", [f.pooling for f in found]),
                ("classifier, one exit", [f.classifier for f in found]),
                ("LTE, one exit", [f.lte for f in found]),
            )
        ):
            if any(values):
                style = {**line_style(place), "color": COLORS[place]}
                drawing.draw_line(axes, key, tokens, values, label, style, highest=math.inf)
        axes.set(xscale="log", yscale="log", xlabel="tokens of the input", ylabel="floating point operations")
        axes.set_xticks(tokens, [str(count) for count in tokens])
        axes.minorticks_off()
        axes.set_title(drawing.title(f"{name}, {found[0].layers} layers"))
        key.draw(axes)

    return draw
