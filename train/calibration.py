"""Calibration: a rule chooses the threshold on data that training did not use. The record of the choice is stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from berxit.runtime.bundle import sha256
from berxit.runtime.calibration import Calibration, FixedExit, upgraded
from berxit.runtime.drift import Reference
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.examples import Examples, find_split, has_column
from berxit.runtime.extensions import UnregisteredError
from berxit.runtime.json_data import parse, read_json, to_json, write_json
from berxit.runtime.policies import CRITERIA, ExitPolicy, certainties, exit_layers
from berxit.runtime.progress import Progress, silent
from berxit.runtime.spans import Span
from berxit.runtime.storage import write_together
from berxit.runtime.tokenization import Text
from berxit.train.chance_warnings import depth_warning, exits_warning, policy_warning
from berxit.train.checkpoint import load_checkpoint, read_record
from berxit.train.evaluation import Predictions, best_device, predict
from berxit.train.families import FOLDS, PolicySpec, folds, operating_point, predicted_under
from berxit.train.guarantee import interval
from berxit.train.rules import Choice, Keep, Rule
from berxit.train.tasks import task_of
from berxit.train.unmet_rules import unmet

POLICY_FILE = "exit_policy.json"
"""File in the checkpoint's folder: the policy and the calibration record."""
PASS_FILE = "calibration_pass.npz"
"""File with the pass over the calibration data. An export with fewer exits chooses its threshold from it.
exit_policy.json contains its sha256."""
TEXTS_FILE = "calibration_texts.json"
"""File with the texts of the calibration data, in the order of the pass. An export that may change predictions runs
them."""


@dataclass(frozen=True)
class CalibratedPolicy:
    """Content of exit_policy.json."""

    policy: ExitPolicy
    calibration: Calibration
    pass_sha256: str | None = None
    """sha256 of PASS_FILE, from which the policy was chosen. None in checkpoints of older versions."""


def calibrate(
    checkpoint: Path,
    data: Path,
    *,
    split: str = "dev",
    spec: PolicySpec | None = None,
    rule: Rule = Keep(0.99),  # noqa: B008 - frozen
    batch_size: int = 32,
    skip_bad_rows: bool = False,
    progress: Progress = silent,
    report: Callable[[str], None] = lambda line: None,
) -> Calibration:
    """Chooses the checkpoint's policy on a split of ``data`` and stores it in the checkpoint's folder.

    A rule that needs no labels accepts a file without a label column.
    ``spec``: the policies among which the rule chooses; None: those of the task's default criterion.
    ``report`` is called with a line about skipped rows. Raises InputError for the file that the checkpoint was trained
    on, and for a criterion or rule that does not fit the model or the data.
    """
    path = find_split(data, split)
    digest = sha256(path)
    if digest == read_record(checkpoint).get("train_sha256"):
        raise InputError(
            f"{checkpoint} was trained on {path}: calibrate on data that training did not use, such as --split dev"
        )
    model, tokenizer = load_checkpoint(checkpoint, best_device())
    task = task_of(model.config)
    labelled = rule.needs_labels or all(has_column(path, each) for each in task.label_columns)
    if not labelled and task.kind == "tokens":
        raise InputError(f"{path} has no column '{task.label_column}': a tokens model is calibrated on labelled spans")
    read = task.read if labelled else task.read_texts
    examples = read(path, split, skip_bad_rows=skip_bad_rows)
    if examples.skipped:
        report(examples.skipped_line(path))
    predictions = predict(model, tokenizer, examples, batch_size, progress, source=str(path))
    spec = spec or PolicySpec(predictions.default_criterion)
    chosen = choose(predictions, spec, rule, path.name, digest)
    with write_together(checkpoint) as folder:  # thresholds always belong to the stored pass
        stored = {"spans": [[span[:3] for span in spans] for spans in examples.spans]} if examples.spans else {}
        write_json({"data_sha256": digest, "texts": examples.texts, **stored}, folder / TEXTS_FILE)
        predictions.save(folder / PASS_FILE)
        write_policy(folder, replace(chosen, pass_sha256=sha256(folder / PASS_FILE)))
    return chosen.calibration


def choose(
    predictions: Predictions, spec: PolicySpec, rule: Rule, data: str, data_sha256: str, *, estimate: bool = True
) -> CalibratedPolicy:
    """The policy that a rule chooses on a stored pass over ``data``.

    ``estimate``: also estimate the score on new data, which takes as long as choosing five times. Raises as the rule's
    ``choose`` and ``Predictions.check`` do.
    """
    predictions.check(data)
    choice = rule.choose(predictions, spec)
    point, policy = choice.point, choice.policy
    adaptive = CRITERIA[spec.criterion].adaptive
    if predictions.layers == 1 and not adaptive:  # a policy that every reader knows
        policy = ExitPolicy.full_depth(policy.layers, predictions.regression)
    expected = expected_score(predictions, spec, rule) if estimate else None
    calibration = Calibration(
        criterion=spec.criterion,
        settings=spec.settings,
        description=rule.describe(predictions.metric, "threshold" if adaptive else "fixed exit"),
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
        requirement=asdict(rule),
        constant_score=predictions.constant.score,
        unlabelled=predictions.unlabelled,
        positive=predictions.positive,
        warnings=tuple(filter(None, _warnings(predictions, spec, rule, choice))),
        expected_score=expected[0] if expected else None,
        expected_interval=expected[1] if expected else None,
        reference=reference_of(predictions, policy),
        fixed=fixed_exit(predictions, spec, rule),
    )
    return CalibratedPolicy(policy, calibration)


def fixed_exit(predictions: Predictions, spec: PolicySpec, rule: Rule) -> FixedExit | None:
    """The layer that the rule chooses if all inputs exit at one layer; None if the policy is such a policy itself, or
    if there is one exit."""
    if not CRITERIA[spec.criterion].adaptive or predictions.layers == 1:
        return None
    try:
        choice = rule.choose(predictions, PolicySpec("fixed"))
    except InputError:  # no layer is within the budget
        return None
    return FixedExit(round(choice.point.average_exit_layer), choice.point.score)


def reference_of(predictions: Predictions, policy: ExitPolicy) -> Reference:
    """Histograms of the pass under ``policy``, with which a runner compares its inputs."""
    of_exits = policy.at_exits(predictions.exit_layers.tolist())
    certainty = certainties(of_exits, predictions.logits, predictions.lte)
    taken = exit_layers(of_exits, certainty, predictions.logits)
    rows = np.arange(len(predictions.labels))
    return Reference.of(
        predictions.exit_layers[taken - 1],
        certainty[rows, taken - 1],
        *predictions.task_kind.bins(predictions.predicted()[rows, taken - 1], predictions.class_names),
        depth=policy.layers,
    )


def expected_score(predictions: Predictions, spec: PolicySpec, rule: Rule) -> tuple[float, tuple[float, float]] | None:
    """The expected score on new data, and its 5th to 95th percentile: every row is scored under the policy that the
    rule chooses on the other folds. None if these have too few rows for the rule."""
    rows = len(predictions.labels)
    fold_of = folds(rows)
    predicted = np.empty_like(predictions.full_depth)
    for fold in range(min(FOLDS, rows)):
        held_out = np.flatnonzero(fold_of == fold)
        try:
            choice = rule.choose(predictions.select_rows(np.flatnonzero(fold_of != fold)), spec)
        except BerxitError:  # too few rows, or none that full depth predicts correctly
            return None
        predicted[held_out] = predicted_under(predictions.select_rows(held_out), choice.policy)
    return predictions.score(predicted), interval(predictions, predicted)


def _warnings(predictions: Predictions, spec: PolicySpec, rule: Rule, choice: Choice) -> Iterator[str | None]:
    yield (depth := depth_warning(predictions))
    if depth is None:
        yield policy_warning(predictions, choice.predicted, rule.stricter)
        yield exits_warning(predictions, choice.point.saved_layers)
    if choice.met:
        return
    if depth is not None and isinstance(rule, Keep):
        return  # thresholds mean nothing, as that warning states
    yield unmet(rule, predictions, spec)


def choose_again(
    predictions: Predictions, calibration: Calibration, exits: Sequence[int], *, estimate: bool = True
) -> CalibratedPolicy:
    """The policy that the same rule chooses on the same pass for a model with only these exits. ``estimate`` and errors
    as in ``choose``."""
    c = calibration
    part = predictions.select_exits(exits)
    return choose(part, PolicySpec.of(c), rule_of(c), c.data, c.data_sha256, estimate=estimate)


def rule_of(calibration: Calibration) -> Rule:
    """The rule that the record contains. Raises BerxitError if its numbers belong to no rule."""
    rule: Rule = parse(Rule, calibration.requirement, "calibration: requirement")  # type: ignore[arg-type]
    return rule


def stored_pass(checkpoint: Path, calibrated: CalibratedPolicy) -> Predictions:
    """The pass over the calibration data from which the policy was chosen.

    Raises BerxitError if the file is missing or damaged, or belongs to another calibration. That happens if only one of
    the two files was copied. Older versions wrote them one after the other, so an interruption could cause it, too.
    """
    path = checkpoint / PASS_FILE
    if not path.is_file():
        raise BerxitError(f"{path} is missing: rerun berxit-calibrate")
    belongs = calibrated.pass_sha256 in (None, sha256(path))  # None: compared by its histogram below
    if belongs:
        try:
            predictions = Predictions.load(path)
        except Exception as error:  # zip, numpy and the file system raise unrelated types
            raise BerxitError(f"{path} is damaged: rerun berxit-calibrate") from error
        if calibrated.pass_sha256 is None:
            belongs = predictions.layers == calibrated.policy.layers and (
                operating_point(predictions, calibrated.policy).histogram == calibrated.calibration.histogram
            )
    if not belongs:
        raise BerxitError(f"{path} is not the pass from which {POLICY_FILE} was chosen: rerun berxit-calibrate")
    return predictions


def write_policy(checkpoint: Path, chosen: CalibratedPolicy) -> None:
    write_json(to_json(chosen), checkpoint / POLICY_FILE)


def read_policy(checkpoint: Path) -> CalibratedPolicy | None:
    """The checkpoint's policy with its calibration record. None if it was never calibrated.

    Reads records of older versions, too. Raises BerxitError for a file that is damaged or contains no rule.
    """
    path = checkpoint / POLICY_FILE
    if not path.is_file():
        return None
    data = read_json(path)
    if "calibration" in data:
        data["calibration"] = upgraded(data["calibration"])
    try:
        found: CalibratedPolicy = parse(CalibratedPolicy, data, str(path))
    except UnregisteredError as error:
        raise error.in_file(path) from None
    parse(Rule, found.calibration.requirement, f"{path}: calibration: requirement")  # type: ignore[arg-type]
    return found


def stored_texts(checkpoint: Path, calibration: Calibration) -> Examples | None:
    """The texts of the calibration data, in the order of the pass, and their spans. None if the texts of this data are
    not stored."""
    path = checkpoint / TEXTS_FILE
    if not path.is_file():
        return None
    stored = read_json(path)
    if stored.get("data_sha256") != calibration.data_sha256:
        return None
    texts: list[Text] = [text if isinstance(text, str) else tuple(text) for text in stored["texts"]]
    spans = tuple(tuple(Span(*span) for span in spans) for spans in stored.get("spans", ()))
    return Examples(texts, np.zeros(len(texts), np.int64), unlabelled=True, spans=spans)
