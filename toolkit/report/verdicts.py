"""Verdicts of a bench: is early exit faster than full depth, than the best fixed exit, and than one graph?"""

from __future__ import annotations

from typing import Any

from berxit.runtime.bench_result import FULL_DEPTH, ONE_GRAPH, BenchResult

GOOD, BAD, OPEN = "good", "bad", "open"
"""States of a verdict: early exit pays, does not pay, or it is open."""
LABELS = {GOOD: "Early exit pays", BAD: "Early exit does not pay", OPEN: "No verdict"}


def verdicts(result: BenchResult) -> list[dict[str, Any]]:
    """The verdicts, as JSON types: title, state, label, value, text."""
    if result.policy is None:
        return [_verdict("Calibrated thresholds", OPEN, "none", "This bundle is not calibrated. Run berxit-calibrate.")]
    if len(result.by_layer) == 1:
        return [_verdict("One depth", OPEN, f"{result.layers} layers", "Every input runs all layers of this bundle.")]
    return [_full_depth(result), _fixed(result), _one_graph(result)]


def _full_depth(result: BenchResult) -> dict[str, Any]:
    policy, full = result.policy, result.full_depth
    assert policy is not None
    text = f"{policy.latency.mean:.2f} ms instead of {full.latency.mean:.2f} ms per input"
    if policy.score is not None and full.score is not None:
        text += f", at {result.metric} {policy.score:.4f} instead of {full.score:.4f}"
    return _compared("Against full depth", result, FULL_DEPTH, full.latency.mean, f"{text}.")


def _fixed(result: BenchResult) -> dict[str, Any]:
    policy, title = result.policy, "Against the best fixed exit"
    assert policy is not None
    if policy.score is None:
        text = "The inputs have no labels, so the scores of fixed exits are unknown. Bench with --data."
        return _verdict(title, OPEN, "not measured", text)
    layer = result.best_fixed
    if layer is None:
        best, score = _best_layer(result)
        text = (
            f"No fixed exit has the policy's {result.metric} of {policy.score:.4f}."
            f" The best is layer {best} with {score:.4f}."
        )
        return _verdict(title, GOOD, "no competitor", text)
    fixed = result.by_layer[layer]
    text = (
        f"Layer {layer} for all inputs has {result.metric} {fixed.score:.4f} in {fixed.latency.mean:.2f} ms. It is the"
        f" fastest with at least the policy's score ({policy.score:.4f})."
    )
    return _compared(title, result, f"layer {layer}", fixed.latency.mean, text)


def _best_layer(result: BenchResult) -> tuple[int, float]:
    """The shallowest exit layer with the highest score, and that score."""
    scores = {layer: point.score for layer, point in result.by_layer.items() if point.score is not None}
    best = max(scores, key=lambda layer: (scores[layer], -layer))
    return best, scores[best]


def _one_graph(result: BenchResult) -> dict[str, Any]:
    title = f"Against one {result.precision} graph (without exits)"
    if result.one_graph is None:
        text = "This bundle contains no graph without exits, so this bench has no such latency."
        return _verdict(title, OPEN, "not measured", text)
    text = f"Full depth as one graph takes {result.one_graph.latency.mean:.2f} ms per input."
    return _compared(title, result, ONE_GRAPH, result.one_graph.latency.mean, text)


def _compared(title: str, result: BenchResult, name: str, mean: float, text: str) -> dict[str, Any]:
    """A speed-up with its interval. Without one, as in results of an older version, the ratio decides."""
    assert result.policy is not None
    known = result.speed_ups.get(name)
    ratio = mean / result.policy.latency.mean
    if known is None:
        return _verdict(title, GOOD if ratio > 1 else BAD, f"{ratio:.2f}x", text)
    state = GOOD if known.low > 1 else BAD if known.high < 1 else OPEN
    interval = f"95% confidence interval {known.low:.2f}x to {known.high:.2f}x."
    found = _verdict(title, state, f"{known.ratio:.2f}x", f"{text} {interval}")
    return found if state != OPEN else {**found, "label": "No measurable difference"}


def _verdict(title: str, state: str, value: str, text: str) -> dict[str, Any]:
    return {"title": title, "state": state, "label": LABELS[state], "value": value, "text": text}
