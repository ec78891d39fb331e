"""The pass over the data, which stores the output of every exit. Scores, policies and curves are computed from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from berxit.runtime.chance import Constant, at_chance, check_labels, check_outputs, constant_prediction
from berxit.runtime.examples import Examples
from berxit.runtime.kinds import KINDS, Kind, stack_decisions
from berxit.runtime.metrics import METRICS, positive_class
from berxit.runtime.progress import Progress, silent
from berxit.runtime.storage import replacing
from berxit.runtime.tokenization import TextTokenizer
from berxit.train.encoding import EncodedExamples, as_tensors
from berxit.train.modeling import MultiExitModel


@dataclass(frozen=True)
class Predictions:
    """Outputs of n exits for N examples, in the order of the file."""

    logits: npt.NDArray[np.float32]
    """Of the decisions: (N, n, K), or (N, n, D, K) if a text has several (``runtime.kinds``)."""
    lte: npt.NDArray[np.float32] | None
    """(N, n) learned certainties; None without LTE."""
    labels: npt.NDArray
    """(N,) as numbers (``runtime.kinds``)."""
    metric: str
    ids: npt.NDArray | None = None
    """(N,) row number of each example in its file, from 0, without skipped rows. None if the pass has no file."""
    exits: tuple[int, ...] = ()
    """(n,) layers of the model that have an exit, ascending, including the last layer. Empty: all layers."""
    names: tuple[str, ...] = ()
    """(C,) class names; empty for regression and in passes that older versions stored."""
    unlabelled: bool = False
    """True if the data has no labels. ``labels`` are then full depth's predictions, so that a score is the agreement
    with full depth."""
    reference: npt.NDArray | None = None
    """(N,) predictions at full depth that rules compare with, if they are not the last exit's. For a bundle in another
    precision these are the checkpoint's."""
    numbers: npt.NDArray[np.int64] | None = None
    """(N, n) predictions of every exit as numbers, if logits do not determine them: for tokens."""
    kind: str = ""
    """Name in runtime.kinds.KINDS. Empty in passes that older versions stored: regression for one output, else
    classification."""

    @property
    def task_kind(self) -> Kind:
        """The kind as an object."""
        name = self.kind or ("regression" if self.logits.shape[2] == 1 else "classification")
        return KINDS[name].of(self.names)

    @property
    def outputs(self) -> int:
        """K, the number of classes of a decision; 1 for regression."""
        return self.logits.shape[-1]

    @property
    def label_count(self) -> int:
        """Number of class or label names; 1 for regression."""
        return len(self.names) or self.outputs

    @property
    def layers(self) -> int:
        """n, the number of exits in the pass."""
        return self.logits.shape[1]

    @property
    def exit_layers(self) -> npt.NDArray[np.int64]:
        """(n,) the model's layer of each exit."""
        return np.array(self.exits or range(1, self.layers + 1))

    def select_exits(self, exits: Sequence[int]) -> Predictions:
        """The pass restricted to exits at these layers: ascending, including the last layer."""
        columns = np.array(exits) - 1
        return replace(self._columns(columns), exits=tuple(exits))

    def _columns(self, columns: npt.NDArray[np.integer] | slice) -> Predictions:
        """The pass restricted to these places of its exits."""

        def part(array: npt.NDArray | None) -> npt.NDArray | None:
            return None if array is None else array[:, columns]

        return replace(self, logits=self.logits[:, columns], lte=part(self.lte), numbers=part(self.numbers))

    def first_layers(self, layers: int) -> Predictions:
        """The pass of the first ``layers`` layers of the model. Rules still compare with the former last exit."""
        return replace(self._columns(slice(layers)), reference=self.full_depth)

    def select_rows(self, rows: npt.NDArray[np.integer]) -> Predictions:
        """The pass over some of the rows."""

        def part(array: npt.NDArray | None) -> npt.NDArray | None:
            return None if array is None else array[rows]

        return replace(
            self,
            logits=self.logits[rows],
            labels=self.labels[rows],
            lte=part(self.lte),
            ids=part(self.ids),
            reference=part(self.reference),
            numbers=part(self.numbers),
        )

    @property
    def regression(self) -> bool:
        return self.task_kind.name == "regression"

    def predicted(self) -> npt.NDArray:
        """(N, n) predictions of every exit as numbers: class numbers, values, or sets of labels."""
        return self.task_kind.numbers(self.logits) if self.numbers is None else self.numbers

    @property
    def class_names(self) -> tuple[str, ...]:
        """(C,) class or label names; numbered ones if the names are unknown."""
        return self.names or tuple(f"class {number}" for number in range(self.outputs))

    def text(self, number: float) -> str | float:
        """A prediction or label as text; for regression the value."""
        return self.task_kind.shown(number, self.class_names)

    @property
    def default_criterion(self) -> str:
        """The criterion that is used if none is named."""
        return default_criterion(regression=self.regression, lte=self.lte is not None)

    @property
    def full_depth(self) -> npt.NDArray:
        """(N,) the checkpoint's predictions at full depth, with which rules compare."""
        return self.predicted()[:, -1] if self.reference is None else self.reference

    @property
    def full_depth_score(self) -> float:
        """The score of ``full_depth``, by the same function as the points of a curve, so that rounding cannot make
        equal scores differ."""
        return METRICS[self.metric](self.full_depth, self.labels)

    @property
    def positive(self) -> str | None:
        """The positive class of F1; None for another metric."""
        return positive_class(self.metric, self.names)

    @property
    def constant(self) -> Constant:
        """The best constant prediction (the same for every example), and its score."""
        return constant_prediction(self.metric, self.labels, self.label_count)

    def at_chance(self, predicted: npt.NDArray) -> bool:
        """True if predictions (N,) score no better than ``constant``, within sampling error."""
        return at_chance(self.metric, predicted, self.labels, self.label_count)

    def check(self, where: str = "the stored pass") -> None:
        """Raises InputError for labels on which the metric is not defined, BerxitError for outputs without a score,
        such as NaN."""
        if not self.unlabelled:
            check_labels(self.metric, self.labels, where)
        check_outputs(self.metric, self.logits, self.exit_layers.tolist(), where)

    def score(self, predicted: npt.NDArray, metric: str | None = None) -> float:
        """The score of predictions (N,) by the task's metric, or by another one."""
        return METRICS[metric or self.metric](predicted, self.labels)

    def save(self, path: Path) -> None:
        """Writes the pass to an .npz file. The file is replaced as a whole, so an interruption keeps the old one."""
        arrays: dict[str, Any] = {"logits": self.logits, "labels": self.labels, "metric": np.array(self.metric)}
        arrays["names"] = np.array(self.names, dtype=np.str_)
        arrays["kind"] = np.array(self.task_kind.name)
        if self.unlabelled:
            arrays["unlabelled"] = np.array(True)
        for name in ("lte", "ids", "reference", "numbers"):
            if (array := getattr(self, name)) is not None:
                arrays[name] = array
        with replacing(path) as scratch:
            np.savez_compressed(scratch, **arrays)

    @classmethod
    def load(cls, path: Path | str) -> Predictions:
        """The pass in an .npz file that ``save`` wrote."""
        with np.load(path, allow_pickle=False) as file:
            lte, ids, reference, numbers = (
                file[name] if name in file.files else None for name in ("lte", "ids", "reference", "numbers")
            )
            names = tuple(file["names"].tolist()) if "names" in file.files else ()
            return cls(
                file["logits"],
                lte,
                file["labels"],
                str(file["metric"]),
                ids,
                names=names,
                unlabelled="unlabelled" in file.files,
                reference=reference,
                numbers=numbers,
                kind=str(file["kind"]) if "kind" in file.files else "",
            )


def best_device() -> torch.device:
    """The device of training and passes: a GPU if there is one."""
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def predict(
    model: MultiExitModel,
    tokenizer: TextTokenizer,
    examples: Examples,
    batch_size: int = 32,
    progress: Progress = silent,
    source: str = "the data",
) -> Predictions:
    """Runs all layers on all examples once, on the model's device.

    ``source``: origin of the examples, for error messages. Raises InputError before the pass for labels on which the
    metric is not defined, and BerxitError for outputs without a score, such as NaN.
    """
    if not examples.unlabelled:
        check_labels(model.config.metric, examples.labels, source)
    encoded = EncodedExamples(examples, tokenizer, progress)
    logits, lte = run_all_layers(model, encoded, batch_size, progress)
    rows, config = np.arange(len(examples)), model.config
    found = Predictions(logits, lte, examples.labels, config.metric, rows, names=config.labels, kind=config.kind)
    if config.task_kind.words:
        found = replace(found, numbers=config.task_kind.numbers(logits, config.labels, encoded.texts))
    if examples.unlabelled:
        found = replace(found, labels=found.full_depth, unlabelled=True)
    found.check(source)
    return found


@torch.no_grad()
def run_all_layers(
    model: MultiExitModel, encoded: EncodedExamples, batch_size: int, progress: Progress = silent
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None]:
    """Logits of the decisions, (N, n, K) or (N, n, D, K), and certainties (N, n) if the model has LTE, on the model's
    device. It sets the model to evaluation mode, so it draws no random numbers."""
    model.eval()
    kind = model.config.task_kind
    found: dict[int, npt.NDArray[np.float32]] = {}
    lte = np.empty((len(encoded), model.layers), dtype=np.float32) if model.config.lte else None
    by_length = np.argsort(encoded.lengths, kind="stable")  # Rows of similar length need little padding.
    with progress(len(encoded)) as bar:
        for start in range(0, len(by_length), batch_size):
            rows = by_length[start : start + batch_size]
            batch = encoded.batch([encoded[i] for i in rows])
            outputs = model(**{name: tensor.to(model.device) for name, tensor in as_tensors(batch).items()})
            logits = outputs.exit_logits.float().cpu().numpy()
            of_exits = [kind.decisions(logits[:, place], batch.places) for place in range(model.layers)]
            found.update(zip(rows.tolist(), np.stack(of_exits, axis=1), strict=True))
            if lte is not None:
                lte[rows] = outputs.certainties.float().cpu().numpy()
            bar.update(len(rows))
    return stack_decisions([found[row] for row in range(len(encoded))]), lte


def layer_scores(predictions: Predictions, metric: str | None = None) -> list[float]:
    """(n,) the score of each exit if all examples exit there, by the task's metric or another one."""
    predicted = predictions.predicted()
    return [predictions.score(predicted[:, layer], metric) for layer in range(predictions.layers)]


def default_criterion(*, regression: bool, lte: bool) -> str:
    """Confidence for classification. For regression, LTE if the model has it, else patience."""
    if not regression:
        return "confidence"
    return "lte" if lte else "patience"
