"""Recognition and sensors of recorded Jetson boards, on the host and in containers."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from boards import NAMES, board

from berxit.devices import POWER, fitting_extra, read_power, read_sensors, recognise
from berxit.devices.installation import JETPACK_PYTHON
from berxit.devices.machine import read_machine
from berxit.devices.sensors import values_of


@pytest.mark.parametrize("name", NAMES)
def test_read_machine_recognises_board_and_its_software(name: str, tmp_path: Path) -> None:
    recorded = board(name)
    machine = recorded.machine(tmp_path)
    assert recognise(machine).name == recorded.device
    assert (machine.l4t, machine.driver, machine.jetpack) == (recorded.l4t, recorded.driver, recorded.jetpack)
    assert machine.software == f"L4T {recorded.l4t}, driver {recorded.driver}"
    assert fitting_extra("tensorrt", machine) == recorded.extra
    cuda = ".".join(map(str, recorded.cuda))
    assert fitting_extra("tensorrt", replace(machine, cuda=cuda)) == recorded.extra
    assert JETPACK_PYTHON[machine.jetpack] == tuple(map(int, recorded.python.split(".")))


@pytest.mark.parametrize("name", NAMES)
def test_read_machine_recognises_board_in_container_by_mounted_model(name: str, tmp_path: Path) -> None:
    recorded = board(name)
    machine = recorded.machine(tmp_path, inside=True, mounted=["tmp/nv_jetson_model"])
    assert recognise(machine).name == recorded.device
    assert fitting_extra("tensorrt", machine) == recorded.extra


@pytest.mark.parametrize("evidence", ["release file", "kernel", "GPU"])
def test_read_machine_recognises_jetson_in_container_by_one_sign(evidence: str, tmp_path: Path) -> None:
    recorded = board("orin-nano")
    mounted = ["etc/nv_tegra_release"] if evidence == "release file" else []
    machine = read_machine(
        recorded.tree(tmp_path, inside=True, mounted=mounted),
        architecture="aarch64",
        kernel=recorded.kernel if evidence == "kernel" else "6.1.0-custom",
        jetson_gpu=lambda: evidence == "GPU",
    )
    assert recognise(machine).name == "jetson"
    assert recognise(machine).workspace_mib < 1024
    assert fitting_extra("tensorrt", machine) == "jetson"


def test_read_machine_without_any_sign_is_no_jetson(tmp_path: Path) -> None:
    recorded = board("orin-nano")
    machine = read_machine(
        recorded.tree(tmp_path, inside=True),
        architecture="aarch64",
        kernel="6.1.0-rpi7-rpi-v8",
        jetson_gpu=lambda: False,
    )
    assert (machine.board, machine.jetpack) == ("", 0)


@pytest.mark.parametrize("model", ["Not a Jetson device", "", "Raspberry Pi 5"])
def test_read_machine_ignores_other_text_in_model_file(model: str, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp" / "nv_jetson_model").write_text(model, encoding="ascii")
    for architecture in ("aarch64", "x86_64"):
        machine = read_machine(tmp_path, architecture=architecture, kernel="6.1.0", jetson_gpu=lambda: False)
        assert machine.board == ""


@pytest.mark.parametrize(
    ("driver", "release", "kernel", "jetpack"),
    [
        ("595.78", "", "6.8.12-tegra", 7),
        ("580.00", "", "6.8.12-tegra", 7),
        ("540.3.0", "", "5.15.136-tegra", 6),
        ("35.4.1", "", "5.10.120-tegra", 5),
        ("595.78", "# R36 (release), REVISION: 4.3, GCID: 1", "6.8.12-tegra", 7),  # a JetPack 6 container on JetPack 7
        ("", "# R39 (release), REVISION: 2.0", "6.8.12-tegra", 7),
        ("", "# R36 (release), REVISION: 3.0, GCID: 1", "6.6.3-custom", 6),
        ("", "# R35 (release), REVISION: 6.0, GCID: 1", "5.10.216-tegra", 5),
        ("", "# R32 (release), REVISION: 7.4, GCID: 1", "4.9.337-tegra", 4),
        ("", "", "5.15.148-rt-tegra", 6),
        ("", "", "6.8.12-tegra-ubuntu24.04_aarch64", 7),
    ],
)
def test_read_machine_finds_jetpack_of_the_driver(
    driver: str, release: str, kernel: str, jetpack: int, tmp_path: Path
) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "nv_tegra_release").write_text(release, encoding="ascii")
    if driver:
        (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
        line = f"NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  {driver}  Release Build\n"
        (tmp_path / "proc/driver/nvidia/version").write_text(line, encoding="ascii")
    machine = read_machine(tmp_path, architecture="aarch64", kernel=kernel, jetson_gpu=lambda: False)
    assert (machine.jetpack, machine.driver) == (jetpack, driver)


@pytest.mark.parametrize("inside", [False, True], ids=["host", "container"])
@pytest.mark.parametrize("name", NAMES)
def test_sensors_of_board_measure_power_and_clocks(name: str, inside: bool, tmp_path: Path) -> None:
    recorded = board(name)
    root = recorded.tree(tmp_path, inside=inside)
    reading = read_sensors(root)
    assert reading.gpu_mhz == recorded.gpu_mhz
    assert reading.clocks_fixed is recorded.clocks_fixed
    assert read_power(root) == pytest.approx(recorded.watts, rel=1e-3)
    rails = values_of(POWER.channels(root))
    recorded_rails = {rail: pytest.approx(watts, abs=4e-3) for rail, watts in recorded.rails.items()}
    assert {name: rails[name] for name in recorded_rails} == recorded_rails
    assert not {"NC", "sum of shunt voltages"} & set(rails)


def test_module_power_of_agx_counts_no_rail_twice(tmp_path: Path) -> None:
    root = board("agx-orin").tree(tmp_path)
    rails = values_of(POWER.channels(root))
    assert set(rails) == {"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"}
    assert read_power(root) == pytest.approx(sum(rails.values()) - rails["VDDQ_VDD2_1V8AO"])


def test_sensor_that_fails_is_missing_and_not_zero(tmp_path: Path) -> None:
    root = board("orin-nano").tree(tmp_path)
    for channel in (1, 2, 3):
        (root / f"sys/class/hwmon/hwmon1/curr{channel}_input").unlink()
    (root / "sys/class/devfreq/17000000.gpu/cur_freq").write_text("", encoding="ascii")
    reading = read_sensors(root)
    assert reading.gpu_mhz is None
    assert read_power(root) is None


@pytest.mark.skipif(os.name != "posix", reason="the stand-in for nvpmodel is a shell script")
@pytest.mark.parametrize("name", NAMES)
def test_power_mode_of_board_is_in_catalogue(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = board(name)
    (tmp_path / "output").write_text(recorded.nvpmodel, encoding="ascii")
    command = tmp_path / "nvpmodel"
    command.write_text(f'#!/bin/sh\n[ "$1" = -q ] && cat "{tmp_path}/output"\n', encoding="ascii")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    mode = read_sensors(tmp_path).power_mode
    assert mode == recorded.mode
    assert mode in recognise(recorded.machine(tmp_path)).power_modes
