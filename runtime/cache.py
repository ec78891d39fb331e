"""The cache folder: engines, compiled models, tuning results, and data sets from the hub."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$BERXIT_CACHE, or the folder berxit in the user's cache folder ($XDG_CACHE_HOME, ~/.cache).

    A bundle is no place for cached files: it contains only what its manifest names, may be read-only, and is copied
    between devices. Two bundles with equal segments also share their engines here.
    """
    if chosen := os.environ.get("BERXIT_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "berxit"
