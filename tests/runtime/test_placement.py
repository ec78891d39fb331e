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
    """Replaces this machine by another."""
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
def test_choose_device_detects_or_accepts_this_machine(on, machine: devices.Machine, name: str, chosen: str) -> None:  # type: ignore[no-untyped-def]
    on(machine)
    assert choose_device(name, "onnxruntime").name == chosen


def test_choose_device_lists_known_devices_for_unknown_name(on) -> None:  # type: ignore[no-untyped-def]
    on(LAPTOP)
    with pytest.raises(InputError, match=r"unknown device 'toaster': choose auto, .*raspberry-pi.*cpu"):
        choose_device("toaster", "onnxruntime")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("jetson", "copy the bundle to the Jetson"),
        ("raspberry-pi", "copy the bundle to the Raspberry Pi"),
        ("desktop-gpu", "nvidia-smi"),
        ("mac", "on a Mac"),
        ("iphone", "it has no Python"),
    ],
)
def test_choose_device_rejects_another_machine_with_remedy(on, name: str, remedy: str) -> None:  # type: ignore[no-untyped-def]
    on(LAPTOP)
    with pytest.raises(
        BerxitError, match=rf"device '{name}' is not this machine \(.*Some CPU.*\): .*{remedy}"
    ) as failure:
        choose_device(name, "onnxruntime")
    assert failure.value.exit_status == 1


@pytest.mark.parametrize(
    ("target", "remedies"),
    [
        (
            "coreml",
            r"For mac: run this command on a Mac\. For ipad: it has no Python; add the bundle to an app",
        ),
        (
            "tensorrt",
            r"For jetson: copy the bundle to the Jetson.* For desktop-gpu: run this command on a machine whose",
        ),
    ],
)
def test_choose_device_rejects_target_with_remedies(on, target: str, remedies: str) -> None:  # type: ignore[no-untyped-def]
    on(LAPTOP)
    with pytest.raises(
        InputError, match=rf"exported for '{target}', and device 'cpu' runs onnxruntime\. {remedies}"
    ) as error:
        choose_device("auto", target)
    assert "berxit-export" not in str(error.value)
