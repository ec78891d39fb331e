"""Appendix D: what a layer, a classifier and LTE compute for one input, counted while the checkpoint's modules run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from berxit.runtime.errors import InputError
from berxit.runtime.tables import Table
from berxit.toolkit.studies.findings import Findings, Panel
from berxit.toolkit.studies.look import BLUE, GRAY, GREEN, ORANGE, RED
from berxit.toolkit.studies.request import Request
from berxit.train.checkpoint import load_checkpoint, read_record
from berxit.train.modeling import MultiExitModel
from berxit.train.options import model_name_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Flops:
    """Of one input of ``tokens`` tokens. A multiplication and an addition are two, as torch counts them."""

    tokens: int
    layers: int
    embeddings: int
    layer: int
    """One transformer layer."""
    classifier: int
    """One exit's classifier."""
    lte: int
    """The LTE module, once; 0 without."""
    pooling: int
    """What mean pooling adds, once; 0 where exits read the first token."""

    @property
    def exit(self) -> int:
        """All that an exit adds to its layer."""
        return self.classifier + self.lte + self.pooling

    @property
    def total(self) -> int:
        return self.embeddings + self.layers * (self.layer + self.exit)


def study(request: Request) -> Findings:
    counted: dict[str, list[Flops]] = {}
    chosen: dict[str, int] = {}
    for path in request.paths:
        model, _ = load_checkpoint(path)
        longest = model.config.max_length
        length = min(128, longest) if request.length is None else request.length
        if not 1 <= length <= longest:
            raise InputError(f"--length {length} is out of range: {path} takes 1 to {longest} tokens")
        lengths = sorted({8, 16, 32, 64, 128, 256, 512, length} - set(range(longest + 1, 513)))
        name = model_name_of(str(read_record(path).get("options", {}).get("model", path.name)))
        label = name if name not in counted else f"{name} ({path.name})"
        counted[label] = [count_flops(model, tokens) for tokens in lengths if tokens <= max(length, 128)]
        chosen[label] = length
    rows = []
    for name, found in counted.items():
        flops = next(f for f in found if f.tokens == chosen[name])
        counts = [f"{value:,}" for value in (flops.embeddings, flops.layer, flops.classifier, flops.lte, flops.pooling)]
        rows.append(
            [
                name,
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
            "counted by torch.utils.flop_counter while the checkpoint's own modules run on one input; matrix products"
            " only (a multiplication and an addition are two); norms, activations, softmax and table look-ups are not"
            " counted",
            "an exit adds its classifier, LTE and, where exits read the mean, the pooling; share: all exits of the"
            " whole model",
        ],
        tables=[("One input", Table([*header, "layer / exit", "exits' share"], rows))],
        data={"models": {name: [asdict(flops) for flops in found] for name, found in counted.items()}},
        panels=[_panel(name, found) for name, found in counted.items()],
    )


@torch.no_grad()
def count_flops(model: MultiExitModel, tokens: int) -> Flops:
    """Runs the model on one input of ``tokens`` tokens and adds up what its parts have computed."""
    model.set_attn_implementation("eager")  # the counter does not know the fused attention of a CPU
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
    """Names of the layers: the children of the encoder's outermost list. A shared one runs n times, as in ALBERT."""
    name, layers = next((name, part) for name, part in backbone.named_modules() if isinstance(part, nn.ModuleList))
    return [f"backbone.{name}.{child}" for child, _ in layers.named_children()]


def _panel(name: str, found: Sequence[Flops]) -> Panel:
    def draw(axes: Axes) -> None:
        tokens = [flops.tokens for flops in found]
        for label, values, colour, marker in (
            ("one layer", [f.layer for f in found], BLUE, "o"),
            ("embeddings", [f.embeddings for f in found], GRAY, "x"),
            ("pooling, one exit", [f.pooling for f in found], ORANGE, "s"),
            ("classifier, one exit", [f.classifier for f in found], GREEN, "^"),
            ("LTE, one exit", [f.lte for f in found], RED, "v"),
        ):
            if any(values):
                axes.plot(tokens, values, color=colour, marker=marker, lw=1.3, ms=4, label=label)
        axes.set(xscale="log", yscale="log", xlabel="tokens of the input", ylabel="floating point operations")
        axes.set_xticks(tokens, [str(count) for count in tokens])
        axes.minorticks_off()
        axes.set_title(f"{name}, {found[0].layers} layers")

    return draw
