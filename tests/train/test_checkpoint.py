"""Checkpoints: complete or rejected when they are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.storage import write_whole
from berxit.train.checkpoint import load_checkpoint, read_record, read_samples


def test_load_checkpoint_returns_a_model_in_evaluation_mode(checkpoint: Path) -> None:
    model, tokenizer = load_checkpoint(checkpoint)
    assert not model.training
    assert model.config.labels == ("cat", "other")
    assert tokenizer.pad_token_id == 0


def test_load_checkpoint_of_a_missing_folder_recommends_training(tmp_path: Path) -> None:
    with pytest.raises(BerxitError, match=r"no checkpoint at .*train one with berxit-train"):
        load_checkpoint(tmp_path / "nowhere")


def test_load_checkpoint_names_all_missing_files(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "tokenizer.json").unlink()
    with pytest.raises(BerxitError, match=r"has no model\.safetensors, tokenizer\.json"):
        load_checkpoint(copy)


def test_load_checkpoint_of_a_model_without_exits_recommends_training(backbone_folders: dict) -> None:
    with pytest.raises(BerxitError, match="is a model without exits"):
        load_checkpoint(backbone_folders["bert"])


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_load_checkpoint_reports_a_truncated_file_in_one_line(name: str, share: float, copy: Path) -> None:
    whole = (copy / name).read_bytes()
    (copy / name).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(BerxitError) as caught:
        load_checkpoint(copy)
    assert str(copy) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_load_checkpoint_rejects_missing_weights(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    del weights["heads.1.classifier.bias"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BerxitError, match=r"lacks weights, the first is heads\.1\.classifier\.bias"):
        load_checkpoint(copy)


def test_read_record_returns_the_training_options(checkpoint: Path, data_folder: Path) -> None:
    from berxit.runtime.bundle import sha256

    record = read_record(checkpoint)
    assert record["train_sha256"] == sha256(data_folder / "train.tsv")
    assert (record["train_examples"], record["steps"]) == (96, 24)
    assert record["options"]["strategy"] == "alternating"
    assert {"torch", "transformers"} <= set(record["versions"])


def test_samples_are_texts_of_the_dev_split(checkpoint: Path) -> None:
    samples = read_samples(checkpoint)
    assert 0 < len(samples) <= 32
    assert all(isinstance(text, str) and text.startswith("dev ") for text in samples)


def test_read_samples_returns_pairs_as_tuples(tmp_path: Path) -> None:
    (tmp_path / "samples.json").write_text(json.dumps({"texts": [["a", "b"], "c"]}), encoding="utf-8")
    assert read_samples(tmp_path) == [("a", "b"), "c"]


def test_checkpoint_without_record_or_samples_is_accepted(tmp_path: Path) -> None:
    assert read_record(tmp_path) == {}
    assert read_samples(tmp_path) == []


def test_write_whole_never_replaces_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for output in (Path(), tmp_path):
        with pytest.raises(InputError, match="is the current folder"), write_whole(output, force=True):
            pytest.fail("the block must not run")
