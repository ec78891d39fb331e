from __future__ import annotations

from pathlib import Path

import pytest

from berxit.runtime.cache import cache_folder


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "/home/me/.cache/berxit"),
        ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/berxit"),
        ({"XDG_CACHE_HOME": "/xdg", "BERXIT_CACHE": "/mine"}, "/mine"),
    ],
)
def test_cache_folder_follows_the_environment(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("XDG_CACHE_HOME", "BERXIT_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(expected)
