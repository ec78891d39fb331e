"""Checks before the first training step: rejected models with their messages, and accepted ones."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ENCODERS, FAMILIES, WORDS, shared, tiny_backbone, tiny_config, write_tokenizer
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from berxit.runtime.errors import BerxitError, InputError
from berxit.train import checks
from berxit.train.checkpoint import load_checkpoint
from berxit.train.fine_tuning import fine_tune, start_model
from berxit.train.modeling import MultiExitModel
from berxit.train.options import TrainingOptions
from berxit.train.pretrained import load_encoder, read_tokenizer, read_weights, resolve_model
from berxit.train.tasks import Task, custom_task

Weights = dict[str, Tensor]


@pytest.fixture
def folder(backbone_folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of a tiny BERT with its tokenizer."""
    return Path(shutil.copytree(backbone_folders["bert"], tmp_path / "model"))


@pytest.fixture
def task(data_folder: Path) -> Task:
    return custom_task(data_folder, ("text",), "label")


def options_of(folder: Path, **changes: Any) -> TrainingOptions:
    return TrainingOptions(str(folder), max_steps=1, max_length=16, limit_train=16, **changes)


def rewrite(folder: Path, change: Callable[[Weights], Weights]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def set_json(folder: Path, name: str, **values: Any) -> None:
    content = json.loads((folder / name).read_text(encoding="utf-8"))
    (folder / name).write_text(json.dumps({**content, **values}), encoding="utf-8")


def assert_same_weights(found: torch.nn.Module, expected: torch.nn.Module, atol: float = 0.0) -> None:
    wanted = {name: tensor for name, tensor in expected.state_dict().items() if not name.startswith("pooler.")}
    state = {name: tensor for name, tensor in found.state_dict().items() if not name.startswith("pooler.")}
    assert wanted.keys() == state.keys()
    for name, tensor in wanted.items():
        assert torch.allclose(state[name], tensor, rtol=0, atol=atol), name


# The weights


WRAPPERS = ("", "module.", "0.auto_model.", "model.", "_orig_mod.module.")
PREFIXED = (*FAMILIES, "mpnet", "modernbert")  # ModernBERT's own prefix is "model.", too


@pytest.mark.parametrize(
    ("base", "wrapper", "family"),
    [
        *((base, "model.", family) for family in PREFIXED for base in (False, True)),
        *((base, wrapper, "bert") for wrapper in WRAPPERS if wrapper != "model." for base in (False, True)),
    ],
)
def test_load_encoder_accepts_weights_under_every_known_prefix(
    base: bool, wrapper: str, family: str, backbone_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(backbone_folders[family], tmp_path / "model"))
    expected = AutoModel.from_pretrained(folder)
    prefix = wrapper + (f"{expected.base_model_prefix}." if base else "")
    rewrite(folder, lambda weights: {prefix + name: tensor for name, tensor in weights.items()})
    found, has_pooler = load_encoder(str(folder))
    assert_same_weights(found, expected)
    assert has_pooler == any("pooler" in name for name in expected.state_dict())


@pytest.mark.parametrize("family", ENCODERS)
@pytest.mark.parametrize(
    "with_head", [AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoModelForQuestionAnswering]
)
def test_load_encoder_ignores_task_heads_of_transformers(with_head: Any, family: str, tmp_path: Path) -> None:
    model = with_head.from_config(tiny_config(family))
    model.save_pretrained(tmp_path)
    found, _ = load_encoder(str(tmp_path))
    assert_same_weights(found, model.base_model)


def test_load_encoder_accepts_buffers_and_names_of_older_files(folder: Path) -> None:
    expected = AutoModel.from_pretrained(folder)

    def age(weights: Weights) -> Weights:
        old = {
            f"bert.{name}".replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): tensor
            for name, tensor in weights.items()
        }
        return {
            **old,
            "bert.embeddings.position_ids": torch.arange(40)[None],
            "cls.seq_relationship.bias": torch.ones(2),
        }

    rewrite(folder, age)
    assert_same_weights(load_encoder(str(folder))[0], expected)


def test_load_encoder_reads_bin_sharded_and_half_precision_files(folder: Path, tmp_path: Path) -> None:
    expected = AutoModel.from_pretrained(folder)
    expected.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert not (tmp_path / "sharded" / "model.safetensors").exists()
    assert_same_weights(load_encoder(str(tmp_path / "sharded"))[0], expected)

    shutil.copytree(folder, tmp_path / "bin")
    (tmp_path / "bin" / "model.safetensors").unlink()
    torch.save(expected.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    assert_same_weights(load_encoder(str(tmp_path / "bin"))[0], expected)

    rewrite(folder, lambda weights: {name: tensor.half() for name, tensor in weights.items()})
    half, _ = load_encoder(str(folder))
    assert half.dtype == torch.float32
    assert_same_weights(half, expected, atol=1e-3)


@pytest.mark.parametrize("family", ["electra", "modernbert", "deberta-v2"])
def test_load_encoder_reads_a_sentence_transformers_folder_with_half_precision_bin_shards(
    family: str, backbone_folders: dict[str, Path], tmp_path: Path
) -> None:
    expected = AutoModel.from_pretrained(backbone_folders[family])
    folder = Path(shutil.copytree(backbone_folders[family], tmp_path / "model"))
    (folder / "model.safetensors").unlink()
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "Transformer"}]))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    weights = {name: tensor.bfloat16() for name, tensor in expected.state_dict().items()}
    files = {name: f"pytorch_model-0000{1 + place % 2}-of-00002.bin" for place, name in enumerate(weights)}
    for file in set(files.values()):
        torch.save({name: weights[name] for name in weights if files[name] == file}, folder / file)
    index = {"metadata": {"total_size": 0}, "weight_map": files}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    found, _ = load_encoder(resolve_model(folder))
    assert found.dtype == torch.float32
    assert_same_weights(found, expected, atol=1e-2)


def test_load_encoder_accepts_a_missing_pooler_and_does_not_use_it(folder: Path) -> None:
    rewrite(folder, lambda weights: {name: tensor for name, tensor in weights.items() if "pooler" not in name})
    assert not load_encoder(str(folder))[1]
    model = MultiExitModel.from_backbone(folder, exit_head="pooler")
    assert not torch.equal(model.heads[0].pooler.weight, model.heads[1].pooler.weight)


def without(text: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name: tensor for name, tensor in weights.items() if text not in name}


def adding(name: str, like: str | None = None) -> Callable[[Weights], Weights]:
    return lambda weights: {**weights, name: weights[like].clone() if like else torch.ones(2)}


def prefixed(prefix: str) -> Callable[[Weights], Weights]:
    return lambda weights: {prefix + name: tensor for name, tensor in weights.items()}


def changed(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Weights], Weights]:
    return lambda weights: {**weights, name: change(weights[name]).contiguous()}


QUERY = "encoder.layer.{}.attention.self.query.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (prefixed("student."), r"the first is 'student\.embeddings\.word_embeddings\.weight'.*known prefix"),
        (prefixed("roberta."), r"'roberta\.embeddings\.word_embeddings\.weight'"),
        (prefixed("module.teacher."), r"'module\.teacher\.embeddings\.word_embeddings\.weight'"),
        (lambda weights: {"linear.weight": torch.ones(2)}, r"the first is 'linear\.weight'"),
        (lambda weights: {}, "no weights of a bert encoder"),
        (without(".layer.2."), r"lack 'encoder\.layer\.2\.attention\.self\.query\.weight'"),
        (without("embeddings.LayerNorm.bias"), r"lack 'embeddings\.LayerNorm\.bias'"),
        (without("pooler.dense.bias"), r"lack 'pooler\.dense\.bias'"),
        (adding(QUERY.format(3), QUERY.format(2)), r"have 'encoder\.layer\.3\..*with 3 layers"),
        (adding("encoder.layer.1.adapter.weight"), r"have 'encoder\.layer\.1\.adapter\.weight'"),
        (adding("1.auto_model.embeddings.LayerNorm.bias"), r"have '1\.auto_model\.embeddings"),
        (adding("crf.transitions"), r"have 'crf\.transitions'"),
        (adding("lm_head.bias"), r"have 'lm_head\.bias'"),  # RoBERTa's head, and not BERT's.
        (
            changed("embeddings.word_embeddings.weight", lambda w: w[:-1]),
            r"have shape \(\d+, 32\), config",
        ),
        (changed(QUERY.format(0), lambda w: w.to(torch.int8)), "query.weight' are int8: only float32"),
        (changed(QUERY.format(1), lambda w: w * float("nan")), "query.weight' contain NaN"),
    ],
)
def test_match_weights_rejects_weights_of_another_model(
    change: Callable[[Weights], Weights], message: str, folder: Path, task: Task, data_folder: Path, tmp_path: Path
) -> None:
    rewrite(folder, change)
    with pytest.raises(InputError, match=message) as caught:
        fine_tune(task, data_folder, options_of(folder), tmp_path / "output")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_load_encoder_ignores_layers_above_the_layers_option(folder: Path) -> None:
    kept = MultiExitModel.from_backbone(folder, layers=2).backbone.state_dict()
    rewrite(folder, without(".layer.2."))
    for name, tensor in MultiExitModel.from_backbone(folder, layers=2).backbone.state_dict().items():
        assert torch.equal(tensor, kept[name])
    rewrite(folder, adding("encoder.layer.2.adapter.weight"))
    with pytest.raises(InputError, match=r"encoder\.layer\.2\.adapter\.weight"):
        MultiExitModel.from_backbone(folder, layers=2)


def test_read_weights_reports_an_unreadable_file_in_one_line(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BerxitError, match=r"cannot read the weights .*model\.safetensors"):
        read_weights(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(BerxitError, match=r"has no weights: add its model\.safetensors"):
        read_weights(str(folder))


def test_read_weights_never_executes_code_in_a_file(folder: Path, tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "executed",)

    (folder / "model.safetensors").unlink()
    torch.save({"embeddings": Code()}, folder / "pytorch_model.bin")
    with pytest.raises(BerxitError, match="cannot read the weights"):
        read_weights(str(folder))
    assert not (tmp_path / "executed").exists()


def test_resolve_model_finds_the_encoder_of_an_old_sentence_transformers_folder(
    folder: Path, task: Task, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "st" / "0_Transformer")
    (tmp_path / "st" / "modules.json").write_text("[]", encoding="utf-8")
    model, _ = start_model(task, options_of(tmp_path / "st"))
    assert_same_weights(model.backbone, AutoModel.from_pretrained(folder))


# The configuration


@pytest.mark.parametrize(
    ("family", "values", "message"),
    [
        ("bert", {"hidden_act": "silu"}, "hidden_act 'silu', only 'gelu' or 'gelu_new' or 'relu'"),
        ("bert", {"hidden_act": "nonsense"}, "hidden_act 'nonsense'"),
        ("bert", {"is_decoder": True}, "is_decoder True, only False"),
        ("roberta", {"is_decoder": True, "add_cross_attention": True}, "is_decoder True"),
        ("distilbert", {"is_decoder": True}, "is_decoder True"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
        ("bert", {"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ("bert", {"num_attention_heads": 5}, "num_attention_heads 5, which does not divide"),
        ("albert", {"num_attention_heads": 5}, "num_attention_heads 5, which does not divide"),
        ("bert", {"pad_token_id": -1}, "pad_token_id -1"),
        ("roberta", {"pad_token_id": None}, "pad_token_id None"),
        ("distilbert", {"activation": "silu"}, "activation 'silu'"),
        ("albert", {"inner_group_num": 2}, "inner_group_num 2"),
        ("albert", {"hidden_act": "gelu_fast"}, "hidden_act 'gelu_fast'"),
        ("mpnet", {"relative_attention_num_buckets": 16}, "relative_attention_num_buckets 16"),
        ("deberta-v2", {"conv_kernel_size": 3}, "conv_kernel_size 3"),
        ("deberta-v2", {"pos_att_type": "c2p"}, r"pos_att_type \['c2p'\]"),
        (
            "modernbert",
            {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}}},
            "rope_type 'linear', only 'default' is supported",
        ),
        ("bert", {"model_type": "convbert"}, "'convbert' is not supported, because no adapter"),
        ("bert", {"auto_map": {"AutoModel": "own.Model"}}, r"own code \('auto_map' in config\.json\)"),
        ("bert", {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}, "own code"),
    ],
)
def test_check_config_rejects_what_the_canonical_layer_does_not_implement(
    family: str, values: dict, message: str, backbone_folders: dict, task: Task, data_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(backbone_folders[family], tmp_path / "model"))
    set_json(folder, "config.json", **values)
    with pytest.raises(InputError, match=message):
        fine_tune(task, data_folder, options_of(folder), tmp_path / "output")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_start_model_reports_a_configuration_value_of_wrong_type_in_one_line(folder: Path, task: Task) -> None:
    set_json(folder, "config.json", hidden_size="wide")
    with pytest.raises(BerxitError, match="cannot load --model") as caught:
        start_model(task, options_of(folder))
    assert "\n" not in str(caught.value)


def test_keep_layers_rejects_fewer_layers_of_albert_groups(tmp_path: Path) -> None:
    config = tiny_config("albert")
    config.num_hidden_layers, config.num_hidden_groups = 4, 2
    AutoModel.from_config(config).save_pretrained(tmp_path)
    assert MultiExitModel.from_backbone(tmp_path).layers == 4
    with pytest.raises(InputError, match="--layers 2 is not possible with 2 layer groups"):
        MultiExitModel.from_backbone(tmp_path, layers=2)


def test_read_tokenizer_rejects_a_tokenizer_with_its_own_code(folder: Path) -> None:
    set_json(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Tokenizer", None]})
    with pytest.raises(InputError, match=r"own code \('auto_map' in tokenizer_config\.json\)"):
        read_tokenizer(str(folder))


# The tokenizer


@pytest.mark.parametrize("family", [family for family in ENCODERS if family != "modernbert"])  # has no class of its own
def test_check_tokenizer_files_rejects_a_folder_without_them(family: str, tmp_path: Path) -> None:
    tiny_backbone(family).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"has no tokenizer files: \w+ needs tokenizer\.json") as caught:
        read_tokenizer(str(tmp_path))
    assert "Copy them from the model" in str(caught.value)


def test_check_tokenizer_files_rejects_a_vocabulary_of_another_tokenizer() -> None:
    with pytest.raises(InputError, match=r"AlbertTokenizer needs tokenizer\.json or spiece\.model"):
        read_tokenizer(str(shared("models", "rxnmapper-albert")))


def test_check_tokenizer_files_rejects_a_vocabulary_of_special_tokens_only(folder: Path) -> None:
    write_tokenizer(folder, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    with pytest.raises(InputError, match="knows 5 tokens, all of them special"):
        read_tokenizer(str(folder))


def test_check_tokenizer_files_rejects_a_tokenizer_in_python_only(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "BertJapaneseTokenizer",
                "word_tokenizer_type": "basic",
                "subword_tokenizer_type": "character",
            }
        ),
        encoding="utf-8",
    )
    with pytest.raises(InputError, match="BertJapaneseTokenizer exists in Python only"):
        read_tokenizer(str(folder))


def test_read_tokenizer_reports_a_damaged_file_in_one_line(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="cannot load the tokenizer of") as caught:
        read_tokenizer(str(folder))
    assert "\n" not in str(caught.value)


def rejected(folder: Path, task: Task, message: str, **options: Any) -> None:
    with pytest.raises(InputError, match=message):
        start_model(task, options_of(folder, **options))


def test_check_tokenizer_rejects_ids_beyond_the_word_embedding_table(folder: Path, task: Task) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = len(tokenizer)
    tokenizer.add_tokens(["devicex"])
    tokenizer.save_pretrained(folder)
    rejected(folder, task, rf"has 'devicex' with id {rows}, .* has {rows} rows.*resize_token_embeddings\({rows + 1}\)")


def test_check_tokenizer_rejects_a_padding_id_beyond_the_word_embedding_table(folder: Path, task: Task) -> None:
    write_tokenizer(folder, ["[UNK]", "[CLS]", "[SEP]", "[MASK]", "x", *WORDS])  # [PAD] gets the last id + 1.
    rejected(folder, task, r"has '\[PAD\]' with id")


def edit_tokenizer(folder: Path, change: Callable[[dict], None]) -> None:
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")


def fast_tokenizer(folder: Path, change: Callable[[dict], None], **special: str | None) -> None:
    """Replaces the folder's tokenizer.json by a changed one with its own special tokens."""
    edit_tokenizer(folder, change)
    tokens = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", **special}
    chosen = {role: token for role, token in tokens.items() if token is not None}
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    PreTrainedTokenizerFast(tokenizer_object=backend, **chosen).save_pretrained(folder)


def test_check_tokenizer_rejects_a_tokenizer_without_padding(folder: Path, task: Task) -> None:
    fast_tokenizer(folder, lambda content: None, pad_token=None)
    rejected(folder, task, "no padding token: set pad_token")


def test_check_tokenizer_without_a_first_special_token_requires_mean_pooling(folder: Path, task: Task) -> None:
    fast_tokenizer(folder, lambda content: content.update(post_processor=None))
    start_model(task, options_of(folder))
    rejected(folder, task, "adds no special token before the text.*--pooling mean", pooling="first")


def test_check_tokenizer_rejects_a_special_token_with_an_unknown_id(folder: Path, task: Task) -> None:
    fast_tokenizer(folder, lambda content: None, cls_token="the")
    rejected(folder, task, "adds id 2 to a text, which is not one of its special tokens")


@pytest.mark.parametrize("role", ["cls", "sep", "unk", "mask"])
def test_check_tokenizer_rejects_special_ids_that_differ_from_the_configuration(
    role: str, folder: Path, task: Task
) -> None:
    set_json(folder, "config.json", **{f"{role}_token_id": 9})
    rejected(folder, task, rf"config\.json has {role}_token_id 9, the tokenizer's is \d")


def test_check_tokenizer_rejects_another_padding_id_if_positions_depend_on_it(
    backbone_folders: dict[str, Path], tokenizer_folder: Path, task: Task, tmp_path: Path
) -> None:
    roberta = Path(shutil.copytree(backbone_folders["roberta"], tmp_path / "roberta"))
    set_json(roberta, "config.json", pad_token_id=1)
    rejected(roberta, task, "pads with id 0, the model counts positions from padding id 1")
    mpnet = Path(shutil.copytree(backbone_folders["mpnet"], tmp_path / "mpnet"))
    shutil.copytree(tokenizer_folder, mpnet, dirs_exist_ok=True)
    rejected(mpnet, task, "pads with id 0, the model counts positions from padding id 1")


def test_start_model_uses_the_tokenizers_padding_id_if_positions_do_not_depend_on_it(folder: Path, task: Task) -> None:
    set_json(folder, "config.json", pad_token_id=2)
    lines: list[str] = []
    model, _ = start_model(task, options_of(folder), lines.append)
    assert lines == ["config.json has pad_token_id 2, the tokenizer pads with 0: the model now uses 0"]
    assert (model.config.backbone.pad_token_id, model.get_input_embeddings().padding_idx) == (0, 0)


def test_check_tokenizer_of_pairs_requires_two_token_types(folder: Path, task: Task) -> None:
    config = tiny_config("bert")
    config.type_vocab_size = 1
    AutoModel.from_config(config).save_pretrained(folder)
    start_model(task, options_of(folder))
    rejected(folder, replace(task, text_columns=("text", "text2")), "uses 2 token types for a pair.*type_vocab_size 1")


# The training texts


def test_unknown_tokens_reports_their_share(folder: Path, task: Task, data_folder: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(data_folder, tmp_path / "data"))
    text = (data / "train.tsv").read_text(encoding="utf-8")
    (data / "train.tsv").write_text(text.replace("train ", "unheard ", 3), encoding="utf-8")
    lines: list[str] = []
    options = replace(options_of(folder), limit_train=None)
    fine_tune(task, data, options, tmp_path / "output", report=lines.append)
    assert any(line.startswith("unknown tokens: 0.") and "96 training texts" in line for line in lines)
    found = checks.unknown_tokens("m", AutoTokenizer.from_pretrained(folder), task.read(data, "train").texts)
    assert (found.unknown, found.texts) == (3, 96)


@pytest.mark.parametrize("text", ["Где находится лампа", "CC(=O)Oc1ccccc1C(=O)O", "何時ですか the"])
def test_unknown_tokens_rejects_texts_of_another_language(text: str, folder: Path) -> None:
    with pytest.raises(InputError, match=r"unknown tokens: .*more than 30%: the tokenizer of m does not belong"):
        checks.unknown_tokens("m", read_tokenizer(str(folder)), [text] * 5)


def test_unknown_tokens_counts_both_texts_of_a_pair(folder: Path) -> None:
    found = checks.unknown_tokens("m", read_tokenizer(str(folder)), [("the cat sat on", "the xyz")])
    assert (found.unknown, found.tokens, found.texts) == (1, 6, 1)


def test_unknown_tokens_counts_texts_without_tokens(folder: Path) -> None:
    fast_tokenizer(
        folder, lambda content: content.update(normalizer={"type": "Replace", "pattern": {"Regex": "."}, "content": ""})
    )
    with pytest.raises(InputError, match=r"unknown tokens: 100\.0%"):
        checks.unknown_tokens("m", read_tokenizer(str(folder)), ["the cat", "a dog"])


# A checkpoint, which evaluation, calibration and export load


@pytest.mark.parametrize("problem", ["token", "config", "nan", "padding", "unknown", "length"])
def test_load_checkpoint_rejects_what_training_rejects(problem: str, checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    backbone = json.loads((copy / "config.json").read_text(encoding="utf-8"))["backbone"]
    if problem == "token":
        tokenizer = AutoTokenizer.from_pretrained(copy)
        tokenizer.add_tokens(["devicex"])
        tokenizer.save_pretrained(copy)
    elif problem == "config":
        set_json(copy, "config.json", backbone={**backbone, "hidden_act": "silu"})
    elif problem == "nan":
        rewrite(copy, changed("backbone." + QUERY.format(0), lambda w: w * float("inf")))
    elif problem == "padding":
        fast_tokenizer(copy, lambda content: None, pad_token=None)
    elif problem == "unknown":
        rewrite(copy, adding("heads.7.classifier.bias"))
    else:
        set_json(copy, "config.json", max_length=41)
    messages = {
        "token": "has 'devicex' with id",
        "config": "hidden_act 'silu'",
        "nan": "contain NaN or infinity",
        "padding": "no padding token",
        "unknown": r"has unknown weights, the first is heads\.7\.classifier\.bias",
        "length": "41 is more than the 40",
    }
    with pytest.raises(BerxitError, match=messages[problem]):
        load_checkpoint(copy)


def test_checks_take_less_than_two_seconds(tmp_path: Path) -> None:
    folder = str(shared("models", "bge-small-en"))
    weights, tokenizer = read_weights(folder), read_tokenizer(folder)
    encoder, _ = load_encoder(folder)
    config = encoder.config
    texts = ["The meeting starts at nine, but nobody had told them. " * 20] * 5000
    start = time.process_time()
    adapter = checks.check_config(folder, config)
    checks.check_max_length(folder, adapter, 128)
    checks.match_weights(folder, weights, encoder, adapter.layers)
    checks.check_finite(folder, encoder)
    checks.check_tokenizer(folder, tokenizer, encoder, pairs=False, pooling="first")
    checks.unknown_tokens(folder, tokenizer, texts)
    assert time.process_time() - start < 2
