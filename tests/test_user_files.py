"""A criterion, a metric and a strategy in a user's own file: every command uses them, or rejects them in one line."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from click.testing import CliRunner, Result

from berxit import BatchScorer, EarlyExitRunner, TrainingOptions, register_criterion, register_metric, register_strategy
from berxit.runtime.bundle import read_manifest
from berxit.runtime.console import status_of
from berxit.runtime.errors import InputError
from berxit.runtime.metrics import METRICS, metric_from
from berxit.runtime.policies import CRITERIA, ExitPolicy, certainties, criterion_from, exit_layers
from berxit.runtime.prediction import Prediction
from berxit.toolkit.cli import load
from berxit.train.checkpoint import read_config, read_record
from berxit.train.fine_tuning import fine_tune
from berxit.train.tasks import custom_task

SOURCE = '''
import numpy as np

from berxit.runtime.metrics import Metric
from berxit.runtime.policies import Criterion
from berxit.train.objectives import Objective
from berxit.train.strategies import Strategy


class Margin(Criterion):
    """The distance between the two largest logits: unbounded."""

    name = "margin"

    def certainty(self, logits, lte, memory, parameters):
        ordered = np.sort(logits, axis=-1)
        return ordered[..., -1] - ordered[..., -2], None


class Doubt(Criterion):
    """One minus the highest probability: a low value means a certain prediction."""

    name = "doubt"
    higher_is_more_certain = False

    def bounds(self, classes):
        return 0.0, 1.0

    def certainty(self, logits, lte, memory, parameters):
        powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return 1 - 1 / powers.sum(axis=-1), None


class Energy(Criterion):
    """Low means certain, and there are no bounds."""

    name = "energy"
    higher_is_more_certain = False

    def certainty(self, logits, lte, memory, parameters):
        return -np.logaddexp.reduce(logits, axis=-1), None


class Matrix(Margin):
    name = "matrix"

    def certainty(self, logits, lte, memory, parameters):
        return logits, None


class Crash(Margin):
    name = "crash"

    def certainty(self, logits, lte, memory, parameters):
        return logits[:, 7], None


class Taken(Margin):
    name = "confidence"


class Nameless(Criterion):
    certainty = Margin.certainty


class FirstAndLast(Objective):
    """The first exit and the last one."""

    name = "first-and-last"

    def combine(self, step, losses):
        return losses[0] + losses[-1]


class Unfinished(Objective):
    pass


def balanced(predictions, labels):
    return np.mean([(predictions[:, labels == label] == label).mean(axis=1) for label in np.unique(labels)], axis=0)


BALANCED = Metric("balanced", "mean recall of the classes", balanced, second="accuracy")
ERRORS = Metric("errors", "share of wrong predictions", lambda p, y: (p != y).mean(axis=1))
MAE = Metric("mae", "mean distance", lambda p, y: -np.abs(p - y).mean(axis=1), values=True)
ONE = Metric("one", "one number", lambda p, y: np.array([1.0]))
EMPTY = Strategy("empty", "a stage that does not exist", ("Missing",))
'''


pytestmark = pytest.mark.usefixtures("own_registries")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(SOURCE, encoding="utf-8")
    return path


def invoke(command: str, *arguments: str | Path) -> Result:
    done = CliRunner().invoke(load(command), [str(each) for each in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done


def options_of(command: str) -> set[str]:
    return {option for parameter in load(command).params for option in parameter.opts}


def line_of(capsys: pytest.CaptureFixture[str], command: str, *arguments: str | Path) -> str:
    """The one line of a command that rejects its input."""
    capsys.readouterr()
    assert status_of(load(command), [str(each) for each in arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("name", [pytest.param("Margin", marks=pytest.mark.slow), "Doubt", "Energy"])
def test_every_command_uses_the_criterion_of_a_users_file(
    name: str, file: Path, checkpoint: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, own, criterion = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint")), f"{file}:{name}", name.lower()
    chosen = ("--criterion", own, "--quiet")
    assert f"{criterion} threshold" in invoke("eval", copy, "--data", data_folder, *chosen).output
    for rule in (("--keep", "0.95"), ("--risk", "0.3", "--delta", "0.2")):
        calibrated = invoke("calibrate", copy, "--data", data_folder, *chosen, *rule).output
        assert criterion in calibrated
        assert f"--register {own}" in calibrated
    bundle, studies = tmp_path / "bundle", tmp_path / "studies"
    exported = invoke("export", copy, "--target", "onnxruntime", "--output", bundle, "--register", own, "--quiet")
    assert f"needs your own criterion '{criterion}'" in exported.stderr
    assert exported.stdout.splitlines()[-1] == f"next: python -m runtime.bench {bundle} --register {own}"
    with pytest.raises(InputError, match="cannot register it"):
        BatchScorer(bundle)  # registered here, and not in the workers
    invoke("study", "tradeoff", copy, "--data", data_folder, *chosen, "--output", studies)
    assert criterion in (studies / "tradeoff-custom.json").read_text(encoding="utf-8")
    short = ("--queries", "2", "--seconds", "0", "--thresholds", "1", "--threads", "1", "--output", tmp_path / "bench")

    del CRITERIA[criterion]  # another process, to which nobody named the file
    remedy = "register it (--register FILE.py:NAME, or runtime.register_criterion in an app)"
    expected = f"uses the criterion '{criterion}', which is not part of berxit: {remedy}"
    for command, *arguments in (
        ("inspect", bundle),
        ("build", bundle),
        ("bench", bundle),
        ("predict", bundle, "the cat"),
        ("eval", copy, "--data", data_folder),
        ("export", copy, "--target", "onnxruntime", "--output", tmp_path / "another"),
    ):
        assert expected in line_of(capsys, command, *arguments)
        assert "--register" in options_of(command)
        assert criterion not in CRITERIA
    with pytest.raises(InputError) as scored:
        BatchScorer(bundle)
    for command, line in (("triton", line_of(capsys, "triton", bundle)), ("score", str(scored.value))):
        assert f"uses the criterion '{criterion}', which is not part of berxit, and " in line
        assert "cannot register it: calibrate with another --criterion, then export again" in line
        assert "--register" not in options_of(command)
    side = "above" if name == "Margin" else "below"
    assert f"{criterion} is {side} the layer's threshold" in invoke("inspect", bundle, "--register", own).output
    assert f"{criterion} threshold" in invoke("bench", bundle, "--data", data_folder, *short, "--quiet").output


@pytest.mark.parametrize("name", ["Margin", "Doubt", "Energy"])
def test_never_of_a_users_criterion_reaches_the_last_layer(name: str, file: Path) -> None:
    criterion = criterion_from(f"{file}:{name}")
    logits = (np.random.default_rng(3).normal(size=(60, 4, 3)) * 30).astype(np.float32)
    policy = ExitPolicy.uniform(criterion, CRITERIA[criterion].never(4, 3), 4)
    assert exit_layers(policy, certainties(policy, logits, None)).tolist() == [4] * 60


def test_app_registers_the_criterion_of_a_bundle(
    file: Path, checkpoint: Path, data_folder: Path, tmp_path: Path
) -> None:
    copy, bundle = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint")), tmp_path / "bundle"
    invoke("calibrate", copy, "--data", data_folder, "--criterion", f"{file}:Margin", "--quiet")
    invoke("export", copy, "--target", "onnxruntime", "--output", bundle, "--quiet")
    assert str(file) not in (bundle / "manifest.json").read_text(encoding="utf-8")
    own = type(CRITERIA.pop("margin"))
    with pytest.raises(InputError, match=r"runtime\.register_criterion in an app"):
        EarlyExitRunner.load(bundle)
    assert register_criterion(own) == "margin"
    prediction = EarlyExitRunner.load(bundle).predict("the cat")
    assert isinstance(prediction, Prediction)


def test_metric_of_a_users_file_scores_training_evaluation_and_bundle(
    file: Path, still: str, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, bundle = tmp_path / "checkpoint", tmp_path / "bundle"
    common = ("--max-steps", "2", "--max-length", "32", "--quiet")
    custom = ("train", "--model", still, "--task", "custom", "--data", data_folder, "--output", output)
    invoke(*custom, *common, "--metric", f"{file}:BALANCED")
    assert "balanced" in invoke("eval", output, "--data", data_folder, "--quiet").output
    assert "balanced" in invoke("calibrate", output, "--data", data_folder, "--quiet").output
    invoke("export", output, "--target", "onnxruntime", "--output", bundle, "--quiet")
    assert read_manifest(bundle).model.metric == "balanced"

    del METRICS["balanced"]
    for command in ("eval", "calibrate"):
        line = line_of(capsys, command, output, "--data", data_folder)
        assert "uses the metric 'balanced', which is not part of berxit: register it" in line
    assert isinstance(EarlyExitRunner.load(bundle).predict("the cat"), Prediction)  # a prediction needs no metric
    short = ("--data", data_folder, "--queries", "2", "--seconds", "0", "--thresholds", "1", "--output", tmp_path / "b")
    assert "unknown metric 'balanced'" in line_of(capsys, "bench", bundle, *short)
    assert "balanced" in invoke("bench", bundle, *short, "--register", f"{file}:BALANCED", "--quiet").output


def test_strategy_of_a_users_file_trains_until_its_code_changes(
    file: Path, still: str, data_folder: Path, tmp_path: Path
) -> None:
    output, task = tmp_path / "checkpoint", custom_task(data_folder, ("text",), "label")

    def train() -> list[str]:
        lines: list[str] = []
        options = TrainingOptions(still, strategy=f"{file}:FirstAndLast", max_steps=2, max_length=32)
        fine_tune(task, data_folder, options, output, report=lines.append)
        return lines

    train()
    record = json.dumps(read_record(output))
    assert read_config(output)["strategy"] == "first-and-last"
    assert str(file) not in record
    assert any("is finished" in line for line in train())
    file.write_text(SOURCE.replace("losses[0] + losses[-1]", "2 * losses[0] + losses[-1]"), encoding="utf-8")
    with pytest.raises(InputError, match="strategy_code_sha256"):
        train()


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("Missing", r"mine.py has no 'Missing': it defines Margin, Doubt"),
        ("Matrix", r"Matrix.certainty returns shape \(3, 2\), dtype float32 for logits \(3, 2\)"),
        ("Crash", r"Crash.certainty fails on logits \(3, 2\): IndexError"),
        ("Taken", "the name 'confidence', which is built in: choose another name"),
        ("Nameless", "Nameless has the name None: set 'name'"),
        ("BALANCED", "Metric is no criterion: it must be a subclass"),
    ],
)
def test_criterion_from_rejects_what_is_no_criterion(name: str, problem: str, file: Path) -> None:
    with pytest.raises(InputError, match=problem):
        criterion_from(f"{file}:{name}")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("ERRORS", "scores wrong predictions at least as high as correct ones: negate it"),
        ("MAE", "a metric of regression must be a correlation"),
        ("ONE", r"returns \(1,\) for predictions \(3, 8\)"),
        ("balanced", "balanced is no metric"),
    ],
)
def test_metric_from_rejects_what_is_no_metric(name: str, problem: str, file: Path) -> None:
    with pytest.raises(InputError, match=problem):
        metric_from(f"{file}:{name}")


def test_sweep_prints_a_command_with_the_users_files(file: Path, still: str, data_folder: Path, tmp_path: Path) -> None:
    output, own = tmp_path / "sweep", ("--strategy", f"{file}:FirstAndLast", "--metric", f"{file}:BALANCED")
    short = ("--trials", "1", "--epochs", "1", "--max-length", "16", "--quiet")
    arguments = ("--model", still, "--task", "custom", "--data", data_folder, "--output", output, *own, *short)
    printed = invoke("sweep", *arguments).output.splitlines()[-1].removeprefix("next: berxit-train ")
    given = load("train").make_context("train", shlex.split(printed)).params
    assert (given["strategy"], given["metric"]) == (own[1], own[3])


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("EMPTY", "strategy empty: no stage 'Missing'"),
        ("Unfinished", "Unfinished does not define combine"),
        ("Margin", "Margin is no strategy"),
    ],
)
def test_training_options_reject_what_is_no_strategy(name: str, problem: str, file: Path) -> None:
    with pytest.raises(InputError, match=problem):
        TrainingOptions("model", strategy=f"{file}:{name}")


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("x = ", r"cannot import .*broken.py: SyntaxError: invalid syntax .*line 1"),
        ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("raise RuntimeError('first\\nsecond')", "RuntimeError: first. Fix it"),
    ],
)
def test_file_that_cannot_be_imported_is_rejected_in_one_line(source: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(source, encoding="utf-8")
    with pytest.raises(InputError, match=problem):
        criterion_from(f"{tmp_path / 'broken.py'}:Margin")
    with pytest.raises(InputError, match=r"no file nowhere.py: give FILE.py:NAME or MODULE:NAME"):
        criterion_from("nowhere.py:Margin")


def test_module_in_the_working_directory_is_found(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "criteria_of_mine.py").write_text("from mine import Margin\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    paths = list(sys.path)
    assert criterion_from("criteria_of_mine:Margin") == "margin"
    assert sys.path == paths


def test_objects_of_a_notebook_are_registered_without_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = ModuleType("notebook")
    monkeypatch.setitem(sys.modules, "notebook", notebook)
    exec(SOURCE, vars(notebook))
    assert register_criterion(notebook.Margin) == "margin"
    assert register_metric(notebook.BALANCED) == "balanced"
    assert register_strategy(notebook.FirstAndLast) == "first-and-last"
    assert TrainingOptions("model", strategy="first-and-last").recorded()["strategy"] == "first-and-last"
