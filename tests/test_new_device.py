"""A new device is one entry in DEVICES: ``berxit devices``, export and the bench accept it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from berxit import devices
from berxit.devices import Device
from berxit.runtime.bundle import read_manifest
from berxit.toolkit.cli import load

TOY = Device(
    "toy-board",
    "a board of this test",
    ("onnxruntime",),
    "fp16",
    lambda machine: True,
    "connect the toy board",
    threads=1,
)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Device:
    """The new device, which this machine is."""
    monkeypatch.setattr(devices, "DEVICES", (TOY, *devices.DEVICES))
    return TOY


def invoke(command: str, *arguments: str | Path) -> Result:
    done = CliRunner().invoke(load(command), [str(each) for each in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_devices_lists_a_new_device_and_recognises_it(toy: Device) -> None:
    output = invoke("devices").output
    (row,) = [line for line in output.splitlines() if line.startswith(f"| {toy.name} ")]
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        toy.name,
        toy.description,
        "onnxruntime",
        "fp16",
        "this machine",
    ]
    assert output.rstrip().endswith(f"--device {toy.name}")


def test_export_and_bench_use_the_profile_of_a_new_device(checkpoint: Path, toy: Device, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    done = invoke("export", checkpoint, "--device", toy.name, "--output", bundle, "--quiet")
    assert done.exit_code == 0, done.output
    manifest = read_manifest(bundle)
    assert (manifest.target, manifest.precision) == ("onnxruntime", "fp16")
    short = ["--queries", "1", "--seconds", "0", "--thresholds", "1", "--output", tmp_path / "bench", "--quiet"]
    measured = invoke("bench", bundle, "--device", toy.name, *short)
    assert measured.exit_code == 0, measured.output
    found = json.loads((tmp_path / "bench" / "bench.json").read_text(encoding="utf-8"))
    assert (found["device"], found["threads"]) == (toy.name, toy.threads)


@pytest.mark.parametrize("command", ["export", "bench"])
def test_commands_list_a_new_device_if_the_name_is_unknown(
    command: str, checkpoint: Path, bundle: Path, toy: Device, tmp_path: Path
) -> None:
    where = {"export": [checkpoint, "--output", tmp_path / "out"], "bench": [bundle]}[command]
    done = CliRunner().invoke(load(command), [*map(str, where), "--device", "no-such-board"])
    assert done.exit_code != 0
    assert toy.name in str(done.exception) + done.output
