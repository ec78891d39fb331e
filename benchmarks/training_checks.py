"""Time of every check before the first training step.

    python benchmarks/training_checks.py MODEL [TEXTS]

MODEL is a model folder or hub name, TEXTS a file with one training text per line (default: 1,000 generated texts of
500 characters). Prints the median of five runs of each check in milliseconds, as a table; docs/training.md states the
sum.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from transformers.models.auto.tokenization_auto import get_tokenizer_config

from berxit.train import checks
from berxit.train.pretrained import find_file, load_encoder, read_config, read_tokenizer, read_weights, resolve_model

RUNS = 5


def main(model: str, texts: list[str]) -> None:
    model = resolve_model(model)
    weights, tokenizer, (encoder, _) = read_weights(model), read_tokenizer(model), load_encoder(model)
    config = read_config(model)
    adapter = checks.check_config(model, config)
    timed: dict[str, Callable[[], object]] = {
        "own code": lambda: checks.check_own_code(model, "tokenizer_config.json", get_tokenizer_config(model)),
        "configuration": lambda: checks.check_config(model, config),
        "maximum length": lambda: checks.check_max_length(model, adapter, 4),
        "names, shapes and number types of the weights": lambda: checks.match_weights(
            model, weights, encoder, adapter.layers
        ),
        "finite weights": lambda: checks.check_finite(model, encoder),
        "tokenizer files": lambda: checks.check_tokenizer_files(
            model, tokenizer, lambda name: find_file(model, name) is not None
        ),
        "token ids, token types and special tokens": lambda: checks.check_tokenizer(
            model, tokenizer, encoder, pairs=False, pooling="first"
        ),
        "unknown tokens": lambda: checks.unknown_tokens(model, tokenizer, texts),
    }
    total = 0.0
    for name, check in timed.items():
        median = statistics.median(_milliseconds(check) for _ in range(RUNS))
        total += median
        print(f"| {name} | {median:.1f} |")
    print(f"| all | {total:.0f} |")


def _milliseconds(check: Callable[[], object]) -> float:
    start = time.perf_counter()
    check()
    return 1000 * (time.perf_counter() - start)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    given = Path(sys.argv[2]).read_text(encoding="utf-8").splitlines() if len(sys.argv) == 3 else []
    main(sys.argv[1], given or ["The meeting starts at nine, and nobody told them. " * 10] * 1000)
