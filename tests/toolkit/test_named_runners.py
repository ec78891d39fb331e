"""The runners that can run a bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from berxit.runtime.bundle import read_manifest
from berxit.toolkit.runners import RUNNERS, usable

VECTORS = Path(__file__).resolve().parents[1] / "runners" / "vectors"


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt", "coreml"])
def test_usable_lists_the_runners_of_a_target_and_why_others_cannot(target: str) -> None:
    manifest = replace(read_manifest(VECTORS / "onnx" / "confidence"), target=target)
    fitting, *others = usable(manifest).split("; ")
    expected = [runner.name for runner in RUNNERS if target in runner.targets]
    assert fitting == ", ".join(expected)
    assert others == [
        f"{r.name} runs bundles for {' and '.join(r.targets)}" for r in RUNNERS if target not in r.targets
    ]


def test_usable_lists_all_runners_of_onnx_for_every_kind() -> None:
    for kind in ("multilabel", "tokens", "heads"):
        manifest = read_manifest(VECTORS / "onnx" / kind)
        assert usable(manifest) == "Python, C, Java, JavaScript; Swift runs bundles for coreml"


def test_usable_names_a_criterion_that_other_languages_do_not_know() -> None:
    manifest = read_manifest(VECTORS / "onnx" / "confidence")
    policy = replace(manifest.policy)
    object.__setattr__(policy, "criterion", "a user's own")
    assert usable(replace(manifest, policy=policy)).startswith(
        "Python; C does not know the criterion a user's own; Java"
    )
