"""The inputs that the fuzzer found for each reader are read or refused."""

from __future__ import annotations

from pathlib import Path

import fuzz_readers
import pytest


@pytest.mark.parametrize("reader", fuzz_readers.READERS)
def test_reader_survives_its_corpus(reader: str, bundle: Path) -> None:
    read = fuzz_readers.reader_of(reader, (bundle / "manifest.json").read_bytes())
    inputs = sorted((fuzz_readers.CORPUS / reader).iterdir())
    assert len(inputs) >= 8
    for path in inputs:
        assert fuzz_readers.survives(read, path.read_bytes()), path.name


def test_survives_passes_other_exceptions_through() -> None:
    def read(content: bytes) -> None:
        raise ValueError(content)

    with pytest.raises(ValueError, match="x"):
        fuzz_readers.survives(read, b"x")
