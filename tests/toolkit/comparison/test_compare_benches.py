"""``berxit compare`` on benches: values, conditions, and the regression gate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from berxit.runtime.bench_report import write_result
from berxit.runtime.benchmark import bench
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.json_data import read_json, write_json
from berxit.toolkit.commands.compare import command
from berxit.toolkit.comparison.benches import compare_benches


@pytest.fixture(scope="module")
def measured(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    write_result(bench(bundle, queries=5, seconds=0.0, thresholds=1, threads=1), folder)
    return folder / "bench.json"


def changed(path: Path, output: Path, factor: float = 1.0, **values: Any) -> Path:
    data = {**read_json(path), **values}
    for point in [*data["by_layer"].values(), data["policy"]]:
        point["latency"]["mean"] *= factor
    write_json(data, output)
    return output


def test_compare_benches_finds_a_slower_bench(measured: Path, tmp_path: Path) -> None:
    found = compare_benches(measured, changed(measured, tmp_path / "slow.json", 1.5))
    assert set(found.latencies) == {"layer 1", "layer 2", "layer 3", "the bundle's policy"}
    assert "latency at layer 3 is 50.0% higher" in found.regressions(5)
    assert found.regressions(51) == []
    assert "1.500x" in found.text()


def test_compare_benches_reports_conditions_that_differ(measured: Path, tmp_path: Path) -> None:
    found = compare_benches(measured, changed(measured, tmp_path / "other.json", threads=7, device="jetson-orin"))
    assert found.conditions["threads"] == ("1", "7")
    assert "conditions differ: device is" in found.text()


def test_compare_benches_compares_energy_and_power_mode(measured: Path, tmp_path: Path) -> None:
    after = read_json(measured)["after"]
    first, second = (
        changed(
            measured,
            tmp_path / f"{mode}.json",
            energy={"full depth": {"millijoules": energy}},
            after={**after, "power_mode": mode},
        )
        for mode, energy in (("15W", 20.0), ("MAXN_SUPER", 30.0))
    )
    found = compare_benches(first, second)
    assert found.other["mJ per input, full depth"] == (20.0, 30.0)
    assert found.conditions == {"power mode": ("15W", "MAXN_SUPER")}
    assert "mJ per input, full depth" not in compare_benches(first, measured).other


def test_compare_benches_refuses_another_json(measured: Path, tmp_path: Path) -> None:
    write_json({"a": 1}, tmp_path / "no.json")
    with pytest.raises(BerxitError, match=r"no.json is not a bench.json: it has no"):
        compare_benches(measured, tmp_path / "no.json")


def test_compare_benches_refuses_different_metrics(measured: Path, tmp_path: Path) -> None:
    first, second = (changed(measured, tmp_path / f"{name}.json", metric=name) for name in ("accuracy", "f1"))
    with pytest.raises(InputError, match=r"accuracy.json has the metric accuracy, .*f1.json has f1: compare benches"):
        compare_benches(first, second)


def test_compare_command_fails_above_the_given_percentage(measured: Path, tmp_path: Path) -> None:
    slow = changed(measured, tmp_path / "slow.json", 1.5)
    passed = CliRunner().invoke(command, [str(measured), str(slow), "--fail-above", "60"])
    assert passed.exit_code == 0
    failed = CliRunner().invoke(command, [str(measured), str(slow), "--fail-above", "10"])
    assert isinstance(failed.exception, BerxitError)
    assert "is worse than" in str(failed.exception)


def test_compare_command_refuses_a_bench_and_a_bundle(measured: Path, bundle: Path) -> None:
    result = CliRunner().invoke(command, [str(measured), str(bundle)])
    assert isinstance(result.exception, InputError)
    assert "only one of them is a bench" in str(result.exception)


def test_compare_does_not_replace_a_compared_bench(measured: Path) -> None:
    before = measured.read_bytes()
    result = CliRunner().invoke(command, [str(measured.parent), str(measured), "--output", str(measured)])
    assert isinstance(result.exception, InputError)
    assert "is one of the compared benches" in str(result.exception)
    assert measured.read_bytes() == before


@pytest.mark.parametrize("option", ["--data", "--limit", "--threads"])
def test_compare_rejects_options_of_models_for_benches(measured: Path, option: str) -> None:
    result = CliRunner().invoke(command, [str(measured), str(measured), option, "1"])
    assert isinstance(result.exception, InputError)
    assert f"{option} goes with models" in str(result.exception)
