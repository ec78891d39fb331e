"""From checkpoint to bundle: contents, rejected inputs, and predictions as in the evaluation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from conftest import WORDS, shared
from transformers import AutoTokenizer

from berxit.exporters import loading
from berxit.exporters.export import export
from berxit.exporters.options import ExportOptions
from berxit.exporters.parity import ExitParity
from berxit.exporters.segments import Segments, split_segments
from berxit.exporters.targets import TARGETS
from berxit.runtime import EarlyExitRunner
from berxit.runtime.bundle import Manifest, files_of, read_manifest, read_tensor, sha256
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.golden import differences, read_golden
from berxit.runtime.policies import certainties, exit_layers
from berxit.train.calibration import POLICY_FILE, calibrate, read_policy
from berxit.train.checkpoint import TrainingRecord, load_checkpoint, save_checkpoint
from berxit.train.encoding import as_tensors
from berxit.train.evaluation import predict
from berxit.train.fine_tuning import TrainingOptions, fine_tune
from berxit.train.modeling import MultiExitModel
from berxit.train.rules import Keep
from berxit.train.tasks import custom_task, task_of


def checkpoint_of(model: str | Path, folder: Path, tokenizer: str | Path | None = None, **options: object) -> Path:
    """An untrained multi-exit model as a checkpoint, without samples."""
    torch.manual_seed(0)
    folder.mkdir()
    record = TrainingRecord({}, "train.tsv", "0", 0, 0, 0.0, 0.0, "cpu", {})
    labels = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    multi_exit = MultiExitModel.from_backbone(model, **{**labels, "lte": True, "max_length": 32, **options})
    save_checkpoint(folder, multi_exit, AutoTokenizer.from_pretrained(tokenizer or model), record, [])
    (folder / "samples.json").unlink()
    return folder


def change_precision(monkeypatch: pytest.MonkeyPatch, target: str, name: str, **limits: float) -> None:
    """Changes the limits of one precision of a target."""
    before = TARGETS[target]
    precisions = tuple(replace(each, **limits) if each.name == name else each for each in before.precisions)
    monkeypatch.setitem(TARGETS, target, replace(before, precisions=precisions))


def test_manifest_describes_model_policy_and_parity(bundle: Path, checkpoint: Path) -> None:
    manifest = read_manifest(bundle)
    model, calibrated = manifest.model, read_policy(checkpoint)
    assert calibrated is not None
    assert (manifest.schema_version, manifest.target, manifest.precision) == (2, "onnxruntime", "fp32")
    assert (model.family, model.task, model.kind, model.metric) == ("bert", "custom", "classification", "accuracy")
    assert (model.labels, model.text_columns, model.label_column) == (("cat", "other"), ("text",), "label")
    assert (model.layers, model.hidden_size, model.max_length, model.pad_token_id) == (3, 32, 32, 0)
    assert model.lte
    assert [segment.layer for segment in manifest.segments] == [0, 1, 2, 3]
    assert manifest.policy == calibrated.policy
    assert manifest.calibration == calibrated.calibration
    stored = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["calibration"]
    assert stored == json.loads((checkpoint / POLICY_FILE).read_text(encoding="utf-8"))["calibration"]
    assert len(manifest.parity.max_diff) == 3
    assert max(manifest.parity.max_diff) <= manifest.parity.atol == 1e-4
    assert {"berxit", "torch", "transformers", "onnx", "numpy"} <= set(manifest.made_with)


def test_bundle_contains_exactly_the_files_of_the_manifest(bundle: Path) -> None:
    named = files_of(read_manifest(bundle))
    there = {str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file()}
    assert there == {*named, "manifest.json"}
    assert all(sha256(bundle / file) == digest for file, digest in named.items())


def test_inputs_of_segments_are_outputs_of_the_embeddings(bundle: Path) -> None:
    first, *layers = read_manifest(bundle).segments
    made = {output.role for output in first.outputs}
    for segment in layers:
        assert {i.role for i in segment.inputs} - {"constant"} <= made
        assert {o.role for o in segment.outputs} == {"hidden", "logits", "lte"}


def test_golden_outputs_equal_the_checkpoint(bundle: Path, checkpoint: Path) -> None:
    model, tokenizer = load_checkpoint(checkpoint)
    golden = read_golden(bundle, read_manifest(bundle))
    assert len(golden.texts) > 1
    for text, ids, logits, lte in zip(golden.inputs, golden.input_ids, golden.logits, golden.lte or (), strict=True):
        encoded = as_tensors(tokenizer([text]))
        with torch.no_grad():
            outputs = model(**encoded)
        assert encoded["input_ids"][0].tolist() == list(ids)
        assert np.abs(outputs.exit_logits[0].numpy() - np.array(logits)).max() <= 1e-5
        assert np.abs(outputs.certainties[0].numpy() - np.array(lte)).max() <= 1e-5


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", np.float32), ("fp16", np.float16), ("int8", np.int8)])
def test_word_embedding_table_is_stored_in_a_separate_file(
    checkpoint: Path, tmp_path: Path, precision: str, dtype: type
) -> None:
    options = ExportOptions(precision=precision)
    manifest = export(checkpoint, "onnxruntime", tmp_path / "bundle", options=options)
    stored = manifest.segments[0].constants["words"]
    model, _ = load_checkpoint(checkpoint)
    words = model.backbone.get_input_embeddings().weight.detach().numpy()
    table = read_tensor(tmp_path / "bundle", stored)
    assert (stored.file, table.dtype, table.shape) == ("segments/embeddings.words.bin", dtype, words.shape)
    if precision != "int8":
        np.testing.assert_array_equal(table, words.astype(dtype))
    assert (tmp_path / "bundle" / manifest.segments[0].file).stat().st_size < 40_000


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_embeddings_segment_accepts_only_the_rows_of_a_text(checkpoint: Path, tmp_path: Path, precision: str) -> None:
    bundle, options = tmp_path / "bundle", ExportOptions(precision=precision)
    first = export(checkpoint, "onnxruntime", bundle, options=options).segments[0]
    tables = {name: read_tensor(bundle, tensor) for name, tensor in first.constants.items()}
    ids = np.array([[2, 9, 5, 9], [2, 7, 3, 0]], np.int32)
    known, renumbered = np.unique(ids, return_inverse=True)
    other = {"token_type_ids": np.zeros_like(ids), "attention_mask": np.ones_like(ids)}
    session = ort.InferenceSession(str(bundle / first.file))
    whole = session.run(None, {"input_ids": ids, **other, **tables})
    rows = {name: np.ascontiguousarray(table[known]) for name, table in tables.items()}
    found = session.run(None, {"input_ids": renumbered.reshape(ids.shape).astype(np.int32), **other, **rows})
    for expected, output in zip(whole, found, strict=True):
        np.testing.assert_array_equal(output, expected)


def test_export_stores_albert_body_once(backbone_folders: dict, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(backbone_folders["albert"], tmp_path / "checkpoint", exit_head="pooler")
    manifest = export(checkpoint, "onnxruntime", tmp_path / "bundle")
    layers = manifest.segments[1:]
    assert {segment.file for segment in layers} == {"segments/body_01.onnx"}
    assert len(list((tmp_path / "bundle").rglob("*.onnx"))) == 2
    assert all(len(segment.constants) == 4 for segment in layers)
    assert len({segment.constants["classifier.weight"].file for segment in layers}) == 3
    runner = EarlyExitRunner.load(tmp_path / "bundle")
    model, tokenizer = load_checkpoint(checkpoint)
    with torch.no_grad():
        expected = torch.softmax(model(**as_tensors(tokenizer(["the cat sat"]))).exit_logits[0], dim=-1).numpy()
    found = np.array([list(step.scores.values()) for step in runner.stream("the cat sat")])
    assert np.abs(found - expected).max() <= 1e-5


@pytest.mark.parametrize("family", ["roberta", "distilbert"])
def test_other_families_predict_as_in_pytorch(family: str, backbone_folders: dict, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(backbone_folders[family], tmp_path / "checkpoint", pooling="mean")
    manifest = export(checkpoint, "onnxruntime", tmp_path / "bundle")
    assert manifest.model.family == family
    model, tokenizer = load_checkpoint(checkpoint)
    with torch.no_grad():
        expected = torch.softmax(model(**as_tensors(tokenizer(["a red dog"]))).exit_logits[0], dim=-1).numpy()
    steps = list(EarlyExitRunner.load(tmp_path / "bundle").stream("a red dog"))
    assert np.abs(np.array([list(step.scores.values()) for step in steps]) - expected).max() <= 1e-5


def test_export_rejects_exits_that_differ(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: MultiExitModel) -> Segments:
        segments = split_segments(model)
        last = segments.layers[-1]
        classifier = last.exit.classifier
        worse = replace(last.exit, classifier=replace(classifier, bias=classifier.bias + 0.001))
        return replace(segments, layers=(*segments.layers[:-1], replace(last, exit=worse)))

    monkeypatch.setattr(loading, "split_segments", wrong)
    lines: list[str] = []
    with pytest.raises(BerxitError, match=r"1 of 3 exits differ .*layer 03.*Nothing was written"):
        export(copy, "onnxruntime", tmp_path / "bundle", report=lines.append)
    assert list(tmp_path.iterdir()) == [copy]
    assert [line[:4] for line in lines] == ["-[✓]", "-[✓]", "-[x]"]


def test_parity_rejects_nan() -> None:
    assert not ExitParity("layer 01", float("nan"), float("nan"), 1e-4).good
    assert ExitParity("layer 01", 1e-4, 80.0, 1e-4).good
    assert not ExitParity("layer 01", 1e-4, float("nan"), 1e-4, least_psnr=20).good
    assert not ExitParity("layer 01", float("nan"), 80.0, 1e-4, least_psnr=20).good
    assert ExitParity("layer 01", 5e-7, 10.0, 1e-4, least_psnr=20).good  # tiny logits, and golden.json has six decimals


def test_export_rejects_exits_below_the_psnr(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_precision(monkeypatch, "onnxruntime", "int8", least_psnr=200.0)
    with pytest.raises(BerxitError, match=r"3 of 3 exits differ .*Nothing was written"):
        export(checkpoint, "onnxruntime", tmp_path / "bundle", options=ExportOptions(precision="int8"))
    assert list(tmp_path.iterdir()) == []


def test_uncalibrated_bundle_never_exits_early(copy: Path, tmp_path: Path) -> None:
    (copy / POLICY_FILE).unlink()
    manifest = export(copy, "onnxruntime", tmp_path / "bundle")
    assert manifest.calibration is None
    answers = EarlyExitRunner.load(tmp_path / "bundle").predict_batch(["the cat sat", "a dog", "stop"])
    assert [answer.exit_layer for answer in answers] == [3, 3, 3]


@pytest.mark.parametrize(
    ("target", "precision", "message"),
    [
        ("abacus", "fp32", "unknown target 'abacus': choose one of onnxruntime"),
        ("onnxruntime", "fp7", "target onnxruntime has no precision 'fp7': choose fp32"),
    ],
)
def test_export_rejects_an_unknown_target_or_precision(
    target: str, precision: str, message: str, checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        export(checkpoint, target, tmp_path / "bundle", options=ExportOptions(precision=precision))
    assert list(tmp_path.iterdir()) == []


def test_export_keeps_an_existing_output_without_force(checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    output.mkdir()
    (output / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="exists: choose another --output"):
        export(checkpoint, "onnxruntime", output)
    assert [path.name for path in output.iterdir()] == ["mine.txt"]
    export(checkpoint, "onnxruntime", output, force=True)
    assert not (output / "mine.txt").exists()
    assert read_manifest(output).model.layers == 3


def test_export_of_a_damaged_checkpoint_writes_nothing(copy: Path, tmp_path: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"short")
    with pytest.raises(BerxitError, match="cannot read checkpoint"):
        export(copy, "onnxruntime", tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == [copy]


def test_export_with_the_policy_of_another_model_writes_nothing(copy: Path, tmp_path: Path) -> None:
    path = copy / POLICY_FILE
    data = json.loads(path.read_text(encoding="utf-8"))
    data["policy"].update(thresholds=[0.9] * 5, temperatures=[1.0] * 6)
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(BerxitError):
        export(copy, "onnxruntime", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def check_row_by_row(checkpoint: Path, data: Path, bundle: Path) -> Manifest:
    """Compares the stored pass under the calibrated policy with the bundle's runner, row by row and as a batch."""
    model, tokenizer = load_checkpoint(checkpoint)
    examples = task_of(model.config).read(data, "dev")
    calibrated = read_policy(checkpoint)
    assert calibrated is not None
    predictions = predict(model, tokenizer, examples)
    layers = exit_layers(calibrated.policy, certainties(calibrated.policy, predictions.logits, predictions.lte))
    answers = predictions.predicted()[np.arange(len(examples)), layers - 1]
    runner = EarlyExitRunner.load(bundle)
    for found in (
        runner.predict_batch(examples.texts),
        [runner.answer([text], runner.policy)[0] for text in examples.texts],
    ):
        assert [answer.exit_layer for answer in found] == layers.tolist()
        if model.config.regression:
            assert np.abs(np.array([answer.label for answer in found]) - answers).max() <= 1e-4
        else:
            assert [model.config.labels.index(str(answer.label)) for answer in found] == answers.tolist()
    assert float(layers.mean()) == calibrated.calibration.average_exit_layer
    assert 1 < layers.mean() < model.layers  # else the comparison is weak
    return runner.manifest


def test_bundle_predicts_and_exits_as_the_evaluation(checkpoint: Path, data_folder: Path, bundle: Path) -> None:
    manifest = check_row_by_row(checkpoint, data_folder, bundle)
    assert manifest.policy.criterion == "confidence"


def test_regression_predicts_and_exits_as_the_evaluation(backbone_folders: dict, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = tmp_path / "data"
    data.mkdir()
    for split, count in (("train", 64), ("dev", 40)):
        rows = []
        for row in range(count):
            first = list(rng.choice(WORDS, size=6, replace=False))
            same = int(rng.integers(0, 6))
            second = first[:same] + list(rng.choice(WORDS, size=6 - same))
            rows.append(f"{split}{row} {' '.join(first)}\t{' '.join(second)}\t{same * 0.9:.3f}")
        (data / f"{split}.tsv").write_text("sentence1\tsentence2\tscore\n" + "\n".join(rows) + "\n", encoding="utf-8")
    task = custom_task(data, ("sentence1", "sentence2"), "score", kind="regression", metric="pearson")
    options = TrainingOptions(
        str(backbone_folders["bert"]),
        epochs=3,
        batch_size=16,
        learning_rate=3e-3,
        max_length=32,
        head_learning_rate=None,
    )
    checkpoint = fine_tune(task, data, options, tmp_path / "checkpoint")
    model, tokenizer = load_checkpoint(checkpoint)
    predictions = predict(model, tokenizer, task.read(data, "dev"))
    chosen = calibrate(checkpoint, data, rule=Keep(0.5, optimistic=True))
    assert chosen.criterion == "lte"
    policy = read_policy(checkpoint)
    assert policy is not None
    middle = float(np.median(predictions.lte[:, 0])) + 1e-4  # some inputs exit at layer 1, others do not
    data_of = json.loads((checkpoint / POLICY_FILE).read_text(encoding="utf-8"))
    data_of["policy"]["thresholds"] = [middle, middle]
    layers = exit_layers(
        policy.policy.with_threshold(middle), certainties(policy.policy, predictions.logits, predictions.lte)
    )
    data_of["calibration"]["average_exit_layer"] = float(layers.mean())
    (checkpoint / POLICY_FILE).write_text(json.dumps(data_of), encoding="utf-8")
    manifest = export(checkpoint, "onnxruntime", tmp_path / "bundle")
    assert (manifest.model.kind, manifest.model.labels, manifest.policy.criterion) == ("regression", (), "lte")
    check_row_by_row(checkpoint, data, tmp_path / "bundle")
    answer = EarlyExitRunner.load(tmp_path / "bundle").predict("the cat", "a dog")
    assert answer.scores == {"value": answer.label}


@pytest.mark.slow
def test_real_bert_is_exported_within_tolerance(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(shared("models", "bge-small-en"), tmp_path / "checkpoint")
    manifest = export(checkpoint, "onnxruntime", tmp_path / "bundle")
    assert len(manifest.parity.max_diff) == 12
    runner = EarlyExitRunner.load(tmp_path / "bundle")
    golden = read_golden(tmp_path / "bundle", manifest)
    assert max(differences(runner.backend, golden, manifest.model.pad_token_id)) <= 1e-4


def test_real_albert_is_exported_within_tolerance(tokenizer_folder: Path, tmp_path: Path) -> None:
    model = shared("models", "rxnmapper-albert")
    checkpoint = checkpoint_of(model, tmp_path / "checkpoint", tokenizer=tokenizer_folder)
    manifest = export(checkpoint, "onnxruntime", tmp_path / "bundle")
    assert max(manifest.parity.max_diff) <= 1e-4
    assert len({segment.file for segment in manifest.segments}) == 2


@pytest.mark.parametrize("exits", [(), (2,), "auto"])
def test_export_reads_the_checkpoint_and_its_pass_once(
    copy: Path, tmp_path: Path, exits: tuple[int, ...] | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    for name in ("load_checkpoint", "stored_pass"):
        function = getattr(loading, name)
        monkeypatch.setattr(loading, name, lambda *args, f=function, n=name: (reads.append(n), f(*args))[1])
    options = ExportOptions("int8", exits=exits)
    export(copy, "onnxruntime", tmp_path / "bundle", options=options, accept_noise=True)
    assert sorted(reads) == ["load_checkpoint", "stored_pass"]
