"""``berxit sweep``: ranking, rows, budget, interruption, results and bad input."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from pytest import CaptureFixture, MonkeyPatch
from transformers import TrainerCallback

from berxit.runtime.console import status_of
from berxit.runtime.errors import InputError
from berxit.runtime.storage import used_alone
from berxit.toolkit.cli import load
from berxit.toolkit.sweep import search
from berxit.toolkit.sweep.ranking import area_under
from berxit.toolkit.sweep.rows import SweepRows, sweep_rows
from berxit.toolkit.sweep.search import Budget
from berxit.toolkit.sweep.space import Space, options_of
from berxit.train import stages
from berxit.train.curves import Curve
from berxit.train.options import TrainingOptions
from berxit.train.tasks import custom_task
from berxit.train.trainer import MultiExitTrainer, check_loss

SHORT = ["--epochs", "1", "--batch-size", "16", "--max-length", "16", "--quiet"]


def run(still: str, data: Path, output: Path, *options: object) -> int:
    arguments = ["--model", still, "--task", "custom", "--data", data, "--output", output, *SHORT, *options]
    return status_of(load("sweep"), [str(argument) for argument in arguments])


def results(output: Path) -> dict:
    return json.loads((output / "sweep.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def sweep(still: str, data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of three trials."""
    output = tmp_path_factory.mktemp("sweeps") / "sweep"
    assert run(still, data_folder, output, "--trials", "3") == 0
    return output


def test_area_is_the_mean_score_over_all_average_exit_layers() -> None:
    curve = Curve(np.array([1.0, 2.0, 3.0]), np.array([0.5, 0.7, 0.9]), 3)
    assert area_under(curve) == pytest.approx(0.7)
    late = Curve(np.array([2.0, 5.0]), np.array([0.6, 0.9]), 5)
    assert area_under(late) == pytest.approx((0.6 * 1 + 0.75 * 3) / 4)
    assert area_under(Curve(np.array([1.0]), np.array([0.4]), 1)) == 0.4
    assert area_under(curve, 0.6) == pytest.approx((0.6 * 0.5 + 0.65 * 0.5 + 0.8 * 1) / 2)


def test_trials_are_ranked_by_area_on_rows_that_no_trial_trains_on(sweep: Path, data_folder: Path) -> None:
    found = results(sweep)
    areas = [trial["measured"]["area"] for trial in found["trials"]]
    assert len(areas) == 3
    assert found["best"]["measured"]["area"] == max(areas)
    for trial in found["trials"]:
        layers, scores = (np.array(trial["measured"][name]) for name in ("layers", "scores"))
        expected = area_under(Curve(layers, scores, 3), trial["measured"]["constant"])
        assert trial["measured"]["area"] == pytest.approx(expected, abs=1e-6)
    task = custom_task(data_folder, ("text",), "label")
    trained, whole = task.read(sweep / "data", "train"), task.read(data_folder, "train")
    dev = task.read(data_folder, "dev")
    assert (len(trained), set(trained.texts) < set(whole.texts)) == (77, True)
    assert not set(trained.texts) & set(dev.texts)
    assert "19 training rows that no trial trains on" in (sweep / "sweep.md").read_text(encoding="utf-8")
    assert "on the 48 dev rows, which chose nothing" in (sweep / "sweep.md").read_text(encoding="utf-8")


def test_first_trial_has_the_default_options_and_the_best_checkpoint_is_kept(sweep: Path) -> None:
    found = results(sweep)
    first = {"strategy": "alternating", "pooling": "mean", "learning_rate": 5e-5, "head_learning_rate": 1e-3}
    assert found["trials"][0]["setting"] == first
    best = json.loads((sweep / "best" / "training.json").read_text(encoding="utf-8"))
    assert best["options"].items() >= found["best"]["setting"].items()
    assert not list((sweep / "trials").iterdir())


def test_files_contain_no_path_of_the_machine(sweep: Path, still: str, data_folder: Path) -> None:
    for name in ("sweep.md", "sweep.json", "key.json", "trials.journal", "best/training.json"):
        text = (sweep / name).read_text(encoding="utf-8")
        assert not any(str(path) in text for path in (still, data_folder, sweep)), name


def test_printed_command_trains_the_best_setting(
    sweep: Path, still: str, data_folder: Path, tmp_path: Path, capsys: CaptureFixture[str]
) -> None:
    assert run(still, data_folder, sweep, "--trials", "2") == 0  # the sweep has more trials already
    captured = capsys.readouterr()
    assert "continuing the sweep" in captured.err and "trial 4" not in captured.err
    line = captured.out.splitlines()[-1].removeprefix("next: berxit-train ")
    given = load("train").make_context("train", shlex.split(line)).params
    for name, value in results(sweep)["best"]["setting"].items():
        assert given[name] == value
    assert (given["epochs"], given["batch_size"], given["dev_fraction"]) == (1, 16, None)
    assert (given["model"], given["data"], given["task_name"]) == (still, data_folder, "custom")


class Interrupt(TrainerCallback):
    def on_step_end(self, args: object, state: object, control: object, **_: object) -> None:
        if state.global_step == 3:  # type: ignore[attr-defined]
            raise KeyboardInterrupt


def test_interrupted_sweep_continues_in_its_trial_with_the_same_results(
    sweep: Path, still: str, data_folder: Path, tmp_path: Path, monkeypatch: MonkeyPatch, capsys: CaptureFixture[str]
) -> None:
    made = []

    class Interrupted(MultiExitTrainer):
        def __init__(self, *positional: object, **named: object) -> None:
            made.append(1)
            super().__init__(*positional, callbacks=[Interrupt()] if len(made) == 2 else [], **named)

    monkeypatch.setattr("berxit.train.trainer.SAVE_EVERY", 2)
    monkeypatch.setattr(stages, "MultiExitTrainer", Interrupted)
    output = tmp_path / "sweep"
    assert run(still, data_folder, output, "--trials", "3") == 130
    assert run(still, data_folder, output, "--trials", "3") == 0
    err = capsys.readouterr().err
    assert "continuing the sweep" in err and "1 trials are done" in err and "resuming at step 2" in err
    again, whole = results(output)["trials"], results(sweep)["trials"]
    assert [trial["setting"] for trial in again] == [trial["setting"] for trial in whole]
    assert [trial["measured"]["area"] for trial in again] == pytest.approx([t["measured"]["area"] for t in whole])


def test_failed_trial_is_reported_and_ranked_last(
    still: str, data_folder: Path, tmp_path: Path, monkeypatch: MonkeyPatch, capsys: CaptureFixture[str]
) -> None:
    output = tmp_path / "sweep"
    rate = ["--learning-rate", "1e30", "1e30"]
    assert run(still, data_folder, output, "--trials", "1", *rate) == 1
    assert (
        capsys.readouterr().err.splitlines()[-1].startswith("error: no trial of the sweep has a score. The first: the")
    )
    real, calls = search.fine_tune, []

    def diverges_first(*arguments: object, **named: object) -> object:
        calls.append(1)
        return real(*arguments, **named) if len(calls) > 1 else check_loss(float("nan"), 7)

    monkeypatch.setattr(search, "fine_tune", diverges_first)
    assert run(still, data_folder, output, "--trials", "2", "--strategy", "joint", "--force") == 0
    assert "trial 1 of 2 failed: the loss is nan at step 7" in capsys.readouterr().err
    assert [trial["measured"] is None for trial in results(output)["trials"]] == [True, False]
    table = [line for line in (output / "sweep.md").read_text(encoding="utf-8").splitlines() if "| joint" in line]
    assert [("failed" in line) for line in table] == [False, True]
    assert "the first trial, with the given options" not in (output / "sweep.md").read_text(encoding="utf-8")
    assert (output / "best" / "model.safetensors").is_file()


def test_minutes_start_no_trial_that_would_end_later() -> None:
    budget = Budget(None, 10)
    assert budget.left([]) and budget.left([200, 200])
    assert not budget.left([200, 210])
    assert not Budget(2, 10).left([1, 1])


def test_space_keeps_given_values_and_rounds_rates_to_what_the_command_line_repeats() -> None:
    base = TrainingOptions("model", learning_rate=2e-5)
    space = Space(("joint",), ("mean",), (1e-4, 1e-3), (1e-3, 1e-3))
    first = {"strategy": "joint", "pooling": "mean", "learning_rate": 1e-4, "head_learning_rate": 1e-3}
    assert space.first(base) == first
    options = options_of(base, {**first, "learning_rate": 1.23456e-4})
    assert (options.learning_rate, options.strategy, options.dev_fraction) == (1.2e-4, "joint", 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--strategy", "raw"], "--strategy raw: choose one that trains all exits of alternating, joint, two-stage"),
        (["--pooling", "max"], "--pooling max: choose one of first, mean"),
        (["--learning-rate", "1e-3", "1e-4"], "--learning-rate 0.001 0.0001: give two numbers above 0, the smaller"),
        (["--head-learning-rate", "0", "1e-4"], "--head-learning-rate 0 0.0001: give two numbers above 0"),
        (["--trials", "0"], "--trials"),
        (["--minutes", "0"], "--minutes"),
        (["--data", "nowhere"], "no data at nowhere"),
        (["--label-column", "class"], "no column 'class'. Columns: text, label"),
        (["--task", "sst2", "--regression"], "go with --task custom, not sst2"),
        (["--criterion", "sharpness"], "unknown criterion 'sharpness': choose one of"),
        (["--criterion", "lte", "--no-lte"], "--criterion lte needs the LTE module"),
        (
            ["--criterion", "learned"],
            "--criterion learned needs at least 50 rows that rank the trials, and there are 19 of the 96 training rows:"
            " give at least 253 training rows, or choose another --criterion",
        ),
        (["--criterion", "learned", "--limit-train", "60"], "set --limit-train to at least 250, with data of so many"),
        (["--criterion", "learned", "--kind", "multilabel"], "--criterion learned needs one class per text"),
        (["--criterion", "fixed"], "--criterion fixed has no thresholds"),
        (["--epochs", "-1"], "--epochs is -1"),
        (["--output", "taken"], "taken exists and is not a sweep: choose another --output"),
        (["--output", "SWEEP", "--seed", "7"], "is a sweep with other options or data (seed 42, now 7)"),
        (["--output", "SWEEP", "--strategy", "joint"], "is a sweep with other options or data (searched strategy"),
    ],
)
def test_sweep_rejects_bad_input_in_one_line(
    options: list[str],
    message: str,
    sweep: Path,
    still: str,
    data_folder: Path,
    tmp_path: Path,
    monkeypatch: MonkeyPatch,
    capsys: CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine", encoding="utf-8")
    before = {path: path.stat().st_mtime_ns for path in sweep.rglob("*")}
    given = [str(sweep) if option == "SWEEP" else option for option in options]
    assert run(still, data_folder, tmp_path / "new", *given) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and message in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken"]
    assert {path: path.stat().st_mtime_ns for path in sweep.rglob("*")} == before


def many_rows(count: int) -> str:
    return "text\tlabel\n" + "".join(f"the cat {row}\t{'dog' if row % 3 else 'cat'}\n" for row in range(count))


@pytest.mark.parametrize("dev", [60, 10, 0])
def test_sweep_with_as_many_rows_as_the_error_requires_can_rank_by_a_fitted_criterion(dev: int, tmp_path: Path) -> None:
    if dev:
        (tmp_path / "dev.tsv").write_text(many_rows(dev), encoding="utf-8")
    lines: list[str] = []

    def rows(count: int) -> SweepRows:
        (tmp_path / "train.tsv").write_text(many_rows(count), encoding="utf-8")
        task = custom_task(tmp_path, ("text",), "label")
        return sweep_rows(task, tmp_path, TrainingOptions("model"), tmp_path / "out", "learned", lines.append)

    with pytest.raises(InputError, match="give at least") as error:
        rows(100)
    found = rows(int(re.findall("give at least ([0-9]+)", str(error.value))[0]))
    assert len(found.ranking) >= 50
    assert (found.dev is None) == (dev < 50)
    few = {60: [], 10: ["10 rows"], 0: ["28 rows"]}[dev]
    expected = [f"the dev split scores no trial: it has {each}, and the criterion needs at least 50" for each in few]
    assert lines == expected


def test_sweep_rejects_ranking_rows_without_a_defined_score_before_the_first_trial(
    still: str, data_folder: Path, tmp_path: Path, capsys: CaptureFixture[str]
) -> None:
    rare = many_rows(1) + "".join(f"a dog {row}\tdog\n" for row in range(40))
    (tmp_path / "train.tsv").write_text(rare, encoding="utf-8")
    assert run(still, tmp_path / "train.tsv", tmp_path / "new") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: the 7 training rows that rank the trials: accuracy cannot be measured: all labels")
    assert not (tmp_path / "new").exists()


def test_sweep_whose_model_cannot_be_loaded_leaves_no_folder(
    still: str, data_folder: Path, tmp_path: Path, capsys: CaptureFixture[str]
) -> None:
    (tmp_path / "nothing").mkdir()
    assert run(still, data_folder, tmp_path / "new", "--model", tmp_path / "nothing") == 1
    assert "error: cannot load --model" in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "new").exists()


def test_forced_sweep_that_cannot_run_keeps_the_earlier_one(
    sweep: Path, still: str, data_folder: Path, tmp_path: Path, capsys: CaptureFixture[str]
) -> None:
    (tmp_path / "nothing").mkdir()
    before = files_below(shutil.copytree(sweep, tmp_path / "sweep"))
    for killed in (False, True):
        if killed:  # before the first trial
            (tmp_path / "sweep").rename(tmp_path / ".sweep.earlier")
            (tmp_path / "sweep").mkdir()
        assert run(still, data_folder, tmp_path / "sweep", "--force", "--model", tmp_path / "nothing") == 1
        assert "error: cannot load --model" in capsys.readouterr().err.strip().splitlines()[-1]
        assert files_below(tmp_path / "sweep") == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["nothing", "sweep"]


def test_forced_sweep_whose_trials_all_diverge_restores_the_earlier_one(
    sweep: Path, still: str, data_folder: Path, tmp_path: Path, capsys: CaptureFixture[str]
) -> None:
    output = tmp_path / "sweep"
    before = files_below(shutil.copytree(sweep, output))
    assert run(still, data_folder, output, "--force", "--trials", "2", "--learning-rate", "1e30", "1e30") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: no trial of the sweep has a score. The first: the loss is")
    assert error.endswith(f". {output} is the earlier sweep again")
    assert files_below(output) == before
    assert [path.name for path in tmp_path.iterdir()] == ["sweep"]
    assert run(still, data_folder, output, "--trials", "3") == 0  # continues: nothing is missing
    assert "3 trials are done" in capsys.readouterr().err


def test_sweep_that_was_killed_while_it_restored_the_earlier_one_restores_it(
    sweep: Path, still: str, data_folder: Path, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    output = tmp_path / "sweep"
    before = files_below(shutil.copytree(sweep, output))

    def killed(path: Path, **options: object) -> None:
        real(path, **options)
        if path.name == "trials":
            raise RuntimeError("killed")

    real = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", killed)
    diverging = ["--force", "--trials", "1", "--learning-rate", "1e30", "1e30"]
    assert run(still, data_folder, output, *diverging) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [".sweep.earlier", "sweep"]
    monkeypatch.undo()
    assert run(still, data_folder, output, "--trials", "3") == 0
    assert files_below(output).keys() == before.keys()
    assert [path.name for path in tmp_path.iterdir()] == ["sweep"]


@pytest.mark.parametrize("replaces", [False, True])  # the running sweep replaces an earlier one
def test_forced_sweep_does_not_delete_a_running_one(
    replaces: bool, sweep: Path, still: str, data_folder: Path, tmp_path: Path, capsys: CaptureFixture[str]
) -> None:
    running = files_below(shutil.copytree(sweep, tmp_path / "sweep", ignore=shutil.ignore_patterns("trials")))
    if replaces:
        shutil.copytree(sweep, tmp_path / ".sweep.earlier")
    with used_alone(tmp_path / "sweep"):
        assert run(still, data_folder, tmp_path / "sweep", "--force", "--seed", "7") == 2
    assert "another process is writing" in capsys.readouterr().err
    assert files_below(tmp_path / "sweep") == running


def test_forced_sweep_replaces_the_earlier_one(still: str, data_folder: Path, tmp_path: Path, sweep: Path) -> None:
    shutil.copytree(sweep, tmp_path / "sweep")
    assert run(still, data_folder, tmp_path / "sweep", "--force", "--trials", "1", "--seed", "7") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["sweep"]
    assert len(json.loads((tmp_path / "sweep" / "sweep.json").read_text(encoding="utf-8"))["trials"]) == 1


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_sweep_without_optuna_names_the_extra(
    still: str, data_folder: Path, tmp_path: Path, monkeypatch: MonkeyPatch, capsys: CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert run(still, data_folder, tmp_path / "new") == 1
    assert "this needs optuna, which is not installed here" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
