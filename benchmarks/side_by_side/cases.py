"""Inputs of the side-by-side benchmark, and their exit layers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.side_by_side.contenders import Case, Schedule
from berxit.runtime.bundle import Manifest
from berxit.runtime.errors import BerxitError
from berxit.runtime.examples import Examples, find_split, read_examples_for
from berxit.runtime.metrics import METRICS
from berxit.runtime.policies import ExitPolicy, Floats, certainties, exit_layers
from berxit.runtime.tokenization import TextTokenizer

BATCH = 32
TIMED = 24
"""Number of rows of real data that are timed at batch size 1."""
ROWS = 4
"""Number of rows of random ids that are timed under the policy, for models with at least twice as many layers."""
GROWING = tuple(range(8, 129, 8)), (8, 32, 64, 128)
"""Lengths in tokens of the inputs and of the batches after which memory is measured."""


def random_cases(manifest: Manifest, lengths: list[int], vocabulary: int) -> dict[str, Case]:
    """One case per length, with rows whose exit layers are evenly spaced, and a batch of 32."""
    model = manifest.model
    n = model.layers
    rng = np.random.default_rng(0)
    base = ExitPolicy.full_depth(n)
    few = min(ROWS, n) if n >= 2 * ROWS else n
    evenly = tuple(round((row + 0.5) * n / few + 0.5) for row in range(few))

    def case(name: str, depths: tuple[int, ...], length: int, **how: bool) -> Case:
        policy = Schedule(base.criterion, base.thresholds, base.temperatures, depths=depths)
        ids = rng.integers(1, vocabulary, (len(depths), length)).tolist()
        return Case.of(name, ids, policy, model.pad_token_id, **how)

    cases = {f"{length} tokens": case(f"{length} tokens", evenly, length, alike=True) for length in lengths}
    name = f"batch of {BATCH}, {min(lengths)} tokens"
    return {**cases, name: case(name, tuple(1 + row % n for row in range(BATCH)), min(lengths), together=True)}


def growing_cases(manifest: Manifest, vocabulary: int) -> tuple[list[Case], list[Case]]:
    """Single inputs and batches, each of increasing length up to the model's maximum."""
    rng = np.random.default_rng(1)
    model = manifest.model
    longest = model.max_length

    def case(rows: int, length: int) -> Case:
        ids = rng.integers(1, vocabulary, (rows, length)).tolist()
        name = f"{rows} x {length} tokens"
        return Case.of(name, ids, ExitPolicy.full_depth(model.layers), model.pad_token_id, together=True)

    singles, batches = (sorted({min(length, longest) for length in lengths}) for lengths in GROWING)
    return [case(1, length) for length in singles], [case(BATCH, length) for length in batches]


@dataclass(frozen=True)
class Labelled:
    """Labelled inputs in two halves. The policy of each half is calibrated on the other half, so that no row is scored
    under a policy that was calibrated on it."""

    examples: Examples
    case: Case
    """All rows, at batch size 1."""
    regression: bool
    metric: str

    @property
    def half(self) -> npt.NDArray[np.int64]:
        """(N,) half of each row: 0 for even row numbers, 1 for odd ones."""
        return np.arange(len(self.examples)) % 2

    def score(self, logits: Floats) -> float:
        """Metric of the task for logits (N, C)."""
        predictions = logits[:, 0] if self.regression else logits.argmax(axis=1)
        return float(METRICS[self.metric](predictions, self.examples.labels))

    def policies(
        self, logits: Floats, lte: Floats | None, checkpoint: Path, reference: Floats, keep: float = 0.99
    ) -> tuple[ExitPolicy, ExitPolicy]:
        """Policy of each half, calibrated on the other half as ``berxit-calibrate --keep`` does, with its guarantee.

        The outputs are those of the bundle: logits (N, n, C), lte (N, n) or None. ``reference`` (N, C): the logits of
        fp32 at full depth, which the guarantee compares with. The criterion is that of the checkpoint's policy, or the
        default criterion without a policy.
        """
        from berxit.train.calibration import choose, read_policy
        from berxit.train.evaluation import Predictions
        from berxit.train.families import PolicySpec
        from berxit.train.rules import Keep

        chosen = []
        earlier = read_policy(checkpoint)
        for half in (0, 1):
            rows = self.half != half
            part = Predictions(
                logits[rows],
                None if lte is None else lte[rows],
                self.examples.labels[rows],
                self.metric,
                reference=reference[rows, 0] if self.regression else reference[rows].argmax(axis=1),
            )
            spec = PolicySpec.of(earlier.calibration) if earlier else PolicySpec(part.default_criterion)
            chosen.append(choose(part, spec, Keep(keep), "half of the rows", "", estimate=False).policy)
        return chosen[0], chosen[1]

    def exit_layers_of(
        self, policies: tuple[ExitPolicy, ExitPolicy], logits: Floats, lte: Floats | None
    ) -> npt.NDArray[np.integer]:
        """(N,) exit layer of each row under the policy of its half."""
        first, second = (exit_layers(policy, certainties(policy, logits, lte), logits) for policy in policies)
        return np.where(self.half == 0, first, second)

    def timed(self, policy: ExitPolicy, layers: npt.NDArray[np.integer]) -> dict[str, Case]:
        """Cases to time, from rows of the second half under its ``policy``: 24 single rows and a batch of 32.

        The rows are sorted by exit layer (``layers``, (N,)) and length, and sampled at even distances, so that the
        distribution of their exit layers is that of the half.
        """
        case = self.case
        rows = sorted(np.flatnonzero(self.half == 1), key=lambda row: (layers[row], len(case.ids[row])))

        def take(name: str, count: int, **how: bool) -> Case:
            count = min(count, len(rows))
            chosen = [int(rows[int((place + 0.5) * len(rows) / count)]) for place in range(count)]
            np.random.default_rng(0).shuffle(chosen)
            ids, types = [case.ids[row] for row in chosen], [case.types[row] for row in chosen]
            return Case.of(name, ids, policy, case.pad, types, **how)

        batch = f"batch of {BATCH}, inputs"
        return {"inputs": take("inputs", TIMED), batch: take(batch, BATCH, together=True)}


def labelled(bundle: Path, manifest: Manifest, data: Path, split: str, limit: int | None) -> Labelled:
    """First ``limit`` rows of a split; all for None. Raises InputError for data that cannot be read, BerxitError for
    fewer than two rows per half."""
    model = manifest.model
    path = find_split(data, split)
    examples = read_examples_for(model, path).head(limit)
    if len(examples) < 4:
        raise BerxitError(f"{path}: {len(examples)} rows are too few to calibrate on one half: give at least 4")
    batch = TextTokenizer(bundle / manifest.tokenizer.file, model.max_length, model.pad_token_id)(examples.texts)
    rows = [slice(0, int(n)) for n in batch.lengths]
    ids = [batch.input_ids[i, row].tolist() for i, row in enumerate(rows)]
    types = [batch.token_type_ids[i, row].tolist() for i, row in enumerate(rows)]
    case = Case.of("scores", ids, ExitPolicy.full_depth(model.layers), model.pad_token_id, types)
    return Labelled(examples, case, model.regression, model.metric)
