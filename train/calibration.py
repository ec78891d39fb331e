"""Chooses the threshold by a rule, on data that training has not seen, and writes it with how it was chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from berxit.runtime.bundle import sha256
from berxit.runtime.calibration import Calibration, upgraded
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.examples import find_split
from berxit.runtime.json_data import parse, read_json, write_json
from berxit.runtime.policies import ExitPolicy
from berxit.runtime.progress import Progress, silent
from berxit.runtime.storage import write_together
from berxit.runtime.tokenization import Text
from berxit.train.chance_warnings import depth_warning, exits_warning, policy_warning
from berxit.train.checkpoint import load_checkpoint, read_record
from berxit.train.evaluation import (
    OperatingPoint,
    Predictions,
    best_device,
    default_criterion,
    layer_scores,
    operating_point,
    predict,
)
from berxit.train.rules import Keep, Rule
from berxit.train.tasks import task_of

POLICY_FILE = "exit_policy.json"
"""Beside the checkpoint's weights: the policy and the record of how it was chosen."""
PASS_FILE = "calibration_pass.npz"
"""The pass over the calibration data: an export with fewer exits chooses its threshold again from it. exit_policy.json
holds its sha256."""
TEXTS_FILE = "calibration_texts.json"
"""The texts of that data, in the order of the pass: an export that may change predictions runs them."""


@dataclass(frozen=True)
class CalibratedPolicy:
    """exit_policy.json"""

    policy: ExitPolicy
    calibration: Calibration
    pass_sha256: str | None = None
    """Of PASS_FILE, from which it was chosen; None in checkpoints from before it was recorded."""


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
    predictions = predict(model, tokenizer, examples, batch_size, progress, source=str(path))
    chosen = choose(predictions, criterion or default_criterion(predictions), rule, path.name, digest)
    with write_together(checkpoint) as folder:  # thresholds always belong to the stored pass
        write_json({"data_sha256": digest, "texts": examples.texts}, folder / TEXTS_FILE)
        predictions.save(folder / PASS_FILE)
        write_policy(folder, replace(chosen, pass_sha256=sha256(folder / PASS_FILE)))
    return chosen.calibration


def choose(predictions: Predictions, criterion: str, rule: Rule, data: str, data_sha256: str) -> CalibratedPolicy:
    """The policy that a rule chooses on a stored pass over ``data``.

    Raises as the rule's ``choose`` and ``Predictions.check`` do.
    """
    predictions.check(data)
    point = rule.choose(predictions, criterion)
    calibration = Calibration(
        criterion=criterion,
        rule=rule.in_words(predictions.metric),
        data=data,
        data_sha256=data_sha256,
        examples=len(predictions.labels),
        metric=predictions.metric,
        full_depth_score=predictions.full_depth_score,
        score=point.score,
        average_exit_layer=point.average_exit_layer,
        saved_layers=point.saved_layers,
        histogram=point.histogram,
        threshold=point.threshold,
        asked=asdict(rule),
        constant_score=predictions.constant.score,
        positive=predictions.positive,
        warnings=tuple(filter(None, _warnings(predictions, criterion, rule, point))),
    )
    layers = int(predictions.exit_layers[-1])
    return CalibratedPolicy(ExitPolicy.uniform(criterion, point.threshold, layers, point.tolerance), calibration)


def _warnings(predictions: Predictions, criterion: str, rule: Rule, point: OperatingPoint) -> Iterator[str | None]:
    yield (depth := depth_warning(predictions))
    if depth is None:
        yield policy_warning(predictions, criterion, point, rule.stricter)
        yield exits_warning(predictions, point.saved_layers)
    if not rule.kept(predictions, criterion, point):
        yield (
            f"the rule is not kept: full depth scores {layer_scores(predictions)[-1]:.4f} here, the checkpoint's"
            f" {predictions.full_depth_score:.4f}, so the policy never exits early. Export with another"
            f" --precision, or calibrate the checkpoint with {rule.looser}"
        )


def choose_again(predictions: Predictions, calibration: Calibration, exits: Sequence[int]) -> CalibratedPolicy:
    """The same rule on the same stored pass for a model that has only these exits. Raises as ``choose`` does."""
    c = calibration
    return choose(predictions.at_exits(exits), c.criterion, rule_of(c), c.data, c.data_sha256)


def rule_of(calibration: Calibration) -> Rule:
    """The rule that the record states in numbers. Raises BerxitError if they belong to no rule."""
    rule: Rule = parse(Rule, calibration.asked, "calibration: asked")  # type: ignore[arg-type]
    return rule


def stored_pass(checkpoint: Path, calibrated: CalibratedPolicy) -> Predictions:
    """The pass over the calibration data from which the policy was chosen.

    Raises BerxitError where it is missing or damaged, or is another calibration's, as after a copy of one of the two
    files, or after an interruption of an older version, which wrote them one after the other.
    """
    path = checkpoint / PASS_FILE
    if not path.is_file():
        raise BerxitError(f"{path} is missing: rerun berxit-calibrate")
    belongs = calibrated.pass_sha256 in (None, sha256(path))
    if belongs:
        try:
            predictions = Predictions.load(path)
        except Exception as error:  # zip, numpy and the file system each have their own
            raise BerxitError(f"{path} is damaged: rerun berxit-calibrate") from error
        if calibrated.pass_sha256 is None:  # an older record: what it states must follow from the pass
            belongs = predictions.layers == calibrated.policy.layers and (
                operating_point(predictions, calibrated.policy).histogram == calibrated.calibration.histogram
            )
    if not belongs:
        raise BerxitError(f"{path} is not the pass from which {POLICY_FILE} was chosen: rerun berxit-calibrate")
    return predictions


def write_policy(checkpoint: Path, chosen: CalibratedPolicy) -> None:
    write_json({**asdict(chosen), "calibration": chosen.calibration.stored()}, checkpoint / POLICY_FILE)


def read_policy(checkpoint: Path) -> CalibratedPolicy | None:
    """The checkpoint's policy with its calibration record, or None if it was never calibrated.

    Raises BerxitError for a file that is damaged or states no rule.
    """
    path = checkpoint / POLICY_FILE
    if not path.is_file():
        return None
    data = read_json(path)
    if "calibration" in data:
        data["calibration"] = upgraded(data["calibration"])
    found: CalibratedPolicy = parse(CalibratedPolicy, data, str(path))
    parse(Rule, found.calibration.asked, f"{path}: calibration: asked")  # type: ignore[arg-type]
    return found


def stored_texts(checkpoint: Path, calibration: Calibration) -> list[Text] | None:
    """The texts of the calibration data, in the order of the pass; None where these, or none, are not stored."""
    path = checkpoint / TEXTS_FILE
    if not path.is_file():
        return None
    stored = read_json(path)
    if stored.get("data_sha256") != calibration.data_sha256:
        return None
    return [text if isinstance(text, str) else tuple(text) for text in stored["texts"]]
