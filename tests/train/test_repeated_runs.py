"""The same training command again: continued where it was interrupted, recognised where it is finished."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pytest import MonkeyPatch
from safetensors.torch import load_file
from transformers import TrainerCallback

from berxit.runtime.errors import BerxitError, InputError
from berxit.toolkit.api import calibrate, evaluate
from berxit.train import stages
from berxit.train.fine_tuning import TrainingOptions, fine_tune
from berxit.train.objectives import Alternating
from berxit.train.resuming import RunState
from berxit.train.splitting import hold_out
from berxit.train.tasks import Task, custom_task
from berxit.train.trainer import MultiExitTrainer


@pytest.fixture
def data(data_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(data_folder, tmp_path / "data"))


@pytest.fixture
def task(data_folder: Path) -> Task:
    return custom_task(data_folder, ("text",), "label")


@pytest.fixture
def options(still: str) -> TrainingOptions:
    return TrainingOptions(still, epochs=2, batch_size=16, learning_rate=1e-3, max_length=16, limit_train=32)


@pytest.fixture(scope="module")
def trained_once(still: str, data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoint ``output`` that ``options`` trains on ``data``."""
    folder = tmp_path_factory.mktemp("trained")
    options = TrainingOptions(still, epochs=2, batch_size=16, learning_rate=1e-3, max_length=16, limit_train=32)
    fine_tune(custom_task(data_folder, ("text",), "label"), data_folder, options, folder / "output")
    return folder


@pytest.fixture
def output(trained_once: Path, tmp_path: Path) -> Path:
    """A finished checkpoint of ``options`` and ``data``."""
    return Path(shutil.copytree(trained_once / "output", tmp_path / "output"))


@pytest.fixture
def steps(monkeypatch: MonkeyPatch) -> list[int]:
    """The steps that are trained, as they are."""
    found: list[int] = []
    combine = Alternating.combine
    monkeypatch.setattr(
        Alternating, "combine", lambda self, step, losses: found.append(step) or combine(self, step, losses)
    )
    return found


class Interrupt(TrainerCallback):
    def on_step_end(self, args: object, state: object, control: object, **_: object) -> None:
        if state.global_step == 3:  # type: ignore[attr-defined]
            raise KeyboardInterrupt


def interrupted(monkeypatch: MonkeyPatch, *arguments: object, **named: object) -> None:
    """Ctrl-C in the second epoch of two with two steps each."""

    class Interrupted(MultiExitTrainer):
        def __init__(self, *positional: object, **more: object) -> None:
            super().__init__(*positional, callbacks=[Interrupt()], **more)

    with monkeypatch.context() as patch:
        patch.setattr(stages, "MultiExitTrainer", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            fine_tune(*arguments, **named)


@pytest.mark.parametrize("force", [True, False])
def test_interrupted_run_continues_with_or_without_force(
    force: bool, task: Task, options: TrainingOptions, data: Path, tmp_path: Path, monkeypatch: MonkeyPatch, steps: list
) -> None:
    interrupted(monkeypatch, task, data, options, tmp_path / "output", force=force)
    steps.clear()
    fine_tune(task, data, options, tmp_path / "output", force=force)
    assert steps == [3, 4]


def test_finished_run_is_reported_and_not_trained_again(
    task: Task, options: TrainingOptions, data: Path, output: Path, steps: list
) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    steps.clear()
    said: list[str] = []
    assert fine_tune(task, data, options, output, report=said.append) == output
    assert said == [f"{output} is finished: this command has already trained it. --force trains it again"]
    assert steps == []
    assert {path.name: path.stat().st_mtime_ns for path in output.iterdir()} == before
    fine_tune(task, data, options, output, force=True)
    assert steps == [1, 2, 3, 4]


def test_run_key_ignores_folders_of_model_and_data(
    task: Task, options: TrainingOptions, data: Path, output: Path, tmp_path: Path, steps: list
) -> None:
    name = Path(options.model).name
    moved = replace(options, model=str(shutil.copytree(options.model, tmp_path / "elsewhere" / name)))
    steps.clear()
    fine_tune(task, Path(shutil.move(data, tmp_path / "moved")), moved, output)
    assert steps == []


def _other_rows(data: Path, model: Path) -> None:
    with (data / "train.tsv").open("a", encoding="utf-8") as stream:
        stream.write("a big cat\tcat\n")


def _other_weights(data: Path, model: Path) -> None:
    content = bytearray((model / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (model / "model.safetensors").write_bytes(content)


def _other_tokenizer(data: Path, model: Path) -> None:
    path = model / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_other_rows, "other train_sha256"),
        (_other_weights, "other model_sha256"),
        (_other_tokenizer, "other model_sha256"),
    ],
)
def test_other_data_or_another_model_is_another_run(
    change: Callable[[Path, Path], None],
    named: str,
    task: Task,
    options: TrainingOptions,
    data: Path,
    output: Path,
    tmp_path: Path,
    monkeypatch: MonkeyPatch,
) -> None:
    model = Path(shutil.copytree(options.model, tmp_path / Path(options.model).name))
    options = replace(options, model=str(model))
    shutil.move(output, tmp_path / "finished")
    interrupted(monkeypatch, task, data, options, tmp_path / "interrupted")
    change(data, model)
    with pytest.raises(InputError, match=rf"finished was trained with other options or data \({named}\)"):
        fine_tune(task, data, options, tmp_path / "finished")
    with pytest.raises(InputError, match=rf"is an interrupted run with other options or data \({named}\)"):
        fine_tune(task, data, options, tmp_path / "interrupted")


@pytest.mark.parametrize(
    ("change", "named"),
    [({"epochs": 1}, "epochs 2, now 1"), ({"seed": 1}, "seed 42, now 1"), ({"lte": False}, "lte True, now False")],
)
def test_finished_checkpoint_of_other_options_is_kept_without_force(
    change: dict, named: str, task: Task, options: TrainingOptions, data: Path, output: Path
) -> None:
    weights = (output / "model.safetensors").read_bytes()
    other = replace(options, **change)
    with pytest.raises(InputError, match=rf"\({named}\): choose another --output, or --force to replace it"):
        fine_tune(task, data, other, output)
    assert (output / "model.safetensors").read_bytes() == weights
    fine_tune(task, data, other, output, force=True)
    record = json.loads((output / "training.json").read_text(encoding="utf-8"))
    assert {name: record["options"][name] for name in change} == change


def test_record_without_key_is_another_run(task: Task, options: TrainingOptions, data: Path, output: Path) -> None:
    record = json.loads((output / "training.json").read_text(encoding="utf-8"))
    for name in ("task", "model_sha256", "processes"):  # as before there was a key
        del record[name]
    (output / "training.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(InputError, match="was trained with other options or data"):
        fine_tune(task, data, options, output)


def test_run_killed_after_writing_checkpoint_is_finished(
    task: Task, options: TrainingOptions, data: Path, tmp_path: Path, monkeypatch: MonkeyPatch, steps: list
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(RunState, "delete", lambda self: None)
        output = fine_tune(task, data, options, tmp_path / "output")
    weights = load_file(output / "model.safetensors")
    steps.clear()
    fine_tune(task, data, options, output)
    assert steps == []
    again = load_file(output / "model.safetensors")
    assert all((again[name] == weights[name]).all() for name in weights)
    assert not (tmp_path / ".output.training").exists()


def test_interrupted_forced_run_continues_without_force(
    task: Task, options: TrainingOptions, data: Path, output: Path, monkeypatch: MonkeyPatch, steps: list
) -> None:
    interrupted(monkeypatch, task, data, options, output, force=True)
    steps.clear()
    fine_tune(task, data, options, output)
    assert steps == [3, 4]


def test_interrupted_replacement_does_not_replace_without_force(
    task: Task, options: TrainingOptions, data: Path, output: Path, monkeypatch: MonkeyPatch, steps: list
) -> None:
    other = replace(options, seed=1)
    interrupted(monkeypatch, task, data, other, output, force=True)
    with pytest.raises(InputError, match="or --force to replace it"):
        fine_tune(task, data, other, output)
    steps.clear()
    fine_tune(task, data, other, output, force=True)
    assert steps == [3, 4]


def test_incomplete_checkpoint_is_not_reported_as_finished(
    task: Task, options: TrainingOptions, data: Path, output: Path
) -> None:
    (output / "model.safetensors").unlink()
    with pytest.raises(BerxitError, match=r"has no model\.safetensors"):
        fine_tune(task, data, options, output)


@pytest.mark.parametrize("regression", [False, True])
def test_held_out_rows_are_in_the_checkpoint_and_not_trained_on(
    regression: bool, options: TrainingOptions, data_folder: Path, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    path = tmp_path / "train.tsv"
    lines = (data_folder / "train.tsv").read_text(encoding="utf-8").splitlines()
    if regression:
        lines = [lines[0], *(f"{line.split(chr(9))[0]}\t{row / 7}" for row, line in enumerate(lines[1:]))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    task = custom_task(path, ("text",), "label", kind="regression" if regression else "classification")
    options = replace(options, dev_fraction=0.25, limit_train=None, max_steps=1)
    output = fine_tune(task, path, options, tmp_path / "output")
    record = json.loads((output / "training.json").read_text(encoding="utf-8"))
    assert (record["train_examples"], record["dev_examples"], record["options"]["dev_fraction"]) == (72, 24, 0.25)
    whole, held = task.read(path, "train"), task.read(output, "dev")
    train, again = hold_out(whole, 0.25, options.seed)
    assert held.texts == again.texts
    assert held.labels == pytest.approx(again.labels)
    assert sorted(map(str, [*train.texts, *held.texts])) == sorted(map(str, whole.texts))
    assert set(json.loads((output / "samples.json").read_text(encoding="utf-8"))["texts"]) <= set(held.texts)
    assert not np.array_equal(hold_out(whole, 0.25, 1)[1].labels, held.labels) or not regression


@pytest.mark.parametrize(
    ("fraction", "rows", "message"),
    [
        (-0.1, 8, "--dev-fraction is -0.1: it must be 0"),
        (1.5, 8, "--dev-fraction is 1.5"),
        (0.01, 8, "of 8 rows is 0: at least one row must be held out"),
        (0.99, 8, "of 8 rows is 8"),
    ],
)
def test_dev_fraction_without_training_rows_is_rejected(
    fraction: float, rows: int, message: str, options: TrainingOptions, tmp_path: Path
) -> None:
    path = tmp_path / "train.tsv"
    path.write_text("text\tlabel\n" + "".join(f"cat {i}\t{i % 2}x\n" for i in range(rows)), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        fine_tune(
            custom_task(path, ("text",), "label"),
            path,
            replace(options, dev_fraction=fraction),
            tmp_path / "o",
        )


def test_data_with_a_dev_split_takes_no_fraction(
    task: Task, options: TrainingOptions, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"dev\.tsv is the dev split: omit --dev-fraction"):
        fine_tune(task, data, replace(options, dev_fraction=0.1), tmp_path / "output")


def test_single_file_is_split_and_eval_and_calibrate_use_the_held_out_rows(
    options: TrainingOptions, data: Path, tmp_path: Path
) -> None:
    file, said = data / "train.tsv", []
    task = custom_task(file, ("text",), "label")
    output = fine_tune(task, file, replace(options, max_steps=1), tmp_path / "output", report=said.append)
    held = task.read(output, "dev")
    assert len(held) == 10
    assert any("10 rows held out from train.tsv (seed 42), stored in the checkpoint" in line for line in said)
    for given in (file, None):  # the whole file would contain training rows
        (evaluated,) = evaluate(output, given, report=said.append)
        assert (evaluated.file, len(evaluated.predictions.labels)) == (output / "dev.jsonl", 10)
    assert said[-1] == f"using {output / 'dev.jsonl'}, the rows that training held out"
    assert calibrate(output, file, keep=0.5, optimistic=True).data == "dev.jsonl"
    assert evaluate(output, data)[0].file == data / "dev.tsv"  # a dev split of its own


def test_data_of_few_rows_is_not_split(options: TrainingOptions, data: Path, tmp_path: Path) -> None:
    file = data / "train.tsv"
    file.write_text("".join(file.read_text(encoding="utf-8").splitlines(keepends=True)[:13]), encoding="utf-8")
    said: list[str] = []
    task = custom_task(file, ("text",), "label")
    output = fine_tune(task, file, replace(options, max_steps=1), tmp_path / "output", report=said.append)
    assert not (output / "dev.jsonl").exists()
    assert said[0] == f"{file} has 12 rows, too few for a dev split, on which exits are calibrated"
