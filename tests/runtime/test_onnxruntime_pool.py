"""ONNX Runtime with one process-wide thread pool: its features, its errors, and that tuning omits it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from berxit.runtime.bundle import Manifest, read_manifest
from berxit.runtime.errors import InputError
from berxit.runtime.tuning import tune

ort = pytest.importorskip("onnxruntime")

ROOT = Path(__file__).resolve().parents[2]


needs_pool = pytest.mark.skipif(
    not hasattr(ort, "set_global_thread_pool_sizes"), reason="ONNX Runtime has no process-wide thread pool before 1.23"
)


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Manifest:
    return read_manifest(bundle)


SHARED_POOL = """
import sys
from pathlib import Path
import onnxruntime as ort
from berxit.runtime.backends import open_backend
from berxit.runtime.bundle import read_manifest
from berxit.runtime.errors import BerxitError
from berxit.runtime.golden import differences, read_golden
from berxit.runtime.runner import EarlyExitRunner

def told(what, *arguments, **options):
    try:
        what(*arguments, **options)
        print("fine")
    except BerxitError as error:
        print(error)
    except RuntimeError:
        print("refused by ONNX Runtime")

folder, manifest = Path(sys.argv[1]), read_manifest(sys.argv[1])
if sys.argv[2] == "app":
    ort.set_global_thread_pool_sizes(2, 1)
    told(open_backend, folder, manifest, 2)
backend = open_backend(folder, manifest, 2, backend="onnxruntime", backend_options={"shared_pool": True})
print(backend.label)
print(max(differences(backend, read_golden(folder, manifest), manifest.model.pad_token_id)))
told(ort.InferenceSession, str(folder / "segments" / "layer_01.onnx"))
told(open_backend, folder, manifest, 3, backend="onnxruntime", backend_options={"shared_pool": True})
told(open_backend, folder, manifest, 2)
told(EarlyExitRunner.load, folder, tune=True)
"""


@needs_pool
@pytest.mark.parametrize("who", ["us", "app"])
def test_shared_pool_serves_all_sessions(
    bundle: Path, manifest: Manifest, who: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs in a separate process, because the thread pool cannot be changed once it exists."""
    monkeypatch.setenv("BERXIT_CACHE", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", SHARED_POOL, str(bundle), who], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = [line for line in done.stdout.splitlines() if "EP Error" not in line and "****" not in line]
    lines = [line for line in lines if not line.startswith((" when using", "Falling back"))]
    pooled = (
        "this process runs ONNX Runtime with one thread pool for all sessions, until it ends: use --backend onnxruntime"
        " --backend-option shared-pool"
    )
    if who == "app":
        assert lines.pop(0).startswith(pooled)
    name, off, app, more, plain, tuned = lines
    assert name == "onnxruntime (shared-pool)"
    assert float(off) <= manifest.parity.atol
    assert app == "refused by ONNX Runtime"
    already = "threads is 3, but this process already has a thread pool of 2: use threads=2"
    assert more == ("fine" if who == "app" else already)
    assert plain.startswith(pooled)
    assert "cannot be tuned here: this process runs ONNX Runtime with one thread pool" in tuned
    assert not list(tmp_path.rglob("*.json"))  # nothing that another process would take for the fastest


def test_tune_never_uses_the_shared_pool(bundle: Path, manifest: Manifest) -> None:
    tried = tune(bundle, manifest, threads=1, seconds=0, accept_noise=True)
    assert not any("shared_pool" in each.backend_options for each in tried)
    with pytest.raises(InputError, match=r"backend 'onnxruntime \(shared-pool\)' cannot be tuned"):
        tune(bundle, manifest, backend="onnxruntime", backend_options={"shared_pool": True})
