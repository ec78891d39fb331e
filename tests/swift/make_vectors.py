"""What the Swift package must agree with, from the Python runtime.

    PYTHONPATH=.:tests/runtime python tests/swift/make_vectors.py

Writes runtime/swift/Tests/EarlyExitTests/Vectors/. A test here holds the committed files to what this writes today.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from stored_backend import StoredBackend
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from runtime import EarlyExitRunner
from runtime.bundle import (
    DataFile,
    Manifest,
    ModelInfo,
    Parity,
    Segment,
    TensorInfo,
    sha256,
    write_manifest,
)
from runtime.golden import Golden, write_golden
from runtime.policies import ExitPolicy, certainties, exit_layers
from runtime.tokenization import Text, TextTokenizer

ROOT = Path(__file__).resolve().parents[2]
VECTORS = ROOT / "runtime" / "swift" / "Tests" / "EarlyExitTests" / "Vectors"
SIZES = {"wordpiece": 700, "bytes": 700, "unigram": 500}
MAX_LENGTH = 16
TEXTS: list[Text] = [
    "turn the kitchen lights off",
    "  What's   the weather like tomorrow?\t",
    "Café au lait, s'il vous plaît — déjà vu!",
    "naïve coöperation (10:30 p.m.) costs $4.50, or 3,99 €",
    "日本語 and 中文 between words",
    "emoji 👩‍🚀🚀 and flags 🇫🇷",
    "Straße İstanbul ﬁne ½",
    "a\u00a0non-breaking\u200bzero-width\ufeffspace",
    "don't stop!!! ...really??",
    "pneumonoultramicroscopicsilicovolcanoconiosis " * 2,
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen",
    "[CLS] inside [SEP] the text [MASK]",
    "<s> also </s> these <mask>",
    ("play some jazz", "play a song by a jazz band"),
    ("a very long first half that goes on and on and on without an end", "short"),
    ("short", "a very long second half that goes on and on and on without an end"),
    (
        "both halves are rather long here so both of them are cut",
        "and the other one is just as long as the first one was",
    ),
]


def vectors(folder: Path) -> None:
    """Fills ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, tokenizer in tokenizers().items():
        tokenizer.save(str(folder / f"{kind}.json"))
    write(folder / "tokenization.json", list(tokenization(folder)))
    write(folder / "policies.json", list(policies()))
    bundle(folder)


def write(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def tokenizers() -> dict[str, Tokenizer]:
    """The three kinds of the families, small, trained on the sample utterances."""
    lines = (ROOT / "toolkit" / "sample" / "train.tsv").read_text(encoding="utf-8").splitlines()[1:]
    words = [line.split("\t")[0] for line in lines] + [text for text in TEXTS if isinstance(text, str)]

    piece = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=40))
    piece.normalizer = normalizers.BertNormalizer(lowercase=True)
    piece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    piece.train_from_iterator(
        words, trainers.WordPieceTrainer(vocab_size=SIZES["wordpiece"], special_tokens=special, show_progress=False)
    )
    piece.post_processor = bert_template(piece, "[CLS]", "[SEP]")
    piece.decoder = decoders.WordPiece()

    pairs = Tokenizer(models.BPE())
    pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=SIZES["bytes"],
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pairs.train_from_iterator(words, trainer)
    pairs.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    pairs.decoder = decoders.ByteLevel()

    unigram = Tokenizer(models.Unigram())
    unigram.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()])
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.train_from_iterator(
        words,
        trainers.UnigramTrainer(
            vocab_size=SIZES["unigram"],
            special_tokens=["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"],
            unk_token="<unk>",
            show_progress=False,
        ),
    )
    unigram.post_processor = bert_template(unigram, "[CLS]", "[SEP]")
    unigram.decoder = decoders.Metaspace()
    return {"wordpiece": piece, "bytes": pairs, "unigram": unigram}


def bert_template(tokenizer: Tokenizer, first: str, last: str) -> processors.TemplateProcessing:
    ids = [(token, tokenizer.token_to_id(token)) for token in (first, last)]
    return processors.TemplateProcessing(
        single=f"{first} $A {last}", pair=f"{first} $A {last} $B:1 {last}:1", special_tokens=ids
    )


def tokenization(folder: Path) -> Iterator[dict[str, Any]]:
    """Tokenizer and texts -> ids, types, and whether the text was cut."""
    for kind in SIZES:
        tokenizer = TextTokenizer(folder / f"{kind}.json", MAX_LENGTH, 0)
        for text in TEXTS:
            batch = tokenizer([text])
            yield {
                "tokenizer": kind,
                "max_length": MAX_LENGTH,
                "texts": [text] if isinstance(text, str) else list(text),
                "input_ids": batch.input_ids[0].tolist(),
                "token_type_ids": batch.token_type_ids[0].tolist(),
                "truncated": batch.truncated[0],
            }


def policies() -> Iterator[dict[str, Any]]:
    """Policy and every layer's outputs -> every layer's certainty, and the exit layer."""
    rng = np.random.default_rng(0)
    layers = 5
    warm = (1.0, 0.5, 2.0, 1.5, 0.8)
    plain = (1.0,) * layers
    cases = [
        (ExitPolicy("confidence", (0.9, 0.8, 0.7, 0.6), warm), 3),
        (ExitPolicy("confidence", (0.75,) * 4, plain), 2),
        (ExitPolicy("entropy", (0.3, 0.4, 0.5, 0.6), warm), 3),
        (ExitPolicy("lte", (0.8, 0.6, 0.5, 0.4), plain), 3),
        (ExitPolicy("lte", (0.7,) * 4, plain), 1),
        (ExitPolicy("patience", (2.0,) * 4, plain), 3),
        (ExitPolicy("patience", (1.0, 2.0, 3.0, 4.0), plain, tolerance=0.75), 1),
    ]
    for policy, outputs in cases:
        for _ in range(6):
            logits = (rng.normal(size=(1, layers, outputs)) * 2).astype(np.float32)
            lte = rng.uniform(size=(1, layers)).astype(np.float32)
            certainty = certainties(policy, logits, lte)
            yield {
                "criterion": policy.criterion,
                "thresholds": policy.thresholds,
                "temperatures": policy.temperatures,
                "tolerance": policy.tolerance,
                "logits": logits[0].tolist(),
                "lte": lte[0].tolist(),
                "certainty": certainty[0].tolist(),
                "exit_layer": int(exit_layers(policy, certainty)[0]),
            }


def bundle(folder: Path) -> None:
    """A bundle whose segments are stood in for, what they give, and what the runner answers to the texts."""
    place, rng = folder / "bundle", np.random.default_rng(1)
    (place / "segments").mkdir(parents=True, exist_ok=True)
    (place / "tokenizer.json").write_bytes((folder / "wordpiece.json").read_bytes())
    names = ("lights", "music", "weather")
    texts = [text for text in TEXTS if isinstance(text, str)][:4]
    logits = (rng.normal(size=(len(texts), 4, 3)) * 2).astype(np.float32)
    lte = rng.uniform(size=(len(texts), 4)).astype(np.float32)
    segments = []
    for layer in range(5):
        file = f"segments/{'embeddings' if layer == 0 else f'layer_{layer:02d}'}.mlpackage"
        (place / file).mkdir(exist_ok=True)
        (place / file / "model").write_text(f"layer {layer}\n", encoding="utf-8")
        hidden = TensorInfo("hidden_out", "hidden", "float16", (1, "length", 8))
        segments.append(Segment(layer, file, sha256(place / file), (), (hidden,)))
    batch = TextTokenizer(place / "tokenizer.json", MAX_LENGTH, 0)(texts)
    rows = [slice(0, int(length)) for length in batch.lengths]
    write_golden(
        Golden(
            tuple((text,) for text in texts),
            tuple(tuple(batch.input_ids[i, row].tolist()) for i, row in enumerate(rows)),
            tuple(tuple(batch.token_type_ids[i, row].tolist()) for i, row in enumerate(rows)),
            logits.tolist(),
            lte.tolist(),
        ),
        place / "golden.json",
    )
    manifest = Manifest(
        schema_version=1,
        target="coreml",
        precision="fp16",
        model=ModelInfo(
            "bert", "custom", "classification", names, "accuracy", ("text",), "label", 4, 8, MAX_LENGTH, 0, True
        ),
        tokenizer=DataFile("tokenizer.json", sha256(place / "tokenizer.json")),
        segments=tuple(segments),
        policy=ExitPolicy("confidence", (0.8, 0.7, 0.6), (1.0, 1.5, 1.0, 0.7)),
        calibration=None,
        parity=Parity("PyTorch, fp32", 0.01, (0.0,) * 4),
        golden=DataFile("golden.json", sha256(place / "golden.json")),
        made_with={},
        lengths=(8, 16),
        max_batch=1,
    )
    write_manifest(manifest, place)
    answers = []
    for row, text in enumerate(texts):
        backend = StoredBackend(logits[row : row + 1], lte[row : row + 1])
        runner = EarlyExitRunner(
            manifest,
            TextTokenizer(place / "tokenizer.json", MAX_LENGTH, 0),
            backend,  # type: ignore[arg-type]
        )
        for threshold in (None, 0.5, 0.95):
            answer = runner.predict(text, threshold=threshold)
            answers.append({"row": row, "threshold": threshold, **plain(answer)})
        answers += [{"row": row, "stream": step, **plain(answer)} for step, answer in enumerate(runner.stream(text))]
    write(folder / "answers.json", {"texts": texts, "answers": answers})


def plain(answer: Any) -> dict[str, Any]:
    """An answer without its latency."""
    return {
        "label": answer.label,
        "scores": answer.scores,
        "exit_layer": answer.exit_layer,
        "certainty": answer.certainty,
        "truncated": answer.truncated,
    }


if __name__ == "__main__":
    vectors(VECTORS)
    print(f"written: {VECTORS}")
