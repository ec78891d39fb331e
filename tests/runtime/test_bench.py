from __future__ import annotations

import dataclasses
import json
import math
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boards import board

import berxit.runtime.benchmark
from berxit import devices
from berxit.runtime import EarlyExitRunner
from berxit.runtime.backends import host, onnxruntime
from berxit.runtime.bench import command
from berxit.runtime.bench_records import read_records
from berxit.runtime.bench_report import fixed_comparison, headline, report_text, tables, write_result
from berxit.runtime.bench_result import BenchResult
from berxit.runtime.benchmark import bench
from berxit.runtime.bundle_files import BundleFile
from berxit.runtime.console import status_of
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.examples import read_examples
from berxit.runtime.json_data import parse
from berxit.runtime.measurement import Latency, Line, Measured
from berxit.runtime.policies import ExitPolicy, exit_layers
from berxit.runtime.speed_up import SpeedUp
from berxit.runtime.validity import PRESETS, Validity

LAPTOP = devices.Machine("Linux", "x86_64", "Some CPU", 4, 16.0, "", "")
SHORT = ["--queries", "1", "--seconds", "0", "--thresholds", "3", "--threads", "1", "--quiet"]


@pytest.fixture
def laptop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "this_machine", lambda: LAPTOP)


@pytest.fixture(scope="module")
def written(bundle: Path, data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of one run with labelled data."""
    folder = tmp_path_factory.mktemp("bench") / "deep" / "results"
    arguments = [str(bundle), "--data", str(data_folder), "--limit", "8", "--output", str(folder), *SHORT]
    assert status_of(command, arguments) == 0
    return folder


@pytest.fixture(scope="module")
def found(written: Path) -> dict[str, Any]:
    return json.loads((written / "bench.json").read_text(encoding="utf-8"))


def point(layers: float, milliseconds: float, score: float | None = None, queries: int = 4) -> Measured:
    histogram = (queries // 2, queries - queries // 2)
    latency = Latency(milliseconds, milliseconds + 0.01, milliseconds + 0.02, milliseconds + 0.03)
    return Measured(latency, layers, histogram, queries, score)


RESULT = BenchResult(
    bundle="my-bundle",
    target="onnxruntime",
    backend="onnxruntime",
    precision="fp32",
    task="rte",
    metric="accuracy",
    layers=2,
    device="cpu",
    machine=LAPTOP,
    threads=2,
    inputs=4,
    rounds=1,
    boundary="from text to answer",
    self_check=1e-6,
    by_layer={1: point(1, 2.0, 0.6), 2: point(2, 4.0, 0.8)},
    by_threshold={0.75: point(1.25, 2.5, 0.7)},
    criterion="confidence",
    policy=point(1.5, 3.2, 0.76),
    line=Line(0.5, 1.75, 0.9987),
    before=devices.Reading(None, None, None, None, None),
    after=devices.Reading(None, None, None, None, None),
    versions={},
)


@pytest.mark.parametrize(
    ("milliseconds", "verdict"),
    [(3.0, "it is faster than the calibrated exits (3.20 ms)"), (3.5, "the calibrated exits are faster (3.20 ms)")],
)
def test_report_compares_one_graph_with_the_exits(milliseconds: float, verdict: str) -> None:
    line = f"one graph (without exits): {milliseconds:.2f} ms per input; full depth takes 4.00 ms with 2 exits"
    text = report_text(replace(RESULT, one_graph=point(2, milliseconds)))
    assert f"{line}; {verdict}" in text
    assert line in report_text(replace(RESULT, one_graph=point(2, milliseconds), policy=None))
    assert "one graph" not in report_text(RESULT)


def test_bench_writes_results(written: Path) -> None:
    assert {"bench.json", "bench.md"} <= {path.name for path in written.iterdir()}
    assert all(path.stat().st_size > 0 for path in written.iterdir())


def test_bench_json_records_measurement_and_conditions(found: dict[str, Any], bundle: Path) -> None:
    assert set(found) == {field.name for field in dataclasses.fields(BenchResult)} - {"records"} | {"made_by"}
    assert found["bundle"] == bundle.name
    assert (found["target"], found["precision"], found["metric"]) == ("onnxruntime", "fp32", "accuracy")
    assert (found["layers"], found["threads"], found["inputs"], found["rounds"]) == (3, 1, 8, 1)
    assert found["criterion"] == "confidence"
    assert found["machine"]["cores"] == devices.usable_cores()
    assert {"python", "numpy", "onnxruntime"} <= set(found["versions"])
    assert 0 <= found["self_check"] < 1e-3
    assert found["lazy"] is False
    assert found["memory_mib"] is None or found["memory_mib"] > 10


def test_bench_measures_every_exit(found: dict[str, Any]) -> None:
    assert list(found["by_layer"]) == ["1", "2", "3"]
    for layer, measured in found["by_layer"].items():
        assert measured["average_exit_layer"] == int(layer)
        assert measured["histogram"][int(layer) - 1] == measured["queries"] == 8
        assert 0 <= measured["score"] <= 1


def test_bench_measures_thresholds_in_order_of_cost(found: dict[str, Any]) -> None:
    points = list(found["by_threshold"].values())
    averages = [measured["average_exit_layer"] for measured in points]
    assert 1 <= len(points) <= 3
    assert averages == sorted(averages)
    assert all(sum(measured["histogram"]) == measured["queries"] == 8 for measured in points)
    assert 1 <= found["policy"]["average_exit_layer"] <= 3


def test_bench_full_depth_score_equals_runner(found: dict[str, Any], bundle: Path, data_folder: Path) -> None:
    runner = EarlyExitRunner.load(bundle, threads=1)
    rows = [line.split("\t") for line in (data_folder / "dev.tsv").read_text(encoding="utf-8").splitlines()[1:9]]
    right = [runner.predict(text, threshold=1.0).label == label for text, label in rows]
    assert found["by_layer"]["3"]["score"] == sum(right) / 8


def test_bench_text_starts_with_headline(written: Path) -> None:
    text = (written / "bench.md").read_text(encoding="utf-8")
    assert "x faster than full depth on this device" in text.splitlines()[0]
    assert "| exit layer |" in text
    assert "| calibrated" in text
    assert "R^2" in text


def test_headline_compares_latency_and_score() -> None:
    assert headline(RESULT) == (
        "1.25x faster than full depth on this device: 3.20 ms instead of 4.00 ms per input, 1.50 of 2 layers,"
        " at accuracy 0.7600 instead of 0.8000 (95.0%)"
    )


def test_headline_without_labels_has_no_score() -> None:
    unlabelled = dataclasses.replace(
        RESULT, metric=None, by_layer={1: point(1, 2.0), 2: point(2, 4.0)}, policy=point(1.5, 3.2)
    )
    assert headline(unlabelled).endswith("1.50 of 2 layers")


def test_headline_without_calibration_names_remedy() -> None:
    line = headline(dataclasses.replace(RESULT, policy=None))
    assert line == "full depth takes 4.00 ms; not calibrated yet: berxit-calibrate"


def test_headline_of_one_depth_compares_nothing() -> None:
    alone = dataclasses.replace(RESULT, by_layer={2: RESULT.by_layer[2]})
    assert headline(alone) == "one depth: every input runs 2 layers, in 4.00 ms per input, at accuracy 0.8000"
    assert [table.header[0] for table in tables(alone)] == ["exit layer"]
    assert fixed_comparison(alone) == ""


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (
            0.76,
            "adaptive exits pay here: the fastest fixed exit with at least the policy's score is layer 2, with"
            " accuracy 0.8000 in 4.00 ms; the policy takes 3.20 ms",
        ),
        (
            0.6,
            "adaptive exits do not pay here: the fastest fixed exit with at least the policy's score is layer 1, with"
            " accuracy 0.6000 in 2.00 ms; the policy takes 3.20 ms",
        ),
        (0.9, "adaptive exits pay here: no fixed exit has the policy's score"),
    ],
)
def test_fixed_comparison_names_the_fastest_layer_with_the_policys_score(score: float, expected: str) -> None:
    assert RESULT.policy is not None
    result = dataclasses.replace(RESULT, policy=dataclasses.replace(RESULT.policy, score=score))
    assert fixed_comparison(result) == expected
    assert expected in report_text(result)


def test_tables_contain_every_point() -> None:
    layers, thresholds, exits = tables(RESULT)
    assert layers.header == ["exit layer", "mean ms", "p50", "p90", "p99", "accuracy"]
    assert layers.rows == [
        ["1", "2.00", "2.01", "2.02", "2.03", "0.6000"],
        ["2", "4.00", "4.01", "4.02", "4.03", "0.8000"],
    ]
    assert thresholds.rows == [
        ["0.75", "1.25", "38%", "2.50", "2.51", "2.52", "2.53", "1.60x", "0.7000"],
        ["calibrated", "1.50", "25%", "3.20", "3.21", "3.22", "3.23", "1.25x", "0.7600"],
    ]
    assert exits.rows == [["calibrated policy", "50.0%", "50.0%"]]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
def test_bench_reports_memory_after_lazy_loading(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[int] = []
    opened: list[str] = []
    real = onnxruntime.open_session

    def noted(file: BundleFile, *arguments: object) -> object:
        opened.append(file.path.stem)
        return real(file, *arguments)

    def resident() -> float:
        loaded.append(len(opened))
        return 123.4

    monkeypatch.setattr(onnxruntime, "open_session", noted)
    monkeypatch.setattr(host, "_opened", type(host._opened)())
    monkeypatch.setattr(devices, "resident_mib", resident)
    monkeypatch.setattr(
        ExitPolicy, "exits", lambda self, layer, certainty, logits=None: certainty > -1
    )  # all inputs exit at the first layer
    short = {"threads": 1, "thresholds": 1, "queries": 1, "seconds": 0, "warmup": 1}
    result = bench(bundle, lazy=True, **short)  # type: ignore[arg-type]
    assert loaded == [2]
    assert len(opened) == 4
    assert (result.lazy, result.memory_mib) == (True, 123.4)
    assert "123 MiB resident after every input under the calibrated policy, only layers that" in report_text(result)


def test_bench_without_data_measures_golden_inputs(bundle: Path) -> None:
    result = bench(bundle, threads=1, thresholds=1, queries=1, seconds=0, warmup=1)
    assert result.metric is None
    assert result.full_depth.score is None
    assert result.full_depth.average_exit_layer == 3
    assert result.policy is not None


@pytest.mark.parametrize("found", [[0.0, 0.0, 1.0], [math.nan, 0.0, 0.0], [0.0, math.nan, 0.0]])
def test_bench_rejects_exits_that_differ_from_checkpoint(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, found: list[float]
) -> None:
    monkeypatch.setattr(berxit.runtime.benchmark, "differences", lambda *_: found)
    with pytest.raises(BerxitError, match="differs from the checkpoint"):
        bench(bundle, threads=1, queries=1, seconds=0)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--device", "jetson"], 1, "device 'jetson' is not this machine"),
        (["--device", "toaster"], 2, "unknown device 'toaster'"),
        (["--threads", "0"], 2, "--threads"),
        (["--limit", "0"], 2, "--limit"),
        (["--data", "nowhere"], 2, "no data at nowhere"),
        (["--backend", "onnxruntime", "--backend-option", "bf16"], 2, "backend 'onnxruntime' has no option 'bf16'"),
    ],
)
def test_bench_failure_is_one_line(
    bundle: Path,
    laptop: None,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    message: str,
) -> None:
    assert status_of(command, [str(bundle), *arguments]) == status
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.strip().splitlines()
    assert message in line


def test_bench_without_bundle_exits_with_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert status_of(command, []) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "which bundle? python -m runtime.bench --device auto BUNDLE" in line


@pytest.mark.parametrize("device", ["jetson", "desktop-gpu"])
def test_bench_without_bundle_reports_wrong_device_first(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert status_of(command, ["--device", device]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"device '{device}' is not this machine" in line


def test_bench_of_missing_bundle_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(command, [str(tmp_path / "nowhere")]) == 1
    assert "no bundle at" in capsys.readouterr().err


def test_bench_of_damaged_bundle_fails(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    (copy / "segments" / "layer_03.onnx").write_bytes(b"")
    assert status_of(command, [str(copy)]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "layer_03.onnx: checksum differs" in line


@pytest.mark.parametrize("inside", [True, False])
def test_bench_finds_bundle_in_current_folder(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    monkeypatch.chdir(copy if inside else tmp_path)
    assert status_of(command, SHORT) == 0
    assert (tmp_path / "bundle-bench" / "bench.json").is_file()


def test_bench_fails_if_results_cannot_be_written(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").touch()
    assert status_of(command, [str(bundle), "--output", str(tmp_path / "taken"), *SHORT]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "cannot write results to" in line
    assert "--output" in line


def test_bench_rejects_labels_of_one_class(
    bundle: Path, laptop: None, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(command, [str(bundle), "--data", str(data_folder), "--limit", "1", *SHORT]) == 2
    assert "accuracy cannot be measured: 1 row, at least 2 are needed" in capsys.readouterr().err
    (tmp_path / "one.tsv").write_text("text\tlabel\n" + "the cat\tcat\n" * 4, encoding="utf-8")
    assert status_of(command, [str(bundle), "--data", str(tmp_path / "one.tsv"), *SHORT]) == 2
    assert "all labels are of one class" in capsys.readouterr().err


def test_bench_warns_of_score_at_chance(bundle: Path, data_folder: Path) -> None:
    examples = read_examples(data_folder / "dev.tsv", ("text",), "label", ("cat", "other"))
    result = bench(bundle, examples=examples, threads=1, queries=1, seconds=0, warmup=1, thresholds=1)
    assert (result.constant_score, result.warnings) == (0.5, ())
    shuffled = replace(examples, labels=np.arange(48) // 2 % 2)
    result = bench(bundle, examples=shuffled, threads=1, queries=1, seconds=0, warmup=1, thresholds=1)
    (warning,) = result.warnings
    assert warning.startswith("full depth is at chance: accuracy 0.5")
    assert f"\n\nwarning: {warning}\n\n" in report_text(result)
    assert "%)" not in headline(result)


def test_bench_without_labels_has_no_constant_prediction(bundle: Path) -> None:
    result = bench(bundle, threads=1, queries=1, seconds=0, warmup=1, thresholds=1)
    assert (result.constant_score, result.warnings) == (None, ())


@pytest.fixture
def orin(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of a recorded Jetson, from which all sensors are read."""
    root = board(request.param).tree(tmp_path / "root")
    for name in ("Sampler", "power_sensors", "read_sensors"):
        monkeypatch.setattr(devices, name, partial(getattr(devices, name), root=root))
    return root


def quick_bench(bundle: Path) -> BenchResult:
    return bench(bundle, threads=1, queries=1, seconds=0, warmup=1, thresholds=1)


@pytest.mark.parametrize("orin", ["orin-nano"], indirect=True)
def test_bench_measures_energy_per_input(bundle: Path, orin: Path, tmp_path: Path) -> None:
    result = quick_bench(bundle)
    assert list(result.energy) == ["calibrated", "full depth"]
    for energy in result.energy.values():
        assert energy.watts == pytest.approx(6.626, rel=1e-3)
        assert energy.queries == result.inputs
        assert energy.samples >= 2
        assert energy.millijoules == pytest.approx(1e3 * energy.watts * energy.seconds / energy.queries)
    power = result.sensors["power_w"]
    assert power is not None
    assert power.mean == pytest.approx(6.626, rel=1e-3)
    text = report_text(result)
    assert "\n\nenergy per input, idle power included: " in text
    assert "GPU clock 918 MHz (918 to 918)" in text
    assert "power 6.627 W (6.627 to 6.627), of which VDD_IN 6.63, VDD_CPU_GPU_CV 1.23, VDD_SOC 2.38" in text
    write_result(result, tmp_path / "results")
    stored = json.loads((tmp_path / "results" / "bench.json").read_text(encoding="utf-8"))
    del stored["made_by"]
    assert parse(BenchResult, stored, "bench.json").energy == result.energy


@pytest.mark.parametrize("orin", ["orin-nano", "orin-nx"], indirect=True)
def test_bench_advises_jetson_clocks_unless_clocks_are_fixed(bundle: Path, orin: Path) -> None:
    result = quick_bench(bundle)
    assert result.after.clocks_fixed is not None
    assert ("`sudo jetson_clocks`" in report_text(result)) == (not result.after.clocks_fixed)


@pytest.mark.parametrize("orin", ["orin-nano"], indirect=True)
def test_bench_without_power_sensor_reports_it_as_missing(bundle: Path, orin: Path) -> None:
    shutil.rmtree(orin / "sys/class/hwmon")
    result = quick_bench(bundle)
    assert result.energy == {}
    assert result.sensors["power_w"] is None
    text = report_text(result)
    assert ", module power, CPU and memory power" in text
    assert "no energy: this machine has no power sensor" in text
    assert "energy per input" not in text
    assert " 0 W" not in text


def test_report_contains_software_of_the_gpu() -> None:
    machine = replace(LAPTOP, board="NVIDIA Jetson Orin Nano", l4t="36.4.3", driver="540.4.0", cuda="12.6")
    assert "4 cores, L4T 36.4.3, driver 540.4.0, CUDA 12.6" in report_text(replace(RESULT, machine=machine))


def test_report_of_older_version_has_no_sensors() -> None:
    text = report_text(RESULT)
    assert "during the measurement" not in text
    assert "energy" not in text


def test_bench_json_records_telemetry(found: dict[str, Any]) -> None:
    assert found["size_mib"] > 0
    assert found["validity"] == {"preset": "standard", "valid": False, "problems": found["validity"]["problems"]}
    assert found["validity"]["problems"][0].startswith("too few queries: 8 per operating point")
    assert {(each["point"], each["batch_size"]) for each in found["throughput"]} == {
        (name, size) for name in ("calibrated", "full depth") for size in (8, 32)
    }
    assert all(each["inputs_per_second"] > 0 for each in found["throughput"])
    full = found["speed_ups"]["full depth"]
    assert full["ratio"] == pytest.approx(
        found["by_layer"]["3"]["latency"]["mean"] / found["policy"]["latency"]["mean"], rel=1e-9
    )
    assert full["low"] <= full["ratio"] <= full["high"]


def test_bench_writes_every_query(written: Path, found: dict[str, Any]) -> None:
    records = read_records(written / "queries.json")
    points = {
        "calibrated",
        *(f"layer {layer}" for layer in (1, 2, 3)),
        *(f"threshold {t}" for t in found["by_threshold"]),
    }
    assert set(records.queries) == points
    for name, queries in records.queries.items():
        group, key = ("policy", None) if name == "calibrated" else (f"by_{name.split()[0]}", name.split()[1])
        measured = found[group] if key is None else found[group][key]
        assert queries.latency_ms.shape == (1, 8)
        assert queries.latency_ms.mean() == pytest.approx(measured["latency"]["mean"], rel=1e-4)
        assert queries.exit_layers.mean() == measured["average_exit_layer"]
    outputs = records.outputs
    assert outputs.labels is not None
    assert (outputs.predictions[:, -1] == outputs.labels).mean() == found["by_layer"]["3"]["score"]
    taken = exit_layers(outputs.policy.at_exits(outputs.exits), outputs.certainty)
    assert taken.tolist() == records.queries["calibrated"].exit_layers[0].tolist()


def test_bench_of_the_single_stream_preset_runs_longer(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = replace(PRESETS["single-stream"], queries=1, compared_queries=20, compared_seconds=0.05)
    monkeypatch.setitem(PRESETS, "single-stream", rules)
    result = bench(bundle, threads=1, seconds=0, warmup=1, thresholds=1, preset="single-stream")
    assert result.by_layer[1].queries == result.inputs  # one round
    assert result.policy is not None
    assert result.records is not None
    assert result.validity is not None
    assert not any("too" in problem for problem in result.validity.problems)
    compared = [result.records.queries[name].latency_ms for name in ("calibrated", f"layer {result.layers}")]
    assert len({len(latencies) for latencies in compared}) == 1  # they alternate to the end
    assert all(latencies.size >= 20 for latencies in compared)
    # the measurement stops after the round in which the last one has enough
    assert all(latencies.sum() / 1e3 >= 0.05 for latencies in compared)
    assert any(latencies[:-1].size < 20 or latencies[:-1].sum() / 1e3 < 0.05 for latencies in compared)


def test_bench_rejects_unknown_preset(bundle: Path) -> None:
    with pytest.raises(InputError, match="unknown preset 'mlperf': choose standard or single-stream"):
        bench(bundle, preset="mlperf")


def test_report_contains_validity_and_interval() -> None:
    problems = ("too few queries: 4 per operating point, at least 200 are needed",)
    measured = replace(
        RESULT, validity=Validity("standard", False, problems), speed_ups={"full depth": SpeedUp(1.25, 1.1, 1.4)}
    )
    lines = report_text(measured).split("\n\n")
    assert lines[1] == f"result: INVALID (preset standard): {problems[0]}"
    assert "1.25x (1.10 to 1.40) over full depth" in report_text(measured)


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [((1.05, 1.4), "adaptive exits pay here"), ((0.9, 1.4), "adaptive exits neither pay nor cost measurably here")],
)
def test_fixed_comparison_allows_for_the_noise(interval: tuple[float, float], verdict: str) -> None:
    result = replace(RESULT, speed_ups={"layer 2": SpeedUp(1.25, *interval)})
    assert fixed_comparison(result).startswith(verdict)


def test_report_of_a_throttled_machine_is_plain() -> None:
    throttling = devices.Sampled("", 0.5, 0.0, 1.0, 10, {"over-current": 0.5, "CPU core": 0.0})
    text = report_text(replace(RESULT, sensors={"throttled": throttling}))
    assert "throttled: over-current (50% of the time)" in text
    assert "no sensor for CPU clock, GPU clock, temperature" in text
