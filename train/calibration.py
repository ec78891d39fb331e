"""Chooses the threshold by a rule, on data that training has not seen, and writes it with how it was chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from berxit.runtime.bundle import sha256
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.examples import find_split
from berxit.runtime.json_data import parse, read_json, write_json
from berxit.runtime.policies import ExitPolicy
from berxit.runtime.progress import Progress, silent
from berxit.runtime.storage import write_together
from berxit.runtime.tokenization import Text
from berxit.train.checkpoint import load_checkpoint, read_record
from berxit.train.evaluation import Predictions, best_device, default_criterion, layer_scores, predict
from berxit.train.rules import Keep, Rule
from berxit.train.tasks import task_of

POLICY_FILE = "exit_policy.json"
"""Beside the checkpoint's weights: the policy and the record of how it was chosen."""
PASS_FILE = "calibration_pass.npz"
"""What every exit said of the calibration data: an export with fewer exits chooses its threshold anew from it."""
TEXTS_FILE = "calibration_texts.json"
"""The texts of that data, in the order of the pass: an export that may change predictions runs them."""


@dataclass(frozen=True)
class Calibration:
    """How a threshold was chosen, and what it gave on the calibration data."""

    criterion: str
    rule: str
    """What was asked for, in words: "the cheapest threshold that keeps 0.99 of the last exit's f1"."""
    data: str
    """The file's name, without its folder."""
    data_sha256: str
    examples: int
    metric: str
    full_depth_score: float
    """The last exit's score on the calibration data."""
    score: float
    """The policy's score on the same data."""
    average_exit_layer: float
    saved_layers: float
    histogram: tuple[int, ...]
    """(n,) how many examples left at each layer."""
    threshold: float
    asked: Rule
    """The same as ``rule``, in numbers."""

    def summary(self) -> str:
        return (
            f"{self.criterion} threshold {self.threshold:.6g}: average exit layer {self.average_exit_layer:.2f} of"
            f" {len(self.histogram)} ({self.saved_layers:.0%} saved), {self.metric} {self.score:.4f} of"
            f" {self.full_depth_score:.4f} at full depth, on the {self.examples} examples of {self.data}"
        )


@dataclass(frozen=True)
class CalibratedPolicy:
    """exit_policy.json"""

    policy: ExitPolicy
    calibration: Calibration


def calibrate(
    checkpoint: Path,
    data: Path,
    *,
    split: str = "dev",
    criterion: str | None = None,
    rule: Rule = Keep(0.99),  # noqa: B008 - frozen
    batch_size: int = 32,
    skip_bad_rows: bool = False,
    progress: Progress = silent,
    report: Callable[[str], None] = lambda line: None,
) -> Calibration:
    """Chooses the checkpoint's policy on a split of ``data`` and writes it beside the weights.

    ``report`` hears what was skipped. Raises InputError for the file that the checkpoint was trained on, or a criterion
    or rule that cannot be met.
    """
    path = find_split(data, split)
    digest = sha256(path)
    if digest == read_record(checkpoint).get("train_sha256"):
        raise InputError(
            f"{path} is what {checkpoint} was trained on: calibrate on data it has not seen, as --split dev"
        )
    model, tokenizer = load_checkpoint(checkpoint, best_device())
    examples = task_of(model.config).read(path, split, skip_bad_rows=skip_bad_rows)
    if examples.skipped:
        report(examples.skipped_line(path))
    predictions = predict(model, tokenizer, examples, batch_size, progress)
    chosen = choose(predictions, criterion or default_criterion(predictions), rule, path.name, digest)
    with write_together(checkpoint) as folder:  # thresholds always belong to the stored pass
        write_json({"data_sha256": digest, "texts": examples.texts}, folder / TEXTS_FILE)
        predictions.save(folder / PASS_FILE)
        write_policy(folder, chosen)
    return chosen.calibration


def choose(predictions: Predictions, criterion: str, rule: Rule, data: str, data_sha256: str) -> CalibratedPolicy:
    """The policy that a rule chooses on a stored pass over ``data``. Raises as the rule's ``choose`` does."""
    point = rule.choose(predictions, criterion)
    calibration = Calibration(
        criterion=criterion,
        rule=rule.in_words(predictions.metric),
        data=data,
        data_sha256=data_sha256,
        examples=len(predictions.labels),
        metric=predictions.metric,
        full_depth_score=layer_scores(predictions)[-1],
        score=point.score,
        average_exit_layer=point.average_exit_layer,
        saved_layers=point.saved_layers,
        histogram=point.histogram,
        threshold=point.threshold,
        asked=rule,
    )
    layers = int(predictions.exit_layers[-1])
    return CalibratedPolicy(ExitPolicy.uniform(criterion, point.threshold, layers, point.tolerance), calibration)


def choose_again(checkpoint: Path, calibration: Calibration, exits: Sequence[int]) -> CalibratedPolicy:
    """The same rule on the same data for a model that has only these exits. Raises BerxitError without the pass."""
    path = checkpoint / PASS_FILE
    if not path.is_file():
        raise BerxitError(
            f"{path} is not there, which fewer exits need for their threshold: run berxit-calibrate again"
        )
    c = calibration
    return choose(Predictions.load(path).at_exits(exits), c.criterion, c.asked, c.data, c.data_sha256)


def write_policy(checkpoint: Path, chosen: CalibratedPolicy) -> None:
    write_json(asdict(chosen), checkpoint / POLICY_FILE)


def read_policy(checkpoint: Path) -> CalibratedPolicy | None:
    """The checkpoint's policy and how it was chosen, or None where it was never calibrated.

    A record of before there were rules holds a bare ``keep``, which is one. Older records name the data with its
    folder.
    """
    path = checkpoint / POLICY_FILE
    if not path.is_file():
        return None
    data = read_json(path)
    record = data.get("calibration")
    if isinstance(record, dict) and "keep" in record:
        asked = {"keep": record["keep"]}
        data["calibration"] = {**{name: record[name] for name in record if name != "keep"}, "asked": asked}
    found: CalibratedPolicy = parse(CalibratedPolicy, data, str(path))
    return replace(found, calibration=replace(found.calibration, data=Path(found.calibration.data).name))


def stored_texts(checkpoint: Path, calibration: Calibration) -> list[Text] | None:
    """The texts of the calibration data, in the order of the pass; None where these, or none, are not stored."""
    path = checkpoint / TEXTS_FILE
    if not path.is_file():
        return None
    stored = read_json(path)
    if stored.get("data_sha256") != calibration.data_sha256:
        return None
    return [text if isinstance(text, str) else tuple(text) for text in stored["texts"]]
