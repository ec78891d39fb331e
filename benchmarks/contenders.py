"""What side_by_side.py compares. Each contender runs in a process of its own, and only while it is asked to.

A contender answers a batch at full depth by its last exit; those that can stop early also run the exit loop. All see
the same token ids and, where they stop early, the same policy code.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from runtime.backends import choose_backend, open_backend
from runtime.bundle import Manifest, read_manifest
from runtime.loop import Backend, exit_loop
from runtime.policies import Bools, ExitPolicy, Floats
from runtime.tokenization import TokenBatch

SHALLOW = 3
"""The layer that nothing goes past where memory under lazy loading is measured."""


@dataclass(frozen=True)
class Schedule(ExitPolicy):
    """Random weights are never sure: row i leaves after layer ``depths[i]``; its certainty is computed all the same."""

    depths: tuple[int, ...] = ()

    def exits(self, layer: int, certainty: npt.NDArray) -> Bools:
        here = np.array([depth for depth in self.depths if depth >= layer])  # who is gone, left before; order is kept
        return here == layer


@dataclass(frozen=True)
class Case:
    """Inputs of a kind, and when they leave."""

    name: str
    ids: tuple[tuple[int, ...], ...]
    types: tuple[tuple[int, ...], ...]
    policy: ExitPolicy
    pad: int
    full_rows: int
    """How many of the rows are enough to measure full depth: one, where all are of one length."""

    def batch(self, rows: Sequence[int]) -> TokenBatch:
        return TokenBatch.pad([self.ids[i] for i in rows], [self.types[i] for i in rows], self.pad)

    def policy_of(self, rows: Sequence[int]) -> ExitPolicy:
        if isinstance(self.policy, Schedule):
            depths = tuple(self.policy.depths[i] for i in rows)
            return Schedule(self.policy.criterion, self.policy.thresholds, self.policy.temperatures, depths=depths)
        return self.policy


@dataclass(frozen=True)
class Spec:
    """Which contender, on which files."""

    kind: str
    """segments, onnxruntime (one graph), openvino (one graph), eager, or matmul."""
    name: str
    model: Path
    """The bundle, the ONNX file, or the checkpoint."""
    precision: str
    early: bool
    """Whether it can stop early."""
    backend: str | None = None
    ours: bool = False
    lazy: bool = False
    """Layers are loaded when an input first gets there."""
    tuned: bool = False
    """One graph under the session options that our segments run with, instead of ONNX Runtime's own."""


class Contender(Protocol):
    def full(self, batch: TokenBatch) -> Floats:
        """The last exit's logits, (B, C)."""


class Segments:
    """Our segments and exit loop on one back end."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._all = ExitPolicy.full_depth(backend.layers).at_depth(backend.layers)

    def full(self, batch: TokenBatch) -> Floats:
        *_, last = exit_loop(self.backend, batch, self._all)
        return last.logits

    def early(self, batch: TokenBatch, policy: ExitPolicy) -> tuple[npt.NDArray, Floats]:
        """(B,) exit layers, (B, C) logits there."""
        layers = np.zeros(len(batch), dtype=np.int64)
        answers: dict[int, Floats] = {}
        for result in exit_loop(self.backend, batch, policy):
            left = result.rows[result.exits]
            layers[left] = result.layer
            answers.update(zip(left.tolist(), result.logits[result.exits], strict=True))
        return layers, np.stack([answers[row] for row in range(len(batch))])


class OnnxGraph:
    def __init__(self, path: Path, threads: int, tuned: bool) -> None:
        import onnxruntime as ort

        from runtime.backends.onnxruntime import open_session

        if tuned:
            self.session = open_session(path, threads)
        else:
            options = ort.SessionOptions()  # otherwise as a user finds them
            options.intra_op_num_threads = threads
            options.log_severity_level = 3
            self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = [each.name for each in self.session.get_inputs()]

    def full(self, batch: TokenBatch) -> Floats:
        return self.session.run(None, {name: getattr(batch, name) for name in self.inputs})[0]


class OpenVinoGraph:
    def __init__(self, path: Path, threads: int, precision: str) -> None:
        import openvino as ov

        options = {
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
        }
        compiled = ov.Core().compile_model(str(path), "CPU", options)
        self.inputs = [port.get_any_name() for port in compiled.inputs]
        self.request = compiled.create_infer_request()

    def full(self, batch: TokenBatch) -> Floats:
        return self.request.infer({name: getattr(batch, name) for name in self.inputs}, share_inputs=True)[0]


class EagerBackend:
    """The checkpoint in PyTorch, layer by layer: what one writes by hand. BERT and RoBERTa."""

    name = "eager"

    def __init__(self, checkpoint: Path, threads: int) -> None:
        import torch

        from toolkit.commands.options import hush_libraries

        hush_libraries()
        from train.checkpoint import load_checkpoint

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.torch, self.threads = torch, threads
        self.model, _ = load_checkpoint(checkpoint)
        self.layers = self.model.layers
        self.exits = tuple(range(1, self.layers + 1))

    def embed(self, batch: TokenBatch) -> tuple[Any, Any]:
        ids, mask, types = (
            self.torch.from_numpy(array).long()
            for array in (batch.input_ids, batch.attention_mask, batch.token_type_ids)
        )
        backbone = self.model.backbone
        kinds = {"token_type_ids": types} if self.model.adapter.has_token_types else {}
        return backbone.embeddings(input_ids=ids, **kinds), mask

    def layer(self, layer: int, state: tuple[Any, Any]) -> tuple[tuple[Any, Any], Floats, Floats | None]:
        hidden, mask = state  # one row has no padding, and needs no mask
        hidden = self.model.backbone.encoder.layer[layer - 1](hidden, None)
        pooled = self.model._pool([hidden], mask)[:, 0]
        logits = self.model.heads[layer - 1](pooled).numpy()
        lte = None if self.model.lte is None else self.torch.sigmoid(self.model.lte(pooled)).squeeze(-1).numpy()
        return (hidden, mask), logits, lte

    def keep(self, state: tuple[Any, Any], rows: Bools) -> tuple[Any, Any]:
        raise AssertionError("batch 1: nobody is left when a row leaves")


class Eager(Segments):
    """Full depth is transformers' own forward pass, and the last exit on it."""

    backend: EagerBackend

    def full(self, batch: TokenBatch) -> Floats:
        model, torch = self.backend.model, self.backend.torch
        mask = torch.from_numpy(batch.attention_mask).long()
        kinds = {"token_type_ids": torch.from_numpy(batch.token_type_ids).long()}
        hidden = model.backbone(
            input_ids=torch.from_numpy(batch.input_ids).long(),
            attention_mask=mask,
            **(kinds if model.adapter.has_token_types else {}),
        ).last_hidden_state
        return model.heads[-1](model._pool([hidden], mask)[:, 0]).numpy()


class MatMuls:
    """The model's matrix multiplications alone, through torch.mm on weights of their own for every layer: what this
    machine's matrix library needs for them."""

    def __init__(self, checkpoint: Path, threads: int, precision: str) -> None:
        import torch

        torch.set_num_threads(threads)
        self.torch = torch
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        self.shape = Shape.of(checkpoint)
        s = self.shape
        sizes = [(s.hidden, 3 * s.hidden), (s.hidden, s.hidden), (s.hidden, s.wide), (s.wide, s.hidden)]
        self.weights = [[torch.randn(*size).to(self.dtype) for size in sizes] for _ in range(s.layers)]
        self.made: dict[tuple[int, int], tuple[Any, ...]] = {}

    def full(self, batch: TokenBatch) -> Floats:
        torch, s = self.torch, self.shape
        rows, length = batch.input_ids.shape
        if (rows, length) not in self.made:
            heads, size = rows * s.heads, s.hidden // s.heads
            shapes = [(rows * length, s.hidden), (rows * length, s.wide), (heads, length, size), (heads, size, length)]
            self.made[rows, length] = tuple(torch.randn(*shape).to(self.dtype) for shape in shapes)
        narrow, wide, queries, keys = self.made[rows, length]
        for qkv, output, up, down in self.weights:
            torch.mm(narrow, qkv)
            scores = torch.bmm(queries, keys)
            torch.bmm(scores, queries)
            torch.mm(narrow, output)
            torch.mm(narrow, up)
            torch.mm(wide, down)
        return np.zeros((rows, 1), dtype=np.float32)


@dataclass(frozen=True)
class Shape:
    """What a model's matrix multiplications depend on."""

    layers: int
    hidden: int
    wide: int
    heads: int

    @classmethod
    def of(cls, checkpoint: Path) -> Shape:
        from train.checkpoint import read_config

        c = read_config(checkpoint)["backbone"]
        names = (  # as most families call them, and as DistilBERT does
            ("num_hidden_layers", "n_layers"),
            ("hidden_size", "dim"),
            ("intermediate_size", "hidden_dim"),
            ("num_attention_heads", "n_heads"),
        )
        return cls(*(int(next(c[name] for name in pair if name in c)) for pair in names))

    def flops(self, tokens: int) -> int:
        """Of one row's matrix multiplications at full depth; two per multiply-add."""
        weights = 4 * self.hidden**2 + 2 * self.hidden * self.wide
        return self.layers * (2 * tokens * weights + 4 * tokens**2 * self.hidden)


def make(spec: Spec, threads: int) -> Contender:
    if spec.kind == "segments":
        manifest: Manifest = read_manifest(spec.model, verify=False)
        choose_backend(spec.model, manifest.target, spec.backend)
        return Segments(open_backend(spec.model, manifest, threads, backend=spec.backend, lazy=spec.lazy))
    if spec.kind == "onnxruntime":
        return OnnxGraph(spec.model, threads, spec.tuned)
    if spec.kind == "openvino":
        return OpenVinoGraph(spec.model, threads, spec.precision)
    if spec.kind == "eager":
        return Eager(EagerBackend(spec.model, threads))
    return MatMuls(spec.model, threads, spec.precision)


def work(spec: Spec, threads: int, cases: dict[str, Case], pipe: Connection) -> None:
    """The process: loads, says so, then does one task at a time until it is told None."""
    try:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        contender = make(spec, threads)
        pipe.send(("ready", None))
        while (task := pipe.recv()) is not None:
            pipe.send(("done", _do(contender, cases[task[1]], task[0])))
    except Exception as error:  # its process ends; the parent tells why
        pipe.send(("failed", f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"))


def _do(contender: Any, case: Case, task: str) -> Any:
    """full, early, batch: milliseconds per row. answers: (N, C) logits at full depth; exits: (layers, logits).
    shallow: as far as layer SHALLOW, for the memory that it takes."""
    everyone = range(len(case.ids))
    if task == "memory":
        return _resident()
    if task == "shallow":
        depth = ExitPolicy.full_depth(contender.backend.layers).at_depth(min(SHALLOW, contender.backend.layers))
        for rows in [everyone] if case.name.startswith("batch") else [[row] for row in everyone]:
            contender.early(case.batch(rows), depth)
        return None
    if task == "answers":
        return np.concatenate([contender.full(case.batch([row])) for row in everyone])
    if task == "exits":
        found = [contender.early(case.batch([row]), case.policy_of([row])) for row in everyone]
        return np.concatenate([layers for layers, _ in found]), np.concatenate([logits for _, logits in found])
    if task == "full":
        calls = [[row] for row in everyone][: case.full_rows]
    else:
        calls = [[row] for row in everyone] if task == "early" else [list(everyone)]
    early = task == "early" or (task == "batch" and isinstance(contender, Segments))
    prepared = [(case.batch(rows), case.policy_of(rows)) for rows in calls]

    def call(batch: TokenBatch, policy: ExitPolicy) -> None:
        if early:
            contender.early(batch, policy)
        else:
            contender.full(batch)

    call(*prepared[-1])  # caches hold another process's data, threads sleep: not counted
    start = time.perf_counter()
    for one in prepared:
        call(*one)
    return 1e3 * (time.perf_counter() - start) / sum(map(len, calls))


def _resident() -> float:
    """MiB that this process holds."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="ascii").splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), float("nan"))
