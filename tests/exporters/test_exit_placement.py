"""Exit placement, and bundles with fewer exits."""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_backbone
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from berxit.exporters.exit_placement import cheapest_at, checked_exits, measure_costs, place_exits
from berxit.exporters.export import export
from berxit.exporters.options import ExportOptions
from berxit.runtime import EarlyExitRunner
from berxit.runtime.backends import open_backend
from berxit.runtime.bundle import read_manifest
from berxit.runtime.calibration import Costs
from berxit.runtime.errors import BerxitError, InputError, NoisyError
from berxit.runtime.golden import read_golden
from berxit.train.calibration import PASS_FILE, POLICY_FILE, read_policy
from berxit.train.checkpoint import TrainingRecord, load_checkpoint, save_checkpoint
from berxit.train.evaluation import predict
from berxit.train.modeling import MultiExitModel
from berxit.train.tasks import task_of


@pytest.fixture(autouse=True)
def short_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("berxit.exporters.exit_placement.SECONDS", 0.1)


def cost_of(exits: tuple[int, ...], histogram: list[int], costs: Costs) -> float:
    """Input by input: each takes the first exit from its own layer on."""
    total = 0.0
    for layer, count in enumerate(histogram, start=1):
        taken = next(exit_ for exit_ in exits if exit_ >= layer)
        passed = sum(exit_ <= taken for exit_ in exits)
        total += count * (taken * costs.layer_ms + passed * costs.exit_ms)
    return total / sum(histogram)


def all_choices(n: int) -> list[tuple[int, ...]]:
    return [(*some, n) for k in range(n) for some in combinations(range(1, n), k)]


def next_exits(exits: tuple[int, ...], histogram: list[int]) -> list[int]:
    """Number of inputs that exit at each layer with a fixed threshold: each takes the next exit."""
    found = [0] * len(histogram)
    for layer, count in enumerate(histogram, start=1):
        found[next(exit_ for exit_ in exits if exit_ >= layer) - 1] += count
    return found


@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=7).filter(any),
    st.floats(0.01, 10),
    st.floats(0, 10),
)
def test_cheapest_at_finds_the_cheapest_exits(histogram: list[int], layer_ms: float, exit_ms: float) -> None:
    n, costs = len(histogram), Costs(layer_ms, exit_ms)
    cheapest = min(cost_of(exits, histogram, costs) for exits in all_choices(n))
    assert cost_of(cheapest_at(histogram, costs), histogram, costs) == pytest.approx(cheapest)
    placed = place_exits(n, lambda exits: next_exits(exits, histogram), costs)
    assert placed.expected_ms == pytest.approx(cheapest)
    assert placed.all_exits_ms == pytest.approx(cost_of(tuple(range(1, n + 1)), histogram, costs))


@given(st.integers(2, 6), st.integers(0, 99), st.floats(0.01, 2), st.floats(0, 2))
def test_place_exits_finds_a_local_minimum_if_thresholds_change(
    n: int, seed: int, layer_ms: float, exit_ms: float
) -> None:
    rng, costs = np.random.default_rng(seed), Costs(layer_ms, exit_ms)
    histograms = {exits: next_exits(exits, rng.integers(1, 20, n).tolist()) for exits in all_choices(n)}
    placed = place_exits(n, histograms.__getitem__, costs)
    assert placed.expected_ms == pytest.approx(costs.milliseconds(placed.exits, histograms[placed.exits]))
    assert placed.expected_ms <= placed.all_exits_ms
    for layer in range(1, n):
        other = tuple(sorted({*placed.exits} ^ {layer}))
        assert costs.milliseconds(other, histograms[other]) >= placed.expected_ms


def test_cheapest_at_keeps_an_exit_that_many_inputs_need() -> None:
    histograms = {(1, 2): [80, 20], (2,): [0, 100]}
    assert cheapest_at(histograms[1, 2], Costs(1.0, 1.0)) == (1, 2)
    moved = {(1, 2): [10, 90], (2,): [0, 100]}  # with this threshold, hardly any input exits at layer 1
    placed = place_exits(2, moved.__getitem__, Costs(1.0, 1.0))
    assert (placed.exits, placed.expected_ms, placed.all_exits_ms) == ((2,), 3.0, 3.8)
    assert placed.with_histogram([0, 50]).expected_ms == 3.0


def test_cheapest_at_keeps_free_exits_and_drops_expensive_ones() -> None:
    histogram = [10, 5, 5, 5, 5, 10]
    assert cheapest_at(histogram, Costs(1.0, 0.0)) == (1, 2, 3, 4, 5, 6)
    assert cheapest_at(histogram, Costs(1.0, 100.0)) == (6,)
    assert cheapest_at([0, 90, 0, 0, 0, 10], Costs(1.0, 0.1)) == (2, 6)


@pytest.mark.parametrize("exits", [(0, 2), (7,), (-1,), "some"])
def test_checked_exits_rejects_other_layers(exits: tuple[int, ...] | str) -> None:
    with pytest.raises(InputError, match=r"--exits .*: give layers from 1 to 6 with commas between, or auto"):
        checked_exits(exits, 6)


def test_checked_exits_adds_the_last_layer() -> None:
    assert checked_exits((4, 2, 2), 6) == (2, 4, 6)
    assert checked_exits((6,), 6) == (6,)


@pytest.mark.parametrize(
    ("family", "precision"),
    [("bert", "fp32"), ("bert", "int8"), ("albert", "int8"), ("distilbert", "fp32"), ("mpnet", "fp32")],
)
def test_longer_segments_predict_as_single_layers(
    family: str, precision: str, tmp_path: Path, backbone_folders: dict[str, Path]
) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    labels = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    model = MultiExitModel.from_backbone(backbone_folders[family], lte=True, max_length=32, pooling="mean", **labels)
    record = TrainingRecord({}, "train.tsv", "0", 0, 0, 0.0, 0.0, "cpu", {})
    save_checkpoint(folder, model, AutoTokenizer.from_pretrained(backbone_folders[family]), record, ["a cat", "a dog"])
    for name, exits in (("all", ()), ("some", (2,))):
        export(folder, "onnxruntime", tmp_path / name, options=ExportOptions(precision, exits=exits))
    every, some = (EarlyExitRunner.load(tmp_path / name, threads=1) for name in ("all", "some"))
    assert some.backend.exits == (2, model.layers)
    assert [segment.layer for segment in some.manifest.segments] == [0, 2, model.layers]
    for text in ("the big red dog ran under the tree", "a cat"):
        for depth in (2, model.layers):
            expected, found = (each.answer([text], each.policy.at_depth(depth))[0] for each in (every, some))
            assert found.exit_layer == expected.exit_layer == depth
            assert found.scores == pytest.approx(expected.scores, abs=1e-5)
        assert some.answer([text], some.policy.at_depth(1))[0].exit_layer == 2
        assert [step.exit_layer for step in some.stream(text)] == [2, model.layers]


@pytest.fixture
def deep_albert(tmp_path: Path, tokenizer_folder: Path) -> Path:
    """A checkpoint of an ALBERT with six layers."""
    backbone = tiny_backbone("albert")
    backbone.config.num_hidden_layers = 6
    backbone.save_pretrained(tmp_path / "albert")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.save_pretrained(tmp_path / "albert")
    labels = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    model = MultiExitModel.from_backbone(tmp_path / "albert", lte=True, max_length=32, exit_head="pooler", **labels)
    (tmp_path / "checkpoint").mkdir()
    record = TrainingRecord({}, "train.tsv", "0", 0, 0, 0.0, 0.0, "cpu", {})
    save_checkpoint(tmp_path / "checkpoint", model, tokenizer, record, ["a cat", "a big dog ran"])
    return tmp_path / "checkpoint"


@pytest.mark.parametrize(
    ("precision", "exits", "repeats", "layers_in_the_file"),
    [
        ("fp32", (2, 4, 6), [1, 1, 1], 2),
        ("fp32", (2, 3, 6), [2, 1, 3], 1),
        ("fp32", (2, 6), [1, 2], 2),
        ("fp32", (1,), [1, 5], 1),
        ("int8", (2, 6), [1, 2], 2),
    ],
)
def test_export_stores_albert_body_once_and_repeats_it(
    precision: str, exits: tuple[int, ...], repeats: list[int], layers_in_the_file: int, deep_albert: Path
) -> None:
    options = ExportOptions(precision, exits=exits)
    some = export(deep_albert, "onnxruntime", deep_albert.with_name("some"), options=options)
    every = export(deep_albert, "onnxruntime", deep_albert.with_name("all"), options=ExportOptions(precision))
    assert [segment.file for segment in some.segments[1:]] == ["segments/body_01.onnx"] * len(repeats)
    assert [segment.repeat for segment in some.segments] == [1, *repeats]
    sizes = [(deep_albert.with_name(name) / "segments" / "body_01.onnx").stat().st_size for name in ("some", "all")]
    assert sizes[0] < sizes[1] + 25_000 * (layers_in_the_file - 1) + 1  # nodes, and no weights
    assert [segment.repeat for segment in every.segments] == [1] * 7
    runners = [EarlyExitRunner.load(deep_albert.with_name(name), threads=1) for name in ("some", "all")]
    for text in ("the big red dog ran under the tree", "a cat"):
        for depth in some.exits:
            found, expected = (each.answer([text], each.policy.at_depth(depth))[0] for each in runners)
            assert found.scores == pytest.approx(expected.scores, abs=1e-5)


def test_tensorrt_repeats_one_body(deep_albert: Path) -> None:
    manifest = export(deep_albert, "tensorrt", deep_albert.with_name("trt"), options=ExportOptions(exits=(2, 3, 6)))
    assert [segment.repeat for segment in manifest.segments] == [1, 2, 1, 3]
    assert len({segment.file for segment in manifest.segments}) == 2


def test_bert_bundle_repeats_no_segment(copy: Path) -> None:
    manifest = export(copy, "onnxruntime", copy.with_name("bundle"), options=ExportOptions(exits=(2,)))
    assert [segment.repeat for segment in manifest.segments] == [1, 1, 1]


def test_export_with_fewer_exits_chooses_the_threshold_again(copy: Path, data_folder: Path) -> None:
    before = read_policy(copy)
    assert before is not None
    bundle = copy.with_name("bundle")
    manifest = export(copy, "onnxruntime", bundle, options=ExportOptions(exits=(2,)))
    assert manifest.calibration is not None
    assert manifest.calibration.histogram[0] == 0
    assert manifest.calibration.requirement == before.calibration.requirement
    model, tokenizer = load_checkpoint(copy)
    examples = task_of(model.config).read(data_folder, "dev")
    runner = EarlyExitRunner.load(bundle, threads=1)
    layers = [runner.predict(str(text)).exit_layer for text in examples.texts]
    assert np.bincount(layers, minlength=4)[1:].tolist() == list(manifest.calibration.histogram)
    assert predict(model, tokenizer, examples).select_exits((2, 3)).exit_layers.tolist() == [2, 3]


def test_export_with_fewer_exits_needs_the_calibration_pass(copy: Path) -> None:
    (copy / PASS_FILE).unlink()
    with pytest.raises(BerxitError, match=r"calibration_pass.npz is missing: rerun berxit-calibrate"):
        export(copy, "onnxruntime", copy.with_name("bundle"), options=ExportOptions(exits=(2,)))
    assert not copy.with_name("bundle").exists()
    export(copy, "onnxruntime", copy.with_name("bundle"))  # all exits need no pass


def test_auto_measures_and_reports_the_placement(copy: Path) -> None:
    lines: list[str] = []
    manifest = export(
        copy,
        "onnxruntime",
        copy.with_name("bundle"),
        options=ExportOptions(exits="auto"),
        accept_noise=True,
        report=lines.append,
    )
    assert lines[0].startswith("exits after layers ")
    assert f"exits after layers {', '.join(map(str, manifest.exits))}: here a layer takes" in lines[0]
    assert manifest.exits[-1] == 3
    assert manifest.calibration is not None
    placement = manifest.calibration.placement
    assert placement is not None
    assert placement.exits == manifest.exits
    assert placement.costs.noise is not None
    assert placement.expected_ms == placement.costs.milliseconds(manifest.exits, manifest.calibration.histogram)
    assert f"expected {placement.expected_ms:.2f} ms per input" in lines[0]
    assert placement.expected_ms <= placement.all_exits_ms
    assert read_manifest(copy.with_name("bundle")).calibration == manifest.calibration


def test_auto_needs_a_calibrated_checkpoint(copy: Path) -> None:
    (copy / POLICY_FILE).unlink()
    with pytest.raises(InputError, match="--exits auto needs a calibrated policy: run berxit-calibrate"):
        export(copy, "onnxruntime", copy.with_name("bundle"), options=ExportOptions(exits="auto"))
    assert not copy.with_name("bundle").exists()


def test_measured_costs_are_positive(copy: Path, bundle: Path) -> None:
    export(copy, "onnxruntime", copy.with_name("last"), options=ExportOptions(exits=(3,)))
    every, last = (open_backend(b, read_manifest(b), 1) for b in (bundle, copy.with_name("last")))
    ticks: list[int] = []

    class Bar:
        def update(self, count: int) -> None:
            ticks.append(count)

    from contextlib import contextmanager

    @contextmanager
    def progress(total: int):  # type: ignore[no-untyped-def]
        assert total == 100
        yield Bar()

    manifest = read_manifest(bundle)
    inputs = read_golden(bundle, manifest).one_by_one(manifest.model.pad_token_id)
    costs = measure_costs(every, last, inputs, progress)
    assert costs.layer_ms > 0
    assert costs.exit_ms >= 0
    assert sum(ticks) == 100


def test_every_layer_of_a_grouped_segment_runs_once_in_order(checkpoint: Path) -> None:
    from berxit.exporters.segments import split_segments

    model, _ = load_checkpoint(checkpoint)
    segments = split_segments(model)
    grouped = segments.with_exits((2, 3))
    order = [encoder for segment in grouped.layers for encoder in (*segment.before, segment.encoder)]
    assert [id(encoder) for encoder in order] == [id(segment.encoder) for segment in segments.layers]
    assert all(after.layer > before.layer for before, after in pairwise(grouped.layers))
    assert grouped.layers[0].exit is segments.layers[1].exit


def test_auto_rejects_costs_of_a_busy_machine(copy: Path, busy_machine: None) -> None:
    with pytest.raises(NoisyError, match=r"--exits auto: noisy measurement: the machine is busy, 3 times.*--exits 2,4"):
        export(copy, "onnxruntime", copy.with_name("bundle"), options=ExportOptions(exits="auto"))
    assert not copy.with_name("bundle").exists()


def test_auto_measures_again_until_the_machine_is_quiet(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([["busy"], ["busy"], *[[]] * 9])
    monkeypatch.setattr("berxit.runtime.noise.Noise.problems", lambda noise: next(found))
    manifest = export(copy, "onnxruntime", copy.with_name("bundle"), options=ExportOptions(exits="auto"))
    assert manifest.calibration is not None
    assert manifest.calibration.placement is not None
    assert manifest.calibration.placement.costs.noise is not None
    assert manifest.calibration.placement.costs.noise.repeats > 0


@pytest.mark.parametrize("threads", [1, 2])
def test_auto_measures_with_the_threads_of_the_bundle(
    copy: Path, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int | None] = []

    def opener(folder: Path, manifest: object, count: int | None = None) -> object:
        opened.append(count)
        return open_backend(folder, manifest, count)  # type: ignore[arg-type]

    monkeypatch.setattr("berxit.exporters.exit_placement.open_backend", opener)
    options = ExportOptions(exits="auto", threads=threads)
    manifest = export(copy, "onnxruntime", copy.with_name("bundle"), options=options, accept_noise=True)
    assert opened == [threads, threads]
    assert manifest.calibration is not None
    assert manifest.calibration.placement is not None
    assert manifest.calibration.placement.costs.noise is not None
    assert manifest.calibration.placement.costs.noise.threads == threads
