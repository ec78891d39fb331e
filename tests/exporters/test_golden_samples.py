from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from berxit.exporters.export import export
from berxit.exporters.golden_samples import of_every_length, random_texts
from berxit.exporters.options import ExportOptions
from berxit.runtime import EarlyExitRunner
from berxit.runtime.bundle import read_manifest
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.golden import read_golden
from berxit.runtime.tokenization import Text, TextTokenizer


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> TextTokenizer:
    return TextTokenizer(tokenizer_folder / "tokenizer.json", 64, 0)


@pytest.mark.parametrize(
    "samples",
    [
        ["a cat sat on the mat"],
        [" the cat", "stop", "play"],
        [("a cat", "a dog"), ("stop", "play")],
        [("the cat " * 40, "dog")],
    ],
)
def test_every_length_gets_a_sample(samples: list[Text], tokenizer: TextTokenizer) -> None:
    lengths = (8, 16, 32, 64)
    found = of_every_length(samples, lengths, tokenizer)
    assert found[: len(samples)] == samples
    padded_to = [min(length for length in lengths if length >= tokens) for tokens in tokenizer(found).lengths]
    assert sorted(set(padded_to)) == list(lengths)
    assert len(found) == len(samples) + len(lengths) - len(set(padded_to[: len(samples)]))
    assert 1 not in tokenizer(found).input_ids  # [UNK]: words stay whole


def test_every_length_gets_a_sample_in_a_language_without_blanks(tokenizer: TextTokenizer) -> None:
    found = of_every_length(["東京は日本の首都です"], (8, 16, 24, 32), tokenizer)
    places = [(tokens - 1) // 8 for tokens in tokenizer(found).lengths]
    assert sorted(places) == [0, 1, 2, 3]


def test_of_every_length_keeps_sufficient_samples(tokenizer: TextTokenizer) -> None:
    assert of_every_length(["a cat"], (64,), tokenizer) == ["a cat"]


def test_of_every_length_skips_an_impossible_length(tokenizer: TextTokenizer) -> None:
    assert of_every_length(["a cat"], (2, 8), tokenizer) == ["a cat"]


@pytest.fixture(params=["none", "empty"])
def bare(request: pytest.FixtureRequest, checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint whose sample texts were deleted, as docs/bundle.md advises for confidential ones."""
    copy = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    (copy / "samples.json").unlink()
    if request.param == "empty":
        (copy / "samples.json").write_text('{"texts": []}', encoding="utf-8")
    return copy


def test_export_without_samples_uses_random_tokens_of_the_vocabulary(bare: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    export(bare, "onnxruntime", tmp_path / "bundle", report=lines.append)
    manifest = read_manifest(tmp_path / "bundle")
    golden = read_golden(tmp_path / "bundle", manifest)
    (line,) = [line for line in lines if "samples.json" in line]
    assert "the golden inputs are random tokens of its vocabulary. --data takes texts" in line
    vocabulary = json.loads((bare / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    words = {word for (text,) in golden.texts for word in text.split()}
    assert words <= set(vocabulary)
    assert max(max(ids) for ids in golden.input_ids) < len(vocabulary)
    assert len({len(ids) for ids in golden.input_ids}) > 3
    assert EarlyExitRunner.load(tmp_path / "bundle").predict(golden.texts[0][0]).exit_layer >= 1


@pytest.mark.parametrize(
    ("target", "precision"), [("onnxruntime", "int8"), ("tensorrt", "int8"), ("coreml", "palette6")]
)
def test_export_without_samples_rejects_a_precision_that_needs_texts(
    target: str, precision: str, bare: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=rf"--precision {precision} needs texts .* has no samples.json: give --data"):
        export(bare, target, tmp_path / "bundle", options=ExportOptions(precision=precision))
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_export_without_samples_takes_texts_of_data(
    precision: str, bare: Path, data_folder: Path, tmp_path: Path
) -> None:
    lines: list[str] = []
    options = ExportOptions(precision=precision)
    export(bare, "onnxruntime", tmp_path / "bundle", options=options, data=data_folder, report=lines.append)
    golden = read_golden(tmp_path / "bundle", read_manifest(tmp_path / "bundle"))
    dev = (data_folder / "dev.tsv").read_text(encoding="utf-8")
    assert all(text in dev for (text,) in golden.texts)
    assert not any("samples.json" in line for line in lines)


def test_export_with_samples_keeps_them_if_the_calibration_data_is_given(
    checkpoint: Path, data_folder: Path, bundle: Path, tmp_path: Path
) -> None:
    export(checkpoint, "onnxruntime", tmp_path / "bundle", data=data_folder / "dev.tsv")
    assert (tmp_path / "bundle" / "golden.json").read_bytes() == (bundle / "golden.json").read_bytes()


def test_random_texts_are_reproducible_pairs_for_a_pair_task(backbone_folders: dict[str, Path]) -> None:
    tokenizer = backbone_folders["bert"] / "tokenizer.json"
    special = {token["content"] for token in json.loads(tokenizer.read_text(encoding="utf-8"))["added_tokens"]}
    texts = random_texts(tokenizer, 32, pairs=True)
    assert texts == random_texts(tokenizer, 32, pairs=True)
    for text in texts:
        first, second = text
        assert first.strip()
        assert second.strip()
        assert not special & {*first.split(), *second.split()}


def test_export_with_unsuitable_data_names_the_missing_column(bare: Path, tmp_path: Path) -> None:
    (bare / "exit_policy.json").unlink()  # else --data is the calibration data
    (tmp_path / "other.tsv").write_text("words\tlabel\nthe cat\tcat\n", encoding="utf-8")
    with pytest.raises(BerxitError, match="no column 'text'"):
        export(bare, "onnxruntime", tmp_path / "bundle", data=tmp_path / "other.tsv")
