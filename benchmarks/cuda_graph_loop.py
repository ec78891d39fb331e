"""Exit loop on CUDA graphs of PyTorch: time per layer and per exit decision on a GPU that cannot run TensorRT engines.

Works layer by layer, as the TensorRT backend does: one CUDA graph per layer, including its exit head and a copy of the
logits to the host, which makes the exit decision. The layers are those of transformers, for BERT and RoBERTa.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from berxit.runtime.errors import BerxitError
from berxit.runtime.policies import softmax
from berxit.train.modeling import MultiExitModel

TOLERANCE = {"float32": 1e-3, "float16": 5e-2, "bfloat16": 5e-1}
"""Data type -> largest allowed difference of an exit's logits from the model's forward pass in float32."""
WARM_UP = 10
Work = Callable[[], None]
Capture = Callable[[Work], Work]
"""Function that captures GPU work, and returns a function that replays it."""


@dataclass(frozen=True)
class LoopCost:
    """Median latencies at batch size 1 in milliseconds, from token ids on the host to logits on the host."""

    dtype: str
    """Data type of the layers; the exit heads are float32."""
    length: int
    """Number of tokens."""
    queries: int
    """Number of measured queries per exit layer."""
    ms_by_exit_layer: dict[int, float]
    """Exit layer -> latency, with an exit decision after every layer up to it."""
    ms_per_layer: float
    """Least-squares slope of ``ms_by_exit_layer``."""
    ms_unbroken: float
    """Latency of all layers with one exit and no synchronization in between."""
    ms_per_decision: float
    """Latency that one exit decision adds: (full depth - unbroken) / (layers - 1)."""
    max_diff: float
    """Largest difference of an exit's logits from the model's forward pass in float32."""

    def __str__(self) -> str:
        full = self.ms_by_exit_layer[max(self.ms_by_exit_layer)]
        return (
            f"{full:.2f} ms at full depth, {1e3 * self.ms_per_layer:.0f} us per layer, including"
            f" {1e3 * self.ms_per_decision:.0f} us for the decision; without exits {self.ms_unbroken:.2f} ms"
        )


def captured(work: Work) -> Work:
    """Captures ``work`` in a CUDA graph, after the warm-up runs that PyTorch requires; returns its replay function."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


class GraphLoop:
    """Exit loop of a model for fixed token ids (1, S), with CUDA graphs on fixed buffers."""

    def __init__(
        self, model: MultiExitModel, ids: torch.Tensor, device: str, dtype: torch.dtype, capture: Capture, wait: Work
    ) -> None:
        self.model, self.wait = model, wait
        self.model.to(device).backbone.to(dtype)
        pinned = device == "cuda"
        self.given = ids.pin_memory() if pinned else ids.clone()
        self.ids = ids.to(device)
        self.state = torch.zeros(1, ids.shape[1], model.hidden_size, dtype=dtype, device=device)
        self.answers = torch.zeros(model.layers, model.config.num_labels, pin_memory=pinned)
        """(n, C) logits on the host."""
        self.embedding = capture(self._embed)
        self.steps = [capture(lambda n=n: (self._layer(n), self._answer(n))) for n in range(model.layers)]
        self.bare = [capture(lambda n=n: self._layer(n)) for n in range(model.layers)]
        self.last = capture(lambda: self._answer(model.layers - 1))

    def early(self, exit_layer: int) -> float:
        """Latency in milliseconds of an exit at layer ``exit_layer``."""
        start = time.perf_counter()
        self.embedding()
        for number in range(exit_layer):
            self.steps[number]()
            self.wait()
            float(softmax(self.answers[number].numpy()[None]).max())  # the certainty for the exit decision
        return 1e3 * (time.perf_counter() - start)

    def unbroken(self) -> float:
        """Latency in milliseconds of all layers and the last exit."""
        start = time.perf_counter()
        self.embedding()
        for step in self.bare:
            step()
        self.last()
        self.wait()
        return 1e3 * (time.perf_counter() - start)

    def _embed(self) -> None:
        self.ids.copy_(self.given, non_blocking=True)
        self.state.copy_(self.model.backbone.embeddings(input_ids=self.ids))

    def _layer(self, number: int) -> None:
        self.state.copy_(self.model.backbone.encoder.layer[number](self.state, None))

    def _answer(self, number: int) -> None:
        pooled = self.model.pooled(number + 1, self.state.float(), None)
        self.answers[number].copy_(self.model.heads[number](pooled)[0], non_blocking=True)


@torch.no_grad()
def exit_loop_cost(
    model: MultiExitModel, device: str, dtype: str, length: int, queries: int, capture: Capture, wait: Work
) -> LoopCost:
    """Measures every exit layer ``queries`` times, interleaved.

    Raises BerxitError if an exit differs too much from the model's forward pass, which makes its latency meaningless.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, model.config.backbone.vocab_size, (1, length), generator=generator)
    expected = model.eval().to("cpu", torch.float32)(ids, torch.ones_like(ids)).exit_logits[0].numpy()
    loop, depth = GraphLoop(model, ids, device, getattr(torch, dtype), capture, wait), model.layers
    loop.early(depth)
    off = float(np.abs(loop.answers.numpy() - expected).max())
    if not off <= TOLERANCE[dtype]:
        raise BerxitError(
            f"an exit differs from the model's forward pass by {off:.1e}, at most {TOLERANCE[dtype]:.0e} is allowed:"
            " its latency would be meaningless"
        )
    times: dict[int, list[float]] = {exit_layer: [] for exit_layer in range(1, depth + 1)}
    straight: list[float] = []
    for _ in range(WARM_UP + queries):
        for exit_layer, values in times.items():
            values.append(loop.early(exit_layer))
        straight.append(loop.unbroken())
    medians = {exit_layer: statistics.median(values[WARM_UP:]) for exit_layer, values in times.items()}
    whole = statistics.median(straight[WARM_UP:])
    slope = float(np.polyfit(list(medians), list(medians.values()), 1)[0])
    decision = (medians[depth] - whole) / (depth - 1)
    return LoopCost(dtype, length, queries, medians, slope, whole, decision, off)
