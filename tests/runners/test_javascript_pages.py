"""The demo page and the programs of docs/javascript.md predict as the Python runtime, in headless Chromium and Node."""

from __future__ import annotations

import http.server
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import javascript
import pytest

from berxit.runtime import EarlyExitRunner
from berxit.runtime.prediction import Prediction

ROOT = Path(__file__).resolve().parents[2]
TEXT = "the cat sat on the mat"


@pytest.fixture
def site(bundle: Path, tmp_path: Path) -> Path:
    """The demo page with the tiny bundle. ``page.html`` is the page of docs/javascript.md."""
    package = javascript.built()
    if not (package / "node_modules" / "onnxruntime-web").exists():
        pytest.skip("onnxruntime-web is not installed: run npm ci in runners/js")
    javascript.run("node", "demo/build.mjs", str(bundle), str(tmp_path / "site"))
    (tmp_path / "site" / "page.html").write_text(block("html"), encoding="utf-8")
    return tmp_path / "site"


def block(language: str) -> str:
    """The only block of a language in docs/javascript.md."""
    page = (ROOT / "docs" / "javascript.md").read_text(encoding="utf-8")
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    return str(found)


@contextmanager
def ranges(site: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Address of the demo's own server, and its process, which prints the bytes of every response."""
    command = ["node", "demo/serve.mjs", str(site), "0", "--count"]
    with subprocess.Popen(command, cwd=javascript.RUNNER, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip(), server
        finally:
            server.terminate()


class Silent(http.server.SimpleHTTPRequestHandler):
    """A server without byte ranges."""

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def no_ranges(site: Path) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_address[1]}/"
        server.shutdown()


def python(bundle: Path) -> Prediction:
    with EarlyExitRunner.load(bundle, backend="onnxruntime", threads=1) as runner:
        return runner.predict(TEXT)


def test_demo_page_shows_every_layer_until_the_exit(site: Path, bundle: Path, browser: Any) -> None:
    expected = python(bundle)
    with ranges(site) as (address, server):
        page = browser.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: errors.append(request.url) if not request.url.startswith(address) else None)
        page.goto(f"{address}?rows")
        page.wait_for_selector("#predict:not([disabled])", timeout=60_000)
        page.fill("#first", TEXT)
        page.click("#predict")
        page.wait_for_selector("#layers tr.exit", timeout=60_000)
        assert page.inner_text("#result").startswith(f"{expected.label}, after {expected.exit_layer} of 3 layers")
        assert page.locator("#layers tr.exit").get_attribute("data-layer") == str(expected.exit_layer)
        assert page.locator("#layers tr.skipped").count() == 3 - expected.exit_layer
        page.fill("#first", "  ")
        page.click("#predict")
        page.wait_for_function("document.body.dataset.predictions === '2'")
        assert page.inner_text("#result").startswith("the text is empty")
        page.close()
        assert [error for error in errors if not error.startswith("data:")] == []
        server.terminate()
        assert server.stdout is not None
        fetched = [line.split() for line in server.stdout]
    words = sum(int(size) for size, name in fetched if name.endswith("words.bin"))
    assert 0 < words < (bundle / "segments" / "embeddings.words.bin").stat().st_size
    deeper = {f"/bundle/segments/layer_{layer:02d}.onnx" for layer in range(expected.exit_layer + 1, 4)}
    assert deeper & {name for _, name in fetched} == set()


@pytest.mark.slow
def test_page_of_the_docs_predicts_without_byte_ranges(site: Path, bundle: Path, browser: Any) -> None:
    expected = python(bundle)
    assert len(block("html").splitlines()) <= 20
    with no_ranges(site) as address:
        page = browser.new_page()
        page.goto(f"{address}page.html")
        page.wait_for_function("document.getElementById('result').textContent === 'Ready'", timeout=60_000)
        page.fill("input", TEXT)
        page.click("button")
        page.wait_for_function("document.getElementById('result').textContent !== 'Ready'", timeout=60_000)
        assert page.inner_text("#result") == f"{expected.label}, after {expected.exit_layer} layers"
        page.close()


def test_program_of_the_docs_predicts_in_node(bundle: Path, tmp_path: Path) -> None:
    package, expected = javascript.built(), python(bundle)
    modules = tmp_path / "node_modules"
    modules.mkdir()
    (modules / "berxit").symlink_to(package)
    (tmp_path / "program.mjs").write_text(block("js"), encoding="utf-8")
    shutil.copytree(bundle, tmp_path / "bundle")
    first, *layers = javascript.run("node", "program.mjs", "bundle", TEXT, cwd=tmp_path).splitlines()
    assert first.startswith(f"{expected.label}, after {expected.exit_layer} of 3 layers and ")
    assert [line.split(":")[0] for line in layers] == ["layer 1", "layer 2", "layer 3"]
