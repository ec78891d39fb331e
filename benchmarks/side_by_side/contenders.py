"""Contenders of the side-by-side benchmark. Each runs in a separate process, which is idle between its tasks.

Every contender computes the last exit of a batch at full depth; contenders with early exit also run the exit loop. All
get the same token ids and use the same policy code. A process imports only what its contender needs, because its memory
is measured.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
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
"""Layer by which all inputs exit when the memory of lazy loading is measured."""
TURN_S = 0.1
"""Minimum duration of a measurement, in seconds."""
STATUS = Path("/proc/self/status")
"""File with the resident memory of a process; exists on Linux only."""


@dataclass(frozen=True)
class Schedule(ExitPolicy):
    """Policy for random weights, whose certainty is meaningless: row i exits at layer ``depths[i]``. The certainty is
    computed nevertheless."""

    depths: tuple[int, ...] = ()

    def exits(self, layer: int, certainty: npt.NDArray, logits: Floats | None = None) -> Bools:
        here = np.array([depth for depth in self.depths if depth >= layer])  # the remaining rows, in order
        return here == layer


@dataclass(frozen=True)
class Case:
    """Inputs with an exit policy."""

    name: str
    ids: tuple[tuple[int, ...], ...]
    """Token ids of each row."""
    types: tuple[tuple[int, ...], ...]
    policy: ExitPolicy
    pad: int
    together: bool = False
    """True to run all rows as one batch; False to run them one by one."""
    alike: bool = False
    """True if all rows have the same length, so that full depth is measured on one of them."""
    turn_s: float = TURN_S
    """Minimum duration of a measurement in seconds. Averaging many short calls reduces the effect of disturbances."""

    @classmethod
    def of(
        cls, name: str, ids: Sequence[Sequence[int]], policy: ExitPolicy, pad: int, types: Any = None, **how: bool
    ) -> Case:
        kinds = types if types is not None else [[0] * len(row) for row in ids]
        return cls(name, tuple(map(tuple, ids)), tuple(map(tuple, kinds)), policy, pad, **how)

    def calls(self, *, first: bool = False) -> list[tuple[TokenBatch, ExitPolicy]]:
        """Batch and policy of each call; ``first``: of the first call only."""
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
    """Contender and the files that it loads."""

    kind: str
    """segments, onnxruntime (one graph), openvino (one graph), eager, or products (matrix multiplications only)."""
    name: str
    model: Path | Shape
    """Bundle, ONNX file or checkpoint; for ``products`` the shape."""
    precision: str
    backend: str | None = None
    backend_options: Options = field(default_factory=dict)
    lazy: bool = False
    """True to load a layer when an input first reaches it."""
    tuned: bool = False
    """True to run one graph with the session options of our segments instead of ONNX Runtime's defaults."""

    @property
    def ours(self) -> bool:
        return self.kind == "segments"

    @property
    def tunable(self) -> bool:
        """True if ``--tune`` measures this contender."""
        return self.ours and "shared_pool" not in self.backend_options

    @property
    def early(self) -> bool:
        """True for contenders with early exit."""
        return self.kind in ("segments", "eager")

    @property
    def outputs_key(self) -> tuple[str, str]:
        """Key that is equal for contenders with equal outputs, so that only one of them must be scored."""
        return ("", "fp32") if self.precision == "fp32" else (f"{self.model} {self.kind}", self.precision)


class Contender(Protocol):
    def full(self, batch: TokenBatch) -> Floats:
        """Logits of the last exit, (B, C)."""


class Segments:
    """Our segments and exit loop on one backend."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._all = ExitPolicy.full_depth(backend.layers).at_depth(backend.layers)

    def full(self, batch: TokenBatch) -> Floats:
        *_, last = exit_loop(self.backend, batch, self._all)
        return last.logits

    def early(self, batch: TokenBatch, policy: ExitPolicy) -> Ints:
        """(B,) exit layer of each row under ``policy``."""
        layers = np.zeros(len(batch), dtype=np.int64)
        for result in exit_loop(self.backend, batch, policy):
            layers[result.rows[result.exits]] = result.layer
        return layers

    def every_exit(self, batch: TokenBatch) -> tuple[Floats, Floats | None]:
        """(B, n, C) logits of every exit; (B, n) LTE certainty, or None."""
        state = self.backend.embed(batch)
        found = []
        for layer in self.backend.exits:
            state, logits, lte = self.backend.layer(layer, state)
            found.append((logits, lte))
        lte_too = found[0][1] is not None
        lte_of_all = np.stack([lte for _, lte in found if lte is not None], axis=1) if lte_too else None
        return np.stack([logits for logits, _ in found], axis=1), lte_of_all


class OnnxGraph:
    """One graph without exits on ONNX Runtime."""

    def __init__(self, path: Path, threads: int, tuned: bool) -> None:
        import onnxruntime as ort

        from berxit.runtime.backends.onnxruntime import open_session

        if tuned:
            self.session = open_session(path, threads)
        else:
            options = ort.SessionOptions()  # all other options have their defaults
            options.intra_op_num_threads = threads
            options.log_severity_level = 3
            self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = [each.name for each in self.session.get_inputs()]

    def full(self, batch: TokenBatch) -> Floats:
        return self.session.run(None, {name: getattr(batch, name) for name in self.inputs})[0]


class OpenVinoGraph:
    """One graph without exits on OpenVINO, with its settings for low latency and the same thread count as the other
    contenders. OpenVINO decides about core types and pinning."""

    def __init__(self, path: Path, threads: int, precision: str) -> None:
        import openvino as ov

        core = ov.Core()
        options = {  # the file defines int8; other operators run in bf16 if the CPU supports it
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
    """True if OpenVINO computes in bf16 on this CPU."""
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class EagerBackend(Backend):
    """Checkpoint in PyTorch, layer by layer, like a hand-written exit loop. Supports BERT and RoBERTa."""

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
        hidden, mask = state  # a single row has no padding, so that it needs no mask
        hidden = self.model.backbone.encoder.layer[layer - 1](hidden, None)
        pooled = self.model.pooled(layer, hidden, mask)
        logits = self.model.heads[layer - 1](pooled).numpy()
        lte = None if self.model.lte is None else self.torch.sigmoid(self.model.lte(pooled)).squeeze(-1).numpy()
        return (hidden, mask), logits, lte

    def keep(self, state: tuple[Any, Any], rows: Bools) -> tuple[Any, Any]:
        raise AssertionError("at batch size 1 no rows remain after an exit")


class Eager(Segments):
    """Contender in PyTorch. Full depth is the forward pass of transformers, followed by the last exit."""

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
        return model.heads[-1](model.pooled(len(model.heads), hidden, mask)).numpy()


def make(spec: Spec, threads: int) -> Contender:
    """Loads a contender."""
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
    """Main function of a contender's process: loads it, reports "ready", and runs tasks from ``pipe`` until None."""
    try:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        contender = make(spec, threads)
        pipe.send(("ready", None))
        while (task := pipe.recv()) is not None:
            pipe.send(("done", TASKS[task[0]](contender, cases.get(task[1]))))
    except Exception as error:  # this process ends, and its parent reports the error
        pipe.send(("failed", f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"))


def time_full(contender: Any, case: Case) -> float:
    """Milliseconds per row at full depth."""
    return _timed([partial(contender.full, batch) for batch, _ in case.calls(first=case.alike)], case)


def time_early(contender: Any, case: Case) -> float:
    """Milliseconds per row under the policy of the case."""
    return _timed([partial(contender.early, *call) for call in case.calls()], case)


def _timed(calls: list[Callable[[], object]], case: Case) -> float:
    """Repeats all calls for the minimum duration; returns milliseconds per row.

    One warm-up call runs first, because caches contain the data of other processes and threads sleep. If it takes
    longer than the minimum duration, its time is the result.
    """
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


def outputs(contender: Any, case: Case) -> tuple[Floats, Floats | None]:
    """Outputs for all rows: (N, n, C) logits of every exit, or (N, 1, C) of one graph; (N, n) LTE certainty, or
    None."""
    if not isinstance(contender, Segments) or isinstance(contender, Eager):
        return np.concatenate([contender.full(batch) for batch, _ in case.calls()])[:, None], None
    found = [contender.every_exit(batch) for batch, _ in case.calls()]
    lte = None if found[0][1] is None else np.concatenate([row for _, row in found if row is not None])
    return np.concatenate([logits for logits, _ in found]), lte


def exits(contender: Any, case: Case) -> Ints:
    """(N,) exit layer of each row."""
    return np.concatenate([contender.early(*call) for call in case.calls()])


def once(contender: Any, case: Case) -> None:
    """Runs a case once at full depth, before memory is measured."""
    for batch, _ in case.calls():
        for part in _parts(contender, batch):
            contender.full(part)


def shallow(contender: Segments, case: Case) -> None:
    """Runs a case once with all rows exiting at layer SHALLOW, before memory is measured."""
    layers = contender.backend.layers
    for batch, _ in case.calls():
        for part in _parts(contender, batch):
            contender.early(part, ExitPolicy.full_depth(layers).at_depth(min(SHALLOW, layers)))


def _parts(contender: Any, batch: TokenBatch) -> list[TokenBatch]:
    """Parts of a large batch, split as the runner splits it; one graph runs the whole batch."""
    if not isinstance(contender, Segments) or isinstance(contender, Eager):
        return [batch]
    return [batch.take(rows) for rows in parts(batch.lengths, contender.backend.tokens_at_once)]


def way(contender: MatrixProducts, case: Case) -> str:
    """Fastest implementation of matrix multiplication at the shape of the case."""
    return contender.way(case.calls(first=True)[0][0])


def resident(_contender: Any, _case: Case | None) -> float:
    """Resident memory of this process in MiB, from Linux.

    Freed memory is first returned to the system, because the amount that malloc retains varies randomly: 190 MiB for a
    large graph in one process, nothing in the next.
    """
    with suppress(OSError, AttributeError):  # the C library has no malloc_trim
        ctypes.CDLL(None).malloc_trim(0)
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


TASKS: dict[str, Callable[..., Any]] = {
    "full": time_full,
    "early": time_early,
    "outputs": outputs,
    "exits": exits,
    "once": once,
    "shallow": shallow,
    "way": way,
    "resident": resident,
}
"""Tasks of a contender's process, by name."""
