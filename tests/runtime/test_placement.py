from __future__ import annotations

import pytest

from berxit import devices
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.placement import choose_device

LAPTOP = devices.Machine("Linux", "x86_64", "Some CPU", 4, 16.0, "", "")
NANO = devices.Machine("Linux", "aarch64", "", 6, 8.0, "NVIDIA Jetson Orin Nano Developer Kit", "")
MAC = devices.Machine("Darwin", "arm64", "Apple M2", 8, 16.0, "", "")


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Puts the test on a machine."""
    return lambda machine: monkeypatch.setattr(devices, "this_machine", lambda: machine)


@pytest.mark.parametrize(
    ("machine", "name", "chosen"),
    [
        (LAPTOP, "auto", "cpu"),
        (LAPTOP, "cpu", "cpu"),
        (NANO, "auto", "jetson-orin-nano"),
        (NANO, "jetson", "jetson"),
        (NANO, "cpu", "cpu"),
        (MAC, "auto", "mac"),
    ],
)
def test_this_machine_is_taken(on, machine: devices.Machine, name: str, chosen: str) -> None:  # type: ignore[no-untyped-def]
    on(machine)
    assert choose_device(name, "onnxruntime").name == chosen


def test_an_unknown_device_is_refused_with_the_known_ones(on) -> None:  # type: ignore[no-untyped-def]
    on(LAPTOP)
    with pytest.raises(InputError, match=r"unknown device 'toaster': choose auto, .*raspberry-pi.*cpu"):
        choose_device("toaster", "onnxruntime")


@pytest.mark.parametrize(
    ("name", "mend"),
    [
        ("jetson", "copy the bundle to the Jetson"),
        ("raspberry-pi", "copy the bundle to the Raspberry Pi"),
        ("desktop-gpu", "nvidia-smi"),
        ("mac", "on a Mac"),
        ("iphone", "no Python on it"),
    ],
)
def test_another_machine_is_refused_with_the_way_there(on, name: str, mend: str) -> None:  # type: ignore[no-untyped-def]
    on(LAPTOP)
    with pytest.raises(
        BerxitError, match=rf"device '{name}' is not this machine \(.*Some CPU.*\): .*{mend}"
    ) as failure:
        choose_device(name, "onnxruntime")
    assert failure.value.exit_status == 1


@pytest.mark.parametrize(
    ("target", "way"),
    [
        (
            "coreml",
            r"For mac: run this command on a Mac\. For ipad: there is no Python on it; copy the bundle into an app",
        ),
        (
            "tensorrt",
            r"For jetson: copy the bundle to the Jetson.* For desktop-gpu: run this command on a machine whose",
        ),
    ],
)
def test_a_bundle_for_another_device_is_refused_with_the_way_there(on, target: str, way: str) -> None:  # type: ignore[no-untyped-def]
    on(LAPTOP)
    with pytest.raises(
        InputError, match=rf"exported for '{target}', and device 'cpu' runs onnxruntime\. {way}"
    ) as error:
        choose_device("auto", target)
    assert "berxit-export" not in str(error.value)
