"""Does the null-space score of the features tell more about an exit's certainty than its logits?

    python -m benchmarks.null_space NAME=CKPT:FILE ... [--rows 400] [--splits 40] --output null-space

``FILE`` contains rows that training did not use. For each exit with the classifier W h + b, the null-space score (NSP)
is the share of the features that the classifier cannot see: with h' = h + pinv(W) b and its projection P h' on the rows
of W, NSP = sqrt(1 - |P h'|^2 / |h'|^2). The certainty-aware probability (CAP) is the softmax probability of one more
logit, alpha * NSP; lower is more certain (He et al., IJCAI 2025, "Improving Prediction Certainty Estimation for
Reliable Early Exiting via Null Space Projection"). alpha is chosen on the rows of the fit, by the area.

Area and saved layers are those of ``benchmarks/learned.py``, on the rows that the fit has not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import torch

from benchmarks.learned import LEARNED, held_out_curve, judged
from berxit.runtime.console import debug_option, progress_bar, run
from berxit.runtime.errors import InputError
from berxit.runtime.examples import read_examples_for
from berxit.runtime.policies.criteria import softmax
from berxit.runtime.progress import Progress
from berxit.runtime.results import write_results
from berxit.runtime.tables import markdown_table
from berxit.train.checkpoint import load_checkpoint
from berxit.train.curves import Curve
from berxit.train.encoding import EncodedExamples
from berxit.train.evaluation import Predictions, predict
from berxit.train.families import PolicyFamily, PolicySpec, family
from berxit.train.modeling import MultiExitModel

Floats = npt.NDArray[np.float64]

ALPHAS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
CAP, CONFIDENCE = "CAP", "confidence"


@dataclass(frozen=True)
class Scored:
    """A stored pass with the null-space score of every row and exit."""

    predictions: Predictions
    nsp: Floats
    """(N, n)"""

    def select_rows(self, rows: npt.NDArray[np.integer]) -> Scored:
        return Scored(self.predictions.select_rows(rows), self.nsp[rows])

    def curve(self, alpha: float) -> Curve:
        """The trade-off curve of CAP, in percent of full depth's score."""
        p = self.predictions
        logits = np.concatenate([p.logits, (alpha * self.nsp)[..., None]], axis=-1)
        certainty = 1 - softmax(logits)[..., -1]  # in (0, 1), higher is more certain: direction and range of confidence
        fitted = family(p, PolicySpec(CONFIDENCE)).fitted
        policies = PolicyFamily(p, fitted, certainty)
        return Curve.of(policies.points(policies.candidates()), p.layers).relative_to(p.full_depth_score)


def null_space_scores(model: MultiExitModel, encoded: EncodedExamples, progress: Progress) -> Floats:
    """(N, n) NSP of the pooled hidden state of every exit. Heads must be linear."""
    found = np.empty((len(encoded), model.layers))
    weights = [head.classifier.weight.detach().double() for head in model.heads]
    inverses = [torch.linalg.pinv(weight) for weight in weights]
    with progress(len(encoded)) as bar, torch.no_grad():
        for row in range(len(encoded)):
            batch = encoded.collate([encoded[row]])
            del batch["labels"]
            hidden = model(**batch, output_hidden_states=True).hidden_states
            states = model._pool(hidden[1:], batch["attention_mask"])[0].double()
            for layer, (weight, inverse, head) in enumerate(zip(weights, inverses, model.heads, strict=True)):
                shifted = states[layer] + inverse @ head.classifier.bias.double()
                seen = inverse @ (weight @ shifted)
                found[row, layer] = torch.sqrt(1 - (seen @ seen) / (shifted @ shifted))
            bar.update(1)
    return found


def scored(checkpoint: Path, file: Path) -> Scored:
    """The pass of a checkpoint over a file. Raises InputError for regression and for heads with a pooler."""
    model, tokenizer = load_checkpoint(checkpoint)
    if model.config.regression or model.config.exit_head != "linear":
        raise InputError(f"{checkpoint}: the null-space score needs classes and linear exit heads")
    examples = read_examples_for(model.config, file)
    predictions = predict(model.eval(), tokenizer, examples, progress=progress_bar("pass"))
    encoded = EncodedExamples(examples, tokenizer, progress_bar("tokenizing"))
    return Scored(predictions, null_space_scores(model, encoded, progress_bar("null space")))


def measure(task: Scored, rows: int, splits: int) -> dict[str, npt.NDArray]:
    """Criterion -> (splits, 2) area and saved layers, on the same splits."""
    rng = np.random.default_rng(0)
    found: dict[str, list[tuple[float, float]]] = {CONFIDENCE: [], CAP: [], LEARNED: []}
    for _ in range(splits):
        order = rng.permutation(len(task.nsp))
        fitted_on, judged_on = task.select_rows(order[:rows]), task.select_rows(order[rows:])
        alpha = max(ALPHAS, key=lambda value: judged(fitted_on.curve(value))[0])
        found[CAP].append(judged(judged_on.curve(alpha)))
        for name in (CONFIDENCE, LEARNED):
            found[name].append(judged(held_out_curve(fitted_on.predictions, judged_on.predictions, name)))
    return {name: np.array(values) for name, values in found.items()}


def summary_of(found: dict[str, npt.NDArray]) -> dict[str, Any]:
    """Means of one task, and CAP's area minus the others', with the 5th to the 95th percentile over the splits."""
    means = {
        name: dict(zip(("area", "saved"), values.mean(axis=0).tolist(), strict=True)) for name, values in found.items()
    }
    minus = {}
    for other in (CONFIDENCE, LEARNED):
        difference = found[CAP][:, 0] - found[other][:, 0]
        minus[other] = [float(difference.mean()), *np.quantile(difference, [0.05, 0.95]).tolist()]
    return {"means": means, "minus": minus}


def report(summaries: dict[str, dict[str, Any]]) -> str:
    """The summaries as a Markdown table."""
    rows = []
    for task, found in summaries.items():
        cells = [f"{each['area']:.2f} / {each['saved']:.0%}" for each in found["means"].values()]
        cells += [f"{mean:+.2f} ({low:+.2f} to {high:+.2f})" for mean, low, high in found["minus"].values()]
        rows.append([task, *cells])
    header = ["task", *(f"{name}: area / saved" for name in (CONFIDENCE, CAP, LEARNED))]
    return markdown_table([*header, "CAP's area minus confidence's", "minus learned's"], rows)


@click.command(help=__doc__)
@click.argument("tasks", nargs=-1, required=True, metavar="NAME=CKPT:FILE ...")
@click.option("--rows", type=click.IntRange(min=50), default=400, show_default=True)
@click.option("--splits", default=40, show_default=True, type=click.IntRange(min=2))
@click.option("--output", type=click.Path(path_type=Path), required=True)
@debug_option
def command(tasks: Sequence[str], rows: int, splits: int, output: Path) -> None:
    results = {}
    for given in tasks:
        name, _, source = given.partition("=")
        checkpoint, _, file = source.rpartition(":")
        if not checkpoint or not Path(file).is_file():
            raise InputError(f"'{given}': give NAME=CKPT:FILE with a checkpoint and a data file")
        results[name] = measure(scored(Path(checkpoint), Path(file)), rows, splits)
    summaries = {name: summary_of(found) for name, found in results.items()}
    text = report(summaries)
    data = {name: {each: values.tolist() for each, values in found.items()} for name, found in results.items()}
    stored = {"rows": rows, "splits": splits, "alphas": ALPHAS, "summary": summaries, "tasks": data}
    write_results(output, "null-space", stored, text)
    click.echo(text)


if __name__ == "__main__":
    run(command)
