"""Screenshots of a page in headless Chromium.

``python tools/page_screenshot.py report.html docs/report.png 1200 1640``: the last two are the size in pixels.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright


def screenshot(page: Path, image: Path, width: int, height: int) -> None:
    """Writes the upper part of ``page`` to ``image``."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": width, "height": height}, color_scheme="light")
        tab.goto(page.resolve().as_uri())
        tab.screenshot(path=image)
        browser.close()


if __name__ == "__main__":
    screenshot(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
