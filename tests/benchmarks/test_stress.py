"""The stress programs detect what they look for, and find nothing in a small run."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import mutations
import numpy as np
import policy_cases
import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_mutated_bundles_are_refused_or_predict(bundle: Path, tmp_path: Path) -> None:
    """In a new process: a process of the tests has run backends, which a fork does not copy."""
    count = 2 * len(mutations.KINDS)
    arguments = ["--backend", "onnxruntime", "--mutations", str(count), "--output", str(tmp_path)]
    command = [sys.executable, "benchmarks/mutations.py", str(bundle), *arguments]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = json.loads((tmp_path / "mutations.json").read_text(encoding="utf-8"))["backends"]
    assert found["faults"] == []
    assert sum(sum(each.values()) for each in found["outcomes"].values()) == count
    assert set(found["outcomes"]["damaged_file"]) == {mutations.REFUSED}


def raise_value_error() -> str:
    raise ValueError("no BerxitError")


def crash() -> str:
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


def hang() -> str:
    time.sleep(60)
    return ""


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        (raise_value_error, "other exception"),
        (crash, "crash"),
        (hang, "hang"),
        (lambda: "same", mutations.SAME),
    ],
)
def test_outcome_of_recognises(behaviour, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(mutations, "LONGEST_S", 1)
    monkeypatch.setattr(mutations, "predictions", lambda bundle, backend: behaviour())
    assert mutations.outcome_of(Path("bundle"), "onnxruntime", "same")[0] == expected


def test_every_kind_changes_the_bundle(bundle: Path, tmp_path: Path) -> None:
    def content(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    for number, kind in enumerate(mutations.KINDS):
        copy = Path(shutil.copytree(bundle, tmp_path / kind.__name__))
        kind(random.Random(number), copy)
        assert content(copy) != content(bundle), kind.__name__


def test_differing_rows_finds_a_loop_that_decides_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, logits, lte = policy_cases.draw(np.random.default_rng(3))
    assert policy_cases.differing_rows(policy, logits, lte) == 0
    real = policy_cases.exit_loop
    other = policy.with_threshold(0.0) if policy.criterion != "fixed" else policy.at_depth(1)
    changed = replace(other, off=())
    monkeypatch.setattr(policy_cases, "exit_loop", lambda backend, batch, _: real(backend, batch, changed))
    assert policy_cases.differing_rows(policy.at_depth(policy.layers), logits, lte) > 0
