"""``--kind tokens`` from training to every way to run a bundle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import WORDS, trained

import berxit
from berxit.runtime import EarlyExitRunner
from berxit.runtime.bundle import read_manifest
from berxit.runtime.golden import check_tokenization, differences, read_golden
from berxit.runtime.metrics import METRICS
from berxit.runtime.spans import Span, Words, read_spans, span_number, spans_of, tag_numbers, tags_of
from berxit.toolkit.cli import berxit as berxit_command
from berxit.toolkit.serving.wire import response

ANIMALS, COLORS = ("cat", "dog"), ("red", "blue")
TAGS = ("O", "B-animal", "I-animal", "B-color", "I-color")


def run(name: str, *arguments: object) -> None:
    berxit_command.main([name, *map(str, arguments)], standalone_mode=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training rows as CoNLL, dev rows as JSONL. A span of animals may have two words."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("spans")
    others = [word for word in WORDS if word not in (*ANIMALS, *COLORS)]
    for split, count in (("train.conll", 160), ("dev.jsonl", 60)):
        with (folder / split).open("w") as stream:
            for _ in range(count):
                words = rng.choice([*others[:6], *ANIMALS, *COLORS], size=rng.integers(2, 7)).tolist()
                tags, before = [], ""
                for word in words:
                    label = "animal" if word in ANIMALS else "color" if word in COLORS else ""
                    tags.append("O" if not label else f"{'I' if label == before == 'animal' else 'B'}-{label}")
                    before = label
                if split.endswith("conll"):
                    stream.write("".join(f"{word}\t{tag}\n" for word, tag in zip(words, tags, strict=True)) + "\n")
                    continue
                ends = np.cumsum([len(word) + 1 for word in words])
                found = spans_of(tags, Words(np.arange(len(words)), ends - [len(w) + 1 for w in words], ends - 1))
                spans = [span[:3] for span in found]
                stream.write(json.dumps({"text": " ".join(words), "spans": spans}) + "\n")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, backbone_folders: dict[str, Path], data: Path) -> Path:
    return trained(tmp_path_factory, "tokens", backbone_folders["bert"], data, epochs=4, kind="tokens")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    return berxit.export(checkpoint, tmp_path_factory.mktemp("bundles") / "bundle", target="onnxruntime").bundle


def rows_of(data: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (data / "dev.jsonl").open()]


def test_tokens_manifest_has_tags_and_golden_logits_per_token(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert (manifest.model.kind, manifest.model.labels, manifest.schema_version) == ("tokens", TAGS, 3)
    golden, runner = read_golden(bundle, manifest), EarlyExitRunner.load(bundle)
    assert [len(row[0]) for row in golden.logits] == [len(ids) for ids in golden.input_ids]
    check_tokenization(golden, runner.tokenizer)
    assert max(differences(runner.backend, golden, manifest.model.pad_token_id)) < 1e-4


def test_tokens_runner_predicts_as_the_evaluation(bundle: Path, checkpoint: Path, data: Path) -> None:
    (found,) = berxit.evaluate(checkpoint, data)
    runner, rows = EarlyExitRunner.load(bundle), rows_of(data)
    texts, truth = [str(row["text"]) for row in rows], [[Span(*span) for span in row["spans"]] for row in rows]  # type: ignore[attr-defined]
    full = runner.answer(texts, runner.policy.at_depth(3))
    numbers = [span_number(each.spans or (), spans) for each, spans in zip(full, truth, strict=True)]
    assert numbers == found.predictions.predicted()[:, -1].tolist()
    assert found.evaluation.layer_scores[-1] > 0.8
    middle = float(np.median([each.certainty for each in runner.answer(texts, runner.policy.at_depth(1))]))
    early = runner.predict_batch(texts, threshold=middle)
    one_by_one = [runner.predict(text, threshold=middle) for text in texts]
    assert [each.exit_layer for each in early] == [each.exit_layer for each in one_by_one]
    for batched, single in zip(early, one_by_one, strict=True):
        assert [span[:3] for span in batched.spans or ()] == [span[:3] for span in single.spans or ()]
        assert [span.score for span in batched.spans or ()] == pytest.approx([s.score for s in single.spans or ()])
    assert len({each.exit_layer for each in early}) > 1


def test_tokens_certainty_is_that_of_the_least_certain_word(bundle: Path) -> None:
    runner = EarlyExitRunner.load(bundle)
    found = runner.answer(["the cat sat", "dog"], runner.policy.at_depth(1))
    batch = runner.tokenizer(["the cat sat", "dog"])
    state = runner.backend.embed(batch)
    _, logits, _ = runner.backend.layer(1, state)
    confidence = np.exp(logits - logits.max(-1, keepdims=True))
    confidence = 1 / confidence.sum(-1)
    assert found[0].certainty == pytest.approx(confidence[0, 1:4].min(), abs=1e-6)
    assert found[1].certainty == pytest.approx(confidence[1, 1], abs=1e-6)


def test_tokens_predict_writes_spans(
    bundle: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("predict", bundle, data / "dev.jsonl", "--output", tmp_path / "out.jsonl", "--flips")
    assert "span-f1" in capsys.readouterr().out
    first = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert all(len(span) == 4 for span in json.loads(first["prediction"]))
    run("predict", bundle, "a red cat")
    assert "label" in capsys.readouterr().out


@pytest.mark.slow
def test_tokens_bench_has_a_score_and_a_page(bundle: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bench"
    run("bench", bundle, "--data", data, "--output", folder, "--seconds", 0.2, "--queries", 1, "--thresholds", 1)
    measured = json.loads((folder / "bench.json").read_text())
    assert (measured["metric"], measured["policy"]["score"] > 0.7) == ("span-f1", True)
    run("report", folder, "--output", tmp_path / "page.html")


def test_tokens_int8_export_is_scored_on_spans(checkpoint: Path, tmp_path: Path) -> None:
    options = berxit.ExportOptions(precision="int8")
    exported = berxit.export(checkpoint, tmp_path / "int8", target="onnxruntime", options=options)
    assert exported.manifest.scores is not None
    assert exported.manifest.scores.metric == "span-f1"
    assert exported.manifest.scores.bundle[-1] == pytest.approx(exported.manifest.scores.checkpoint[-1], abs=0.1)


def test_offsets_of_spans_are_those_of_the_text_as_given(bundle: Path) -> None:
    runner = EarlyExitRunner.load(bundle)
    plain, indented = runner.tokenizer(["a red cat", "\u3000\n a red cat "]).words
    assert indented.starts.tolist() == [start + 3 for start in plain.starts.tolist()]
    assert indented.ends.tolist() == [end + 3 for end in plain.ends.tolist()]
    given, moved = (runner.predict(text, threshold=1).spans for text in ("a red cat", "  a red cat"))
    assert given and [(span.start + 2, span.end + 2, span.label) for span in given] == [span[:3] for span in moved]


def test_tokens_monitor_counts_spans_and_service_returns_them(bundle: Path, data: Path) -> None:
    runner = EarlyExitRunner.load(bundle)
    monitor = runner.monitor(shadow=1.0)
    runner.predict_batch([str(row["text"]) for row in rows_of(data)])
    assert monitor.report().inputs == 60
    runner.recalibrate(["the cat sat"] * 100, risk=0.1)
    (fields,) = response("m", runner.manifest.model, [runner.predict("a red cat")], 5)["data"]
    assert all(set(span) == {"start", "end", "label", "score"} for span in fields["spans"])


@pytest.mark.parametrize("layout", ["ane", pytest.param("tokens", marks=pytest.mark.slow)])
def test_coreml_segments_find_the_spans_of_onnxruntime(
    layout: str, checkpoint: Path, bundle: Path, data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("coremltools", reason="coremltools is not installed: pip install -e '.[coreml]'")
    from berxit.exporters.coreml.target import checking_backend
    from berxit.exporters.export import export
    from berxit.exporters.options import ExportOptions

    options = ExportOptions("fp32", (8, 16), layout=layout, target_options=("full-depth",))
    manifest = export(checkpoint, "coreml", tmp_path / "bundle", options=options, scores=False)
    backend = checking_backend(tmp_path / "bundle", manifest, None)
    texts = [str(row["text"]) for row in rows_of(data)][:20]
    with EarlyExitRunner.load(bundle, threads=1) as runner:
        found = EarlyExitRunner(manifest, runner.tokenizer, backend)
        for expected, own in zip(runner.predict_batch(texts), found.predict_batch(texts), strict=True):
            assert [span[:3] for span in own.spans or ()] == [span[:3] for span in expected.spans or ()]
            assert own.exit_layer == expected.exit_layer
    full = backend.one_graph()
    assert full is not None
    golden = read_golden(tmp_path / "bundle", manifest)
    assert max(differences(full, golden, manifest.model.pad_token_id)) <= 1e-4


def test_training_on_held_out_rows_keeps_their_spans(
    data: Path, tmp_path: Path, backbone_folders: dict[str, Path]
) -> None:
    options = berxit.TrainingOptions(str(backbone_folders["bert"]), max_steps=1, batch_size=4, max_length=16)
    berxit.fine_tune(options, data / "train.conll", tmp_path / "checkpoint", kind="tokens")
    (found,) = berxit.evaluate(tmp_path / "checkpoint")
    assert found.evaluation.examples == 16


@pytest.mark.parametrize(
    ("seed", "expected"), [(0, 0.6985074626865672), (1, 0.70404984423676), (2, 0.7037037037037037)]
)
def test_span_f1_equals_seqeval(seed: int, expected: float) -> None:
    """Values of f1_score(gold, found) of seqeval 1.2.2, which is no dependency because PyPI has no wheel of it."""
    rng, tags = np.random.default_rng(seed), tags_of(["a", "b"])
    gold, found = [], []
    for _ in range(50):
        length = int(rng.integers(1, 9))
        gold.append(rng.choice(tags, length).tolist())
        found.append([tag if rng.random() < 0.7 else str(rng.choice(tags)) for tag in gold[-1]])
    words = [Words(np.arange(len(row)), 2 * np.arange(len(row)), 2 * np.arange(len(row)) + 1) for row in gold]
    truth = [spans_of(row, each) for row, each in zip(gold, words, strict=True)]
    named = [spans_of(row, each) for row, each in zip(found, words, strict=True)]
    numbers = np.array([span_number(a, b) for a, b in zip(named, truth, strict=True)])
    labels = np.array([span_number(b, b) for b in truth])
    assert METRICS["span-f1"](numbers, labels) == pytest.approx(expected, abs=1e-12)


def test_words_join_tokens_of_one_word_only() -> None:
    text = "unlit café-bar 東京"
    tokens = [(1, 0, 2), (2, 2, 5), (3, 5, 10), (4, 10, 11), (5, 11, 14), (6, 15, 16), (7, 16, 17)]
    words = Words.of(text, tokens)
    assert [text[start:end] for start, end in zip(words.starts, words.ends, strict=True)] == [
        "unlit",
        "café",
        "-",
        "bar",
        "東",
        "京",
    ]
    assert words.tokens.tolist() == [1, 3, 4, 5, 6, 7]


def test_tags_of_spans_cover_every_word_that_overlaps() -> None:
    words = Words.of("the big cat", [(1, 0, 3), (2, 4, 7), (3, 8, 11)])
    assert [TAGS[n] for n in tag_numbers([Span(5, 11, "animal")], words, TAGS)] == ["O", "B-animal", "I-animal"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[[0, 3]]", "no list of"),
        ('[[0, 99, "x"]]', "is not in the text"),
        ('[[0, 5, "x"], [4, 7, "y"]]', "overlaps another"),
        ("cat", "no list of"),
    ],
)
def test_read_spans_rejects_wrong_spans_in_one_line(value: str, message: str) -> None:
    with pytest.raises(berxit.InputError, match=message):
        read_spans(value, "the big cat", "spans", "rows.jsonl, line 2")


def test_read_spans_counts_from_the_stripped_text_and_trims_blanks() -> None:
    assert read_spans('[{"start": 2, "end": 6, "label": "x"}]', "  the big", "spans", "") == (Span(0, 3, "x"),)
