"""What a precision costs: the written bundle over the calibration data, exit by exit beside the checkpoint.

The thresholds are then chosen again from what the bundle said, since they are compared with its numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from berxit.runtime.bundle import Scores, sha256
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.loop import Backend, every_exit
from berxit.runtime.progress import Progress
from berxit.runtime.tokenization import Text, TextTokenizer
from berxit.train.calibration import PASS_FILE, TEXTS_FILE, Calibration, stored_texts
from berxit.train.evaluation import Predictions, layer_scores
from berxit.train.tasks import Task

NOTABLE = 0.005
"""Half a point: an exit that loses more is worth a word."""


def calibration_file(data: Path, checkpoint: Path, calibration: Calibration) -> Path:
    """The file that the checkpoint was calibrated on: ``data``, or the file of its name in that folder.

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
) -> list[Text]:
    """The texts of the pass, in its order: from ``path``, else as the calibration stored them.

    Raises BerxitError where they are not stored, or do not fit the pass.
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
    examples = task.read(path, "", skip_bad_rows=True)  # as calibration did, or else there is none
    rows = np.arange(len(expected.labels)) if expected.ids is None else expected.ids
    if rows.max(initial=-1) >= len(examples) or not np.array_equal(examples.labels[rows], expected.labels):
        raise BerxitError(f"{path} does not fit {PASS_FILE}: run berxit-calibrate again")
    return [examples.texts[row] for row in rows]


def bundle_pass(
    backend: Backend, tokenizer: TextTokenizer, texts: Sequence[Text], expected: Predictions, progress: Progress
) -> Predictions:
    """What the bundle says of the same texts at the same exits: one at a time, as a device is asked."""
    logits = np.empty_like(expected.logits)
    lte = None if expected.lte is None else np.empty_like(expected.lte)
    with progress(len(texts)) as bar:
        for row, text in enumerate(texts):
            for place, found in enumerate(every_exit(backend, tokenizer([text]))):
                logits[row, place] = found.logits[0]
                if lte is not None and found.lte is not None:
                    lte[row, place] = found.lte[0]
            bar.update(1)
    return replace(expected, logits=logits, lte=lte, reference=expected.full_depth)


def compare(expected: Predictions, found: Predictions, calibration: Calibration) -> Scores:
    """Every exit's score in both passes."""
    before, after = (tuple(layer_scores(predictions)) for predictions in (expected, found))
    return Scores(calibration.data, len(expected.labels), expected.metric, before, after)


def describe_scores(scores: Scores, exits: Sequence[int], histogram: Sequence[int], precision: str) -> str:
    """The largest loss where rows leave: ``histogram`` says how many do after each of the model's layers."""
    used = {layer: loss for layer, loss in zip(exits, scores.losses, strict=True) if histogram[layer - 1]}
    worst = max(used, key=lambda layer: used[layer])
    where = f"on the {scores.examples} examples of {scores.data}"
    if used[worst] <= 0:
        return f"{precision} costs no {scores.metric} at any exit that the policy uses, {where}"
    lost = f"{precision} costs at most {100 * used[worst]:.2f} points of {scores.metric}"
    said = f"{lost} at an exit that the policy uses (layer {worst}), {where}"
    return said if used[worst] <= NOTABLE else f"{said}: more than {100 * NOTABLE:.1f}, compare with another precision"
