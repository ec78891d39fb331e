"""EarlyExitRunner.from_pretrained, on a stand-in for the hub: this test suite reaches no network."""

from __future__ import annotations

import inspect
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hub_standin import HubStandIn

from berxit.runtime import BerxitError, EarlyExitRunner, InputError


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: Path) -> HubStandIn:
    """A hub with one repository, org/bundle."""
    standin = HubStandIn(tmp_path / "hub").install(monkeypatch)
    shutil.copytree(bundle, standin.repositories / "org" / "bundle")
    return standin


def test_standin_has_the_signatures_of_the_library() -> None:
    library = pytest.importorskip("huggingface_hub")
    for name in ("snapshot_download", "create_repo", "upload_folder"):
        real = library.snapshot_download if name == "snapshot_download" else getattr(library.HfApi, name)
        documented = inspect.signature(real).parameters
        used = [
            each for each in inspect.signature(getattr(HubStandIn, name)).parameters.values() if each.name != "self"
        ]
        for parameter in used:
            assert documented[parameter.name].kind == parameter.kind


def test_from_pretrained_loads_a_repository(hub: HubStandIn, bundle: Path) -> None:
    runner = EarlyExitRunner.from_pretrained("org/bundle", threads=1)
    assert runner.backend.threads == 1
    found, expected = (each.predict("the cat sat") for each in (runner, EarlyExitRunner.load(bundle, threads=1)))
    assert (found.scores, found.model) == (expected.scores, expected.model)


def test_from_pretrained_checks_downloaded_files(hub: HubStandIn) -> None:
    with (hub.repositories / "org/bundle/segments/layer_01.onnx").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(BerxitError, match=r"layer_01\.onnx: checksum differs"):
        EarlyExitRunner.from_pretrained("org/bundle")


def test_from_pretrained_loads_a_folder(bundle: Path) -> None:
    for path in (bundle, str(bundle)):
        assert EarlyExitRunner.from_pretrained(path).manifest.digest == EarlyExitRunner.load(bundle).manifest.digest


def test_from_pretrained_passes_the_revision(hub: HubStandIn) -> None:
    assert EarlyExitRunner.from_pretrained("org/bundle", revision="main").manifest.model.layers == 3
    with pytest.raises(
        BerxitError, match=r"cannot download org/bundle from the hub: 404 Client Error\. Check"
    ) as error:
        EarlyExitRunner.from_pretrained("org/bundle", revision="other")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("model", ["bundle", "a/b/c", "/nowhere/bundle", Path("org/bundle"), None, 3])
def test_from_pretrained_rejects_what_is_neither_folder_nor_repository(model: Any) -> None:
    with pytest.raises(InputError, match="folder"):
        EarlyExitRunner.from_pretrained(model)


def test_from_pretrained_rejects_a_revision_of_a_folder(bundle: Path) -> None:
    with pytest.raises(InputError, match="only a repository has revisions"):
        EarlyExitRunner.from_pretrained(bundle, revision="main")


def test_from_pretrained_without_the_library_names_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(BerxitError, match=r"huggingface_hub, which is not installed: .*pip.* install .*\[hub\]"):
        EarlyExitRunner.from_pretrained("org/bundle")


def test_from_pretrained_of_a_folder_imports_neither_hub_nor_torch(bundle: Path) -> None:
    code = (
        "import sys; from berxit import EarlyExitRunner; EarlyExitRunner.from_pretrained(sys.argv[1]).predict('cat');"
        "print(*{name.partition('.')[0] for name in sys.modules} & {'torch', 'transformers', 'huggingface_hub'})"
    )
    done = subprocess.run([sys.executable, "-c", code, bundle], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
