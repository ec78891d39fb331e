"""push_to_hub and its model card, on a stand-in for the hub: this test suite reaches no network."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_standin import HubStandIn

import berxit
from berxit.runtime.bench_report import write_result
from berxit.runtime.benchmark import bench
from berxit.runtime.bundle import read_manifest
from berxit.runtime.console import status_of
from berxit.toolkit.cli import load
from berxit.toolkit.model_card import facts_of_bundle, model_card


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubStandIn:
    return HubStandIn(tmp_path / "hub").install(monkeypatch)


@pytest.fixture(scope="module")
def measured(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bench.json of ``bundle``."""
    result = bench(bundle, threads=1, queries=1, seconds=0, thresholds=2)
    folder = tmp_path_factory.mktemp("bench")
    write_result(result, folder)
    return folder / "bench.json"


def card_of(hub: HubStandIn, repository: str) -> tuple[dict[str, Any], str]:
    """Header and text of an uploaded card."""
    _, header, text = (hub.repositories / repository / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(header), text


def test_pushed_bundle_predicts_as_the_local_one(hub: HubStandIn, bundle: Path) -> None:
    published = berxit.push_to_hub(bundle, "org/model")
    assert published.url == "https://hub.test/org/model/commit/0123abcd"
    assert {"manifest.json", "tokenizer.json", "golden.json", "README.md"} <= set(published.files)
    with berxit.EarlyExitRunner.from_pretrained("org/model") as runner, berxit.EarlyExitRunner.load(bundle) as local:
        found, expected = runner.predict("the cat sat"), local.predict("the cat sat")
    assert (found.scores, found.model) == (expected.scores, expected.model)


def test_push_leaves_the_folder_unchanged(hub: HubStandIn, bundle: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in bundle.rglob("*")}
    berxit.push_to_hub(bundle, "org/model")
    assert {path: path.stat().st_mtime_ns for path in bundle.rglob("*")} == before


def test_push_uploads_only_files_of_the_bundle(hub: HubStandIn, bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    (copy / "notes.txt").write_text("private", encoding="utf-8")
    berxit.push_to_hub(copy, "org/model")
    assert not (hub.repositories / "org/model/notes.txt").exists()


def test_push_deletes_segments_of_an_earlier_bundle(hub: HubStandIn, bundle: Path) -> None:
    berxit.push_to_hub(bundle, "org/model")
    stale = hub.repositories / "org/model/segments/layer_09.onnx"
    stale.write_bytes(b"")
    berxit.push_to_hub(bundle, "org/model", message="again")
    assert not stale.exists()
    assert hub.commits == [("org/model", "berxit: bundle"), ("org/model", "again")]


def test_card_of_a_bundle_has_a_valid_header(hub: HubStandIn, bundle: Path) -> None:
    berxit.push_to_hub(bundle, "org/model")
    header, text = card_of(hub, "org/model")
    assert header["berxit"] == {"format": "bundle", "layers": 3, "exits": [1, 2, 3]}
    assert {"early-exit", "bert", "onnxruntime", "fp32"} <= set(header["tags"])
    record = read_manifest(bundle).calibration
    assert record is not None
    early, full = header["model-index"][0]["results"][0]["metrics"]
    assert (early["value"], full["value"]) == (round(record.score, 4), round(record.full_depth_score, 4))
    assert f"confidence is above {record.threshold:.4g}" in text
    assert "keeps 0.9 of the last exit's accuracy" in text
    assert "Latency" not in text


def test_card_is_accepted_by_the_library(hub: HubStandIn, bundle: Path, checkpoint: Path) -> None:
    library = pytest.importorskip("huggingface_hub")
    for folder, name in ((bundle, "org/bundle"), (checkpoint, "org/checkpoint")):
        berxit.push_to_hub(folder, name)
        card = library.ModelCard((hub.repositories / name / "README.md").read_text(encoding="utf-8"))
        assert card.data.library_name == "berxit"
        assert [result.metric_type for result in card.data.eval_results] == ["accuracy", "accuracy"]


def test_card_quotes_names_that_yaml_would_misread(bundle: Path) -> None:
    facts = facts_of_bundle(read_manifest(bundle))
    odd = dataclasses.replace(facts, labels=("no", "a: b\n- c"), task='x"y: #', family="0x1")
    header = yaml.safe_load(model_card(odd, "org/model").split("---\n", 2)[1])
    assert header["tags"][2] == "0x1"
    assert header["model-index"][0]["results"][0]["dataset"]["type"] == 'x"y: #'


def test_card_states_the_latency_of_a_bench(hub: HubStandIn, bundle: Path, measured: Path) -> None:
    berxit.push_to_hub(bundle, "org/model", bench=measured)
    data = json.loads(measured.read_text(encoding="utf-8"))
    mean = data["policy"]["latency"]["mean"]
    assert f"{mean:.2f} ms per input at early exit" in card_of(hub, "org/model")[1]


def test_card_rejects_the_bench_of_another_model(hub: HubStandIn, bundle: Path, measured: Path, tmp_path: Path) -> None:
    data = json.loads(measured.read_text(encoding="utf-8"))
    (tmp_path / "bench.json").write_text(json.dumps({**data, "layers": 12}), encoding="utf-8")
    with pytest.raises(berxit.InputError, match=r"bench of another model \(custom, 12 layers, fp32\)"):
        berxit.push_to_hub(bundle, "org/model", bench=tmp_path / "bench.json")
    (tmp_path / "bench.json").write_text("{}", encoding="utf-8")
    with pytest.raises(berxit.BerxitError, match=r"is not a bench.json: key 'backend' is missing"):
        berxit.push_to_hub(bundle, "org/model", bench=tmp_path)
    assert hub.commits == []


def test_card_shows_the_scores_of_an_evaluation(
    hub: HubStandIn, checkpoint: Path, data_folder: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    (result,) = berxit.evaluate(copy, data_folder)
    result.write(copy / "eval-dev")
    published = berxit.push_to_hub(copy, "org/model")
    text = card_of(hub, "org/model")[1]
    assert "accuracy on dev" in text
    assert all(f"{score:.4f}" in text for score in result.evaluation.layer_scores)
    assert not any(name.startswith("eval-") for name in published.files)


def test_card_of_an_uncalibrated_model_says_so(hub: HubStandIn, checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    (copy / "exit_policy.json").unlink()
    berxit.push_to_hub(copy, "org/model")
    header, text = card_of(hub, "org/model")
    assert "model-index" not in header
    assert "Not calibrated" in text


def test_python_of_the_cards_runs(
    hub: HubStandIn, bundle: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, name in ((bundle, "org/bundle"), (checkpoint, "org/checkpoint")):
        berxit.push_to_hub(folder, name)
        (code,) = re.findall(r"```python\n(.*?)```", card_of(hub, name)[1], re.DOTALL)
        found: dict[str, Any] = {}
        exec(code, found)
        assert isinstance(found["runner"], berxit.EarlyExitRunner)


def test_push_uses_the_folders_own_card(hub: HubStandIn, bundle: Path, measured: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    (copy / "README.md").write_text("mine", encoding="utf-8")
    berxit.push_to_hub(copy, "org/model")
    assert (hub.repositories / "org/model/README.md").read_text(encoding="utf-8") == "mine"
    with pytest.raises(berxit.InputError, match="--bench has no effect"):
        berxit.push_to_hub(copy, "org/model", bench=measured)


def test_pushed_checkpoint_contains_no_texts_of_the_data(hub: HubStandIn, checkpoint: Path) -> None:
    lines: list[str] = []
    published = berxit.push_to_hub(checkpoint, "org/model", report=lines.append)
    assert {"config.json", "model.safetensors", "tokenizer.json", "exit_policy.json"} <= set(published.files)
    assert not {"samples.json", "calibration_texts.json", "dev.jsonl"} & set(published.files)
    assert "not uploaded, because they contain texts of the data: calibration_texts.json, samples.json" in lines[0]
    with_data = berxit.push_to_hub(checkpoint, "org/other", include_data=True)
    assert {"samples.json", "calibration_texts.json"} <= set(with_data.files)


def test_push_creates_a_private_repository_unless_public(hub: HubStandIn, bundle: Path) -> None:
    berxit.push_to_hub(bundle, "org/secret")
    berxit.push_to_hub(bundle, "org/secret")
    berxit.push_to_hub(bundle, "org/open", public=True)
    assert hub.private == {"org/secret"}


def test_damaged_bundle_is_not_uploaded(hub: HubStandIn, bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    with (copy / "segments/layer_02.onnx").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(berxit.BerxitError, match="checksum differs"):
        berxit.push_to_hub(copy, "org/model")
    assert not (hub.repositories / "org/model").exists()


def test_push_rejects_wrong_arguments(hub: HubStandIn, bundle: Path, tmp_path: Path) -> None:
    for name in ("model", "a/b/c", "", "org/", "../x"):
        with pytest.raises(berxit.InputError, match="give owner/name"):
            berxit.push_to_hub(bundle, name)
    with pytest.raises(berxit.InputError, match="neither a checkpoint nor a bundle"):
        berxit.push_to_hub(tmp_path, "org/model")


def test_failed_upload_is_one_line(hub: HubStandIn, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def create_repo(repo_id: str, **_: Any) -> str:
        raise OSError("401 Client Error: Unauthorized\nInvalid credentials")

    monkeypatch.setattr(hub, "create_repo", create_repo)
    with pytest.raises(
        berxit.BerxitError, match=r"to org/model: 401 Client Error: Unauthorized\. Check.*login"
    ) as error:
        berxit.push_to_hub(bundle, "org/model")
    assert "\n" not in str(error.value)


def test_push_without_the_library_names_the_pip_command(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    lines: list[str] = []
    with pytest.raises(berxit.BerxitError, match=r"huggingface_hub, which is not installed: .*\[hub\]"):
        berxit.push_to_hub(bundle, "org/model", report=lines.append)
    assert lines == []


def test_push_command_prints_files_and_commit(
    hub: HubStandIn, bundle: Path, measured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(bundle), "org/model", "--bench", str(measured), "--public", "--message", "first"]
    assert status_of(load("push"), arguments) == 0
    printed = capsys.readouterr()
    assert "uploaded: README.md, golden.json, manifest.json" in printed.out
    assert "commit: https://hub.test/org/model/commit/0123abcd" in printed.out
    assert "golden.json contains sample texts" in printed.err
    assert hub.commits == [("org/model", "first")]
    assert status_of(load("push"), [str(bundle), "model"]) == 2
