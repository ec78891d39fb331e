"""Calibration: the stored policy and pass, and rejected data and files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from berxit.exporters.export import export
from berxit.exporters.options import ExportOptions
from berxit.runtime.bundle import sha256
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.json_data import write_json
from berxit.runtime.policies import ExitPolicy
from berxit.train import calibration as calibration_module
from berxit.train.calibration import (
    PASS_FILE,
    POLICY_FILE,
    CalibratedPolicy,
    calibrate,
    read_policy,
    rule_of,
    stored_pass,
)
from berxit.train.checkpoint import load_checkpoint
from berxit.train.evaluation import predict
from berxit.train.families import PolicySpec, operating_point
from berxit.train.rules import Keep, Risk
from berxit.train.tasks import task_of


@pytest.mark.parametrize("criterion", ["confidence", "entropy", "lte", "patience"])
def test_calibrate_stores_the_policy_with_its_record(criterion: str, copy: Path, data_folder: Path) -> None:
    chosen = calibrate(copy, data_folder, spec=PolicySpec(criterion), rule=Keep(0.8, optimistic=True))
    stored = read_policy(copy)
    assert stored is not None
    assert stored.calibration == chosen
    assert stored.policy == ExitPolicy.uniform(criterion, chosen.threshold, 3)
    assert (chosen.criterion, chosen.examples, chosen.metric) == (criterion, 48, "accuracy")
    assert chosen.data_sha256 == sha256(data_folder / "dev.tsv")
    assert sum(chosen.histogram) == 48
    assert chosen.score >= 0.8 * chosen.full_depth_score
    model, tokenizer = load_checkpoint(copy)
    predictions = predict(model, tokenizer, task_of(model.config).read(data_folder, "dev"))
    again = operating_point(predictions, stored.policy)
    assert (again.histogram, again.score) == (chosen.histogram, chosen.score)
    assert again.average_exit_layer == chosen.average_exit_layer
    assert chosen.requirement == {"keep": 0.8, "delta": 0.1, "optimistic": True}
    assert "0.8" in chosen.description
    assert criterion in chosen.summary()


def test_calibrate_rejects_the_training_file_under_any_name(copy: Path, data_folder: Path, tmp_path: Path) -> None:
    before = (copy / POLICY_FILE).read_text(encoding="utf-8")
    renamed = shutil.copy(data_folder / "train.tsv", tmp_path / "fresh.tsv")
    for data, split in ((data_folder, "train"), (data_folder / "train.tsv", "dev"), (Path(renamed), "dev")):
        with pytest.raises(InputError, match="was trained on"):
            calibrate(copy, data, split=split)
    assert (copy / POLICY_FILE).read_text(encoding="utf-8") == before


def test_read_policy_returns_none_before_calibration(copy: Path) -> None:
    (copy / POLICY_FILE).unlink()
    assert read_policy(copy) is None


def test_read_policy_reports_a_damaged_file_in_one_line(copy: Path) -> None:
    path = copy / POLICY_FILE
    whole = json.loads(path.read_text(encoding="utf-8"))
    damages = {
        "damaged": "{",
        "key 'policy' is missing": json.dumps({"calibration": whole["calibration"]}),
        "unknown key 'extra'": json.dumps({**whole, "extra": 1}),
        "unexpected value": json.dumps({**whole, "policy": {**whole["policy"], "thresholds": "high"}}),
        "out of range": json.dumps({**whole, "policy": {**whole["policy"], "thresholds": [2.0, 2.0]}}),
    }
    for message, text in damages.items():
        path.write_text(text, encoding="utf-8")
        with pytest.raises(BerxitError, match=message) as caught:
            read_policy(copy)
        assert "\n" not in str(caught.value)


def test_read_policy_returns_every_rule_as_it_was_written(copy: Path, data_folder: Path) -> None:
    for rule in (Keep(0.7, 0.2), Keep(0.7, optimistic=True), Risk(0.5, 0.3)):
        chosen = calibrate(copy, data_folder, rule=rule)
        stored = read_policy(copy)
        assert stored is not None
        assert (stored.calibration, rule_of(stored.calibration)) == (chosen, rule)


def test_read_policy_reads_records_of_older_versions(copy: Path) -> None:
    new = read_policy(copy)
    assert new is not None
    data = json.loads((copy / POLICY_FILE).read_text(encoding="utf-8"))
    record = data["calibration"]
    record["rule"], record["asked"] = record.pop("description"), record.pop("requirement")
    write_json(data, copy / POLICY_FILE)
    assert read_policy(copy) == new
    share = record["asked"]["keep"]
    for key, value in (("asked", {"keep": share}), ("keep", share)):
        del record["asked"]
        record[key] = value
        write_json(data, copy / POLICY_FILE)
        older = read_policy(copy)
        assert older is not None
        assert rule_of(older.calibration) == Keep(share, optimistic=True)  # older rules did not allow for chance
        assert older.policy == new.policy


def test_calibrate_estimates_the_score_on_new_data(copy: Path, data_folder: Path) -> None:
    chosen = calibrate(copy, data_folder, rule=Keep(0.8, optimistic=True))
    assert chosen.expected_score is not None
    assert chosen.expected_interval is not None
    low, high = chosen.expected_interval
    assert 0 <= low < chosen.expected_score < high <= 1
    assert f"expected on new data: {chosen.expected_score:.4f} ({low:.4f} to {high:.4f})" in chosen.summary()


def test_calibrate_warns_if_the_data_is_too_little_to_guarantee_keep(copy: Path, data_folder: Path) -> None:
    chosen = calibrate(copy, data_folder, rule=Keep(0.99))
    assert chosen.saved_layers == 0
    (warning,) = [line for line in chosen.warnings if "too few" in line]
    assert warning.startswith("48 examples are too few to guarantee --keep 0.99 with probability 0.9")
    assert "--optimistic" in warning


def test_calibrate_keeps_the_old_policy_and_pass_if_interrupted(
    copy: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: (copy / name).read_bytes() for name in (POLICY_FILE, PASS_FILE)}

    def interrupted(file: object, **arrays: object) -> None:
        Path(str(file)).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("numpy.savez_compressed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            calibrate(copy, data_folder, rule=Keep(0.5, optimistic=True))

    def stopped(data: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("json.dumps", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_json({}, copy / POLICY_FILE)
    assert {name: (copy / name).read_bytes() for name in before} == before
    assert not list(copy.glob(".*partial*"))


def test_calibrate_skips_and_counts_bad_rows(copy: Path, data_folder: Path, tmp_path: Path) -> None:
    rows = (data_folder / "dev.tsv").read_text(encoding="utf-8").splitlines()
    bad = tmp_path / "bad.tsv"
    bad.write_text("\n".join([*rows, "one\ttwo\tthree", "the dog\tfish"]) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 50: 3 columns, but the header has 2"):
        calibrate(copy, bad)
    lines: list[str] = []
    assert calibrate(copy, bad, skip_bad_rows=True, report=lines.append).examples == 48
    assert lines == [f"skipped 2 bad rows of {bad}, the first: {bad}, line 50: 3 columns, but the header has 2"]


def test_calibrate_uses_the_gpu(copy: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[object] = []
    load = calibration_module.load_checkpoint
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(
        calibration_module, "load_checkpoint", lambda folder, device: devices.append(str(device)) or load(folder)
    )
    calibrate(copy, data_folder)
    assert devices == ["cuda:0"]


def with_pass_of_other_data(checkpoint: Path, data: Path) -> None:
    """Stores the pass of a calibration on other data with the old policy, as a kill between the two files did."""
    other, rows = checkpoint.with_name("other.tsv"), (data / "dev.tsv").read_text(encoding="utf-8").splitlines()
    other.write_text("\n".join([*rows[:1], *rows[11:]]) + "\n", encoding="utf-8")
    policy = (checkpoint / POLICY_FILE).read_bytes()
    calibrate(checkpoint, other, rule=Keep(0.9, optimistic=True))
    (checkpoint / POLICY_FILE).write_bytes(policy)


def without_pass_sha256(checkpoint: Path) -> None:
    """Rewrites the policy as older versions did, without the hash of its pass."""
    data = json.loads((checkpoint / POLICY_FILE).read_text(encoding="utf-8"))
    del data["pass_sha256"]
    for name in ("constant_score", "positive", "warnings"):
        del data["calibration"][name]
    write_json(data, checkpoint / POLICY_FILE)


def policy_of(checkpoint: Path) -> CalibratedPolicy:
    calibrated = read_policy(checkpoint)
    assert calibrated is not None
    return calibrated


@pytest.mark.parametrize("older", [False, True])
def test_stored_pass_rejects_the_pass_of_an_interrupted_calibration(older: bool, copy: Path, data_folder: Path) -> None:
    if older:
        without_pass_sha256(copy)
    calibrated = policy_of(copy)
    assert len(stored_pass(copy, calibrated).labels) == 48
    with_pass_of_other_data(copy, data_folder)
    assert policy_of(copy) == calibrated
    with pytest.raises(BerxitError, match=r"pass\.npz is not the pass from which exit_policy\.json was chosen: rerun"):
        stored_pass(copy, calibrated)
    calibrate(copy, data_folder)
    assert len(stored_pass(copy, policy_of(copy)).labels) == 48


def test_stored_pass_rejects_the_pass_of_another_checkpoint_with_as_many_rows(copy: Path) -> None:
    calibrated = policy_of(copy)
    predictions = stored_pass(copy, calibrated)
    replace(predictions, logits=predictions.logits[::-1]).save(copy / PASS_FILE)
    with pytest.raises(BerxitError, match="is not the pass from which"):
        stored_pass(copy, calibrated)


def test_stored_pass_names_a_missing_and_a_damaged_file(copy: Path) -> None:
    calibrated = policy_of(copy)
    (copy / PASS_FILE).write_bytes(b"half")
    with pytest.raises(BerxitError, match=r"calibration_pass\.npz is damaged: rerun berxit-calibrate"):
        stored_pass(copy, replace(calibrated, pass_sha256=sha256(copy / PASS_FILE)))
    (copy / PASS_FILE).unlink()
    with pytest.raises(BerxitError, match=r"calibration_pass\.npz is missing: rerun berxit-calibrate"):
        stored_pass(copy, calibrated)


def test_export_with_exits_rejects_the_pass_of_an_interrupted_calibration(
    copy: Path, data_folder: Path, tmp_path: Path, quiet_machine: None
) -> None:
    with_pass_of_other_data(copy, data_folder)
    for exits in ((2,), "auto"):
        with pytest.raises(BerxitError, match=r"is not the pass from which exit_policy\.json was chosen"):
            export(copy, "onnxruntime", tmp_path / "bundle", options=ExportOptions(exits=exits))
    assert not (tmp_path / "bundle").exists()
    export(copy, "onnxruntime", tmp_path / "bundle")  # Needs the policy only.


def test_calibrate_rejects_data_of_one_class_and_keeps_the_policy(
    copy: Path, data_folder: Path, tmp_path: Path
) -> None:
    before = (copy / POLICY_FILE).read_bytes()
    one = tmp_path / "one.tsv"
    one.write_text("text\tlabel\n" + "the cat\tcat\n" * 9, encoding="utf-8")
    with pytest.raises(InputError, match=r"one\.tsv: accuracy cannot be measured: all labels are of one class"):
        calibrate(copy, one)
    assert (copy / POLICY_FILE).read_bytes() == before
