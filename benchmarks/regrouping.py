"""CPU time of a shard that is processed layer by layer, with regrouped rows, against ``predict_batch``.

    python benchmarks/regrouping.py BUNDLE --data DATA --rows 2000 --rounds 5 --output regrouping

- In order: as ``predict_batch``. The shard is split into parts of similar length. Each part passes through all layers,
  and rows that exit are removed from it.
- Regrouped: every layer runs on all rows of the shard that have not exited, in full parts of similar length.

Both run the same sessions of ONNX Runtime through the backend with numpy tensors, with one thread and for several
sizes of a part. They are interleaved in every round. Exit layers and logits must be equal. Times are CPU seconds of
this process, so that other processes on the machine matter little.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import click
import numpy as np
import numpy.typing as npt

from berxit import devices
from berxit.runtime.backends.host import HostBackend, Run, State, first_tokens, length_axes
from berxit.runtime.backends.onnxruntime import open_session
from berxit.runtime.bundle import Manifest, Segment, open_bundle
from berxit.runtime.bundle_files import BundleFile
from berxit.runtime.console import debug_option, run
from berxit.runtime.errors import BerxitError
from berxit.runtime.examples import find_split, read_examples_for
from berxit.runtime.loop import exit_loop
from berxit.runtime.policies import ExitPolicy
from berxit.runtime.results import write_results
from berxit.runtime.runner import parts
from berxit.runtime.tables import markdown_table
from berxit.runtime.tokenization import TextTokenizer, TokenBatch
from berxit.toolkit.commands.options import PATH

Found = tuple[npt.NDArray[np.int64], npt.NDArray]
"""Exit layers (N,) and logits (N, C)."""
TOKENS = (256, 512, 1024, 2048)
TOLERANCE = 1e-4
"""Largest difference of logits: a matmul rounds differently for another number of rows."""


@click.command()
@click.argument("bundle", type=PATH)
@click.option("--data", type=PATH, required=True)
@click.option("--rows", default=2000, show_default=True, help="Rows of the shard.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--output", type=PATH, required=True)
@debug_option
def command(bundle: Path, data: Path, rows: int, rounds: int, output: Path) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    folder, manifest = open_bundle(bundle)
    backend = HostBackend(folder, manifest, 1, open_file)
    model = manifest.model
    texts = read_examples_for(model, find_split(data, "dev")).texts
    tokenizer = TextTokenizer(folder.file(manifest.tokenizer), model.max_length, model.pad_token_id)
    batch = tokenizer([texts[row % len(texts)] for row in range(rows)])
    methods: dict[str, Callable[..., Found]] = {"in order": in_order, "regrouped": regrouped}
    expected = in_order(backend, manifest, batch, TOKENS[0])
    seconds: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        for tokens in TOKENS:
            for name, method in methods.items():
                start = time.process_time()
                found = method(backend, manifest, batch, tokens)
                seconds.setdefault((name, tokens), []).append(time.process_time() - start)
                check(expected, found, f"{name}, {tokens} tokens")
    today = seconds["in order", backend.tokens_at_once]
    ratios = {key: median(a / b for a, b in zip(found, today, strict=True)) for key, found in seconds.items()}
    table = [
        [name, tokens, f"{1e3 * median(found) / rows:.3f}", f"{ratios[name, tokens]:.3f}"]
        for (name, tokens), found in seconds.items()
    ]
    text = markdown_table(["rows", "tokens per part", "CPU ms per row", "of predict_batch's"], table)
    conditions = {
        "machine": str(devices.this_machine()),
        "rows": rows,
        "average exit layer": float(expected[0].mean()),
        "layers": model.layers,
        "load": os.getloadavg()[0],
    }
    click.echo(text)
    timings = [
        {"rows": key[0], "tokens": key[1], "seconds": found, "ratio": ratios[key]} for key, found in seconds.items()
    ]
    lines = "\n".join(f"- {name}: {value}" for name, value in conditions.items())
    write_results(output, "regrouping", {**conditions, "timings": timings}, f"{lines}\n\n{text}")


def open_file(segment: Segment, file: BundleFile) -> Run:
    session, outputs = open_session(file, 1), [tensor.name for tensor in segment.outputs]
    return lambda inputs: session.run(outputs, inputs)


def in_order(backend: HostBackend, manifest: Manifest, batch: TokenBatch, tokens: int) -> Found:
    """As ``EarlyExitRunner.predict_batch``."""
    layers, logits = empty(batch, manifest)
    for rows in parts(batch.lengths, tokens):
        for result in exit_loop(backend, batch.take(rows), manifest.policy):
            exited = rows[result.rows[result.exits]]
            layers[exited], logits[exited] = result.layer, result.logits[result.exits]
    return layers, logits


def regrouped(backend: HostBackend, manifest: Manifest, batch: TokenBatch, tokens: int) -> Found:
    """Layer by layer over the whole shard."""
    policy: ExitPolicy = manifest.policy
    layers, logits = empty(batch, manifest)
    axes = {tensor.role: length_axes(tensor) for tensor in manifest.segments[0].outputs}
    lengths, memory = batch.lengths, None
    padding = padding_of(backend, batch)
    groups = [(rows, backend.embed(batch.take(rows))) for rows in parts(lengths, tokens)]
    for layer in backend.exits:
        going: list[tuple[npt.NDArray, State]] = []
        for rows, state in groups:
            after, found, lte = backend.layer(layer, state)
            certainty, memory = policy.certainty(layer, found, lte, None)
            exits = policy.exits(layer, certainty)
            layers[rows[exits]], logits[rows[exits]] = layer, found[exits]
            if not exits.all():
                going.append((rows[~exits], backend.keep(after, ~exits)))
        if not going:
            break
        groups = regroup(going, lengths, axes, padding, tokens)
    if memory is not None:
        raise BerxitError("a criterion with memory (patience) cannot be measured: its memory is not regrouped")
    return layers, logits


def padding_of(backend: HostBackend, batch: TokenBatch) -> dict[str, float]:
    """Role -> value of a padded token: zero in hidden states and weights, a large negative number in the bias."""
    lengths = batch.lengths
    mixed = backend.embed(batch.take(np.array([lengths.argmin(), lengths.argmax()])))
    return {role: 0.0 if role == "hidden" else float(tensor.min()) for role, tensor in mixed.tensors.items()}


def regroup(
    groups: list[tuple[npt.NDArray, State]],
    lengths: npt.NDArray,
    axes: dict[str, tuple[int, ...]],
    padding: dict[str, float],
    tokens: int,
) -> list[tuple[npt.NDArray, State]]:
    """The same rows in full parts of similar length, each padded to its longest row."""
    rows = np.concatenate([rows for rows, _ in groups])
    place = {row: (group, i) for group, (some, _) in enumerate(groups) for i, row in enumerate(some.tolist())}
    found = []
    for chosen in parts(lengths[rows], tokens):
        part = rows[chosen]
        longest = int(lengths[part].max())
        tensors = {}
        for role, along in axes.items():
            first = groups[0][1].tensors[role]
            shape = [longest if axis in along else size for axis, size in enumerate(first.shape)]
            tensors[role] = np.full([len(part), *shape[1:]], padding[role], dtype=first.dtype)
            for target, row in zip(tensors[role], part.tolist(), strict=True):
                group, source = place[row]
                values = first_tokens(groups[group][1].tensors[role], along, longest)[source]
                target[tuple(slice(size) for size in values.shape)] = values
        found.append((part, State(tensors, lengths[part])))
    return found


def empty(batch: TokenBatch, manifest: Manifest) -> Found:
    classes = max(1, len(manifest.model.labels))
    return np.zeros(len(batch), dtype=np.int64), np.zeros((len(batch), classes), dtype=np.float32)


def check(expected: Found, found: Found, what: str) -> None:
    """Raises BerxitError if exit layers or logits differ."""
    if (expected[0] != found[0]).any() or np.abs(expected[1] - found[1]).max() > TOLERANCE:
        raise BerxitError(f"{what}: exit layers or logits differ from those of predict_batch")


if __name__ == "__main__":
    run(command)
