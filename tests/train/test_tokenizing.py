"""Training tokenizes a text exactly as every runner does, or rejects the tokenizer's setting."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import WORDS, shared, tiny_config
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast

from berxit.exporters.export import export
from berxit.runtime import EarlyExitRunner
from berxit.runtime.bundle import read_manifest
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.golden import check_tokenization, read_golden
from berxit.runtime.tokenization import Text, TextTokenizer
from berxit.train.checkpoint import load_checkpoint
from berxit.train.encoding import EncodedExamples
from berxit.train.evaluation import predict
from berxit.train.fine_tuning import fine_tune
from berxit.train.options import TrainingOptions
from berxit.train.tasks import Task, custom_task, get_task
from berxit.train.tokenizing import REVEALING, revealing_texts, saved_tokenizer

Edit = Callable[[dict[str, Any]], object]


def edited(source: Path, folder: Path, config: dict[str, Any] | None = None, tokenizer: Edit | None = None) -> str:
    """Copies a model or tokenizer folder and changes settings."""
    shutil.copytree(source, folder)
    for name, change in (
        ("tokenizer_config.json", lambda data: (data.pop("do_lower_case", None), data.update(config or {}))),
        ("tokenizer.json", tokenizer or (lambda data: None)),
    ):
        data = json.loads((folder / name).read_text(encoding="utf-8"))
        change(data)
        (folder / name).write_text(json.dumps(data), encoding="utf-8")
    return str(folder)


def saved(folder: str, max_length: int = 16) -> TextTokenizer:
    return saved_tokenizer(AutoTokenizer.from_pretrained(folder), folder, max_length)


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny RoBERTa with a byte-level tokenizer, which encodes whitespace around a text to ids."""
    folder = tmp_path_factory.mktemp("byte-level")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=special)
    tokenizer.train_from_iterator([" ".join(WORDS)], trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, cls_token="<s>", sep_token="</s>", **names).save_pretrained(
        folder
    )
    config = tiny_config("roberta", len(special) + 400)
    config.pad_token_id = 1
    AutoModel.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whitespace_run(
    byte_level: Path, data_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, EarlyExitRunner]:
    """A checkpoint and a runner of its bundle, with the byte-level tokenizer."""
    folder = tmp_path_factory.mktemp("whitespace")
    options = TrainingOptions(str(byte_level), max_steps=2, max_length=32)
    fine_tune(custom_task(data_folder, ("text",), "label"), data_folder, options, folder / "checkpoint")
    export(folder / "checkpoint", "onnxruntime", folder / "bundle")
    return folder / "checkpoint", EarlyExitRunner.load(folder / "bundle", threads=1)


@pytest.mark.parametrize("text", [" the cat", "the cat\n", "\u00a0the cat\u3000", "\tthe cat\x1c"])
def test_whitespace_around_a_text_changes_no_prediction(
    text: str, whitespace_run: tuple[Path, EarlyExitRunner], tmp_path: Path
) -> None:
    checkpoint, runner = whitespace_run
    rows = [{"text": text, "label": "cat"}, {"text": "a dog", "label": "other"}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    model, tokenizer = load_checkpoint(checkpoint)
    examples = Task("custom", ("text",), "label", ("cat", "other"), "accuracy").read(tmp_path / "x.jsonl", "")
    encoded = EncodedExamples(examples, tokenizer).input_ids[0].tolist()
    assert encoded == runner.tokenizer([text]).input_ids[0].tolist() == tokenizer(["the cat"]).input_ids[0].tolist()
    logits = predict(model, tokenizer, examples).logits[0, -1]
    expected = np.exp(logits) / np.exp(logits).sum()
    assert list(runner.predict(text, threshold=1.0).scores.values()) == pytest.approx(expected.tolist(), abs=1e-4)


def test_golden_inputs_reveal_a_runner_that_does_not_strip(whitespace_run: tuple[Path, EarlyExitRunner]) -> None:
    checkpoint, runner = whitespace_run
    golden = read_golden(checkpoint.parent / "bundle", runner.manifest)
    check_tokenization(golden, runner.tokenizer)

    class Unstripped(TextTokenizer):
        def __call__(self, texts: Any, *arguments: Any) -> Any:
            return super().__call__([f"x{text}" if text != text.strip() else text for text in texts], *arguments)

    path = checkpoint.parent / "bundle" / "tokenizer.json"
    with pytest.raises(BerxitError, match=r"token ids of '.*' differ from those at export"):
        check_tokenization(golden, Unstripped(path, 32, 1))


@pytest.mark.parametrize(
    "edit",
    [
        {"normalizer": None},
        {"pre_tokenizer": {"type": "WhitespaceSplit"}},
        {"post_processor": None},
        {"added_tokens": []},
    ],
    ids=lambda value: "change" if callable(value) else str(value)[:40],
)
def test_golden_inputs_reveal_another_tokenizer(edit: dict[str, Any], bundle: Path, tmp_path: Path) -> None:
    manifest = read_manifest(bundle)
    golden = read_golden(bundle, manifest)
    assert len(golden.tokenization) > len(REVEALING)
    data = json.loads((bundle / "tokenizer.json").read_text(encoding="utf-8"))
    data.update(edit)
    (tmp_path / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    other = TextTokenizer(tmp_path / "tokenizer.json", manifest.model.max_length, 0)
    with pytest.raises(BerxitError, match="differ from those at export"):
        check_tokenization(golden, other)


def test_golden_inputs_reveal_another_truncation(bundle: Path) -> None:
    golden = read_golden(bundle, manifest := read_manifest(bundle))
    with pytest.raises(BerxitError, match="differ from those at export"):
        check_tokenization(golden, TextTokenizer(bundle / "tokenizer.json", manifest.model.max_length + 1, 0))


@pytest.mark.parametrize("pairs", [False, True])
def test_revealing_texts_contain_every_kind(pairs: bool, tokenizer_folder: Path) -> None:
    texts = revealing_texts(pairs, 24)
    assert {isinstance(text, tuple) for text in texts} == {pairs}
    together = "".join(text if isinstance(text, str) else text[0] for text in texts)
    assert together != together.lower()
    assert not together.isascii()
    first = [text if isinstance(text, str) else text[0] for text in texts]
    assert any(text != text.strip() for text in first)
    assert any(TextTokenizer(tokenizer_folder / "tokenizer.json", 24, 0)(texts).truncated)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"padding_side": "left"}, "padding_side is 'left', but inputs are padded on the right"),
        ({"truncation_side": "left"}, "truncation_side is 'left', but the end of a long text is truncated"),
        ({"truncation_strategy": "only_second"}, "truncation_strategy is 'only_second', but"),
        ({"split_special_tokens": True}, "split_special_tokens is True, but"),
        ({"model_max_length": 12}, "--max-length 16 is more than the tokenizer's model_max_length 12"),
        ({"do_lower_case": False, "tokenizer_class": "PreTrainedTokenizerFast"}, r"do_lower_case = False.* encodes"),
    ],
    ids=lambda value: "change" if callable(value) else str(value)[:40],
)
def test_saved_tokenizer_rejects_a_setting_that_runners_do_not_implement(
    config: dict[str, Any], message: str, tokenizer_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message) as error:
        saved(edited(tokenizer_folder, tmp_path / "model", config))
    assert str(tmp_path / "model") in str(error.value)
    assert "\n" not in str(error.value)


def left(data: dict[str, Any]) -> None:
    data["truncation"] = {"direction": "Left", "max_length": 8, "strategy": "LongestFirst", "stride": 0}


def left_padding(data: dict[str, Any]) -> None:
    pad = {"pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
    data["padding"] = {"strategy": {"Fixed": 32}, "direction": "Left", **pad}


@pytest.mark.parametrize(
    ("config", "edit", "message"),
    [
        ({}, left, "truncation_side is 'left'"),
        ({}, left_padding, "padding_side is 'left'"),
        ({}, lambda data: data["normalizer"].update(lowercase=False), 'encodes "The Café.*to other ids'),
        ({}, lambda data: data.update(pre_tokenizer={"type": "WhitespaceSplit"}), "to other ids than transformers"),
    ],
)
def test_saved_tokenizer_rejects_a_setting_that_transformers_would_drop(
    config: dict[str, Any], edit: Edit, message: str, tokenizer_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        saved(edited(tokenizer_folder, tmp_path / "model", config, edit))


def test_saved_tokenizer_rejects_dropout_of_merges(byte_level: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dropout 0\.1 makes the token ids of a text random"):
        saved(edited(byte_level, tmp_path / "model", None, lambda data: data["model"].update(dropout=0.1)))


@pytest.mark.parametrize(
    ("config", "edit"),
    [
        ({"do_lower_case": False}, None),
        ({"do_lower_case": False}, lambda data: data["normalizer"].update(lowercase=False)),
        ({"strip_accents": False}, None),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, lambda data: data["normalizer"].update(lowercase=False)),
        (
            {"tokenizer_class": "PreTrainedTokenizerFast"},
            lambda data: data.update(pre_tokenizer={"type": "Whitespace"}),
        ),
        ({"padding_side": "right", "truncation_side": "right", "model_max_length": 16}, None),
    ],
    ids=lambda value: "change" if callable(value) else str(value)[:40],
)
def test_saved_tokenizer_accepts_a_setting_that_transformers_applies(
    config: dict[str, Any], edit: Edit | None, tokenizer_folder: Path, tmp_path: Path
) -> None:
    folder = edited(tokenizer_folder, tmp_path / "model", config, edit)
    expected = AutoTokenizer.from_pretrained(folder)(list(REVEALING), truncation=True, max_length=16)["input_ids"]
    batch = saved(folder)(REVEALING)
    assert [ids[:n].tolist() for ids, n in zip(batch.input_ids, batch.lengths, strict=True)] == expected


def test_saved_tokenizer_replaces_a_fixed_length_of_tokenizer_json(tokenizer_folder: Path, tmp_path: Path) -> None:
    """Sentence encoders store the padding and truncation of their own training."""

    def sentence_encoder(data: dict[str, Any]) -> None:
        left(data)
        left_padding(data)
        data["truncation"]["direction"] = data["padding"]["direction"] = "Right"

    batch = saved(edited(tokenizer_folder, tmp_path / "model", None, sentence_encoder))(["the cat", "cat " * 40])
    assert batch.lengths.tolist() == [4, 16]


def test_fine_tune_rejects_left_padding_before_the_first_step(
    backbone_folders: dict[str, Path], data_folder: Path, tmp_path: Path
) -> None:
    model = edited(backbone_folders["bert"], tmp_path / "model", {"padding_side": "left"})
    task = custom_task(data_folder, ("text",), "label")
    with pytest.raises(InputError, match="padding_side is 'left'"):
        fine_tune(task, data_folder, TrainingOptions(model, max_length=16), tmp_path / "output")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_load_checkpoint_rejects_a_checkpoint_with_left_padding(checkpoint: Path, tmp_path: Path) -> None:
    copy = edited(checkpoint, tmp_path / "copy", {"padding_side": "left"})
    with pytest.raises(BerxitError, match=r"checkpoint .*copy: padding_side is 'left'.*, and retrain$"):
        load_checkpoint(Path(copy))


def test_checkpoint_contains_the_tokenizer_of_training(checkpoint: Path, backbone_folders: dict[str, Path]) -> None:
    texts: list[Text] = [*REVEALING, *revealing_texts(False, 32)]
    trained = saved(str(backbone_folders["bert"]), 32)(texts)
    np.testing.assert_array_equal(load_checkpoint(checkpoint)[1](texts).input_ids, trained.input_ids)


@pytest.mark.parametrize("name", ["rte", "mrpc"])
def test_saved_tokenizer_returns_the_ids_of_transformers_for_real_texts(name: str) -> None:
    folder, data = str(shared("models", "bge-small-en")), shared("data", name.upper())
    examples = get_task(name).read(data, "dev")
    first, second = ([text[half] for text in examples.texts] for half in (0, 1))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = tokenizer(first, second, truncation=True, max_length=128, return_token_type_ids=True)
    found = EncodedExamples(examples, saved_tokenizer(tokenizer, folder, 128))
    assert [ids.tolist() for ids in found.input_ids] == expected["input_ids"]
    assert [types.tolist() for types in found.token_type_ids] == expected["token_type_ids"]


def test_predict_does_not_depend_on_the_rows_of_a_batch(checkpoint: Path, tmp_path: Path) -> None:
    model, tokenizer = load_checkpoint(checkpoint)
    texts = ["the cat", "the big red dog ran under the tree and the mat"]
    rows = [json.dumps({"text": text, "label": label}) for text, label in zip(texts, ("cat", "other"), strict=True)]
    (tmp_path / "x.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    examples = Task("custom", ("text",), "label", ("cat", "other"), "accuracy").read(tmp_path / "x.jsonl", "")
    alone, together = (predict(model, tokenizer, examples, batch_size).logits for batch_size in (1, 2))
    np.testing.assert_allclose(alone, together, atol=1e-5)


def test_whitespace_is_the_list_in_the_specification() -> None:
    """docs/bundle.md specifies White_Space and U+001C to U+001F."""
    white_space = [
        *range(9, 14),
        0x20,
        0x85,
        0xA0,
        0x1680,
        *range(0x2000, 0x200B),
        0x2028,
        0x2029,
        0x202F,
        0x205F,
        0x3000,
    ]
    found = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000 and not chr(code).strip()]
    assert found == sorted([*white_space, *range(0x1C, 0x20)])
