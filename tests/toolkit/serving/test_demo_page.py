"""The demo page in headless Chromium."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from berxit.runtime import EarlyExitRunner
from berxit.toolkit.serving import demo, server
from berxit.toolkit.serving.service import Service, Settings, application

EXAMPLES = ["the cat sat on the mat", "a dog"]
LONGEST_MS = 20_000


@pytest.fixture(scope="module")
def service(bundle: Path) -> Service:
    return Service(EarlyExitRunner.load(bundle, threads=1), Settings("tiny", hosts=server.LOOPBACK_NAMES))


@pytest.fixture(scope="module")
def url(service: Service) -> Iterator[str]:
    """The page, served by a thread."""
    app = application(service, demo.routes(service, EXAMPLES))
    running = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on", ws="none"))
    with server.listen("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=lambda: asyncio.run(running.serve(sockets=[listening])))
        thread.start()
        yield server.url_of(listening)
        running.should_exit = True
        thread.join()


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    """The page in a new tab. The test fails if a script raises, or if the page needs anything from elsewhere."""
    context = browser.new_context(viewport={"width": 390, "height": 844}, reduced_motion="reduce")
    tab = context.new_page()
    tab.set_default_timeout(LONGEST_MS)
    problems: list[str] = []
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("console", lambda message: problems.append(message.text) if "Security Policy" in message.text else None)
    tab.on("request", lambda request: None if request.url.startswith(url) else problems.append(request.url))
    tab.goto(url)
    tab.wait_for_selector("#examples button")
    yield tab
    context.close()
    assert not problems


def finished(page: Any) -> list[str]:
    """Waits for the prediction, and returns the class of each layer's row."""
    page.wait_for_selector("#verdict[aria-busy=false] #label:not(.empty)")
    page.wait_for_selector("#layers li.exit")
    return [row.get_attribute("class") for row in page.query_selector_all("#layers li")]


def move(page: Any, slider: str, value: int) -> None:
    page.eval_on_selector(
        slider, "(s, v) => { s.value = v; s.dispatchEvent(new Event('input', {bubbles: true})); }", value
    )


def test_click_on_an_example_shows_its_prediction_layer_by_layer(page: Any, service: Service) -> None:
    page.click("#examples button >> nth=1")
    rows = finished(page)
    expected = service.runner.predict(EXAMPLES[0])  # the longer example is the second button
    assert page.input_value("textarea") == EXAMPLES[0]
    assert page.inner_text("#label") == expected.label
    assert rows == [
        "" if layer < expected.exit_layer else "exit" if layer == expected.exit_layer else "skipped"
        for layer in (1, 2, 3)
    ]
    assert page.inner_text("#exit") == f"{expected.exit_layer} of 3"
    assert page.inner_text("#latency").endswith(" ms")
    assert page.locator("#classes li").count() == 2


def test_typed_text_is_predicted_without_a_click(page: Any, service: Service) -> None:
    page.fill("textarea", "stop the music")
    finished(page)
    assert page.inner_text("#label") == service.runner.predict("stop the music").label


def test_threshold_slider_changes_the_exit_layer(page: Any) -> None:
    page.click("#examples button >> nth=0")
    finished(page)
    for value, layer in ((0, 1), (1000, 3)):
        move(page, "#threshold", value)
        page.locator("#exit", has_text=re.compile(f"^{layer} of 3$")).wait_for()
        assert finished(page).index("exit") == layer - 1
    assert page.inner_text("#reason") == "No earlier layer was certain enough."
    page.click("#calibrated")
    assert page.inner_text("#threshold-value") == "calibrated"


def test_deadline_slider_stops_at_the_first_exit(page: Any) -> None:
    page.click("#examples button >> nth=0")
    finished(page)
    move(page, "#threshold", 1000)
    move(page, "#deadline", 0)
    page.locator("#reason", has_text="The first exit was later than the deadline.").wait_for()
    assert page.inner_text("#deadline-value") == "0.10 ms"
    assert finished(page).index("exit") == 0


def test_page_shows_errors_of_the_service(page: Any) -> None:
    page.route("**/v1/classify", lambda route: route.fulfill(status=503, json={"error": {"message": "busy"}}))
    page.click("#examples button >> nth=0")
    page.wait_for_selector("#error:not([hidden])")
    assert page.inner_text("#error") == "busy"


def test_page_fits_the_screen_of_a_phone(page: Any) -> None:
    page.click("#examples button >> nth=0")
    finished(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
