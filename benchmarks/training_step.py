"""Time of a training step of the alternating strategy, compared with plain fine-tuning; interleaved in one run.

    python benchmarks/training_step.py --model MODEL [--rows 8] [--tokens 64] [--steps 30]

Both run the encoder forward and backward over all layers and update the same parameters with AdamW. The alternating
strategy adds the exits, n linear layers (d x C) on B rows, and the LTE module: about 2 n B d (C + 1) multiplications in
the forward pass, compared with 24 n B S d^2 in the encoder. At S = 64 and d = 384 that is a share below 1e-5.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import click
import torch
from transformers import AutoModelForSequenceClassification

from berxit.toolkit.commands.options import silence_library_logs
from berxit.train.modeling import MultiExitModel
from berxit.train.objectives import Alternating


@click.command()
@click.option("--model", required=True, help="Folder of a pre-trained encoder.")
@click.option("--rows", default=8, show_default=True)
@click.option("--tokens", default=64, show_default=True)
@click.option("--steps", default=30, show_default=True, help="Measured steps of each kind, after 3 warm-up steps.")
def main(model: str, rows: int, tokens: int, steps: int) -> None:
    silence_library_logs()
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch = {
        "input_ids": torch.randint(1000, 2000, (rows, tokens), device=device),
        "attention_mask": torch.ones(rows, tokens, dtype=torch.long, device=device),
    }
    labels = torch.randint(0, 2, (rows,), device=device)
    plain = AutoModelForSequenceClassification.from_pretrained(model, num_labels=2, dtype=torch.float32).to(device)
    kinds = {"plain transformers": one_step(plain, lambda: plain(**batch, labels=labels).loss)}
    for name, lte in (("alternating", False), ("alternating + LTE", True)):
        multi_exit = MultiExitModel.from_backbone(model, lte=lte).to(device)
        for parity, number in (("odd", 1), ("even", 2)):

            def loss(model: MultiExitModel = multi_exit, number: int = number) -> torch.Tensor:
                return Alternating().loss(number, model(**batch), labels, False)

            kinds[f"{name}, {parity} step"] = one_step(multi_exit, loss)
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for turn in range(steps + 3):
        for name, step in kinds.items():
            start = time.perf_counter()
            step()
            if turn >= 3:
                times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    click.echo(
        f"{model}, {rows} rows x {tokens} tokens, {device}, {torch.get_num_threads()} threads, {steps} steps each"
    )
    for name, median in medians.items():
        ratios = [a / b for a, b in zip(times[name], times["plain transformers"], strict=True)]
        click.echo(f"{name:<28}{1e3 * median:8.1f} ms   {statistics.median(ratios):5.2f} of plain")


def one_step(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.0, fused=True)
    model.train()

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return step


if __name__ == "__main__":
    main()
