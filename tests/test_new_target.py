"""A new target is one module and one entry in TARGETS: export, its help and inspect accept it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from berxit import devices
from berxit.exporters.export import export
from berxit.exporters.onnx import onnxruntime
from berxit.exporters.options import ExportOptions
from berxit.exporters.segments import Segments
from berxit.exporters.targets import TARGETS, Precision, Settings, Target, Version, WrittenSegments
from berxit.runtime import EarlyExitRunner
from berxit.runtime.backends import BACKENDS
from berxit.runtime.bundle import Manifest, read_manifest
from berxit.runtime.errors import InputError
from berxit.runtime.loop import Backend
from berxit.runtime.progress import Bar
from berxit.runtime.tokenization import TokenBatch
from berxit.toolkit.cli import load

TOY = Target(
    "toy",
    writer=__name__,
    precisions=(Precision("exact", atol=1e-4), Precision("half", atol=1e-2, least_psnr=20.0, scored=True)),
    versions=(Version("toy2"), Version("toy1", without=("half",))),
    options=frozenset({"lengths"}),
    lengths=(8, 16),
)


def write_segments(
    segments: Segments, folder: Path, settings: Settings, samples: Sequence[TokenBatch], bar: Bar
) -> WrittenSegments:
    """Writes the files of ONNX Runtime."""
    name = {"exact": "fp32", "half": "fp16"}[settings.precision.name]
    onnx_settings = TARGETS["onnxruntime"].settings(ExportOptions(name))
    return onnxruntime.write_segments(segments, folder, onnx_settings, samples, bar)


def checking_backend(folder: Path, manifest: Manifest, threads: int | None) -> Backend:
    return onnxruntime.checking_backend(folder, manifest, threads)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Target]:
    """The new target, with ONNX Runtime as its backend, on every device."""
    with monkeypatch.context() as patched:
        everywhere = tuple(replace(device, targets=(*device.targets, TOY.name)) for device in devices.DEVICES)
        patched.setattr(devices, "DEVICES", everywhere)
        patched.setitem(TARGETS, TOY.name, TOY)
        patched.setitem(BACKENDS, TOY.name, BACKENDS["onnxruntime"][:1])
        _declare_again()
        yield TOY
    _declare_again()


def _declare_again() -> None:
    """Derives the options of berxit-export from the registry again."""
    importlib.reload(importlib.import_module("berxit.toolkit.commands.export"))


def invoke(command: str, *arguments: str | Path) -> Result:
    done = CliRunner().invoke(load(command), [str(each) for each in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_new_target_is_exported_inspected_and_run(toy: Target, checkpoint: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    done = invoke("export", checkpoint, "--target", "toy", "--precision", "half", "--output", bundle, "--quiet")
    assert done.exit_code == 0, done.output
    assert "-[✓] layer 03" in done.output
    assert "half costs " in done.output
    manifest = read_manifest(bundle)
    assert (manifest.target, manifest.precision, manifest.lengths) == ("toy", "half", (8, 16, 32))
    assert manifest.scores is not None
    assert "toy, half" in invoke("inspect", bundle).output
    assert EarlyExitRunner.load(bundle, threads=1).predict("the cat sat").exit_layer >= 1


def test_help_of_export_names_a_new_target(toy: Target) -> None:
    text = " ".join(invoke("export", "--help").output.split())
    for names in ("|toy]", "toy: exact, half", "toy: toy2, toy1", "toy: half: run the calibration data"):
        assert names in text
    assert "tensorrt, coreml, toy: input lengths" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ExportOptions("fp32"), "target toy has no precision 'fp32': choose exact, half"),
        (ExportOptions("half", target_version="toy1"), "--precision half does not go with --target-version toy1"),
        (ExportOptions(threads=2), "--threads does not go with target toy"),
    ],
)
def test_new_target_rejects_unknown_options(
    toy: Target, options: ExportOptions, message: str, checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        export(checkpoint, "toy", tmp_path / "bundle", options=options)


def test_help_of_export_names_everything_in_the_registry() -> None:
    text = " ".join(invoke("export", "--help").output.split())
    assert "[onnxruntime|tensorrt|coreml]" in text
    for target in TARGETS.values():
        for names in ([each.name for each in target.precisions], [each.described for each in target.versions]):
            if names:
                assert f"{target.name}: {', '.join(names)}" in text
