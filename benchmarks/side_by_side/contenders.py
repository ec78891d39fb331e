"""What side_by_side.py compares. Each contender runs in a process of its own, and only while it is asked to.

A contender answers a batch at full depth by its last exit; those that can stop early also run the exit loop. All see
the same token ids and, where they stop early, the same policy code. A process imports what its contender needs, and no
more: what it holds is measured.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from benchmarks.side_by_side.products import MatrixProducts, Shape
from berxit.runtime.backend_options import Options
from berxit.runtime.backends import open_backend
from berxit.runtime.bundle import Manifest, read_manifest
from berxit.runtime.loop import Backend, exit_loop
from berxit.runtime.policies import Bools, ExitPolicy, Floats, Ints
from berxit.runtime.runner import parts
from berxit.runtime.tokenization import TokenBatch

SHALLOW = 3
"""The layer that nothing goes past where memory under lazy loading is measured."""
TURN_S = 0.1
"""Seconds."""
STATUS = Path("/proc/self/status")
"""Where a process finds what it holds; there on Linux."""


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
    """Token ids of each row."""
    types: tuple[tuple[int, ...], ...]
    policy: ExitPolicy
    pad: int
    together: bool = False
    """As one batch; else one row after another."""
    alike: bool = False
    """All rows are of one length, so that full depth is measured on one of them."""
    turn_s: float = TURN_S
    """A turn lasts so long at least: many short calls, so that a moment's disturbance is not the result."""

    @classmethod
    def of(
        cls, name: str, ids: Sequence[Sequence[int]], policy: ExitPolicy, pad: int, types: Any = None, **how: bool
    ) -> Case:
        kinds = types if types is not None else [[0] * len(row) for row in ids]
        return cls(name, tuple(map(tuple, ids)), tuple(map(tuple, kinds)), policy, pad, **how)

    def calls(self, *, first: bool = False) -> list[tuple[TokenBatch, ExitPolicy]]:
        """What a contender is given, call by call; ``first``: the first call only."""
        rows = range(len(self.ids))
        calls = [list(rows)] if self.together else [[row] for row in rows]
        return [(self._batch(rows), self._policy_of(rows)) for rows in (calls[:1] if first else calls)]

    def _batch(self, rows: Sequence[int]) -> TokenBatch:
        return TokenBatch.pad([self.ids[i] for i in rows], [self.types[i] for i in rows], self.pad)

    def _policy_of(self, rows: Sequence[int]) -> ExitPolicy:
        if isinstance(self.policy, Schedule):
            depths = tuple(self.policy.depths[i] for i in rows)
            return Schedule(self.policy.criterion, self.policy.thresholds, self.policy.temperatures, depths=depths)
        return self.policy


@dataclass(frozen=True)
class Spec:
    """Which contender, on which files."""

    kind: str
    """segments, onnxruntime (one graph), openvino (one graph), eager, or products (matrix products alone)."""
    name: str
    model: Path | Shape
    """The bundle, the ONNX file, the checkpoint; of products the shape."""
    precision: str
    backend: str | None = None
    backend_options: Options = MappingProxyType({})
    lazy: bool = False
    """Layers are loaded when an input first gets there."""
    tuned: bool = False
    """One graph under the session options that our segments run with, instead of ONNX Runtime's own."""

    @property
    def ours(self) -> bool:
        return self.kind == "segments"

    @property
    def tunable(self) -> bool:
        """True if ``--tune`` tries it."""
        return self.ours and "shared_pool" not in self.backend_options

    @property
    def early(self) -> bool:
        """Whether it can stop early."""
        return self.kind in ("segments", "eager")

    @property
    def answers_like(self) -> tuple[str, str]:
        """Specs that have this in common give the same answers: whose scores are known, the others' are."""
        return ("", "fp32") if self.precision == "fp32" else (f"{self.model} {self.kind}", self.precision)


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

    def early(self, batch: TokenBatch, policy: ExitPolicy) -> Ints:
        """(B,) exit layers."""
        layers = np.zeros(len(batch), dtype=np.int64)
        for result in exit_loop(self.backend, batch, policy):
            layers[result.rows[result.exits]] = result.layer
        return layers

    def every_exit(self, batch: TokenBatch) -> tuple[Floats, Floats | None]:
        """(B, n, C) logits; (B, n) learned certainty, or None."""
        state = self.backend.embed(batch)
        found = []
        for layer in self.backend.exits:
            state, logits, lte = self.backend.layer(layer, state)
            found.append((logits, lte))
        lte_too = found[0][1] is not None
        lte_of_all = np.stack([lte for _, lte in found if lte is not None], axis=1) if lte_too else None
        return np.stack([logits for logits, _ in found], axis=1), lte_of_all


class OnnxGraph:
    def __init__(self, path: Path, threads: int, tuned: bool) -> None:
        import onnxruntime as ort

        from berxit.runtime.backends.onnxruntime import open_session

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
    """OpenVINO's own settings for one input after another, and as many threads as everybody has: where they run and
    whether they are tied to cores it decides itself."""

    def __init__(self, path: Path, threads: int, precision: str) -> None:
        import openvino as ov

        core = ov.Core()
        options = {  # int8 is in the file; what surrounds it runs in the best that there is
            "INFERENCE_PRECISION_HINT": "f32" if precision == "fp32" or not has_bf16(core) else "bf16",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
        }
        compiled = core.compile_model(str(path), "CPU", options)
        self.inputs = [port.get_any_name() for port in compiled.inputs]
        self.request = compiled.create_infer_request()

    def full(self, batch: TokenBatch) -> Floats:
        return self.request.infer({name: getattr(batch, name) for name in self.inputs}, share_inputs=True)[0]


def has_bf16(core: Any) -> bool:
    """Whether OpenVINO computes in bf16 on this CPU."""
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class EagerBackend(Backend):
    """The checkpoint in PyTorch, layer by layer: what one writes by hand. BERT and RoBERTa."""

    name = "eager"

    def __init__(self, checkpoint: Path, threads: int) -> None:
        import torch

        from berxit.toolkit.commands.options import silence_library_logs

        silence_library_logs()
        from berxit.train.checkpoint import load_checkpoint

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


def make(spec: Spec, threads: int) -> Contender:
    if isinstance(spec.model, Shape):
        return MatrixProducts(spec.model, threads, spec.precision)
    if spec.kind == "segments":
        manifest: Manifest = read_manifest(spec.model, verify=False)
        backend = open_backend(
            spec.model, manifest, threads, backend=spec.backend, backend_options=spec.backend_options, lazy=spec.lazy
        )
        return Segments(backend)
    if spec.kind == "onnxruntime":
        return OnnxGraph(spec.model, threads, spec.tuned)
    if spec.kind == "openvino":
        return OpenVinoGraph(spec.model, threads, spec.precision)
    return Eager(EagerBackend(spec.model, threads))


def work(spec: Spec, threads: int, cases: dict[str, Case], pipe: Connection) -> None:
    """The process: loads, says so, then does one task at a time until it is told None."""
    try:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        contender = make(spec, threads)
        pipe.send(("ready", None))
        while (task := pipe.recv()) is not None:
            pipe.send(("done", TASKS[task[0]](contender, cases.get(task[1]))))
    except Exception as error:  # its process ends; the parent tells why
        pipe.send(("failed", f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"))


def time_full(contender: Any, case: Case) -> float:
    """Milliseconds per row at full depth."""
    return _timed([partial(contender.full, batch) for batch, _ in case.calls(first=case.alike)], case)


def time_early(contender: Any, case: Case) -> float:
    """Milliseconds per row under the case's policy."""
    return _timed([partial(contender.early, *call) for call in case.calls()], case)


def _timed(calls: list[Callable[[], object]], case: Case) -> float:
    """All calls, over and over for a turn. Before the clock one call, unless it takes as long as a turn: caches hold
    another process's data, threads sleep."""
    rows = len(case.ids) if case.together else len(calls)
    start = time.perf_counter()
    calls[0]()
    took = time.perf_counter() - start
    if took > case.turn_s and len(calls) == 1:
        return 1e3 * took / rows
    passes, start = 0, time.perf_counter()
    while (took := time.perf_counter() - start) < case.turn_s or not passes:
        for call in calls:
            call()
        passes += 1
    return 1e3 * took / passes / rows


def answers(contender: Any, case: Case) -> tuple[Floats, Floats | None]:
    """Row by row: (N, n, C) logits of every exit, or (N, 1, C) of one graph; (N, n) learned certainty, or None."""
    if not isinstance(contender, Segments) or isinstance(contender, Eager):
        return np.concatenate([contender.full(batch) for batch, _ in case.calls()])[:, None], None
    found = [contender.every_exit(batch) for batch, _ in case.calls()]
    lte = None if found[0][1] is None else np.concatenate([row for _, row in found if row is not None])
    return np.concatenate([logits for logits, _ in found]), lte


def exits(contender: Any, case: Case) -> Ints:
    """(N,) where the rows leave."""
    return np.concatenate([contender.early(*call) for call in case.calls()])


def once(contender: Any, case: Case) -> None:
    """At full depth, for the memory that it takes."""
    for batch, _ in case.calls():
        for part in _parts(contender, batch):
            contender.full(part)


def shallow(contender: Segments, case: Case) -> None:
    """As far as layer SHALLOW, for the memory that it takes."""
    layers = contender.backend.layers
    for batch, _ in case.calls():
        for part in _parts(contender, batch):
            contender.early(part, ExitPolicy.full_depth(layers).at_depth(min(SHALLOW, layers)))


def _parts(contender: Any, batch: TokenBatch) -> list[TokenBatch]:
    """A large batch as the runner takes it; one graph takes it whole."""
    if not isinstance(contender, Segments) or isinstance(contender, Eager):
        return [batch]
    return [batch.take(rows) for rows in parts(batch.lengths, contender.backend.tokens_at_once)]


def way(contender: MatrixProducts, case: Case) -> str:
    """The quickest way to multiply, at the case's shape."""
    return contender.way(case.calls(first=True)[0][0])


def resident(_contender: Any, _case: Case | None) -> float:
    """MiB of memory that this process holds, as Linux counts them. What it has freed already is given back before: how
    much of that malloc keeps is chance, 190 MiB of a large graph in one process and nothing in the next."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


TASKS: dict[str, Callable[..., Any]] = {
    "full": time_full,
    "early": time_early,
    "answers": answers,
    "exits": exits,
    "once": once,
    "shallow": shallow,
    "way": way,
    "resident": resident,
}
"""What a process can be asked."""
