"""Validity of a bench: is the measurement long enough, and was the machine quiet and not throttled?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from berxit import devices
from berxit.runtime.queries import Queries


@dataclass(frozen=True)
class Preset:
    """Minimum size of a bench."""

    name: str
    description: str
    queries: int
    """Minimum number of queries of each operating point."""
    compared_queries: int
    """Minimum of the operating points whose speed-ups are reported: full depth, the calibrated policy, the best fixed
    exit, one graph."""
    compared_seconds: float
    """Minimum time of each of these operating points: the sum of its latencies."""


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("standard", "at least 200 queries per operating point", 200, 200, 0.0),
        Preset(
            "single-stream",
            "the single-stream rules of MLPerf Mobile for full depth, the calibrated policy, the best fixed exit and"
            " one graph: at least 1,024 queries and 60 seconds each, one query at a time, reported by their 90th"
            " percentile",
            200,
            1024,
            60.0,
        ),
    )
}
"""Presets of ``berxit-bench --preset``, by name."""


MORE = "Bench more inputs"
COOLER = "Cool the device, or choose a power mode that it can keep"
QUIETER = "Bench again when no other process is busy"


@dataclass(frozen=True)
class Validity:
    """Verdict about a bench."""

    preset: str
    valid: bool
    problems: tuple[str, ...]
    """Reasons why the result is invalid, each with its remedy; empty if it is valid."""

    def __str__(self) -> str:
        rules = f"(preset {self.preset})"
        return f"VALID {rules}" if self.valid else f"INVALID {rules}: {'; '.join(self.problems)}"


def judge(
    preset: Preset,
    queries: Mapping[str, Queries],
    compared: Mapping[str, Queries],
    sensors: Mapping[str, devices.Sampled | None],
    noise: list[str],
) -> Validity:
    """``queries``: operating point -> its queries; ``compared``: those whose speed-ups are reported. ``noise``: the
    reasons of ``noise.bench_problems``."""
    problems = []
    fewest = min(each.latency_ms.size for each in queries.values())
    if fewest < preset.queries:
        problems.append(f"too few queries: {fewest} per operating point, at least {preset.queries} are needed. {MORE}")
    for name, each in compared.items():
        count, seconds = each.latency_ms.size, float(each.latency_ms.sum()) / 1e3
        if count < preset.compared_queries and fewest >= preset.queries:
            problems.append(
                f"too few queries: {count} of {name}, at least {preset.compared_queries} are needed. {MORE}"
            )
        if seconds < preset.compared_seconds:
            problems.append(
                f"too short: {seconds:.1f} s of {name}, at least {preset.compared_seconds:.0f} s are needed. {MORE}"
            )
    throttled = sensors.get("throttled")
    if throttled is not None and throttled.highest > 0:
        problems.append(f"throttled: {throttle_reasons(throttled)}. {COOLER}")
    problems += [f"noisy: {reason}. {QUIETER}" for reason in noise]
    return Validity(preset.name, not problems, tuple(problems))


def throttle_reasons(throttled: devices.Sampled) -> str:
    """Reasons for which the machine throttled, with their share of the time."""
    shares = [f"{name} ({share:.0%} of the time)" for name, share in throttled.channels.items() if share > 0]
    return ", ".join(shares) or f"{throttled.mean:.0%} of the time"
