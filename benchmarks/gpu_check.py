"""Check of all GPU features of this project on this machine's NVIDIA GPU, with the time per layer of the exit loop.

    python benchmarks/gpu_check.py --output results/gpu-check                   random weights, base size
    python benchmarks/gpu_check.py --model MODEL --output results/gpu-check     a pre-trained encoder (BERT or RoBERTa)
    python benchmarks/gpu_check.py --bundle bundle --output results/gpu-check   an existing bundle; without PyTorch

Runs these parts one after the other, even if one fails:

- some training steps
- an export in every precision of target tensorrt
- every backend of this target on every bundle: a check of every exit against the checkpoint, then a bench
- the exit loop on CUDA graphs of PyTorch, as a substitute on GPUs that cannot run TensorRT engines

Writes gpu_check.json and gpu_check.md to --output, with the reason for every part that did not run.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from berxit import devices
from berxit.runtime.backends import BACKENDS, ChosenBackend
from berxit.runtime.benchmark import bench
from berxit.runtime.console import debug_option, run
from berxit.runtime.errors import BerxitError
from berxit.runtime.results import write_results
from berxit.runtime.tables import markdown_table
from berxit.toolkit.commands.options import PATH, silence_library_logs
from berxit.toolkit.quickstart import SAMPLE

NOTHING_HERE = "this machine has no NVIDIA GPU: run this on a Jetson, or on a machine whose nvidia-smi shows a GPU"
STEPS = 20
Outcome = tuple[str, dict[str, Any]]
"""Summary in one line, and the data."""


@dataclass(frozen=True)
class Part:
    """Result of one part of the check."""

    name: str
    ran: bool
    said: str
    """Summary of the result, or the reason why the part did not run."""
    found: dict[str, Any]
    seconds: float


@click.command()
@click.option("--model", type=PATH, help="Folder of a pre-trained encoder.  [default: random weights]")
@click.option("--bundle", "bundles", type=PATH, multiple=True, help="Check only the backends, on this bundle.")
@click.option(
    "--layers",
    default=12,
    show_default=True,
    type=click.IntRange(min=2),
    help="Layers of the encoder with random weights.",
)
@click.option(
    "--hidden",
    default=768,
    show_default=True,
    type=click.IntRange(min=64),
    help="Hidden size of the encoder with random weights, a multiple of 64.",
)
@click.option(
    "--lengths", default="32,128", show_default=True, help="Input lengths in tokens for the exit loop on CUDA graphs."
)
@click.option(
    "--queries", default=200, show_default=True, type=click.IntRange(min=1), help="Minimum number of queries per point."
)
@click.option("--output", type=PATH, required=True, help="Folder of the results.")
@debug_option
def command(
    model: Path | None, bundles: tuple[Path, ...], layers: int, hidden: int, lengths: str, queries: int, output: Path
) -> None:
    """Check all GPU features of this project on this machine's NVIDIA GPU, and write a report."""
    if not gpu_name():
        raise BerxitError(NOTHING_HERE)
    tokens = [int(length) for length in lengths.split(",")]
    before, parts = devices.read_sensors(), []

    def attempt(name: str, work: Callable[[], Outcome]) -> bool:
        parts.append(attempted(name, work))
        click.echo(f"{'ran' if parts[-1].ran else 'did not run'}: {name}: {parts[-1].said}")
        return parts[-1].ran

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        ready = list(bundles)
        if not bundles:
            silence_library_logs()
            encoder = model or random_encoder(folder / "encoder", layers, hidden)
            if attempt(f"training, {STEPS} steps", lambda: train(encoder, folder / "checkpoint")):
                for precision in ("fp32", "fp16", "bf16", "int8"):
                    bundle = folder / precision
                    if attempt(f"export {precision}", lambda p=precision: export_in(p, folder / "checkpoint", folder)):
                        ready.append(bundle)
                for dtype in ("float32", "float16", "bfloat16"):
                    for length in tokens:
                        attempt(
                            f"exit loop on CUDA graphs of PyTorch, {dtype}, {length} tokens",
                            lambda d=dtype, n=length: loop_on_gpu(folder / "checkpoint", d, n, queries),
                        )
        for bundle in ready:
            for info in BACKENDS["tensorrt"]:
                for chosen in info.variants() if info.installed else [info.with_options(None)]:
                    attempt(
                        f"backend {chosen.label}, {bundle.name}", lambda b=bundle, c=chosen: measured(b, c, queries)
                    )
    conditions = {
        "gpu": gpu_name(),
        "machine": dataclasses.asdict(devices.this_machine()),
        "model": str(model) if model else f"random weights, {layers} layers, d = {hidden}",
        "versions": versions(),
        "before": dataclasses.asdict(before),
        "after": dataclasses.asdict(devices.read_sensors()),
    }
    for path in write(conditions, parts, output):
        click.echo(f"written: {path}")


def gpu_name() -> str:
    """Name of the GPU, from the driver, the board or PyTorch; empty without a GPU."""
    machine = devices.this_machine()
    if machine.gpu or devices.recognise(machine).name.startswith("jetson"):
        return machine.gpu or machine.board
    try:
        import torch
    except ModuleNotFoundError:
        return ""
    return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else ""


def attempted(name: str, work: Callable[[], Outcome]) -> Part:
    """Runs one part. An exception is recorded in the result, so that the next part runs."""
    start = time.perf_counter()
    try:
        said, found = work()
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        said = reason if isinstance(error, BerxitError) else f"{type(error).__name__}: {reason}"
        return Part(name, False, said, {}, time.perf_counter() - start)
    return Part(name, True, said, found, time.perf_counter() - start)


def random_encoder(folder: Path, layers: int, hidden: int) -> Path:
    """BERT with random weights and the vocabulary of the sample data. It is as fast as a trained model."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    torch.manual_seed(0)
    words = sorted(set((SAMPLE / "train.tsv").read_text(encoding="utf-8").lower().split()))
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden,
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizer(vocab={word: place for place, word in enumerate(vocabulary)}).save_pretrained(folder)
    return folder


def train(encoder: Path, checkpoint: Path) -> Outcome:
    """Runs STEPS training steps on the sample data with the trainer of berxit-train, which selects the GPU."""
    from berxit.runtime.json_data import read_json
    from berxit.train.fine_tuning import TrainingOptions, fine_tune
    from berxit.train.tasks import custom_task

    options = TrainingOptions(str(encoder), max_steps=STEPS, batch_size=16, max_length=128)
    fine_tune(custom_task(SAMPLE, ("text",), "label"), SAMPLE, options, checkpoint)
    record = read_json(checkpoint / "training.json")
    return f"on {record['device']}, {record['seconds'] / record['steps'] * 1e3:.0f} ms per step", record


def export_in(precision: str, checkpoint: Path, folder: Path) -> Outcome:
    from berxit.exporters.export import export
    from berxit.exporters.options import ExportOptions

    options = ExportOptions(precision, lengths=(32, 128), target_version="tensorrt10")
    manifest = export(checkpoint, "tensorrt", folder / precision, options=options)
    largest = max(manifest.parity.max_diff)
    return f"exits within {largest:.1e} of the checkpoint, on ONNX Runtime on the CPU", {"max_diff": largest}


def measured(bundle: Path, chosen: ChosenBackend, queries: int) -> Outcome:
    """Checks every exit on this device, then measures. Builds missing engines first."""
    result = bench(
        bundle,
        backend=chosen.info.name,
        backend_options=chosen.options,
        queries=queries,
        seconds=0.0,
        thresholds=1,
    )
    said = (
        f"exits within {result.self_check:.1e} of the checkpoint; {result.full_depth.latency.p50:.2f} ms at full depth,"
        f" {1e3 * result.line.ms_per_layer if result.line else float('nan'):.0f} us per layer"
    )
    return said, dataclasses.asdict(result)


def loop_on_gpu(checkpoint: Path, dtype: str, length: int, queries: int) -> Outcome:
    import torch
    from cuda_graph_loop import captured, exit_loop_cost

    from berxit.train.checkpoint import load_checkpoint

    model, _ = load_checkpoint(checkpoint)
    cost = exit_loop_cost(model, "cuda", dtype, length, queries, captured, torch.cuda.synchronize)
    return str(cost), dataclasses.asdict(cost)


def versions() -> dict[str, str]:
    found = {}
    for name in (
        "berxit",
        "torch",
        "transformers",
        "onnx",
        "onnxruntime",
        "onnxruntime-gpu",
        "tensorrt",
        "tensorrt-rtx-cu13-bindings",
        "cuda-python",
        "numpy",
    ):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def write(conditions: dict[str, Any], parts: Sequence[Part], output: Path) -> list[Path]:
    """Writes gpu_check.json and gpu_check.md, and returns their paths."""
    rows = [[part.name, "ran" if part.ran else "did not run", part.said.replace("|", "/")] for part in parts]
    packages = ", ".join(f"{name} {version}" for name, version in conditions["versions"].items())
    text = [f"{conditions['gpu']}; {conditions['model']}; {packages}", markdown_table(["part", "", "result"], rows)]
    numbers = {**conditions, "parts": [dataclasses.asdict(part) for part in parts]}
    return write_results(output, "gpu_check", numbers, "\n\n".join(text))


if __name__ == "__main__":
    run(command)
