"""Shared fixtures: tiny models of every family with random weights, a tiny tokenizer, a checkpoint and a bundle.

All tests run offline on two cores. Some use real weights and data in ``shared/`` next to the project; without them,
these tests are skipped. If BERXIT_TEST_MODELS names a folder, models and bundles are stored there and read from there,
so that tests of the runtime also run where torch is not installed (a Jetson, for example).
"""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cuda import NO_DEVICE, Driver, driver_of_this_process, loaded_driver

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # More threads make tiny models slower.

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
VOCABULARY = """
the a cat dog sat ran on under mat tree big small red blue not and is was it play stop turn light music train dev
"""
WORDS = VOCABULARY.split()
FAMILIES = ("bert", "roberta", "albert", "distilbert")
ENCODERS = (*FAMILIES, "mpnet", "electra", "modernbert", "deberta-v2")
"""The families above, and families whose layers differ: a relative position bias, projected embeddings, pre-norm layers
with rotary positions and a local window, relative terms in the attention scores."""


def prepared(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], None]) -> Path:
    """New folder that ``build`` filled, or an earlier run whose folder is stored in BERXIT_TEST_MODELS. Skips the test
    if it has to be built and torch is not installed."""
    folder = factory.mktemp(name)
    stored = Path(os.environ["BERXIT_TEST_MODELS"], name) if "BERXIT_TEST_MODELS" in os.environ else None
    if stored is not None and stored.exists():
        return Path(shutil.copytree(stored, folder, dirs_exist_ok=True))
    pytest.importorskip("torch", reason="models are built with torch, which is not installed here")
    build(folder)
    if stored is not None:
        shutil.copytree(folder, stored)
    return folder


def trained(
    factory: pytest.TempPathFactory,
    name: str,
    model: Path,
    data: Path,
    *,
    epochs: int = 5,
    distillation: float = 0.0,
    **task: Any,
) -> Path:
    """A calibrated checkpoint, ``prepared`` under ``name``. ``task``: arguments of berxit.fine_tune."""

    def build(folder: Path) -> None:
        import berxit

        options = berxit.TrainingOptions(
            str(model),
            epochs=epochs,
            learning_rate=5e-3,
            head_learning_rate=None,
            batch_size=16,
            max_length=16,
            distillation=distillation,
        )
        berxit.fine_tune(options, data, folder / "checkpoint", **task)
        berxit.calibrate(folder / "checkpoint", data, keep=0.9, optimistic=True)

    return prepared(factory, name, build) / "checkpoint"


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with a WordPiece tokenizer of about forty words."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    return prepared(tmp_path_factory, "tokenizer", lambda folder: write_tokenizer(folder, vocabulary))


def write_tokenizer(folder: Path, vocabulary: list[str]) -> None:
    """Writes the files of a WordPiece tokenizer with this vocabulary."""
    from transformers import BertTokenizer

    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    BertTokenizer(vocab={word: i for i, word in enumerate(vocabulary)}).save_pretrained(folder)


def tiny_config(family: str, vocabulary: int = 5 + len(WORDS)):  # type: ignore[no-untyped-def]
    """Configuration of a tiny model of any family: 3 layers, d = 32, 4 heads."""
    from transformers import (
        AlbertConfig,
        BertConfig,
        DebertaV2Config,
        DistilBertConfig,
        ElectraConfig,
        ModernBertConfig,
        MPNetConfig,
        RobertaConfig,
    )

    sizes = {"vocab_size": vocabulary, "max_position_embeddings": 40, "pad_token_id": 0}
    bert_like: dict[str, Any] = {
        **sizes,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    if family == "bert":
        return BertConfig(**bert_like)
    if family == "roberta":
        return RobertaConfig(**bert_like, type_vocab_size=1, layer_norm_eps=1e-5)
    if family == "albert":
        return AlbertConfig(**bert_like, embedding_size=16, hidden_act="gelu_new")
    if family == "mpnet":
        return MPNetConfig(**{**bert_like, "pad_token_id": 1}, relative_attention_num_buckets=32)
    if family == "electra":
        return ElectraConfig(**bert_like, embedding_size=16)
    if family == "modernbert":
        special = {f"{role}_token_id": None for role in ("bos", "eos", "cls", "sep")}
        return ModernBertConfig(**bert_like, **special, local_attention=8)
    if family == "deberta-v2":
        options = {"relative_attention": True, "pos_att_type": "p2c|c2p", "share_att_key": True, "position_buckets": 8}
        return DebertaV2Config(
            **bert_like, **options, norm_rel_ebd="layer_norm", position_biased_input=False, type_vocab_size=0
        )
    return DistilBertConfig(**sizes, dim=32, n_layers=3, n_heads=4, hidden_dim=64)


def tiny_backbone(family: str, seed: int = 0):  # type: ignore[no-untyped-def]
    """An encoder with random weights that are large enough for exits to differ."""
    import torch
    from transformers import AutoModel

    torch.manual_seed(seed)
    model = AutoModel.from_config(tiny_config(family))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.fixture(scope="session")
def backbone_folders(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> dict[str, Path]:
    """Family -> folder of a pre-trained model with its tokenizer, for --model."""

    def build(folder: Path) -> None:
        for family in ENCODERS:
            shutil.copytree(tokenizer_folder, folder / family)
            tiny_backbone(family).save_pretrained(folder / family)
        write_tokenizer(folder / "mpnet", ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]", *WORDS])  # pads with id 1

    folder = prepared(tmp_path_factory, "backbones", build)
    return {family: folder / family for family in ENCODERS}


@pytest.fixture(scope="session")
def still(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> str:
    """Folder of a tiny BERT without dropout, so that training is deterministic."""
    folder = tmp_path_factory.mktemp("still")
    shutil.copytree(tokenizer_folder, folder, dirs_exist_ok=True)
    backbone = tiny_backbone("bert")
    backbone.config.hidden_dropout_prob = backbone.config.attention_probs_dropout_prob = 0.0
    backbone.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def own_registries() -> Iterator[None]:
    """Criteria, metrics and strategies that a test registers are removed after it."""
    from berxit.runtime.metrics import METRICS
    from berxit.runtime.policies import CRITERIA
    from berxit.train.strategies import STRATEGIES

    before = [(registry, dict(registry)) for registry in (CRITERIA, METRICS, STRATEGIES)]
    yield
    for registry, content in before:
        registry.clear()
        registry.update(content)


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A custom task of two classes (columns text, label): does the text contain "cat"? 96 training, 48 dev examples."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("data")
    others = [word for word in WORDS if word != "cat"]
    for split, count in (("train", 96), ("dev", 48)):
        lines = []
        for row in range(count):
            words = list(rng.choice(others, size=rng.integers(2, 9)))
            if row % 2:
                words.insert(int(rng.integers(0, len(words) + 1)), "cat")
            lines.append(f"{split} {' '.join(words)}\t{'cat' if row % 2 else 'other'}")
        (folder / f"{split}.tsv").write_text("text\tlabel\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, backbone_folders: dict[str, Path], data_folder: Path) -> Path:
    """A tiny BERT, fine-tuned on ``data_folder`` with Alternating and LTE, and calibrated. Copy it before changes."""

    def build(folder: Path) -> None:
        from berxit.train.calibration import calibrate
        from berxit.train.families import PolicySpec
        from berxit.train.fine_tuning import TrainingOptions, fine_tune
        from berxit.train.rules import Keep
        from berxit.train.tasks import custom_task

        options = TrainingOptions(
            str(backbone_folders["bert"]),
            epochs=4,
            learning_rate=3e-3,
            batch_size=16,
            max_length=32,
            head_learning_rate=None,
        )
        output = folder / "checkpoint"
        fine_tune(custom_task(data_folder, ("text",), "label"), data_folder, options, output)
        calibrate(output, data_folder, spec=PolicySpec("confidence"), rule=Keep(0.9, optimistic=True))

    return prepared(tmp_path_factory, "checkpoints", build) / "checkpoint"


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of ``checkpoint``, for commands that write to it."""
    return Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    """``checkpoint``, exported for ONNX Runtime. Copy it before changes."""

    def build(folder: Path) -> None:
        from berxit.exporters.export import export

        export(checkpoint, "onnxruntime", folder / "bundle")

    return prepared(tmp_path_factory, "bundles", build) / "bundle"


@pytest.fixture(scope="session", autouse=True)
def no_cold_start() -> Iterator[None]:
    """A bench starts no new processes, which take seconds; ``test_cold_start.py`` does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("berxit.runtime.benchmark.measure_cold_start", lambda *arguments, **options: None)
        yield


@pytest.fixture(scope="module", autouse=True)
def frozen_heap() -> None:
    """A garbage collection in this module skips all older objects. With torch and transformers, it takes seconds."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def own_log_levels() -> Iterator[None]:
    """A test that sets the level of the root logger or of the project's loggers, as users do, does so for itself."""
    root = logging.root.level
    yield
    logging.root.setLevel(root)
    for name, logger in logging.root.manager.loggerDict.items():
        if isinstance(logger, logging.Logger) and name.partition(".")[0] == "berxit":
            logger.setLevel(logging.NOTSET)


@pytest.fixture
def quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No measurement is noisy, even on a busy machine."""
    monkeypatch.setattr("berxit.runtime.noise.Noise.problems", lambda noise: [])


@pytest.fixture
def busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every measurement is noisy."""
    monkeypatch.setattr("berxit.runtime.noise.Noise.problems", lambda noise: ["the machine is busy"])


@pytest.fixture(scope="session")
def hidden_driver() -> Driver | None:
    """The fake CUDA driver, loaded before any test lets cuda-python look for a driver; None if it cannot be used."""
    try:
        return loaded_driver()
    except pytest.skip.Exception:
        return None


@pytest.fixture(autouse=True)
def no_gpu_by_default(hidden_driver: Driver | None) -> None:
    """Tests find no GPU unless they ask for the fake driver."""
    if hidden_driver is not None:
        hidden_driver.fail(NO_DEVICE)


@pytest.fixture
def no_fake_gpu(hidden_driver: Driver | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's own GPU, if it has one, also where CUDA remembers the fake driver's GPU from an earlier test."""
    if hidden_driver is not None:
        for module in ("tensorrt", "tensorrt.rtx"):
            monkeypatch.setattr(f"berxit.runtime.backends.{module}.no_gpu", lambda: "CUDA here is the fake driver")


@pytest.fixture
def cuda_driver() -> Iterator[Driver]:
    """Fake CUDA driver of this process, which the real cuda-python calls. It starts without resources."""
    driver = driver_of_this_process()
    driver.reset()
    yield driver
    errors = list(driver.errors)
    driver.reset()
    assert not errors


def quick_and_slow(cases: Sequence[tuple], quick: Collection[tuple]) -> list[Any]:
    """Parameters of a test: all ``cases``, of which those that are not ``quick`` run in ``make test-slow`` only."""
    assert set(quick) <= set(cases)
    return [case if case in quick else pytest.param(*case, marks=pytest.mark.slow) for case in cases]


def shared(*parts: str) -> Path:
    """A file or folder of real weights or data next to the project. Skips the test if it does not exist."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"no shared/{'/'.join(parts)} next to the project")
    return path


MakeCheckpoint = Callable[..., Path]
SAMPLES = {"texts": ["the cat sat", "a big red dog ran on under the tree", "stop"]}
"""Words in the tiny tokenizer's vocabulary: MPNet pads with id 1, which is its unknown token."""


@pytest.fixture
def made(tmp_path: Path, backbone_folders: dict[str, Path]) -> MakeCheckpoint:
    """Family, options -> an untrained checkpoint whose exits differ from each other."""
    from test_export import checkpoint_of

    def make(family: str, **options: Any) -> Path:
        folder = tmp_path / f"{family}-checkpoint"
        if not folder.exists():
            checkpoint_of(backbone_folders[family], folder, **options)
            (folder / "samples.json").write_text(json.dumps(SAMPLES), encoding="utf-8")
        return folder

    return make


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium. Skips the test if it is not installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright here")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser here: none of {', '.join(BROWSERS)} is installed")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield found
        found.close()
