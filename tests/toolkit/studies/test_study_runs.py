"""Labels, groups and the score that is 100%, on runs written out by hand."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from berxit.runtime.errors import InputError
from berxit.runtime.policies import CRITERIA, register_criterion
from berxit.toolkit.studies.claims import choices_that_differ
from berxit.toolkit.studies.limit import limit_scores
from berxit.toolkit.studies.look import criterion_look, drawable, looks, model_colors, not_drawn, plain
from berxit.toolkit.studies.reference import Reference
from berxit.toolkit.studies.request import Request
from berxit.toolkit.studies.runs import Group, StudyRun, grouped, read_training
from berxit.toolkit.studies.runtime import distinct_names
from berxit.train.checkpoint import RECORD_FILE
from berxit.train.options import model_name_of
from tests.toolkit.studies.hand_made_runs import hand_made_run


def request_of(*runs: StudyRun, relative_to: str | None = None) -> Request:
    request = Request([], Path("out"), relative_to=relative_to)
    request.__dict__["runs"] = list(runs)  # a cached property
    return request


def reference(*runs: StudyRun, relative_to: str | None = None) -> Reference:
    return request_of(*runs, relative_to=relative_to).reference(runs[0].model)


def groups_of(*runs: StudyRun) -> list[Group]:
    return request_of(*runs).groups


def test_grouped_names_every_differing_option_of_the_study_and_groups_seeds() -> None:
    groups = groups_of(
        hand_made_run("joint", [0.5], seed=1, lte=True, training="3 epochs", pooling="mean"),
        hand_made_run("joint", [0.6], seed=2, lte=True, training="3 epochs", pooling="mean"),
        hand_made_run("joint", [0.7], seed=1, lte=False, training="3 epochs", pooling="mean"),
        hand_made_run("raw", [0.7], seed=1, lte=False, training="40 steps", pooling="mean"),
        hand_made_run("joint", [0.7], model="other", lte=False, training="3 epochs", pooling="mean"),
    )
    assert [(group.model, group.label, len(group.runs)) for group in groups] == [
        ("m", "joint, 3 epochs, LTE", 2),
        ("m", "joint, 3 epochs, no LTE", 1),
        ("m", "raw, 40 steps, no LTE", 1),
        ("other", "joint, 3 epochs, no LTE", 1),
    ]
    assert groups[0].name == "joint, 3 epochs, LTE (2 seeds)"


def test_grouped_names_the_encoder_only_if_it_differs_within_a_model() -> None:
    one, two = (hand_made_run("joint", [0.5], seed=1, weights=name) for name in ("aaaa", "bbbb"))
    other = hand_made_run("joint", [0.5, 0.6], model="other", weights="cccc")
    assert [group.label for group in groups_of(one, other)] == ["joint", "joint"]
    assert [group.label for group in groups_of(one, two)] == ["joint, weights aaaa", "joint, weights bbbb"]


def test_grouped_rejects_runs_that_differ_in_nothing() -> None:
    one, two = (hand_made_run("joint", [score], seed=1, lte=True) for score in (0.5, 0.6))
    with pytest.raises(InputError, match="have the same options and the same seed, but different weights"):
        grouped([one, two])
    with pytest.raises(InputError, match="are the same checkpoint: give one of them"):
        grouped([one, replace(two, key=one.key)])


def test_read_training_records_everything_that_may_differ(checkpoint: Path, tmp_path: Path) -> None:
    """A changed entry of the record must change a label, or be the seed."""
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    record = json.loads((copy / RECORD_FILE).read_text())
    before = read_training(copy, 3)
    assert (before.options["training"], before.options["pooling"]) == ("4 epochs", "mean")

    def changed(options: dict[str, object], **more: object) -> list[str]:
        written = {**record, **more, "options": {**record["options"], **options}}
        (copy / RECORD_FILE).write_text(json.dumps(written))
        after = read_training(copy, 3)
        return [name for name, value in after.options.items() if value != before.options[name]]

    assert changed({"seed": 7}) == []
    assert changed({"epochs": 5}) == ["training"]
    assert changed({"max_steps": 40}) == ["training"]
    assert changed({"max_steps": 40, "epochs": 5}) == ["training"]  # epochs have no effect
    assert changed({"learning_rate": 1e-4}) == ["learning_rate", "head_learning_rate"]
    assert changed({"limit_train": 10}) == ["limit_train"]
    assert changed({}, train_sha256="1234567890") == ["data"]
    assert changed({}, processes=2) == ["processes"]
    assert changed({}, model_sha256="1234567890") == ["weights"]


def test_read_training_never_groups_a_checkpoint_without_a_record(checkpoint: Path, tmp_path: Path) -> None:
    copies = [tmp_path / name for name in ("one", "two")]
    for copy in copies:
        shutil.copytree(checkpoint, copy)
        (copy / RECORD_FILE).unlink()
    trainings = [read_training(copy, 3) for copy in copies]
    predictions = hand_made_run("joint", [0.5]).predictions
    runs = [StudyRun(**vars(each), task="t", predictions=predictions, key=str(each.folder)) for each in trainings]
    labels = [group.label for group in groups_of(*runs)]
    assert all("options not recorded" in label and str(tmp_path) not in label for label in labels)
    assert len(set(labels)) == 2


def test_reference_is_one_group_of_raw_then_of_two_stage_then_the_first() -> None:
    raw, two = hand_made_run("raw", [0.5, 0.7]), hand_made_run("two-stage", [0.5, 0.8])
    joint, alternating = hand_made_run("joint", [0.8, 0.9]), hand_made_run("alternating", [0.5, 1.0])
    assert reference(joint, two, raw).score == 0.7
    assert reference(joint, two).score == 0.8
    assert str(reference(joint, alternating)) == "100% is accuracy 0.9000, full depth of joint"
    assert str(reference(joint)) == "100% is accuracy 0.9000, its own full depth"
    assert reference(raw, relative_to="0.55").score == 0.55
    again = hand_made_run("raw", [0.5, 0.9], seed=2)
    assert reference(replace(raw, seed=1), again).score == pytest.approx(0.8)


def test_reference_never_averages_runs_with_different_options() -> None:
    first = hand_made_run("two-stage", [0.5, 0.8], pooling="first")
    mean = hand_made_run("two-stage", [0.5, 0.9], pooling="mean")
    found = reference(hand_made_run("joint", [0.5, 1.0], pooling="mean"), mean, first)
    assert (found.score, found.source) == (0.9, "full depth of two-stage, mean pooling")


def test_reference_skips_runs_at_the_constant_prediction() -> None:
    """Half of the labels are 1, so the constant prediction scores 0.5."""
    failed, raw = hand_made_run("raw", [0.4, 0.5], seed=1), hand_made_run("raw", [0.5, 0.9], seed=2)
    assert reference(failed, raw).score == 0.9
    assert reference(failed, hand_made_run("joint", [0.5, 0.8])).source == "full depth of joint"
    only = reference(failed)
    assert (only.score, only.above_floor) == (0.5, False)


@pytest.mark.parametrize("score", ["0", "1.2", "88.9", "-0.5", "nan"])
def test_reference_rejects_a_score_out_of_range(score: str) -> None:
    with pytest.raises(InputError, match=f"--relative-to {score} is out of range"):
        reference(hand_made_run("raw", [0.5]), relative_to=score)


def test_grouped_names_the_code_of_a_users_strategy_only_if_it_differs_within_the_strategy() -> None:
    one, two = (hand_made_run("mine", [0.5], strategy_code_sha256=digit * 64) for digit in "ab")
    joint = hand_made_run("joint", [0.5])
    assert [group.label for group in groups_of(one, joint)] == ["mine", "joint"]
    assert [group.label for group in groups_of(one, two, joint)] == [
        "mine, code aaaaaaaa",
        "mine, code bbbbbbbb",
        "joint",
    ]
    assert choices_that_differ(*groups_of(one, joint)) == ("strategy",)


def test_conditions_warn_if_gains_are_not_defined(tmp_path: Path) -> None:
    (tmp_path / "dev.tsv").write_text("text", encoding="utf-8")
    low, high = hand_made_run("raw", [0.4, 0.5]), hand_made_run("raw", [0.5, 0.9])
    for run, expected in ((low, 1), (high, 0)):
        request = replace(request_of(run), data=tmp_path)
        request.__dict__["runs"] = [run]
        found = [line for line in request.conditions() if line.startswith("warning: m: no gains, because the score")]
        assert len(found) == expected


def test_looks_has_one_color_per_model_and_one_line_per_strategy() -> None:
    first = groups_of(
        hand_made_run("joint", [0.5], lte=True), hand_made_run("joint", [0.5], lte=False), hand_made_run("raw", [0.5])
    )
    colors = model_colors(["m", "n"])
    found = looks(first, colors["m"])
    assert {look["color"] for look in found.values()} == {colors["m"]} != {colors["n"]}
    joint, plain_joint, raw = found.values()
    assert (joint["marker"], joint["ls"]) == (plain_joint["marker"], plain_joint["ls"]) != (raw["marker"], raw["ls"])
    assert joint["markerfacecolor"] != plain_joint["markerfacecolor"]
    alone = looks(groups_of(hand_made_run("joint", [0.5])), "black")["joint"]
    assert (alone["marker"], alone["ls"]) == (joint["marker"], joint["ls"])
    assert model_colors(["n"])["n"] in (colors["n"], colors["m"])  # from the name, unless two models collide


def test_looks_distinguishes_strategies_that_are_not_registered_and_eight_groups_of_one() -> None:
    groups = groups_of(hand_made_run("mine", [0.5]), hand_made_run("other", [0.5]), hand_made_run("raw", [0.5]))
    found = looks(groups, "black")
    assert len({(look["marker"], str(look["ls"])) for look in found.values()}) == 3
    assert looks(groups[1:2], "black", groups)["other"] == found["other"]  # in the panel of another model
    many = looks(groups_of(*(hand_made_run("joint", [0.5], epochs=count) for count in range(8))), "blue")
    fills = {(look["markerfacecolor"], look.get("fillstyle")) for look in many.values()}
    assert len(fills) == 8


@pytest.mark.usefixtures("own_registries")
def test_criterion_look_is_different_for_every_criterion_and_does_not_depend_on_the_study() -> None:
    before = criterion_look("lte", "black")
    for name in ("one", "two", "three", "four"):
        register_criterion(type(name, (type(CRITERIA["confidence"]),), {"name": name}))
    found = {name: criterion_look(name, "black") for name in CRITERIA}
    assert found["lte"] == before
    assert len({(look["marker"], str(look["ls"])) for look in found.values()}) == len(CRITERIA)


def test_title_has_lines_of_similar_length() -> None:
    pytest.importorskip("matplotlib")
    from berxit.toolkit.studies.drawing import TITLE_WIDTH, title

    long = "100% is accuracy 0.5813, full depth of joint, 200 steps, mean pooling"
    first, second = title("bert", long).split("\n")[1:]
    assert " ".join([first, second]) == long
    assert max(len(first), len(second)) < TITLE_WIDTH - 10
    assert title("short", "x" * 80) == "short\n" + "x" * TITLE_WIDTH + "\n" + "x" * (80 - TITLE_WIDTH)


@pytest.mark.parametrize(
    ("wide", "place"), [([], ("right", "bottom")), ([(0.5, 1)], ("left", "bottom")), ([(0, 1)], ("right", "top"))]
)
def test_name_of_the_constant_prediction_covers_no_line(
    wide: list[tuple[float, float]], place: tuple[str, str]
) -> None:
    """``wide``: ranges of a line that lies just above the constant prediction."""
    pytest.importorskip("matplotlib")
    from matplotlib.axes import Axes

    from berxit.toolkit.figures import draw_floor
    from berxit.toolkit.studies.drawing import panels_figure

    def panel(axes: Axes) -> None:
        axes.set(xlim=(0, 1), ylim=(0, 1))
        for ends in wide:
            axes.plot(ends, [0.52, 0.52])
        draw_floor(axes, 0.5)

    (axes,) = panels_figure([panel], "Title").axes
    (name,) = axes.texts
    assert (name.get_ha(), name.get_va()) == place
    box = name.get_window_extent()
    for line in axes.lines:
        xy = axes.transData.transform(np.linspace(*line.get_xydata(), 1000))
        assert not np.any((xy >= box.min).all(axis=1) & (xy <= box.max).all(axis=1))


@pytest.mark.parametrize(
    ("where", "name"),
    [("a/b/bge-small", "bge-small"), ("x/minilm/model", "minilm"), ("org/bert", "bert"), ("/models/", "/models/")],
)
def test_model_name_of_skips_generic_folder_names(where: str, name: str) -> None:
    assert model_name_of(where) == name


def test_limit_scores_connect_runs_that_differ_in_layers_and_seed_only() -> None:
    runs = [
        hand_made_run("limit", [0.5], seed=1, layers=1, pooling="mean"),
        hand_made_run("limit", [0.7], seed=2, layers=1, pooling="mean"),
        hand_made_run("raw", [0.1, 0.8], layers=2, pooling="mean"),
        hand_made_run("raw", [0.1, 0.9], layers=2, pooling="first"),
        hand_made_run("joint", [1, 1], layers=2, pooling="mean"),
    ]
    found = limit_scores(runs, runs)
    assert found == {
        "limit, mean pooling": {1: [0.5, 0.7], 2: [0.8]},
        "limit, first pooling": {2: [0.9]},
    }


def test_distinct_names_are_as_short_as_possible() -> None:
    names = distinct_names([Path("/a/bge/fp32"), Path("/a/minilm/fp32"), Path("/a/minilm/int8")])
    assert names == ["bge/fp32", "minilm/fp32", "minilm/int8"]
    assert distinct_names([Path("/a/bge"), Path("/a/minilm")]) == ["bge", "minilm"]
    assert distinct_names([Path("/a/bge"), Path("/a/bge")]) == ["bge", "bge"]


def test_drawable_omits_scores_above_the_limit() -> None:
    assert plain(drawable([50.0, 100.0, 120.0])) == [50.0, 100.0, 120.0]
    assert np.isnan(drawable([140.0, 3000.0])).all()
    assert not_drawn("bert", [np.array([80.0, 119.0])]) == []
    (line,) = not_drawn("bert", [np.array([80.0]), np.array([139.6])])
    assert line.startswith("warning: bert: relative scores reach 140%, and the figure does not show those above 120%")
