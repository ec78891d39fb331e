"""Time to tokenize a training file, compared with the tokenizer call of transformers.

    python benchmarks/encoding_cost.py MODEL --task sst2 --data SST-2/ [--max-length 128]

Both tokenize the training split three times, interleaved; the token ids must be equal. Prints the median time in
seconds.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import click

from berxit.runtime.console import run
from berxit.runtime.tables import markdown_table
from berxit.toolkit.commands.options import PATH, silence_library_logs

ROUNDS = 3


@click.command()
@click.argument("model")
@click.option("--task", "task_name", default="sst2", show_default=True)
@click.option("--data", type=PATH, required=True)
@click.option("--max-length", default=128, show_default=True)
def command(model: str, task_name: str, data: Path, max_length: int) -> None:
    silence_library_logs()
    from transformers import AutoTokenizer

    from berxit.train.encoding import EncodedExamples
    from berxit.train.tasks import get_task
    from berxit.train.tokenizing import saved_tokenizer

    examples = get_task(task_name).read(data, "train", skip_bad_rows=True)
    tokenizer = AutoTokenizer.from_pretrained(model)
    ours = saved_tokenizer(tokenizer, model, max_length)
    pairs = [text if isinstance(text, tuple) else (text,) for text in examples.texts]
    columns = [list(column) for column in zip(*pairs, strict=True)]
    seconds: dict[str, list[float]] = {"training (TextTokenizer)": [], "transformers": []}
    for _ in range(ROUNDS):
        start = time.perf_counter()
        encoded = EncodedExamples(examples, ours)
        middle = time.perf_counter()
        expected = tokenizer(*columns, truncation=True, max_length=max_length, return_token_type_ids=True)
        for name, took in zip(seconds, (middle - start, time.perf_counter() - middle), strict=True):
            seconds[name].append(took)
    if [ids.tolist() for ids in encoded.input_ids] != expected["input_ids"]:
        raise click.ClickException("the token ids differ, so that the times cannot be compared")
    rows = [(name, f"{statistics.median(times):.2f}") for name, times in seconds.items()]
    click.echo(markdown_table(("tokenizer", f"seconds for {len(examples)} examples"), rows))


if __name__ == "__main__":
    run(command)
