"""Latency of a ModernBERT's segments at full depth, relative to one graph of the same model that torch.onnx exports.

    pip install onnxscript                                                  # torch.onnx needs it
    python benchmarks/one_graph.py --output one-graph                       # Ettin 32M: 10 layers, d = 384
    python benchmarks/one_graph.py --layers 22 --hidden 768 --intermediate 1152 --heads 12 --output base

The weights are random, which does not change the latency. The one graph is transformers' ModernBertModel with its final
norm, mean pooling and a linear classifier, without exits. Both run on ONNX Runtime in fp32, batch 1, and must return
the same logits. Their passes alternate; the ratio is the median over the pairs. It is computed from CPU seconds of this
process too, which other processes on the machine disturb less.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from berxit.exporters.export import export
from berxit.runtime.backends.onnxruntime import open_backend
from berxit.runtime.bundle import read_manifest
from berxit.runtime.console import debug_option, run
from berxit.runtime.errors import BerxitError
from berxit.runtime.json_data import write_json
from berxit.runtime.loop import exit_loop
from berxit.runtime.policies import ExitPolicy
from berxit.runtime.results import write_results
from berxit.runtime.tables import markdown_table
from berxit.runtime.tokenization import TokenBatch
from berxit.toolkit.commands.options import PATH

BAR = 1.05
"""Largest ratio."""
TOLERANCE = 1e-4
"""Largest difference of logits."""
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(995))]

Pass = Callable[[], npt.NDArray]


@click.command()
@click.option("--layers", default=10, show_default=True)
@click.option("--hidden", default=384, show_default=True)
@click.option("--intermediate", default=576, show_default=True)
@click.option("--heads", default=6, show_default=True)
@click.option("--tokens", default=128, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--rounds", default=200, show_default=True, help="Pairs of passes.")
@click.option("--output", type=PATH, required=True)
@debug_option
def command(
    layers: int, hidden: int, intermediate: int, heads: int, tokens: int, threads: int, rounds: int, output: Path
) -> None:
    with TemporaryDirectory(prefix="berxit-") as scratch:
        model = random_model(Path(scratch) / "checkpoint", layers, hidden, intermediate, heads, tokens)
        export_one_graph(model, Path(scratch) / "one.onnx", tokens)
        export(Path(scratch) / "checkpoint", "onnxruntime", Path(scratch) / "bundle")
        passes = {
            "segments": segments_pass(Path(scratch) / "bundle", tokens, threads),
            "one graph": one_graph_pass(Path(scratch) / "one.onnx", tokens, threads),
        }
        difference = float(np.abs(passes["segments"]() - passes["one graph"]()).max())
        if not difference <= TOLERANCE:
            raise BerxitError(f"the logits differ by {difference:.1e}: fix the export before a comparison")
        found = compare(passes, rounds)
    rows = [[name, *(f"{1e3 * median(found[name, clock]):.2f}" for clock in CLOCKS)] for name in passes]
    ratios = {
        clock: median(a / b for a, b in zip(found["segments", clock], found["one graph", clock], strict=True))
        for clock in CLOCKS
    }
    rows.append(["ratio", *(f"{ratio:.3f}" for ratio in ratios.values())])
    text = "\n\n".join(
        [
            f"ModernBERT, {layers} layers, d = {hidden}, feed-forward {intermediate}, {heads} heads, random weights;"
            f" {tokens} tokens, batch 1, {threads} thread(s), fp32; medians of {rounds} alternating passes",
            markdown_table(["", *(f"{clock}, ms" for clock in CLOCKS)], rows),
            f"largest difference of logits: {difference:.1e}. Load average of the machine: {os.getloadavg()[0]:.1f}",
            f"bar: CPU time ratio at most {BAR}: {'met' if ratios['CPU time'] <= BAR else 'not met'}",
        ]
    )
    data = {
        "ratio": {KEYS[clock]: ratio for clock, ratio in ratios.items()},
        "ms": {
            name.replace(" ", "_"): {KEYS[clock]: 1e3 * median(found[name, clock]) for clock in CLOCKS}
            for name in passes
        },
        "bar": BAR,
        "met": ratios["CPU time"] <= BAR,
        "difference": difference,
        "load_average": os.getloadavg()[0],
    }
    write_results(output, "one-graph", data, text)
    click.echo(text)


KEYS = {"wall time": "wall", "CPU time": "cpu"}
CLOCKS: dict[str, Callable[[], float]] = {"wall time": time.perf_counter, "CPU time": time.process_time}


def compare(passes: dict[str, Pass], rounds: int) -> dict[tuple[str, str], list[float]]:
    """Name and clock -> seconds of each round. The order of the passes alternates."""
    found: dict[tuple[str, str], list[float]] = {(name, clock): [] for name in passes for clock in CLOCKS}
    for number in range(rounds + 10):
        for name in list(passes)[:: 1 if number % 2 else -1]:
            before = [clock() for clock in CLOCKS.values()]
            passes[name]()
            for (clock, read), start in zip(CLOCKS.items(), before, strict=True):
                if number >= 10:  # warm-up
                    found[name, clock].append(read() - start)
    return found


def random_model(folder: Path, layers: int, hidden: int, intermediate: int, heads: int, longest: int) -> Any:
    """A checkpoint with random weights, and its model."""
    import torch
    from transformers import BertTokenizer, ModernBertConfig

    from berxit.train.checkpoint import SAMPLES_FILE
    from berxit.train.configuration import MultiExitConfig
    from berxit.train.modeling import MultiExitModel

    torch.manual_seed(0)
    ids = dict.fromkeys(f"{role}_token_id" for role in ("bos", "eos", "cls", "sep"))
    backbone = ModernBertConfig(
        vocab_size=len(WORDS),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        pad_token_id=0,
        **ids,
    )
    config = MultiExitConfig(backbone=backbone, lte=False, pooling="mean", max_length=max(longest, 128))
    model = MultiExitModel(config).eval()
    model.save_pretrained(folder)
    BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)}).save_pretrained(folder)
    write_json({"texts": ["w1 w2 " * words for words in (1, 4, 16, 60)]}, folder / SAMPLES_FILE)
    return model


def export_one_graph(model: Any, path: Path, tokens: int) -> None:
    """The encoder with the norm and classifier of the last exit, exported by torch.onnx with dynamic shapes."""
    import torch
    from torch import Tensor, nn

    class OneGraph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.norm, self.classifier = model.backbone, model.heads[-1].norm, model.heads[-1].classifier

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            hidden = self.norm(self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state)
            mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
            return self.classifier((hidden * mask).sum(dim=1) / mask.sum(dim=1))

    ids = torch.full((2, tokens), 7)
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    torch.onnx.export(
        OneGraph().eval(),
        (ids, torch.ones_like(ids)),
        str(path),
        input_names=["input_ids", "attention_mask"],
        output_names=["logits"],
        dynamic_shapes={"input_ids": sizes, "attention_mask": sizes},
        dynamo=True,
        verbose=False,
    )


def random_ids(tokens: int) -> npt.NDArray[np.int32]:
    return np.random.default_rng(0).integers(5, len(WORDS), (1, tokens)).astype(np.int32)


def segments_pass(bundle: Path, tokens: int, threads: int) -> Pass:
    """Our segments and exit loop at full depth."""
    backend = open_backend(bundle, read_manifest(bundle), threads)
    batch = TokenBatch.pad(random_ids(tokens).tolist(), [[0] * tokens], 0)
    policy = ExitPolicy.full_depth(backend.layers).at_depth(backend.layers)

    def run() -> npt.NDArray:
        *_, last = exit_loop(backend, batch, policy)
        return last.logits

    return run


def one_graph_pass(path: Path, tokens: int, threads: int) -> Pass:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    ids = random_ids(tokens).astype(np.int64)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}

    def run() -> npt.NDArray:
        return session.run(None, feeds)[0]

    return run


if __name__ == "__main__":
    sys.exit(run(command))
