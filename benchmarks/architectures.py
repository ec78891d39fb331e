"""Random configurations: does every exit of the exported segments equal that of PyTorch?

    python benchmarks/architectures.py [--configurations 500] [--first 0] --output architectures

Family, sizes, activation, exit heads, pooling, LTE, number of classes or regression, and the layers with exits are
drawn; so are all weights. The export itself compares every exit with the checkpoint on 32 inputs (``parity``), which
here are random texts of 1 to 60 words. ``--first N --configurations 1`` repeats one case.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer, BertTokenizer, PretrainedConfig
from transformers.models.auto.configuration_auto import AutoConfig

from berxit.exporters.export import export
from berxit.exporters.options import ExportOptions
from berxit.runtime.console import debug_option, progress_bar, run
from berxit.runtime.errors import BerxitError
from berxit.runtime.json_data import write_json
from berxit.runtime.results import write_results
from berxit.runtime.tables import markdown_table
from berxit.train.checkpoint import SAMPLES_FILE, TrainingRecord, save_checkpoint
from berxit.train.modeling import MultiExitModel

FAMILIES = ("bert", "roberta", "albert", "distilbert", "mpnet")
WORDS = [f"w{number}" for number in range(60)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
MPNET_SPECIAL = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"]
"""MPNet pads with id 1."""


def configuration(rng: np.random.Generator, family: str, vocabulary: int) -> PretrainedConfig:
    """A configuration of a family with random sizes."""
    heads = int(rng.choice([1, 2, 3, 4]))
    width = heads * int(rng.choice([4, 8, 16, 24]))
    layers, inner = int(rng.integers(1, 7)), int(rng.choice([8, 33, 64, 96]))
    activation = str(rng.choice(["gelu", "relu", "gelu_new"]))
    common = {"vocab_size": vocabulary, "max_position_embeddings": 70, "pad_token_id": 1 if family == "mpnet" else 0}
    if family == "distilbert":
        sizes = {"dim": width, "n_layers": layers, "n_heads": heads, "hidden_dim": inner}
        return AutoConfig.for_model(family, **common, **sizes, activation="relu" if activation == "relu" else "gelu")
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "hidden_act": activation,
        "layer_norm_eps": float(rng.choice([1e-5, 1e-12])),
    }
    more: dict[str, Any] = {}
    if family == "albert":
        more = {"embedding_size": int(rng.choice([8, 16, 40]))}
    if family == "roberta":
        more = {"type_vocab_size": 1}
    return AutoConfig.for_model(family, **common, **sizes, **more)


def checkpoint_of(rng: np.random.Generator, family: str, folder: Path) -> str:
    """Writes a checkpoint with random weights. Returns a description."""
    words = [*(MPNET_SPECIAL if family == "mpnet" else SPECIAL), *WORDS]
    config = configuration(rng, family, len(words))
    torch.manual_seed(int(rng.integers(2**31)))
    backbone = AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * float(rng.choice([0.02, 0.1, 0.2])))
    source = folder.with_name("backbone")
    backbone.save_pretrained(source)
    BertTokenizer(vocab={word: place for place, word in enumerate(words)}).save_pretrained(source)
    classes = int(rng.choice([1, 2, 3, 7]))
    labels = {} if classes == 1 else {place: f"c{place}" for place in range(classes)}
    options: dict[str, Any] = {
        "exit_head": str(rng.choice(["linear", "pooler"])),
        "pooling": str(rng.choice(["first", "mean"])),
        "lte": bool(rng.random() < 0.7),
        "max_length": 64,
    }
    if classes == 1:
        options |= {"problem_type": "regression", "num_labels": 1, "metric": "spearman"}
    else:
        options |= {"id2label": labels, "label2id": {name: place for place, name in labels.items()}}
    model = MultiExitModel.from_backbone(source, **options)
    folder.mkdir()
    record = TrainingRecord({}, "train.tsv", "0", 0, 0, 0.0, 0.0, "cpu", {})
    save_checkpoint(folder, model, AutoTokenizer.from_pretrained(source), record, [])
    texts = [" ".join(rng.choice(WORDS, size=rng.integers(1, 61))) for _ in range(32)]
    write_json({"texts": texts}, folder / SAMPLES_FILE)
    shown = ", ".join(f"{name} {value}" for name, value in options.items() if name in ("exit_head", "pooling", "lte"))
    return f"{family}, {model.layers} layers, d = {model.hidden_size}, {classes} outputs, {shown}"


def exported_difference(number: int, scratch: Path) -> tuple[str, str, float]:
    """Family, description and the largest difference of an exit, for the configuration of this number.

    Raises BerxitError if the export refuses it.
    """
    rng = np.random.default_rng(number)
    family = FAMILIES[number % len(FAMILIES)]
    described = checkpoint_of(rng, family, scratch / "checkpoint")
    layers = MultiExitModel.from_pretrained(scratch / "checkpoint").layers
    exits = tuple((np.flatnonzero(rng.random(layers) < 0.6) + 1).tolist()) if rng.random() < 0.4 else ()
    options = ExportOptions(exits=exits)
    manifest = export(scratch / "checkpoint", "onnxruntime", scratch / "bundle", options=options, scores=False)
    return family, described, max(manifest.parity.max_diff)


@click.command(help=__doc__)
@click.option("--configurations", default=500, show_default=True, type=click.IntRange(min=1))
@click.option("--first", default=0, show_default=True, type=click.IntRange(min=0))
@click.option("--output", type=click.Path(path_type=Path), required=True)
@debug_option
def command(configurations: int, first: int, output: Path) -> None:
    differences: dict[str, list[float]] = defaultdict(list)
    faults = []
    with progress_bar("exporting")(configurations) as bar:
        for number in range(first, first + configurations):
            with tempfile.TemporaryDirectory() as scratch:
                try:
                    family, _, difference = exported_difference(number, Path(scratch))
                    differences[family].append(difference)
                except Exception as error:  # a fault of any kind is a result
                    faults.append(f"{number}: {type(error).__name__}: {error}")
            bar.update(1)
    rows = [
        [family, str(len(found)), f"{np.median(found):.1e}", f"{max(found):.1e}"]
        for family, found in sorted(differences.items())
    ]
    text = markdown_table(["family", "configurations", "median difference", "largest"], rows)
    write_results(output, "architectures", {"first": first, "differences": differences, "faults": faults}, text)
    click.echo("\n".join([text, *faults]))
    if faults:
        raise BerxitError(f"{len(faults)} configurations failed: see {output}")


if __name__ == "__main__":
    run(command)
