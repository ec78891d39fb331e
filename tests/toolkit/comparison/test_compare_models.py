"""``berxit compare`` on models: rows, exits, scores, size and latency."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from berxit.exporters.export import export
from berxit.exporters.options import ExportOptions
from berxit.runtime.errors import InputError
from berxit.runtime.json_data import read_json, write_json
from berxit.toolkit.comparison.models import compare_models
from berxit.toolkit.comparison.sides import RowOutputs, open_side


@pytest.fixture(scope="module")
def fewer_exits(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("fewer") / "fewer"
    export(checkpoint, "onnxruntime", output, options=ExportOptions(exits=(2,)))
    return output


def with_thresholds(bundle: Path, output: Path, threshold: float) -> Path:
    shutil.copytree(bundle, output)
    manifest = read_json(output / "manifest.json")
    manifest["policy"]["thresholds"] = [threshold] * len(manifest["policy"]["thresholds"])
    write_json(manifest, output / "manifest.json")
    return output


def test_compare_models_finds_a_bundle_equal_to_its_checkpoint(
    checkpoint: Path, bundle: Path, data_folder: Path
) -> None:
    found = compare_models(checkpoint, bundle, data=data_folder)
    assert (found.rows, found.differ, found.latencies) == (48, (), ())
    assert found.exits == (1, 2, 3)
    assert 0 < max(found.max_diff) < 1e-4
    assert found.executed_by == ("PyTorch, float64", "onnxruntime")
    assert all(a == b for a, b in found.scores)
    assert found.regressions(0.0) == []


def test_compare_models_compares_exits_that_both_bundles_have(
    bundle: Path, fewer_exits: Path, data_folder: Path
) -> None:
    found = compare_models(bundle, fewer_exits, data=data_folder, limit=8)
    assert (found.exits, found.rows) == ((2, 3), 8)
    assert all(a == b for a, b in found.scores)
    assert [each.policy for each in found.latencies] == ["full depth", "the bundle's policy"]
    assert all(each.low <= each.ratio <= each.high for each in found.latencies)


def test_compare_models_lists_rows_that_exit_elsewhere(bundle: Path, data_folder: Path, tmp_path: Path) -> None:
    shallow = with_thresholds(bundle, tmp_path / "shallow", 0.0)
    deep = with_thresholds(bundle, tmp_path / "deep", 1.0)
    found = compare_models(deep, shallow, data=data_folder)
    assert len(found.differ) == 48
    assert found.differ[0].exit_layers == (3, 1)
    assert str(found.differ[0]).startswith("row 0: exits at layer 1 instead of 3")
    assert "and 38 more rows" in found.text()
    assert found.regressions(99.0) == ["100.00% of the rows differ"]
    assert found.average_exit_layers == (3.0, 1.0)


def test_compare_models_without_data_uses_the_golden_inputs(bundle: Path, fewer_exits: Path) -> None:
    found = compare_models(bundle, fewer_exits, limit=3)
    assert (found.rows, found.metric, found.scores, found.policy_scores) == (3, None, (), None)
    assert found.data == "golden inputs of bundle"


def test_compare_models_does_not_count_rows_within_rounding_as_regressions(
    bundle: Path, data_folder: Path, tmp_path: Path
) -> None:
    text = (data_folder / "dev.tsv").read_text(encoding="utf-8").splitlines()[1].split("\t")[0]
    side = open_side(bundle, None)
    logits = side.outputs(text).logits[0]
    certainty = float(np.exp(logits - logits.max()).max() / np.exp(logits - logits.max()).sum())
    a = with_thresholds(bundle, tmp_path / "a", certainty + 1e-7)
    b = with_thresholds(bundle, tmp_path / "b", certainty - 1e-7)
    found = compare_models(a, b, data=data_folder, limit=2)  # one class alone has no score
    assert [(each.row, each.near) for each in found.differ] == [(0, True)]
    assert found.beyond_rounding == ()
    assert "1 differ within 1e-05 of a threshold" in found.text()


def test_compare_models_refuses_models_of_different_labels(bundle: Path, tmp_path: Path) -> None:
    other = shutil.copytree(bundle, tmp_path / "other")
    manifest = read_json(other / "manifest.json")
    manifest["model"]["labels"] = ["dog", "other"]
    write_json(manifest, other / "manifest.json")
    with pytest.raises(InputError, match=r"predicts the classes cat, other.*dog, other.*compare models of one task"):
        compare_models(bundle, Path(other))


def test_compare_models_refuses_two_checkpoints_without_data(checkpoint: Path) -> None:
    with pytest.raises(InputError, match="--data gives the texts"):
        compare_models(checkpoint, checkpoint)


def test_compare_models_refuses_a_folder_that_holds_no_model(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither a bundle, nor a checkpoint, nor a bench"):
        compare_models(bundle, tmp_path)


def test_compare_models_compares_hidden_states_of_coreml_bundles(
    checkpoint: Path, data_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("coremltools", reason="coremltools is not installed here")
    options = ExportOptions(layout="ane", exits=(2,), lengths=(16, 32))
    export(checkpoint, "coreml", tmp_path / "ane", options=options)
    found = compare_models(checkpoint, tmp_path / "ane", data=data_folder, limit=4)
    assert [each.layer for each in found.hidden] == [0, 2, 3]
    assert all(1e-4 < each.max_diff <= 2e-2 for each in found.hidden)
    assert all(each.relative <= each.max_diff for each in found.hidden)
    assert found.executed_by[1] == "parity check of the export"


def test_row_outputs_of_a_checkpoint_contain_every_layer(checkpoint: Path) -> None:
    row: RowOutputs = open_side(checkpoint, None).outputs("the cat sat")
    assert (row.logits.shape, len(row.hidden)) == ((3, 2), 4)


def test_comparison_is_json(bundle: Path, fewer_exits: Path, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from berxit.toolkit.commands.compare import command

    output = tmp_path / "found.json"
    arguments = [str(bundle), str(fewer_exits), "--limit", "3", "--quiet", "--output", str(output)]
    done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert "3 of 3 rows agree" in done.output or "rows agree: same exit layer" in done.output
    assert json.loads(output.read_text(encoding="utf-8"))["rows"] == 3
