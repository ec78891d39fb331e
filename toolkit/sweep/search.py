"""The search: Optuna suggests a setting, a trial fine-tunes and ranks it, until the budget is used."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from berxit.runtime.errors import BerxitError, DivergedError, InputError
from berxit.runtime.examples import find_split
from berxit.runtime.json_data import parse, to_json
from berxit.runtime.kinds import KINDS
from berxit.runtime.policies import adaptive_criterion_from, criterion_named
from berxit.runtime.progress import Progress, duration, silent
from berxit.runtime.storage import used_alone
from berxit.toolkit.sweep.ranking import Measure, measure
from berxit.toolkit.sweep.rows import SweepRows, sweep_rows
from berxit.toolkit.sweep.space import Setting, Space, options_of
from berxit.toolkit.sweep.storage import RESULT, SweepFolder
from berxit.train.checkpoint import read_record
from berxit.train.fine_tuning import fine_tune, run_key
from berxit.train.options import TrainingOptions
from berxit.train.tasks import Task

if TYPE_CHECKING:
    from optuna import Study

Report = Callable[[str], None]

STARTUP = 6
"""Random trials before Optuna's sampler (TPE) uses the results."""


@dataclass(frozen=True)
class Budget:
    """A sweep ends when either limit is reached."""

    trials: int | None
    """Number of trials, those of interrupted parts of the sweep included."""
    minutes: float | None
    """Time of all trials. No trial starts that would probably end later, except the first."""

    def left(self, seconds: Sequence[float]) -> bool:
        """True if another trial fits. ``seconds``: durations of the trials so far."""
        if self.trials is not None and len(seconds) >= self.trials:
            return False
        return self.minutes is None or not seconds or sum(seconds) + max(seconds) <= 60 * self.minutes


@dataclass(frozen=True)
class Trial:
    """A finished trial."""

    setting: Setting
    """The searched options, as trained."""
    seconds: float
    measured: Measure | None
    """Scores on the ranking rows; None for a failed trial."""
    on_dev: Measure | None = None
    """Scores on the dev split, which are measured for the first trial and for each that is the best so far."""
    failure: str = ""

    @property
    def area(self) -> float:
        return float("-inf") if self.measured is None else self.measured.area


@dataclass(frozen=True)
class SweepRequest:
    """Task, data, fixed options and searched options of a sweep."""

    task: Task
    data: Path
    base: TrainingOptions
    """Options of all trials; a trial replaces those that the space contains."""
    space: Space
    output: Path
    criterion: str | None = None
    """Exit criterion of the curves; None for the task's default."""


def search(
    sweep: SweepRequest,
    budget: Budget,
    *,
    force: bool = False,
    bar: Callable[[str], Progress] = lambda label: silent,
    report: Report = lambda line: None,
) -> tuple[list[Trial], SweepRows]:
    """Runs trials until the budget is used, and returns all trials of the sweep in their order, with its rows.

    The first trial has the options of ``base``. The same call continues an interrupted sweep, also within a trial. If
    the budget is larger, it adds trials. The best checkpoint is OUTPUT/best.

    Raises InputError for bad options or data, and for an ``output`` of something else; BerxitError if every trial
    fails. A sweep whose first trial cannot run leaves no folder. A sweep without a trial that has a score destroys no
    earlier one.
    """
    _check_criterion(sweep)
    folder = SweepFolder(sweep.output)
    continues = folder.prepare(_key(sweep), force)
    with used_alone(folder.folder), folder.undone_after_an_error():
        rows = sweep_rows(sweep.task, sweep.data, sweep.base, folder.data, sweep.criterion, report)
        study = folder.study()
        if continues:
            report(f"continuing the sweep in {sweep.output}: {len(finished(study))} trials are done")
        else:
            study.enqueue_trial(sweep.space.first(sweep.base))
        trials = finished(study)
        while budget.left([trial.seconds for trial in trials]):
            _run_trial(sweep, study, folder, rows, budget, trials, bar, report)
            trials = finished(study)
        failed = all(trial.measured is None for trial in trials)
        restored = failed and folder.restore_earlier()
    if failed:
        reason = f". The first: {trials[0].failure}" if trials else ": raise --trials or --minutes"
        kept = f". {sweep.output} is the earlier sweep again" if restored else ""
        raise BerxitError(f"no trial of the sweep has a score{reason}{kept}")
    return trials, rows


def _check_criterion(sweep: SweepRequest) -> None:
    """Raises InputError for a criterion without a trade-off curve for this task, before the first trial."""
    if sweep.criterion is None:
        return
    kind = criterion_named(adaptive_criterion_from(sweep.criterion))
    if sweep.task.regression and not kind.for_regression:
        raise InputError(f"--criterion {kind.name} needs class probabilities: use lte, patience or learned")
    if kind.fitted and KINDS[sweep.task.kind].several:
        raise InputError(f"--criterion {kind.name} needs one class per text: use confidence, entropy, patience or lte")
    if kind.needs_lte and not sweep.base.lte:
        raise InputError(f"--criterion {kind.name} needs the LTE module: omit --no-lte, or choose another criterion")


def _key(sweep: SweepRequest) -> dict[str, Any]:
    """Everything on which the trials depend. A sweep continues if the keys are equal."""
    key = run_key(sweep.task, sweep.base, find_split(sweep.data, "train"), 1)
    searched = {f"searched {name}": value for name, value in sweep.space.recorded().items()}
    return {**key, "options": {**key["options"], **searched, "criterion": sweep.criterion}}


def finished(study: Study) -> list[Trial]:
    """All trials that ended, failed ones included, in their order."""
    return [parse(Trial, each.user_attrs[RESULT], "the journal") for each in study.trials if RESULT in each.user_attrs]


def _run_trial(
    sweep: SweepRequest,
    study: Study,
    folder: SweepFolder,
    rows: SweepRows,
    budget: Budget,
    done: list[Trial],
    bar: Callable[[str], Progress],
    report: Report,
) -> None:
    import optuna

    # A new sampler per trial, with a seed of its own, so that a resumed sweep makes the same suggestions.
    study.sampler = optuna.samplers.TPESampler(
        seed=sweep.base.seed + len(done), n_startup_trials=STARTUP, multivariate=True
    )
    asked = study.ask()
    options = options_of(sweep.base, sweep.space.suggest(asked))
    setting = {name: getattr(options, name) for name in sweep.space.recorded()}
    number = len(done) + 1
    label = f"trial {number}" + (f" of {budget.trials}" if budget.trials else "")
    report(f"{label}: {describe(setting)}{_remaining(budget, done)}")
    checkpoint = folder.trial(hashlib.sha256(json.dumps(setting).encode()).hexdigest()[:10])
    start = time.monotonic()
    trained = 0.0
    measured = on_dev = None
    failure = ""
    try:
        fine_tune(sweep.task, rows.train_file, options, checkpoint, progress=bar(label), report=_only_resuming(report))
        trained = float(read_record(checkpoint)["seconds"]) - (time.monotonic() - start)
        measured = measure(checkpoint, rows.ranking, sweep.criterion, bar("ranking"))
        if rows.dev is not None and (not done or measured.area > max(trial.area for trial in done)):
            on_dev = measure(checkpoint, rows.dev, sweep.criterion, bar("dev split"))
    except DivergedError as error:
        failure = str(error)
    seconds = time.monotonic() - start + max(0.0, trained)  # includes what an interrupted part has trained
    trial = Trial(setting, round(seconds, 1), measured, on_dev, failure)
    if measured is not None and trial.area > max((each.area for each in done), default=float("-inf")):
        folder.keep_best(checkpoint)
    asked.set_user_attr(RESULT, to_json(trial))
    if measured is None:
        study.tell(asked, state=optuna.trial.TrialState.PRUNED)
        report(f"{label} failed: {failure}")
    else:
        study.tell(asked, measured.area)
        report(f"{label}: area {measured.area:.4f}, {sweep.task.metric} {measured.full_depth:.4f} at full depth")
    shutil.rmtree(checkpoint, ignore_errors=True)


def describe(setting: Setting) -> str:
    """A setting in a few words."""
    return (
        f"{setting['strategy']}, pooling {setting['pooling']}, learning rate {setting['learning_rate']:g},"
        f" of the exits {setting['head_learning_rate']:g}"
    )


def _remaining(budget: Budget, done: Sequence[Trial]) -> str:
    """Expected duration of the rest of the sweep; empty before the first trial ends."""
    if not done:
        return ""
    spent = sum(trial.seconds for trial in done)
    left = []
    if budget.trials is not None:
        left.append(spent / len(done) * (budget.trials - len(done)))
    if budget.minutes is not None:
        left.append(60 * budget.minutes - spent)
    return f" (about {duration(min(left))} left)"


def _only_resuming(report: Report) -> Report:
    """Passes on the line about a resumed trial. The other lines of a fine-tuning are about data that all trials
    share."""
    return lambda line: report(line) if line.startswith("resuming") else None
