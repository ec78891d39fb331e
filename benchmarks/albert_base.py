"""ALBERT encoder for texts from an ALBERT of another domain: its body, and new word embeddings.

    python benchmarks/albert_base.py ALBERT SST-2/train.tsv --size 4000 --output albert-base

The tokenizer is trained on the first column of the file. The word embeddings are random, everything else is copied. The
result is a base model for `berxit-train`, small enough to train it on a CPU.
"""

from __future__ import annotations

from pathlib import Path

import click

from berxit.runtime.console import run
from berxit.toolkit.commands.options import PATH, silence_library_logs


@click.command()
@click.argument("albert", type=PATH)
@click.argument("texts", type=PATH)
@click.option("--size", default=4000, show_default=True, help="Largest size of the vocabulary.")
@click.option("--output", type=click.Path(path_type=Path), required=True)
def command(albert: Path, texts: Path, size: int, output: Path) -> None:
    silence_library_logs()
    import torch
    from transformers import AlbertConfig, AlbertModel, AlbertTokenizer

    lines = texts.read_text(encoding="utf-8").splitlines()[1:]
    tokenizer = AlbertTokenizer().train_new_from_iterator([line.split("\t")[0] for line in lines], size)
    torch.manual_seed(0)
    config = AlbertConfig.from_pretrained(albert)
    config.vocab_size = len(tokenizer)
    config.pad_token_id, config.bos_token_id = tokenizer.pad_token_id, tokenizer.bos_token_id
    config.eos_token_id = tokenizer.eos_token_id
    weights = AlbertModel.from_pretrained(albert).state_dict()
    del weights["embeddings.word_embeddings.weight"]
    model = AlbertModel(config)
    model.load_state_dict(weights, strict=False)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    click.echo(f"{output}: {len(tokenizer)} tokens, {sum(p.numel() for p in model.parameters()):,} parameters")


if __name__ == "__main__":
    run(command)
