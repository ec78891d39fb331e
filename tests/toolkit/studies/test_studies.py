"""Every study from end to end on tiny checkpoints, and its numbers on small passes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from transformers import AutoTokenizer

from berxit.runtime.console import status_of
from berxit.runtime.errors import BerxitError, InputError
from berxit.toolkit.cli import load
from berxit.toolkit.figures import draw_floor
from berxit.toolkit.studies import READ_BY, STUDIES, find_study
from berxit.toolkit.studies.certainty import certainty_targets
from berxit.toolkit.studies.findings import Findings
from berxit.toolkit.studies.flops import count_flops
from berxit.toolkit.studies.look import line_style, looks, model_colors
from berxit.toolkit.studies.probe import bleu_scores, correlations
from berxit.toolkit.studies.request import Request
from berxit.train.checkpoint import TrainingRecord, save_checkpoint
from berxit.train.evaluation import Predictions
from berxit.train.modeling import MultiExitModel
from berxit.train.strategies import STRATEGIES
from tests.conftest import ENCODERS, WORDS
from tests.toolkit.studies.hand_made_runs import hand_made_run

Make = Callable[..., Path]


def pair_rows(split: str, regression: bool) -> str:
    """48 pairs of sentences; the label is whether (or how many) words they share."""
    rng = np.random.default_rng(0)
    lines = ["left\tright\tlabel"]
    for row in range(48):
        first = list(rng.choice(WORDS, size=7))
        kept = int(rng.integers(0, 8))
        second = first[:kept] + list(rng.choice(WORDS, size=7 - kept))
        label = str(kept / 2) if regression else ("same" if kept > 3 else "other")
        lines.append(f"{split} {row} {' '.join(first)}\t{' '.join(second)}\t{label}")
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Kind -> a folder with a dev split of pairs."""
    folders = {}
    for kind in ("classes", "values"):
        folders[kind] = tmp_path_factory.mktemp(kind)
        (folders[kind] / "dev.tsv").write_text(pair_rows("dev", kind == "values"), encoding="utf-8")
    return folders


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory, backbone_folders: dict[str, Path]) -> Make:
    """Writes a checkpoint with random exits, as berxit-train would: make("joint", lte=True, seed=1)."""
    folder = tmp_path_factory.mktemp("runs")

    def one(strategy: str, *, family: str = "bert", lte: bool = False, seed: int = 42, **options: object) -> Path:
        import torch

        torch.manual_seed(seed + sum(map(ord, strategy)))
        regression = bool(options.pop("regression", False))
        layers = options.pop("layers", None)
        trained = {name: options.pop(name) for name in ("epochs", "max_steps") if name in options}
        options.setdefault("pooling", "mean")  # With random weights, the first token contains no information.
        model = MultiExitModel.from_backbone(
            backbone_folders[family],
            layers=layers,
            num_labels=1 if regression else 2,
            id2label={0: "value"} if regression else {0: "other", 1: "same"},
            problem_type="regression" if regression else "single_label_classification",
            metric="spearman" if regression else "accuracy",
            text_columns=("left", "right"),
            lte=lte,
            strategy=strategy,
            task="pairs",
            max_length=options.pop("max_length", 32),
            **options,
        )
        with torch.no_grad():
            for parameter in model.heads.parameters():
                parameter.mul_(20)
            if model.lte is not None:
                model.lte.weight.mul_(10)
        recorded = {
            "model": f"somewhere/{family}-tiny",
            "strategy": strategy,
            "lte": lte,
            "seed": seed,
            "layers": layers,
        }
        record = TrainingRecord({**recorded, **options, **trained}, "train.tsv", "0", 1, 1, 1.0, 0.5, "cpu", {})
        words = ["", "lte"] if lte else [""]
        chosen = [f"{name}={value}" for name, value in sorted(options.items())]
        path = folder / "-".join([family, strategy, *words[1:], str(seed), str(layers), str(regression), *chosen])
        path.mkdir(exist_ok=True)
        save_checkpoint(path, model, AutoTokenizer.from_pretrained(str(backbone_folders[family])), record, ["the cat"])
        return path

    return one


@pytest.fixture(autouse=True)
def svg_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures in one format, because three take three times as long; a test of its own writes all."""
    monkeypatch.setattr("berxit.toolkit.studies.findings.FORMATS", ("svg",))


def run(*arguments: object) -> int:
    return status_of(load("study"), [str(argument) for argument in arguments] + ["--quiet"])


def replace_passes(paths: list[Path], data: Path, output: Path, scores: list[list[float]]) -> None:
    """Stores a pass for each checkpoint whose layers have these accuracies, up to a row, with LTE."""
    rng = np.random.default_rng(0)
    for path, wanted in zip(paths, scores, strict=True):
        request = Request([path], output, data)
        labels = request.run(path).predictions.labels
        order = rng.permutation(len(labels))
        right = np.stack([order < round(score * len(labels)) for score in wanted], axis=1)
        size = (1 + rng.exponential(size=right.shape)) * np.where(right, 2, 1)
        sign = np.where(right, 1, -1) * np.where(labels == 1, 1, -1)[:, None]
        logits = np.stack([np.zeros_like(size), size * sign], axis=-1).astype(np.float32)
        lte = (1 / (1 + np.exp(-size))).astype(np.float32)
        (stored,) = (output / "passes").glob(f"{path.name}-{request.run(path).key[:12]}/predictions.npz")
        Predictions(logits, lte, labels, "accuracy", names=("other", "same")).save(stored)


def written(output: Path, name: str) -> dict:
    """The study's numbers. Checks that its report and figure exist."""
    assert (output / f"{name}.md").read_text(encoding="utf-8").startswith("# ")
    assert "<svg" in (output / f"{name}.svg").read_text(encoding="utf-8")
    return json.loads((output / f"{name}.json").read_text(encoding="utf-8"))


def test_layerwise(make: Make, data: dict[str, Path], tmp_path: Path) -> None:
    paths = [make("two-stage"), make("joint"), make("joint", seed=7), make("joint", family="distilbert")]
    assert run("layerwise", *paths, "--data", data["classes"], "--output", tmp_path) == 0
    lines = {(line["model"], line["label"]): line for line in written(tmp_path, "layerwise-pairs")["lines"]}
    assert set(lines) == {("bert-tiny", "two-stage"), ("bert-tiny", "joint"), ("distilbert-tiny", "joint")}
    two_stage, joint = lines["bert-tiny", "two-stage"], lines["bert-tiny", "joint"]
    assert joint["reference"] == two_stage["scores"][-1] == two_stage["reference"]
    assert two_stage["relative"][-1] == pytest.approx(100)
    assert joint["seeds"] == [42, 7]
    assert joint["scores"] == pytest.approx(np.mean([joint["lowest"], joint["highest"]], axis=0))
    assert joint["relative"][0] == pytest.approx(100 * joint["scores"][0] / two_stage["scores"][-1])
    labels = [row.rpartition("\t")[2] for row in (data["classes"] / "dev.tsv").read_text().splitlines()[1:]]
    majority = max(labels.count("same"), labels.count("other")) / len(labels)
    assert joint["constant"] == majority
    assert joint["relative_constant"] == pytest.approx(100 * majority / two_stage["scores"][-1])


def test_tradeoff(make: Make, data: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [make("joint"), make("alternating")]
    replace_passes(paths, data["classes"], tmp_path, [[0.5, 0.7, 0.9], [0.6, 0.8, 0.9]])
    options = ["--relative-to", "0.9", "--criterion", "entropy"]
    assert run("tradeoff", *paths, "--data", data["classes"], "--output", tmp_path, *options) == 0
    found = written(tmp_path, "tradeoff-pairs")
    joint, alternating = found["curves"]
    assert (found["criterion"], joint["reference"]) == ("entropy", 0.9)
    assert joint["average_exit_layer"][0] == 1
    assert joint["average_exit_layer"][-1] == 3
    assert [at["relative"] is None for at in joint["at_cost"]] == [False, False, True]  # 70%: less than one layer
    assert [at["gain"] for at in joint["at_gain"]] == [99, 97, 94]
    (claim,) = found["claims"]
    assert (claim["first"], claim["second"]) == ("alternating", "joint")  # the paper's claim is about alternating
    grid = np.linspace(1, 3, 20_001)
    first, second = (
        np.maximum(np.interp(grid, curve["average_exit_layer"], curve["relative"]), claim["constant"])
        for curve in (alternating, joint)
    )
    assert claim["above"] == pytest.approx(2 * np.maximum(first - second, 0).mean(), abs=0.05)
    assert claim["below"] == pytest.approx(2 * np.maximum(second - first, 0).mean(), abs=0.05)
    assert claim["above"] > 1
    assert (claim["verdict"], claim["seeds"]) == ("undecided", [1, 1])
    assert "100% is accuracy 0.9000, as given" in capsys.readouterr().out


def test_lte_of_regression(make: Make, data: dict[str, Path], tmp_path: Path) -> None:
    path = make("alternating", lte=True, regression=True)
    options = ["--relative-to", "0.9"]
    assert run("lte", path, "--data", data["values"], "--output", tmp_path, *options) == 0
    found = written(tmp_path, "lte-pairs")
    (line,) = found["lines"]
    assert set(line["curves"]) == {"layer-wise", "patience", "LTE"}
    assert line["curves"]["layer-wise"]["average_exit_layer"] == [1, 2, 3]
    ends = [line["curves"][name]["relative"][-1] for name in ("LTE", "layer-wise")]
    assert ends[0] == pytest.approx(ends[1])
    lte, line_wise = (line["curves"][name] for name in ("LTE", "layer-wise"))
    claims = {claim["second"]: claim for claim in found["claims"]}
    assert set(claims) == {"layer-wise", "layer-wise, up to layer 1.5", "patience"}
    for until, what in ((3, "layer-wise"), (1.5, "layer-wise, up to layer 1.5")):
        grid = np.linspace(1, until, 20_001)
        values = [np.maximum(np.interp(grid, c["average_exit_layer"], c["relative"]), 0) for c in (lte, line_wise)]
        for side, difference in (("above", values[0] - values[1]), ("below", values[1] - values[0])):
            expected = (until - 1) * np.maximum(difference, 0).mean()
            assert claims[what][side] == pytest.approx(expected, rel=1e-3, abs=1e-3)
    assert max(claims["layer-wise"]["above"], claims["layer-wise"]["below"]) > 0.1
    assert "held-out curve" in (tmp_path / "lte-pairs.md").read_text(encoding="utf-8")  # patience's tolerance


def test_criteria(make: Make, data: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every criterion that fits is compared with one exit layer and with the default, on the same passes."""
    paths = [make("alternating", lte=True), make("alternating", lte=True, seed=7)]
    replace_passes(paths, data["classes"], tmp_path, [[0.5, 0.7, 0.9], [0.6, 0.8, 0.9]])
    assert run("criteria", *paths, "--data", data["classes"], "--output", tmp_path) == 0
    found = written(tmp_path, "criteria-pairs")
    (line,) = found["lines"]
    others = {"entropy", "lte", "patience", "agreement"}  # too few rows for learned
    assert set(line["curves"]) == {"confidence", *others, "layer-wise"}
    pairs = [(claim["first"], claim["second"]) for claim in found["claims"]]
    assert set(pairs) == {(name, "layer-wise") for name in ("confidence", *others)} | {
        (name, "confidence") for name in others
    }
    assert all(claim["seeds"] == [2, 2] for claim in found["claims"])
    above = {claim["first"]: claim["above"] for claim in found["claims"] if claim["second"] == "layer-wise"}
    assert above["confidence"] > 1  # in these passes, right predictions are more confident
    capsys.readouterr()
    assert run("criteria", *paths, "--data", data["classes"], "--output", tmp_path, "--criterion", "learned") == 2
    assert "--criterion learned: it does not fit" in capsys.readouterr().err


def test_certainty(make: Make, data: dict[str, Path], tmp_path: Path) -> None:
    paths = [make("alternating", lte=True), make("joint", lte=True)]
    assert run("certainty", *paths, "--data", data["classes"], "--output", tmp_path) == 0
    for entry in written(tmp_path, "certainty-pairs")["runs"]:
        assert len(entry["mean_certainty"]) == 3
        assert np.all(np.diff([entry["quantiles"][q] for q in ("p5", "p50", "p95")], axis=0) >= 0)
        expected = np.corrcoef(entry["mean_certainty"], entry["relative"])[0, 1]
        assert entry["correlation_over_layers"] == pytest.approx(expected, abs=1e-5)


def test_probe(make: Make, data: dict[str, Path], tmp_path: Path) -> None:
    path = make("joint")
    assert run("probe", path, "--data", data["classes"], "--output", tmp_path) == 0
    (entry,) = written(tmp_path, "probe-pairs")["runs"]
    stored = Request([path], tmp_path, data["classes"])
    (one,) = stored.runs
    overlap = bleu_scores(stored.examples(one).texts)
    powers = np.exp(one.predictions.logits.astype(np.float64))
    confidence, predicted = (powers / powers.sum(axis=-1, keepdims=True)).max(axis=-1), one.predictions.predicted()
    seen = 0
    for number, name in enumerate(("other", "same")):
        for layer in range(3):
            rows = predicted[:, layer] == number
            assert entry["predicted"][name]["examples"][layer] == rows.sum()
            expected = np.corrcoef(overlap[rows], confidence[rows, layer])[0, 1] if rows.sum() >= 10 else None
            assert entry["predicted"][name]["correlation"][layer] == pytest.approx(expected, abs=1e-5)
            seen += expected is not None
    assert seen >= 3
    assert entry["relative"] == pytest.approx([100 * score / one.full_depth for score in one.layer_scores])


def test_limit(make: Make, data: dict[str, Path], tmp_path: Path) -> None:
    paths = [make("limit", layers=1), make("limit", layers=2), make("raw"), make("alternating")]
    assert run("limit", *paths, "--data", data["classes"], "--output", tmp_path) == 0
    (line,) = written(tmp_path, "limit-pairs")["limit"]
    assert (line["model"], line["layers"]) == ("bert-tiny", [1, 2, 3])
    stored = Request(paths, tmp_path, data["classes"])
    assert line["scores"] == [stored.run(path).full_depth for path in paths[:3]]
    report = (tmp_path / "limit-pairs.md").read_text(encoding="utf-8")
    alternating = stored.run(paths[3])
    others = [f"{score:.4f}" for score in (alternating.floor, *alternating.layer_scores)]
    row = next(line for line in report.splitlines() if "alternating, 3 layers, exit at that layer" in line)
    assert [cell.strip() for cell in row.split("|")[2:6]] == others


def test_runtime(bundle: Path, data_folder: Path, tmp_path: Path) -> None:
    assert run("runtime", bundle, "--data", data_folder, "--output", tmp_path) == 0
    (entry,) = written(tmp_path, "runtime-custom")["bundles"]
    assert (entry["inputs"], entry["full"]["queries"]) == (48, 48)
    assert entry["full"]["average_exit_layer"] == 3
    assert entry["calibrated"]["average_exit_layer"] < 3
    assert entry["full"]["latency"]["mean"] > 0


def test_flops(make: Make, tmp_path: Path) -> None:
    assert run("flops", make("joint", lte=True), "--length", 20, "--output", tmp_path) == 0
    found = written(tmp_path, "flops")["models"]["bert-tiny, joint"]
    assert [entry["tokens"] for entry in found] == [8, 16, 20, 32]


def test_flops_of_models_with_different_maximum_lengths(make: Make, tmp_path: Path) -> None:
    paths = [make("joint", max_length=20, seed=5), make("raw", max_length=12, seed=5)]
    assert run("flops", *paths, "--output", tmp_path) == 0
    report = (tmp_path / "flops.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in report.splitlines() if line.startswith("| bert-tiny")]
    assert [row[2].strip() for row in rows] == ["20", "12"]


@pytest.mark.parametrize("family", ENCODERS)
def test_count_flops_equals_the_formula_of_a_layer(family: str, make: Make) -> None:
    path = make("joint", family=family, lte=True, pooling="mean", seed=3)
    flops = count_flops(MultiExitModel.from_pretrained(str(path)), 10)
    tokens, d, inner, classes = 10, 32, 64, 2
    products = 4 * tokens * d * d + 2 * tokens * d * inner + 2 * tokens * tokens * d
    if family == "modernbert":  # the gate
        products += tokens * d * inner
    if family == "deberta-v2":  # 16 relative positions: two projections, and their products with queries and keys
        products += 2 * 16 * d * d + 2 * tokens * 16 * d
    assert flops.layer == 2 * products
    assert flops.classifier == 2 * d * classes
    assert flops.lte == 2 * d
    assert flops.pooling == 2 * tokens * d
    assert flops.embeddings == (2 * tokens * 16 * d if family in ("albert", "electra") else 0)
    assert flops.layers == 3


def test_run_stores_and_reuses_the_pass(make: Make, data: dict[str, Path], tmp_path: Path) -> None:
    path = make("joint")
    first = Request([path], tmp_path, data["classes"]).run(path)
    (stored,) = (tmp_path / "passes").glob("*/predictions.npz")
    assert first.key.startswith(stored.parent.name.rpartition("-")[2])
    doctored = replace(first.predictions, logits=first.predictions.logits + 1)
    doctored.save(stored)
    again = Request([path], tmp_path, data["classes"]).run(path)
    assert np.array_equal(again.predictions.logits, doctored.logits)


def test_run_makes_a_new_pass_for_other_data_or_another_checkpoint(
    make: Make, data: dict[str, Path], tmp_path: Path
) -> None:
    other = tmp_path / "other.tsv"
    other.write_text((data["classes"] / "dev.tsv").read_text().replace("cat", "dog"), encoding="utf-8")
    path = make("joint")
    keys = {Request([path], tmp_path / "out", where).run(path).key for where in (data["classes"], other)}
    keys.add(Request([], tmp_path / "out", other).run(make("joint", seed=8)).key)
    assert len(keys) == 3
    assert len(list((tmp_path / "out" / "passes").iterdir())) == 3


def test_run_names_a_damaged_pass(make: Make, data: dict[str, Path], tmp_path: Path) -> None:
    path = make("joint")
    Request([path], tmp_path, data["classes"]).run(path)
    (stored,) = (tmp_path / "passes").glob("*/predictions.npz")
    stored.write_bytes(stored.read_bytes()[:100])
    with pytest.raises(BerxitError, match=r"predictions\.npz is damaged: delete the file"):
        Request([path], tmp_path, data["classes"]).run(path)


@pytest.mark.parametrize("study", ["layerwise", "tradeoff", "certainty", "probe", "limit"])
def test_every_study_draws_a_strategy_in_its_own_style(
    study: str, make: Make, data: dict[str, Path], tmp_path: Path
) -> None:
    """The figure of each study is drawn, and the lines of a strategy have its marker, also where lines have no key."""
    plt = pytest.importorskip("matplotlib.pyplot")
    paths = [make("joint", lte=True)]
    if study == "limit":
        paths.append(make("limit", lte=True, layers=1))
    request = Request(paths, tmp_path, data["classes"])
    findings = find_study(study)(request)
    figure, axes = plt.subplots(1, len(findings.panels), squeeze=False)
    for panel, each in zip(findings.panels, axes[0], strict=True):
        panel(each)
    color = model_colors(list(request.models))["bert-tiny"]
    expected = looks(request.groups, color)[request.groups[0].label]
    others = ("None", line_style(list(STRATEGIES).index("limit"))["marker"])
    shown = {(line.get_marker(), line.get_color()) for line in axes[0][-1].lines if line.get_marker() not in others}
    plt.close(figure)
    assert shown == {(expected["marker"], expected["color"])}


def svg_texts(path: Path) -> str:
    """All texts of a figure, in order, with single spaces. A wrapped label is several texts."""
    texts = [element.text for element in ElementTree.parse(path).iter() if element.tag.endswith(("}text", "}tspan"))]
    return " ".join(" ".join(filter(None, texts)).split())


@pytest.mark.parametrize("study", [name for name in STUDIES if name != "runtime"])  # bundles contain no options
def test_study_names_every_differing_option_in_all_outputs(
    study: str, make: Make, data: dict[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    paths = [
        make("joint", lte=True, pooling="mean", max_steps=40, layer_weights="linear"),
        make("alternating", lte=True, pooling="first", epochs=2),
    ]
    if study == "limit":
        paths.append(make("limit", lte=True, layers=1))
    data_options = ["--data", data["classes"]] if study in READ_BY["data"] else []
    relative_to = ["--relative-to", "0.9"] if study in READ_BY["relative_to"] else []
    assert run(study, *paths, "--output", tmp_path, *data_options, *relative_to) == 0
    (report,) = tmp_path.glob("*.md")
    layers = "3 layers, " if study == "limit" else ""
    labels = [
        f"joint, 40 steps, {layers}mean pooling, linear layer weights",
        f"alternating, 2 epochs, {layers}first pooling, uniform layer weights",
    ]
    outputs = {".md": report.read_text(), ".json": report.with_suffix(".json").read_text()}
    outputs[".svg"] = svg_texts(report.with_suffix(".svg"))
    for output, text in outputs.items():
        for label in labels:
            assert label in text, (output, label)
    if study != "flops":
        assert "constant" in report.read_text()
        assert "constant prediction" in outputs[".svg"]


def test_tradeoff_averages_seeds_and_separates_options(make: Make, data: dict[str, Path], tmp_path: Path) -> None:
    paths = [make("joint"), make("joint", seed=7), make("joint", pooling="first"), make("alternating")]
    replace_passes(paths, data["classes"], tmp_path, [[0.5, 0.7, 0.9]] * 4)
    assert run("tradeoff", *paths, "--data", data["classes"], "--output", tmp_path, "--relative-to", "0.9") == 0
    found = written(tmp_path, "tradeoff-pairs")
    seeds = {curve["label"]: curve["seeds"] for curve in found["curves"]}
    assert seeds == {
        "joint, mean pooling": [42, 7],
        "joint, first pooling": [42],
        "alternating, mean pooling": [42],
    }
    differ = {(claim["first"], claim["second"]): claim["differ_in"] for claim in found["claims"]}
    assert differ["alternating, mean pooling", "joint, mean pooling"] == ["strategy"]
    assert differ["alternating, mean pooling", "joint, first pooling"] == ["strategy", "pooling"]


def test_tradeoff_claims_do_not_depend_on_a_pass_below_the_constant_prediction(
    make: Make, data: dict[str, Path], tmp_path: Path
) -> None:
    """On RTE, a curve that was below the constant prediction made another curve "win" on it."""
    paths = [make(name, seed=seed) for name in ("joint", "alternating") for seed in (1, 2)]
    failed = make("joint", seed=3)
    good = [[0.5, 0.7, 0.9], [0.5, 0.6, 0.9], [0.5, 0.8, 0.9], [0.5, 0.85, 0.9]]
    replace_passes([*paths, failed], data["classes"], tmp_path, [*good, [0.3, 0.2, 0.3]])
    found = []
    for given in (paths, [*paths, failed]):
        assert run("tradeoff", *given, "--data", data["classes"], "--output", tmp_path) == 0
        (claim,) = written(tmp_path, "tradeoff-pairs")["claims"]
        found.append(claim)
    assert found[0] == found[1]
    assert found[0]["above"] > 1
    replace_passes(paths, data["classes"], tmp_path, [[0.1, *scores[1:]] for scores in good])
    assert run("tradeoff", *paths, "--data", data["classes"], "--output", tmp_path) == 0
    (lower,) = written(tmp_path, "tradeoff-pairs")["claims"]
    assert lower["verdict"] == found[0]["verdict"]
    report = (tmp_path / "tradeoff-pairs.md").read_text()
    assert "does not count" not in report


def test_tradeoff_compares_groups_of_equal_depth_only(make: Make, data: dict[str, Path], tmp_path: Path) -> None:
    paths = [make("joint"), make("alternating"), make("limit", layers=1), make("limit", layers=2)]
    replace_passes(paths, data["classes"], tmp_path, [[0.6, 0.7, 0.9], [0.6, 0.8, 0.9], [0.7], [0.7, 0.8]])
    assert run("tradeoff", *paths, "--data", data["classes"], "--output", tmp_path) == 0
    found = written(tmp_path, "tradeoff-pairs")
    assert [curve["label"] for curve in found["curves"]][2:] == ["limit, 1 layer", "limit, 2 layers"]
    pairs = [(claim["first"], claim["second"]) for claim in found["claims"]]
    assert pairs == [("alternating, 3 layers", "joint, 3 layers")]


def test_relative_to_a_checkpoint_is_its_group_or_its_own_full_depth(
    make: Make, data: dict[str, Path], tmp_path: Path
) -> None:
    joint, again, raw = make("joint"), make("joint", seed=7), make("raw")
    replace_passes([joint, again, raw], data["classes"], tmp_path, [[0.6, 0.8], [0.6, 0.9], [0.1, 0.5]])
    request = Request([joint, again], tmp_path, data["classes"], relative_to=str(joint))
    scores = [request.run(path).full_depth for path in (joint, again)]
    assert request.reference("bert-tiny").score == np.mean(scores)
    other = replace(request, relative_to=str(raw)).reference("bert-tiny")
    assert other.score == request.run(raw).full_depth
    assert other.source == f"full depth of {raw.name}, which is at chance"


def test_findings_write_the_figure_as_png_pdf_and_svg_with_equal_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("berxit.toolkit.studies.findings.FORMATS", ("png", "pdf", "svg"))
    written = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        files = Findings("name", "Title", [], [], {}, [lambda axes: draw_floor(axes, 0.5)]).write(folder)
        assert [file.name for file in files] == ["name.json", "name.md", "name.png", "name.pdf", "name.svg"]
        written.append([file.read_bytes() for file in files])
    assert written[0] == written[1]
    starts = (b"\x89PNG", b"%PDF", b"<?xml")
    assert all(content.startswith(start) for content, start in zip(written[0][2:], starts, strict=True))


def test_every_study_has_the_same_hundred_percent(make: Make, data: dict[str, Path], tmp_path: Path) -> None:
    paths = [make("joint", lte=True), make("joint", lte=True, seed=7), make("alternating", lte=True)]
    replace_passes(paths, data["classes"], tmp_path, [[0.5, 0.7, 0.8], [0.5, 0.7, 0.9], [0.5, 0.9, 1]])
    found = {}
    for study, key in (("layerwise", "lines"), ("tradeoff", "curves"), ("certainty", "runs")):
        assert run(study, *paths, "--data", data["classes"], "--output", tmp_path) == 0
        report = json.loads((tmp_path / f"{study}-pairs.json").read_text())
        found[study] = {(entry["reference"], entry["reference_source"]) for entry in report[key]}
        assert "100% is accuracy" in svg_texts(tmp_path / f"{study}-pairs.svg")
    request = Request(paths, tmp_path, data["classes"])
    mean = np.mean([request.run(path).full_depth for path in paths[:2]])
    assert all(same == {(mean, "full depth of joint (2 seeds)")} for same in found.values()), found


def test_certainty_targets_are_those_of_training() -> None:
    assert certainty_targets(hand_made_run("joint", [0.5, 0.8]).predictions).mean(axis=0) == pytest.approx([0.5, 0.8])
    values = Predictions(np.array([[[1.0], [3.0]]], np.float32), None, np.array([1.0]), "spearman")
    assert certainty_targets(values)[0] == pytest.approx([1, 1 - math.tanh(2)])


def test_bleu_scores_are_100_for_equal_sentences_and_0_without_common_words() -> None:
    same = "the cat sat on the mat"
    found = bleu_scores([(same, same), (same, "one two three four five six"), (same, "the cat sat on a rug")])
    assert found[0] == pytest.approx(100)
    assert found[1] == 0
    # precisions 4/6, 3/5, 2/4, 1/3; equal length
    assert found[2] == pytest.approx(100 * (4 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)


def test_correlations_are_computed_per_predicted_class() -> None:
    overlap = np.linspace(0, 100, 30)
    margin = np.where(np.arange(30) < 15, -overlap - 1, overlap) / 50  # "no" is more certain with more overlap, too
    logits = np.stack([np.zeros(30), margin], axis=-1)[:, None].astype(np.float32)
    found, counts = correlations(Predictions(logits, None, np.ones(30, int), "accuracy"), overlap)
    assert counts == [[15], [15]]
    confidence = 1 / (1 + np.exp(-np.abs(margin)))
    assert found[1][0] == pytest.approx(np.corrcoef(overlap[15:], confidence[15:])[0, 1], abs=1e-5)
    few, _ = correlations(Predictions(logits[:20], None, np.ones(20, int), "accuracy"), overlap[:20])
    assert few[1] == [None]


def test_probe_names_a_class_without_a_line(make: Make, data: dict[str, Path], tmp_path: Path) -> None:
    path = make("joint")
    request = Request([path], tmp_path, data["classes"])
    one = request.run(path).predictions
    (stored,) = (tmp_path / "passes").glob("*/predictions.npz")
    replace(one, logits=one.logits + np.float32([0, 100])).save(stored)  # every layer predicts the second class
    assert run("probe", path, "--data", data["classes"], "--output", tmp_path) == 0
    text = svg_texts(tmp_path / "probe-pairs.svg")
    assert "predicted other: fewer than 10 examples at every layer" in text
    assert "predicted same: fewer" not in text


def test_find_study_lists_the_studies(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("luck") == 2
    error = capsys.readouterr().err
    assert "unknown study 'luck'" in error
    assert all(name in error for name in STUDIES)


@pytest.mark.parametrize("name", STUDIES)
def test_find_study_imports_every_study(name: str) -> None:
    assert callable(find_study(name))


@pytest.mark.parametrize("name", STUDIES)
def test_study_reads_the_options_that_it_accepts(
    name: str, make: Make, data: dict[str, Path], bundle: Path, data_folder: Path, tmp_path: Path
) -> None:
    read = set()

    class Recorded(Request):
        def __getattribute__(self, field: str) -> Any:
            if field in READ_BY:
                read.add(field)
            return super().__getattribute__(field)

    paths = [bundle] if name == "runtime" else [make("joint", lte=True), make("limit", lte=True, layers=1)]
    folder = data_folder if name == "runtime" else data["classes"]
    find_study(name)(Recorded(paths if name == "limit" else paths[:1], tmp_path, folder))
    assert read == {field for field, studies in READ_BY.items() if name in studies}


def test_studies_report_wrong_inputs_in_one_line(
    make: Make, data: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    joint, values = make("joint"), make("alternating", lte=True, regression=True)
    cases: list[tuple[list[object], int, str]] = [
        (["layerwise"], 2, "Missing argument 'CHECKPOINT...'"),
        (["layerwise", joint], 2, "--data is missing"),
        (["runtime", joint], 1, "is not a bundle"),
        (["layerwise", tmp_path / "none", "--data", data["classes"]], 1, "no checkpoint at"),
        (["lte", joint, "--data", data["classes"]], 2, "was trained without LTE"),
        (["certainty", joint, "--data", data["classes"]], 2, "was trained without LTE"),
        (["limit", joint, "--data", data["classes"]], 2, "has no limit checkpoint"),
        (["probe", values, "--data", data["values"]], 2, "is of the kind regression"),
        (["tradeoff", joint, "--data", data["classes"], "--criterion", "luck"], 2, "'luck'"),
        (["flops", joint, "--length", 33], 2, "--length 33 is out of range"),
        (["runtime", joint, "--data", data["classes"]], 1, "is not a bundle: the study runtime needs bundles"),
    ]
    for arguments, status, message in cases:
        assert run(*arguments, "--output", tmp_path / "out") == status, arguments
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert message in line


def test_models_rejects_checkpoints_of_two_tasks(
    make: Make, checkpoint: Path, data: dict[str, Path], data_folder: Path, tmp_path: Path
) -> None:
    request = Request([make("joint"), checkpoint], tmp_path, data["classes"])
    one = request.run(make("joint"))
    other = replace(request, data=data_folder).run(checkpoint)
    both = Request([one.folder, other.folder], tmp_path)
    object.__setattr__(both, "run", lambda path: one if path == one.folder else other)
    with pytest.raises(InputError, match="a study needs checkpoints of one task"):
        _ = both.runs


@pytest.mark.parametrize("study", ["layerwise", "tradeoff", "lte", "certainty", "probe"])
def test_no_study_draws_a_relative_score_of_140_percent(
    study: str, make: Make, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.axes import Axes

    drawn: list[float] = []
    plot, band = Axes.plot, Axes.fill_between

    def plotted(axes: Axes, *arguments: object, **more: object) -> object:
        if len(arguments) > 1:
            drawn.extend(np.ravel(np.asarray(arguments[1], dtype=float)))
        return plot(axes, *arguments, **more)

    def filled(axes: Axes, x: object, *bounds: object, **more: object) -> object:
        drawn.extend(np.ravel(np.asarray(bounds, dtype=float)))
        return band(axes, x, *bounds, **more)

    monkeypatch.setattr(Axes, "plot", plotted)
    monkeypatch.setattr(Axes, "fill_between", filled)
    paths = [make("joint", lte=True), make("joint", lte=True, seed=7)]
    arguments = [*paths, "--data", data["classes"], "--relative-to", "0.2", "--output", tmp_path]
    assert run(study, *arguments) == 0
    report = (tmp_path / f"{study}-pairs.md").read_text(encoding="utf-8")
    assert "and the figure does not show those above 120%" in report
    assert drawn
    assert not any(value > 120 for value in drawn)  # NaN is a gap


def test_study_warns_of_checkpoints_at_chance_and_rejects_one_class(
    make: Make, data: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (data["classes"] / "dev.tsv").read_text(encoding="utf-8").splitlines()
    rng = np.random.default_rng(5)
    labels = rng.permutation(["same", "other"] * 24)
    shuffled = [f"{line.rpartition(chr(9))[0]}\t{label}" for line, label in zip(lines[1:], labels, strict=True)]
    (tmp_path / "random.tsv").write_text("\n".join([lines[0], *shuffled]) + "\n", encoding="utf-8")
    path = make("joint")
    assert run("layerwise", path, "--data", tmp_path / "random.tsv", "--output", tmp_path / "out") == 0
    report = (tmp_path / "out" / "layerwise-pairs.md").read_text(encoding="utf-8")
    assert f"- warning: {path.name}: full depth is at chance: accuracy " in report
    one = [lines[0], *(line for line in lines[1:] if line.endswith("same"))]
    (tmp_path / "one.tsv").write_text("\n".join(one) + "\n", encoding="utf-8")
    capsys.readouterr()
    assert run("layerwise", path, "--data", tmp_path / "one.tsv", "--output", tmp_path / "out") == 2
    assert "one.tsv: accuracy cannot be measured: all labels are of one class" in capsys.readouterr().err
    assert len(list((tmp_path / "out" / "passes").iterdir())) == 1


def test_run_rejects_a_stored_pass_with_nan(
    make: Make, data: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make("joint")
    arguments = ["layerwise", path, "--data", data["classes"], "--output", tmp_path]
    assert run(*arguments) == 0
    (stored,) = (tmp_path / "passes").glob("*/predictions.npz")
    predictions = Predictions.load(stored)
    predictions.logits[4, 1] = np.nan
    predictions.save(stored)
    assert run(*arguments) == 1
    assert "layer 2 outputs NaN or infinity for 1 of 48 rows" in capsys.readouterr().err
