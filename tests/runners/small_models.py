"""Small bundles with stored outputs: manifest, outputs of every exit, predictions of the Python runner. The bundles for
CoreML have placeholders instead of segments; those for ONNX are complete."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx_models import TABLE, as_onnx, write_shared
from stored_backend import StoredBackend

from berxit.runtime import EarlyExitRunner
from berxit.runtime.bundle import (
    DIGEST_LENGTH,
    DataFile,
    Manifest,
    ModelInfo,
    Parity,
    Segment,
    TensorInfo,
    schema_version,
    sha256,
    write_manifest,
)
from berxit.runtime.golden import Golden, tokenized, write_golden
from berxit.runtime.json_data import write_json
from berxit.runtime.kinds import KINDS
from berxit.runtime.policies import ExitPolicy
from berxit.runtime.prediction import Prediction
from berxit.runtime.tokenization import Text, TextTokenizer
from berxit.train.tokenizing import revealing_texts

LAYERS = 6
MAX_LENGTH = 16
ALL = tuple(range(1, LAYERS + 1))
PLAIN = (1.0,) * LAYERS
WARM = (1.0, 1.5, 1.0, 0.7, 2.0, 0.5)
SINGLES: list[Text] = [
    "turn the kitchen lights off",
    "What's   the weather like tomorrow?",
    "play some jazz, please, and then something else that goes on and on and on",
    "don't stop!!!",
    "café",
]
PAIRS: list[Text] = [
    ("play some jazz", "play a song by a jazz band"),
    ("turn the lights off", "what is the weather like"),
    ("a first half that goes on and on and on without an end", "and a second one that is about as long as it was"),
    ("short", "shorter"),
]


@dataclass(frozen=True)
class SmallModel:
    """Definition of a small bundle."""

    name: str
    policy: ExitPolicy
    others: tuple[float, ...]
    """Thresholds to predict with, in addition to those of the policy."""
    exits: tuple[int, ...] = ALL
    labels: tuple[str, ...] = ("lights", "music", "weather")
    """Class or label names, or tags; empty for regression."""
    pairs: bool = False
    kind: str = "classification"
    heads: tuple[tuple[str, ...], ...] = ()
    """Heads to request, besides all."""

    @property
    def texts(self) -> list[Text]:
        return PAIRS if self.pairs else SINGLES


CONFIDENCE = ExitPolicy("confidence", (0.8, 0.7, 0.6, 0.7, 0.8), WARM)
LTE = ExitPolicy("lte", (0.8, 0.6, 0.5, 0.4, 0.5), PLAIN)
PATIENCE = ExitPolicy.uniform("patience", 1.0, LAYERS, tolerance=1.0)
TAGS = ("O", "B-what", "I-what", "B-when", "I-when")
HEADS = ("what=lights", "what=music", "what=weather", "room=kitchen", "room=none")
AGREEMENT = ExitPolicy("agreement", ((0.7, 1.1, 0.5), 0.6, (0.8, 0.9, 0.7), 1.0, 0.7), WARM, patience=2, off=(3,))
LEARNED = ExitPolicy(
    "learned", (0.6, 0.5, 0.4, 0.5, 0.6), WARM, off=(4,), weights=((-1.0, 1.5, 0.2, 0.3, 0.5, 0.25, 0.5),) * 5
)
MODELS = (
    SmallModel("confidence", CONFIDENCE, (0.5, 0.95)),
    SmallModel("pairs", CONFIDENCE, (0.95,), labels=("same", "other"), pairs=True),
    SmallModel("entropy", ExitPolicy("entropy", (0.3, 0.4, 0.5, 0.4, 0.3), WARM), (0.2, 0.9)),
    SmallModel("lte", LTE, (0.7,)),
    SmallModel("patience", PATIENCE, (2.0, 9.0)),
    SmallModel("regression_lte", LTE, (0.9,), labels=(), kind="regression"),
    SmallModel("regression_patience", PATIENCE, (2.0,), labels=(), pairs=True, kind="regression"),
    SmallModel("fewer_exits", CONFIDENCE, (0.5, 0.95), exits=(2, 3, 6)),
    SmallModel("fewer_exits_patience", PATIENCE, (2.0,), exits=(1, 4, 5, 6)),
    SmallModel("one_exit", CONFIDENCE, (0.5,), exits=(6,)),
    SmallModel("agreement", AGREEMENT, (0.5, 1.2)),
    SmallModel("learned", LEARNED, (0.7,)),
    SmallModel("multilabel", CONFIDENCE, (0.5, 0.95), kind="multilabel"),
    SmallModel("tokens", replace(CONFIDENCE, thresholds=(0.4,) * 5), (0.3, 0.9), labels=TAGS, kind="tokens"),
    SmallModel("heads", CONFIDENCE, (0.5, 0.95), labels=HEADS, kind="heads", heads=(("room",), ("what",))),
)


def of_kind(problem_type: str, metric: str, labels: Sequence[str]) -> dict[str, object]:
    """Options of a checkpoint of this kind, for ``conftest.made``."""
    names = dict(enumerate(labels))
    numbers = {name: number for number, name in names.items()}
    return {"problem_type": problem_type, "metric": metric, "id2label": names, "label2id": numbers}


MULTILABEL = of_kind("multi_label_classification", "micro-f1", ["cat", "dog", "tree"])
TOKENS = of_kind("token_classification", "span-f1", TAGS)
EMBEDDINGS = tuple(
    TensorInfo(name, name, "int32", (1, "length")) for name in ("input_ids", "token_type_ids", "attention_mask")
)
HIDDEN_IN, HIDDEN_OUT = (
    TensorInfo(name, "hidden", "float16", (1, "length", 8)) for name in ("hidden_in", "hidden_out")
)
BIAS = TensorInfo("attention_bias", "attention_bias", "float16", (1, 1, 1, "length"))


def write_models(folder: Path) -> None:
    """Writes the shared files to ``folder``/bundle, the files of each model for CoreML to ``folder``/models/NAME, and
    its ONNX bundle to ``folder``/onnx/NAME."""
    shared = folder / "bundle"
    shared.mkdir()
    (shared / "tokenizer.json").write_bytes((folder / "bert.json").read_bytes())
    for layer in range(LAYERS + 1):
        package = shared / package_of(layer)
        package.mkdir(parents=True)
        (package / "model").write_text(f"layer {layer}\n", encoding="utf-8")
    write_shared(shared)
    for seed, model in enumerate(MODELS):
        place = folder / "models" / model.name
        place.mkdir(parents=True)
        write_model(model, shared, place, np.random.default_rng(seed))


def package_of(layer: int) -> str:
    return f"segments/{'embeddings' if layer == 0 else f'layer_{layer:02d}'}.mlpackage"


def write_model(model: SmallModel, shared: Path, place: Path, rng: np.random.Generator) -> None:
    words = KINDS[model.kind].words
    tokenizer = TextTokenizer(shared / "tokenizer.json", MAX_LENGTH, 0, words=words)
    batch = tokenizer(model.texts)
    sizes = (len(batch), LAYERS, *batch.input_ids.shape[1:] * words, max(len(model.labels), 1))
    logits = (rng.normal(size=sizes) * 2).astype(np.float32)
    lte = rng.uniform(size=(len(batch), LAYERS)).astype(np.float32)
    samples, lengths = tokenized(model.texts, batch), batch.lengths
    revealing = revealing_texts(isinstance(model.texts[0], tuple), MAX_LENGTH)
    golden = Golden(
        tuple(sample.texts for sample in samples),
        tuple(sample.input_ids for sample in samples),
        tuple(sample.token_type_ids for sample in samples),
        [row[:, :length].tolist() if words else row.tolist() for row, length in zip(logits, lengths, strict=True)],
        lte.tolist(),
        tokenized(revealing, tokenizer(revealing)) if model.name in ("confidence", "pairs") else (),
    )
    write_golden(golden, place / "golden.json")
    manifest = manifest_of(model, shared, place)
    write_bundle(model, manifest, place, tokenizer, logits, lte)
    bundle = shared.parent / "onnx" / model.name
    (bundle / "segments").mkdir(parents=True)
    (bundle / "golden.json").symlink_to(f"../../models/{model.name}/golden.json")
    for file in ("tokenizer.json", "segments/embeddings.onnx", TABLE):
        (bundle / file).symlink_to(f"{'../' * (2 + file.count('/'))}bundle/{file}")
    write_bundle(model, as_onnx(manifest, shared, bundle), bundle, tokenizer, logits, lte)


def write_bundle(model: SmallModel, manifest: Manifest, place: Path, *parts: Any) -> None:
    """Writes manifest.json, and answers.json with the predictions of the Python runner."""
    write_manifest(manifest, place)
    manifest = replace(manifest, digest=sha256(place / "manifest.json")[:DIGEST_LENGTH])
    answers = {
        "texts": [text if isinstance(text, tuple) else (text,) for text in model.texts],
        "batches": list(batches(model, manifest, *parts)),
        "streams": list(streams(model, manifest, *parts)),
    }
    write_json(answers, place / "answers.json")


def manifest_of(model: SmallModel, shared: Path, place: Path) -> Manifest:
    """Manifest of a model. ``shared`` contains the tokenizer and segments, ``place`` the golden inputs."""
    kind = KINDS[model.kind]
    logits = (1, *("length",) * kind.words, kind.outputs(model.labels))
    outputs = (HIDDEN_OUT, TensorInfo("logits", "logits", "float32", logits), TensorInfo("lte", "lte", "float32", (1,)))
    segments = [
        Segment(layer, package_of(layer), sha256(shared / package_of(layer)), (HIDDEN_IN, BIAS), outputs)
        for layer in model.exits
    ]
    embeddings = Segment(0, package_of(0), sha256(shared / package_of(0)), EMBEDDINGS, (HIDDEN_OUT, BIAS))
    columns = ("first", "second") if model.pairs else ("text",)
    label_column = kind.label_column if kind.words else "what|room" if model.kind == "heads" else "label"
    names = (model.kind, model.labels, kind.default_metric, columns, label_column)
    info = ModelInfo("bert", "custom", *names, LAYERS, 8, MAX_LENGTH, 0, True)
    manifest = Manifest(
        schema_version=1,
        target="coreml",
        precision="fp16",
        model=info,
        tokenizer=DataFile("tokenizer.json", sha256(shared / "tokenizer.json")),
        segments=(embeddings, *segments),
        policy=model.policy,
        calibration=None,
        parity=Parity("PyTorch, fp32", 0.01, (0.0,) * len(model.exits)),
        golden=DataFile("golden.json", sha256(place / "golden.json")),
        made_with={},
        lengths=(8, MAX_LENGTH),
        max_batch=1,
    )
    return replace(manifest, schema_version=schema_version(manifest))


def runner_of(
    model: SmallModel, manifest: Manifest, tokenizer: TextTokenizer, logits: npt.NDArray, lte: npt.NDArray
) -> EarlyExitRunner:
    backend = StoredBackend(logits, lte)
    backend.exits = model.exits
    return EarlyExitRunner(manifest, tokenizer, backend)  # type: ignore[arg-type]


def batches(model: SmallModel, *parts: Any) -> Iterator[dict[str, Any]]:
    """Predictions for all texts for each threshold; None: the thresholds of the policy."""
    runner = runner_of(model, *parts)
    for threshold in (None, *model.others):
        answers = runner.predict_batch(model.texts, threshold=threshold)
        yield {"threshold": threshold, "answers": [plain(answer) for answer in answers]}
    for heads in model.heads:
        answers = runner.predict_batch(model.texts, heads=heads)
        yield {"threshold": None, "heads": heads, "answers": [plain(answer) for answer in answers]}


def streams(
    model: SmallModel, manifest: Manifest, tokenizer: TextTokenizer, logits: npt.NDArray, lte: npt.NDArray
) -> Iterator[list[dict[str, Any]]]:
    """Predictions at every exit, for each text."""
    for row, text in enumerate(model.texts):
        runner = runner_of(model, manifest, tokenizer, logits[row : row + 1], lte[row : row + 1])
        yield [plain(answer) for answer in runner.stream(*(text if isinstance(text, tuple) else (text,)))]


def plain(answer: Prediction) -> dict[str, Any]:
    """Fields of a prediction except ``latency_ms``, ``late``, and those of another kind."""
    known = {key: value for key, value in asdict(answer).items() if key not in ("latency_ms", "late")}
    return {key: value for key, value in known.items() if value is not None or key not in ("labels", "spans", "heads")}
