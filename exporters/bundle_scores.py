"""Effect of a precision on the scores: the written bundle on the calibration data, per exit and next to the checkpoint.

The thresholds are then chosen again from the bundle's own outputs, because they are compared with these outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from berxit.exporters.loading import LoadedCheckpoint
from berxit.exporters.options import Messages
from berxit.exporters.writing import Written
from berxit.runtime.bundle import Scores, sha256
from berxit.runtime.calibration import Calibration
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.examples import Examples
from berxit.runtime.loop import Backend
from berxit.runtime.progress import Progress
from berxit.runtime.recalibration import every_output, text_words
from berxit.runtime.tokenization import TextTokenizer
from berxit.train.calibration import PASS_FILE, TEXTS_FILE, CalibratedPolicy, choose, rule_of, stored_texts
from berxit.train.evaluation import Predictions, layer_scores
from berxit.train.families import PolicySpec, predicted_under
from berxit.train.tasks import Task, task_of

NOTABLE = 0.005
"""Half a point: a larger loss of an exit comes with advice."""


@dataclass(frozen=True)
class Recalibrated:
    """The policy chosen from the bundle's own outputs, and the scores that it was chosen with."""

    chosen: CalibratedPolicy
    scores: Scores


def recalibrate(
    checkpoint: LoadedCheckpoint,
    written: Written,
    backend: Backend,
    data_file: Path | None,
    messages: Messages,
    most_flips: float | None = None,
) -> Recalibrated | None:
    """Runs the calibration data through the bundle, scores every exit, and chooses the thresholds again.

    ``data_file``: the calibration data; None reads the texts that the calibration stored. Returns None if that data is
    not available; ``messages.warn`` then receives the reason. Raises BerxitError for that if there is a limit
    ``most_flips`` (in percent), and if the new policy has more flips.
    """
    assert checkpoint.calibrated is not None
    calibration, exits, precision = checkpoint.calibrated.calibration, written.draft.exits, written.draft.precision
    try:
        expected = checkpoint.calibration_pass.select_exits(exits)
        texts = calibration_texts(checkpoint.path, expected, calibration, task_of(checkpoint.model.config), data_file)
    except BerxitError as error:
        if most_flips is not None:
            raise
        messages.warn(f"the cost of {precision} was not measured, the thresholds are the checkpoint's: {error}")
        return None
    found = bundle_pass(backend, written.tokenizer, texts, expected, messages.progress)
    scores = compare(expected, found, calibration)
    chosen = choose(found, PolicySpec.of(calibration), rule_of(calibration), calibration.data, calibration.data_sha256)
    messages.report(describe_scores(scores, exits, chosen.calibration.histogram, precision))
    messages.report(f"calibrated on the bundle's own outputs: {chosen.calibration.summary()}")
    flips = 100 * float((predicted_under(found, chosen.policy) != expected.full_depth).mean())
    messages.report(f"flips: {flips:.2f}% of its predictions differ from the checkpoint's full depth, on the same data")
    if most_flips is not None and flips > most_flips:
        raise BerxitError(
            f"{precision}: {flips:.2f}% of the predictions differ from the checkpoint's full depth, more than"
            f" --most-flips {most_flips:g}. Nothing was written: calibrate with a lower --risk, or export in fp32"
        )
    return Recalibrated(chosen, scores)


def calibration_file(data: Path, checkpoint: Path, calibration: Calibration) -> Path:
    """The file that the checkpoint was calibrated on: ``data``, or the file of the same name in that folder.

    Raises InputError for another file.
    """
    path = data / calibration.data if data.is_dir() else data
    if not path.is_file():
        raise InputError(
            f"no file {path}: --data is {calibration.data}, which {checkpoint} was calibrated on, or its folder"
        )
    if sha256(path) != calibration.data_sha256:
        raise InputError(
            f"{path} is not the data that {checkpoint} was calibrated on (another sha256): give {calibration.data} as"
            " it was, run berxit-calibrate again, or add --no-scores"
        )
    return path


def calibration_texts(
    checkpoint: Path, expected: Predictions, calibration: Calibration, task: Task, path: Path | None
) -> Examples:
    """The texts of the pass, in its order, and their spans: from ``path``, or those that the calibration stored.

    Raises BerxitError if they are not stored, or do not match the pass.
    """
    if path is None:
        texts = stored_texts(checkpoint, calibration)
        if texts is None:
            raise BerxitError(
                f"{checkpoint / TEXTS_FILE} does not have the texts of {calibration.data}: give that file with --data,"
                " or run berxit-calibrate again"
            )
        if len(texts) != len(expected.labels):
            raise BerxitError(f"{checkpoint / TEXTS_FILE} does not fit {PASS_FILE}: run berxit-calibrate again")
        return texts
    examples = task.read(path, "", skip_bad_rows=True)  # as the calibration read them
    rows = np.arange(len(expected.labels)) if expected.ids is None else expected.ids
    if rows.max(initial=-1) >= len(examples) or not np.array_equal(examples.labels[rows], expected.labels):
        raise BerxitError(f"{path} does not fit {PASS_FILE}: run berxit-calibrate again")
    return examples.rows(rows.tolist())


def bundle_pass(
    backend: Backend, tokenizer: TextTokenizer, examples: Examples, expected: Predictions, progress: Progress
) -> Predictions:
    """The bundle's outputs for the same texts at the same exits. Batch size 1, as on a device."""
    kind = expected.task_kind
    logits, lte = every_output(backend, tokenizer, examples.texts, kind, progress)
    numbers = None
    if kind.words:
        numbers = kind.numbers(logits, expected.names, text_words(tokenizer, examples.texts, examples.spans))
    return replace(expected, logits=logits, lte=lte, numbers=numbers, reference=expected.full_depth)


def compare(expected: Predictions, found: Predictions, calibration: Calibration) -> Scores:
    """The score of every exit in both passes."""
    before, after = (tuple(layer_scores(predictions)) for predictions in (expected, found))
    return Scores(calibration.data, len(expected.labels), expected.metric, before, after)


def describe_scores(scores: Scores, exits: Sequence[int], histogram: Sequence[int], precision: str) -> str:
    """The largest loss of an exit that the policy uses. ``histogram`` (n,): number of rows that exit at each layer."""
    used = {layer: loss for layer, loss in zip(exits, scores.losses, strict=True) if histogram[layer - 1]}
    worst = max(used, key=lambda layer: used[layer])
    where = f"on the {scores.examples} examples of {scores.data}"
    if used[worst] <= 0:
        return f"{precision} costs no {scores.metric} at any exit that the policy uses, {where}"
    lost = f"{precision} costs at most {100 * used[worst]:.2f} points of {scores.metric}"
    line = f"{lost} at an exit that the policy uses (layer {worst}), {where}"
    return line if used[worst] <= NOTABLE else f"{line}: more than {100 * NOTABLE:.1f}, compare with another precision"
