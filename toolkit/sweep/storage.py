"""The folder of a sweep: its key, Optuna's journal, and the best checkpoint. A sweep resumes from it."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.json_data import read_json, write_json
from berxit.runtime.storage import check_results_folder, used_alone
from berxit.train.resuming import changes

if TYPE_CHECKING:
    from optuna import Study

KEY_FILE = "key.json"
JOURNAL = "trials.journal"
RESULT = "result"
"""Attribute of an Optuna trial with the result of the fine-tuning."""


@dataclass(frozen=True)
class SweepFolder:
    """OUTPUT of ``berxit sweep``."""

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def best(self) -> Path:
        """The checkpoint of the best trial so far."""
        return self.folder / "best"

    @property
    def trials(self) -> Path:
        """Folder of the running trial, from the first trial on."""
        return self.folder / "trials"

    @property
    def earlier(self) -> Path:
        """The sweep that this one replaces, until a trial of this one has a score."""
        return self.folder.with_name(f".{self.folder.name}.earlier")

    def trial(self, name: str) -> Path:
        """The checkpoint of a running trial."""
        return self.trials / name

    @contextmanager
    def undone_after_an_error(self) -> Iterator[None]:
        """If the block raises a BerxitError before the first trial trains, deletes the folder, or restores the sweep
        that it replaced."""
        try:
            yield
        except BerxitError:
            self._undo()
            raise

    def _alone(self) -> AbstractContextManager[None]:
        """Locks the folder if it exists, so that the sweep of another process is not deleted."""
        return used_alone(self.folder) if self.folder.exists() else nullcontext()

    def _undo(self) -> None:
        """Restores the earlier state of the folder, unless a trial trains."""
        if not self.trials.exists():
            shutil.rmtree(self.folder, ignore_errors=True)
            if self.earlier.exists():
                self.earlier.rename(self.folder)

    def restore_earlier(self) -> bool:
        """Deletes this sweep and restores the one that it replaces. Returns False, and deletes nothing, if there is
        none."""
        if not self.earlier.exists():
            return False
        shutil.rmtree(self.trials, ignore_errors=True)  # if the process is killed now, ``prepare`` restores the other
        self._undo()
        return True

    def prepare(self, key: dict[str, Any], force: bool) -> bool:
        """Creates the folder, or keeps that of a sweep with the same ``key``. Returns True if it continues a sweep.

        Raises InputError for a folder of anything else, and for another sweep unless ``force``, which replaces it.
        """
        check_results_folder(self.folder)
        if self.earlier.exists():  # from a sweep that was killed, or from one that is running
            with self._alone():
                self._undo()
        marker = self.folder / KEY_FILE
        if marker.is_file():
            different = changes(read_json(marker), key)
            if not different and not force:
                return True
            if not force:
                raise InputError(
                    f"{self.folder} is a sweep with other options or data ({different[0]}): choose another --output, or"
                    " --force to delete it"
                )
            with self._alone():
                if self.earlier.exists():
                    shutil.rmtree(self.folder)
                else:
                    self.folder.rename(self.earlier)
        elif self.folder.exists() and (self.folder.is_file() or any(self.folder.iterdir())):
            raise InputError(f"{self.folder} exists and is not a sweep: choose another --output")
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(key, marker)
        return False

    def study(self) -> Study:
        """Optuna's study, with all trials so far. A trial that was running is repeated: it resumes."""
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
        from optuna.trial import TrialState

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", module="optuna")  # multivariate sampling is experimental in Optuna 4
        storage = JournalStorage(JournalFileBackend(str(self.folder / JOURNAL)))
        study = optuna.create_study(storage=storage, study_name="sweep", direction="maximize", load_if_exists=True)
        for trial in study.get_trials(states=[TrialState.RUNNING]):
            if (result := trial.user_attrs.get(RESULT)) is None:
                study.tell(trial.number, state=TrialState.FAIL)
                study.enqueue_trial(trial.params)
            elif result["measured"] is None:
                study.tell(trial.number, state=TrialState.PRUNED)
            else:
                study.tell(trial.number, result["measured"]["area"])
        return study

    def keep_best(self, checkpoint: Path) -> None:
        """Makes a trial's checkpoint the best one, and deletes the sweep that this one replaces."""
        shutil.rmtree(self.earlier, ignore_errors=True)
        shutil.rmtree(self.best, ignore_errors=True)
        checkpoint.rename(self.best)
