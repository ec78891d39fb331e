"""Early exit on this CPU beside what one would run instead, on the same weights, inputs and threads.

    python benchmarks/side_by_side.py --threads 2 --output results/side-by-side              random weights, timing
    python benchmarks/side_by_side.py --checkpoint ckpt --data SST-2/ --threads 2 --output results/side-by-side-sst2

Compared: our segments (ONNX Runtime and OpenVINO), the same model as one graph (ONNX Runtime fp32 and int8, OpenVINO
fp32 and bf16), PyTorch eager with a Python exit loop, and the bare matrix multiplications through torch.mm. README.md
here says how it is measured. Writes side_by_side.json and side_by_side.md to --output, whether the bars hold or not.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from bars import LAZY, Found, bars, bars_table, tables
from contenders import Case, Schedule, Shape, Spec, work
from whole_graph import write_whole_graph

import devices
from runtime import BerxitError, ExitPolicy, InputError
from runtime.bundle import read_manifest
from runtime.console import debug_option, progress_bar, run
from runtime.examples import Examples, find_split, read_examples
from runtime.json_data import write_json
from runtime.metrics import METRICS
from runtime.tables import plural
from runtime.tokenization import TextTokenizer
from toolkit.commands.options import PATH, hush_libraries

BATCH = 32
Score = Callable[[npt.NDArray], float]
"""(N, C) logits -> the task's metric."""
PAUSE_S = 0.01
"""Between two processes' turns, so that the threads of one have stopped spinning when the next starts."""


@click.command()
@click.option("--checkpoint", type=PATH, help="Real weights, calibrated; else random ones of --layers and --hidden.")
@click.option("--data", type=PATH, help="With --checkpoint: labelled inputs, for scores.")
@click.option("--split", default="dev", show_default=True)
@click.option("--limit", default=200, show_default=True, type=click.IntRange(min=8), help="Inputs taken from --data.")
@click.option("--layers", default=12, show_default=True, type=click.IntRange(min=2))
@click.option("--hidden", default=768, show_default=True, type=click.IntRange(min=64), help="A multiple of 64.")
@click.option("--lengths", default="16,32,64,128", show_default=True, help="Tokens, for random weights.")
@click.option("--threads", default=2, show_default=True, type=click.IntRange(min=1))
@click.option("--seconds", default=300.0, show_default=True, help="Measure so long, and three rounds at least.")
@click.option("--quick", is_flag=True, help="A tiny model, two lengths, three rounds: does it run at all?")
@click.option("--output", type=PATH, required=True, help="Folder of the results.")
@click.option("--quiet", is_flag=True, help="No progress bars.")
@debug_option
def command(
    checkpoint: Path | None,
    data: Path | None,
    split: str,
    limit: int,
    layers: int,
    hidden: int,
    lengths: str,
    threads: int,
    seconds: float,
    quick: bool,
    output: Path,
    quiet: bool,
) -> None:
    """Measure early exit on this CPU beside what one would run instead."""
    if (checkpoint is None) != (data is None):
        raise InputError("--checkpoint and --data go together: scores need both")
    hush_libraries()
    if quick:
        layers, hidden, lengths, seconds = 3, 64, "8,16", 0.0
    try:
        tokens = [int(length) for length in lengths.split(",")]
    except ValueError:
        raise InputError(f"--lengths {lengths}: give numbers with commas between, 16,32") from None
    if hidden % 64:
        raise InputError(f"--hidden {hidden}: it must be a multiple of 64")
    before = devices.read_sensors()
    with tempfile.TemporaryDirectory() as scratch:
        folder = checkpoint or random_checkpoint(Path(scratch) / "checkpoint", layers, hidden, max(tokens))
        specs = prepare(folder, Path(scratch), quiet)
        examples = None
        if data is not None:
            examples, cases = data_cases(specs[0].model, data, split, limit, folder)
        else:
            cases = random_cases(specs[0].model, tokens)
        shape = Shape.of(folder)
        score = _scorer(specs[0].model, examples) if examples else None
        found = compare(specs, cases, threads, seconds, score, quiet)
    checked = bars(found, specs, cases, shape)
    conditions = {
        "model": str(checkpoint) if checkpoint else f"random weights, {layers} layers, d = {hidden}",
        "data": f"{data}, {split}, {len(examples)} inputs" if examples else "random token ids",
        "machine": dataclasses.asdict(devices.this_machine()),
        "threads": threads,
        "versions": {n: metadata.version(n) for n in ("berxit", "onnxruntime", "openvino", "torch", "numpy")},
        "before": dataclasses.asdict(before),
        "after": dataclasses.asdict(devices.read_sensors()),
    }
    headline = (
        f"{conditions['model']}; {conditions['data']}; {devices.this_machine()}, {plural(threads, 'thread')};"
        f" {plural(found.rounds, 'round')}, one process each, in turns"
    )
    text = "\n\n".join([headline, bars_table(checked), *tables(found, specs, cases, shape)])
    output.mkdir(parents=True, exist_ok=True)
    measured = {"bars": [dataclasses.asdict(bar) for bar in checked], **dataclasses.asdict(found)}
    write_json({**conditions, **measured}, output / "side_by_side.json")
    (output / "side_by_side.md").write_text(text + "\n", encoding="utf-8")
    click.echo(f"\n{text}\n\nwritten: {output / 'side_by_side.json'}, {output / 'side_by_side.md'}")


def random_checkpoint(folder: Path, layers: int, hidden: int, longest: int) -> Path:
    """A BERT that has learned nothing: it takes as long as one that has."""
    import torch
    from transformers import BertConfig, BertTokenizer

    from train.configuration import MultiExitConfig
    from train.modeling import MultiExitModel

    torch.manual_seed(0)
    backbone = BertConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden,
        max_position_embeddings=max(512, longest),
    )
    config = MultiExitConfig(backbone=backbone, lte=False, max_length=longest)
    MultiExitModel(config).save_pretrained(folder)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "the"]
    BertTokenizer(vocab={word: i for i, word in enumerate(vocabulary)}).save_pretrained(folder)
    return folder


def prepare(checkpoint: Path, scratch: Path, quiet: bool) -> list[Spec]:
    """Writes all that the contenders load. The first is our fp32 segments, which also is the reference's bundle."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from exporters import onnxruntime as target
    from exporters.export import export
    from exporters.options import ExportOptions

    bundle, graph, int8 = scratch / "fp32", scratch / "one_graph.onnx", scratch / "one_graph_int8.onnx"
    export(checkpoint, "onnxruntime", bundle, progress=progress_bar("exporting", quiet))
    write_whole_graph(bundle, graph)
    quantize_dynamic(graph, int8, per_channel=True, weight_type=QuantType.QInt8)
    specs = [Spec("segments", "ours, ONNX Runtime fp32", bundle, "fp32", True, "onnxruntime", ours=True)]
    if "int8" in target.PRECISIONS:
        export(checkpoint, "onnxruntime", scratch / "int8", options=ExportOptions(precision="int8"))
        specs.append(Spec("segments", "ours, ONNX Runtime int8", scratch / "int8", "int8", True, "onnxruntime", True))
    specs.append(Spec("segments", "ours, OpenVINO fp32", bundle, "fp32", True, "openvino", ours=True))
    bf16 = _has_bf16()
    if bf16:
        specs.append(Spec("segments", "ours, OpenVINO bf16", bundle, "bf16", True, "openvino-bf16", ours=True))
    specs += [
        Spec("onnxruntime", "one graph, ONNX Runtime fp32", graph, "fp32", False),
        Spec("onnxruntime", "one graph, ONNX Runtime fp32, our options", graph, "fp32", False, tuned=True),
        Spec("onnxruntime", "one graph, ONNX Runtime int8", int8, "int8", False),
        Spec("openvino", "one graph, OpenVINO fp32", graph, "fp32", False),
    ]
    if bf16:
        specs.append(Spec("openvino", "one graph, OpenVINO bf16", graph, "bf16", False))
    if read_manifest(bundle, verify=False).model.family in ("bert", "roberta"):
        specs.append(Spec("eager", "PyTorch eager", checkpoint, "fp32", True))
    else:
        click.echo("PyTorch eager is left out: its loop by hand is for BERT and RoBERTa")
    specs.append(Spec("matmul", "matrix products alone, torch fp32", checkpoint, "fp32", False))
    if bf16:
        specs.append(Spec("matmul", "matrix products alone, torch bf16", checkpoint, "bf16", False))
    return specs


def random_cases(bundle: Path, lengths: list[int]) -> dict[str, Case]:
    """Per length one row for every layer, which leaves there; and a batch of 32."""
    model = read_manifest(bundle, verify=False).model
    rng = np.random.default_rng(0)
    base = ExitPolicy.full_depth(model.layers)

    def case(name: str, rows: int, length: int) -> Case:
        ids = tuple(tuple(row) for row in rng.integers(1000, 20000, (rows, length)).tolist())
        depths = tuple(1 + row % model.layers for row in range(rows))
        policy = Schedule(base.criterion, base.thresholds, base.temperatures, depths=depths)
        return Case(name, ids, ((0,) * length,) * rows, policy, model.pad_token_id, full_rows=2)

    cases = {f"{n} tokens": case(f"{n} tokens", model.layers, n) for n in lengths}
    middle = lengths[len(lengths) // 2 - 1] if len(lengths) > 1 else lengths[0]
    name = f"batch of {BATCH}, {middle} tokens"
    return {**cases, name: case(name, BATCH, middle)}


def data_cases(bundle: Path, data: Path, split: str, limit: int, folder: Path) -> tuple[Examples, dict[str, Case]]:
    """All inputs one by one for the scores; 24 of them for the times; 32 as a batch. The checkpoint's own policy."""
    manifest = read_manifest(bundle, verify=False)
    model = manifest.model
    if manifest.calibration is None:
        raise BerxitError(f"{folder} is not calibrated: berxit-calibrate {folder} --data ... --keep 0.99 on a copy")
    path = find_split(data, split)
    examples = read_examples(path, model.text_columns, model.label_column, model.labels or None).head(limit)
    tokenizer = TextTokenizer(bundle / manifest.tokenizer.file, model.max_length, model.pad_token_id)
    batch = tokenizer(examples.texts)
    rows = [slice(0, int(n)) for n in batch.lengths]
    ids = [tuple(batch.input_ids[i, row].tolist()) for i, row in enumerate(rows)]
    types = [tuple(batch.token_type_ids[i, row].tolist()) for i, row in enumerate(rows)]

    def case(name: str, count: int) -> Case:
        step = max(1, len(ids) // count)
        chosen = range(0, step * min(count, len(ids)), step)
        take = tuple(ids[i] for i in chosen), tuple(types[i] for i in chosen)
        return Case(name, *take, manifest.policy, model.pad_token_id, full_rows=count)

    names = {"scores": len(ids), "inputs": 24, f"batch of {BATCH}, inputs": BATCH}
    return examples, {name: case(name, count) for name, count in names.items()}


class Worker:
    """A contender's process. It runs only between ``ask`` and its answer."""

    def __init__(self, spec: Spec, threads: int, cases: dict[str, Case]) -> None:
        context = multiprocessing.get_context("spawn")
        self.spec = spec
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(spec, threads, cases, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._answer()

    def ask(self, task: str, case: str) -> Any:
        time.sleep(PAUSE_S)
        self._pipe.send((task, case))
        return self._answer()

    def close(self) -> None:
        with suppress(OSError):  # it has ended already
            self._pipe.send(None)
        self._process.join(timeout=20)
        if self._process.is_alive():
            self._process.kill()

    def _answer(self) -> Any:
        try:
            state, answer = self._pipe.recv()
        except EOFError:
            state, answer = "failed", f"ended with status {self._process.exitcode}"
        if state == "failed":
            raise BerxitError(f"{self.spec.name}: {answer}")
        return answer


@contextmanager
def workers_of(specs: list[Spec], threads: int, cases: dict[str, Case], quiet: bool) -> Iterator[list[Worker]]:
    with ExitStack() as stack:
        workers = []
        with progress_bar("loading", quiet)(len(specs)) as bar:
            for spec in specs:
                worker = Worker(spec, threads, cases)
                stack.callback(worker.close)
                workers.append(worker)
                bar.update(1)
        yield workers


def compare(
    specs: list[Spec], cases: dict[str, Case], threads: int, seconds: float, score: Score | None, quiet: bool
) -> Found:
    """Everyone in turns, there and back, until ``seconds`` are over."""
    timed = [name for name in cases if name != "scores"]
    with workers_of(specs, threads, cases, quiet) as workers:
        plan = [
            (worker, task, case)
            for case in timed
            for task in (("batch",) if case.startswith("batch") else ("full", "early"))
            for worker in workers
            if _takes_part(worker.spec, task)
        ]
        with progress_bar("warming up", quiet)(len(plan)) as bar:
            for worker, task, case in plan:
                worker.ask(task, case)
                bar.update(1)
        checked = _check(workers, cases, score, quiet)
        times: dict[str, list[float]] = {f"{case} | {task} | {w.spec.name}": [] for w, task, case in plan}
        rounds, start = 0, time.perf_counter()
        with progress_bar("measuring", quiet)(1000) as bar:
            shown = 0
            while rounds < 3 or time.perf_counter() - start < seconds:
                for worker, task, case in plan if rounds % 2 == 0 else plan[::-1]:
                    times[f"{case} | {task} | {worker.spec.name}"].append(worker.ask(task, case))
                rounds += 1
                share = max(rounds / 3 if seconds == 0 else 0, (time.perf_counter() - start) / max(seconds, 1e-9))
                now = 1000 if rounds >= 3 and seconds == 0 else min(1000, int(1000 * min(share, 1)))
                bar.update(now - shown)
                shown = now
        memory = {worker.spec.name: worker.ask("memory", timed[0]) for worker in workers}
    lazy = replace(specs[0], name=LAZY, lazy=True)
    with workers_of([lazy], threads, cases, quiet) as [worker]:
        for case in timed:
            worker.ask("shallow", case)
        memory[LAZY] = worker.ask("memory", timed[0])
    return Found(rounds, times, memory, *checked)


def _takes_part(spec: Spec, task: str) -> bool:
    if task == "full":
        return True
    return spec.early if task == "early" else spec.kind != "eager"


def _check(
    workers: list[Worker], cases: dict[str, Case], score: Score | None, quiet: bool
) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Does everyone compute the same model? Differences to our fp32 segments, average exit layers and scores."""
    case = "scores" if score else next(iter(cases))
    differs: dict[str, float] = {}
    exits: dict[str, float] = {}
    scores: dict[str, float] = {}
    reference = workers[0].ask("answers", case)
    with progress_bar("comparing answers", quiet)(len(workers)) as bar:
        for worker in workers:
            bar.update(1)
            spec = worker.spec
            if spec.kind == "matmul":
                continue
            full = worker.ask("answers", case)
            differs[spec.name] = float(np.abs(full - reference).max())
            if spec.precision == "fp32" and not differs[spec.name] < 1e-2:
                raise BerxitError(f"{spec.name} is {differs[spec.name]:.1e} off our fp32 segments: no comparison")
            if score:
                scores[f"{spec.name} | full"] = score(full)
            for each in cases if spec.early else ():
                layers, early = worker.ask("exits", each)
                exits[f"{each} | {spec.name}"] = float(layers.mean())
                if score and each == "scores":
                    scores[f"{spec.name} | early"] = score(early)
    return differs, exits, scores


def _scorer(bundle: Path, examples: Examples) -> Score:
    model = read_manifest(bundle, verify=False).model
    metric = METRICS[model.metric]
    return lambda logits: float(metric(logits[:, 0] if model.regression else logits.argmax(axis=1), examples.labels))


def _has_bf16() -> bool:
    import openvino as ov

    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


if __name__ == "__main__":
    run(command)
