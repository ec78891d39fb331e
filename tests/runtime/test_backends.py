"""Registry of backends: choice of the backend for a bundle, and error messages if there is none."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from berxit.devices import default_threads, install_command
from berxit.runtime.backends import BACKENDS, open_backend
from berxit.runtime.bundle import Manifest, read_manifest
from berxit.runtime.errors import BerxitError, InputError


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Manifest:
    return read_manifest(bundle)


def test_open_backend_names_install_command_of_onnxruntime(
    bundle: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "berxit.runtime.backends.onnxruntime", raising=False)
    with pytest.raises(BerxitError) as failure:
        open_backend(bundle, manifest)
    assert f"needs onnxruntime, which is not installed here: {install_command('onnxruntime')}" in str(failure.value)
    assert "\n" not in str(failure.value)


def test_open_backend_passes_on_import_errors_of_project(
    bundle: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = dataclasses.replace(BACKENDS["onnxruntime"][0], module="berxit.runtime.backends.nothing")
    monkeypatch.setitem(BACKENDS, "onnxruntime", (info,))
    with pytest.raises(BerxitError, match=r"cannot open .*No module named .*runtime\.backends\.nothing") as failure:
        open_backend(bundle, manifest)
    assert "pip install" not in str(failure.value)


def test_open_backend_uses_the_first_installed_backend(
    bundle: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = BACKENDS["onnxruntime"][0]
    absent = dataclasses.replace(real, name="absent", package="no_such_package", extra="demo")
    monkeypatch.setitem(BACKENDS, "onnxruntime", (absent, real))
    assert open_backend(bundle, manifest).name == "onnxruntime"
    with pytest.raises(BerxitError, match=r"needs no_such_package, which is not installed here: .*\[demo\]"):
        open_backend(bundle, manifest, backend="absent")
    with pytest.raises(InputError, match=r"no backend 'abacus' runs bundles for onnxruntime: choose absent .* or onnx"):
        open_backend(bundle, manifest, backend="abacus")


def test_open_backend_rejects_unknown_target(bundle: Path, manifest: Manifest) -> None:
    with pytest.raises(BerxitError, match=r"exported for 'toaster', which this berxit cannot run.*onnxruntime"):
        open_backend(bundle, dataclasses.replace(manifest, target="toaster"))


@pytest.mark.parametrize("threads", [0, -2])
def test_open_backend_rejects_less_than_one_thread(bundle: Path, manifest: Manifest, threads: int) -> None:
    with pytest.raises(InputError, match=f"threads is {threads}: it must be at least 1"):
        open_backend(bundle, manifest, threads)


def test_open_backend_uses_default_threads(bundle: Path, manifest: Manifest) -> None:
    assert open_backend(bundle, manifest).threads == default_threads()
    assert open_backend(bundle, manifest, 3).threads == 3
