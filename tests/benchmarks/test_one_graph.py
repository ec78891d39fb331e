"""The comparison of segments with one graph: the order of the passes, and what is measured."""

from __future__ import annotations

import numpy as np
import one_graph
import pytest


def test_compare_alternates_the_order_and_measures_every_round_after_the_warm_up() -> None:
    calls: list[str] = []
    passes = {name: lambda name=name: calls.append(name) or np.zeros(1) for name in ("segments", "one graph")}
    found = one_graph.compare(passes, rounds=3)
    assert {(name, clock): len(times) for (name, clock), times in found.items()} == {
        (name, clock): 3 for name in passes for clock in one_graph.CLOCKS
    }
    assert calls[:4] == ["one graph", "segments", "segments", "one graph"]
    assert len(calls) == 2 * 13


def test_one_graph_returns_the_logits_of_the_segments(tmp_path) -> None:  # type: ignore[no-untyped-def]
    pytest.importorskip("onnxscript", reason="torch.onnx needs onnxscript: pip install onnxscript")
    model = one_graph.random_model(tmp_path / "checkpoint", 3, 32, 48, 4, 16)
    one_graph.export_one_graph(model, tmp_path / "one.onnx", 16)
    one_graph.export(tmp_path / "checkpoint", "onnxruntime", tmp_path / "bundle")
    segments, one = (
        one_graph.segments_pass(tmp_path / "bundle", 100, 1),
        one_graph.one_graph_pass(tmp_path / "one.onnx", 100, 1),
    )
    assert np.abs(segments() - one()).max() <= one_graph.TOLERANCE
