"""``berxit inspect``: the contents of a bundle."""

from __future__ import annotations

from pathlib import Path

import click

from berxit.runtime.bundle import Manifest, Segment, files_of, read_manifest
from berxit.runtime.console import debug_option, register_option
from berxit.runtime.policies import CRITERIA, ExitPolicy
from berxit.runtime.tables import markdown_table
from berxit.toolkit.commands.options import PATH
from berxit.toolkit.runners import usable


@click.command("inspect")
@click.argument("bundle", type=PATH)
@register_option
@debug_option
def command(bundle: Path) -> None:
    """Show the contents of BUNDLE, and verify the checksum of every file."""
    manifest = read_manifest(bundle)
    click.echo(describe(bundle, manifest))


def describe(bundle: Path, manifest: Manifest) -> str:
    model, policy = manifest.model, manifest.policy
    sizes = {file: _size(bundle / file) for file in files_of(manifest)}
    facts = [
        ("task", f"{model.task}, {model.kind}" + (f": {', '.join(model.labels)}" if model.labels else "")),
        (
            "model",
            f"{model.family}, {model.layers} layers, hidden size {model.hidden_size}, up to {model.max_length} tokens",
        ),
        ("target", f"{manifest.target}, {manifest.precision}"),
        ("exits when", _policy(manifest)),
        ("calibrated", _calibration(manifest)),
        ("placed", _placement(manifest)),
        ("score", _scores(manifest)),
        ("parity", _parity(manifest)),
        ("runners", usable(manifest)),
        ("files", f"{len(sizes)}, {sum(sizes.values()) / 2**20:.1f} MiB, checksums correct"),
        ("made with", ", ".join(f"{name} {version}" for name, version in manifest.made_with.items())),
    ]
    max_diff = dict(zip(manifest.exits, manifest.parity.max_diff, strict=True))
    lines = [f"{name:<12}{value}" for name, value in facts if value]
    scores = manifest.scores
    scored = (
        dict(zip(manifest.exits, zip(scores.checkpoint, scores.bundle, strict=True), strict=True)) if scores else {}
    )
    segments = [
        [
            _layers(before, segment),
            segment.loaded.file,
            f"{sum(map(sizes.__getitem__, _files(segment))) / 2**20:.1f}",
            "" if segment.layer == 0 else f"{max_diff[segment.layer]:.1e}",
            "" if segment.layer in (0, model.layers) else _threshold(policy, segment.layer),
            *([f"{score:.4f}" for score in scored.get(segment.layer, ())] or [""] * 2 if scores else []),
        ]
        for before, segment in zip((0, 0, *manifest.exits), manifest.segments, strict=False)
    ]
    header = ["segment", "file", "MiB", "max diff", "threshold"]
    header += [f"{model.metric} of the checkpoint", f"{model.metric} here"] if scores else []
    return "\n".join([*lines, "", markdown_table(header, segments)])


def _parity(manifest: Manifest) -> str:
    parity = manifest.parity
    relative = f", relative to {parity.scale:.2g}" if parity.scale != 1 else ""
    return f"within {max(parity.max_diff):.1e} of {parity.reference} at every exit{relative}"


def _placement(manifest: Manifest) -> str:
    """Expected latency with automatically placed exits; empty for other exits."""
    placed = manifest.calibration.placement if manifest.calibration else None
    if placed is None:
        return ""
    expected, every = placed.expected_ms, placed.all_exits_ms
    return f"automatically: {expected:.2f} ms expected per input where it was exported, {every:.2f} with all exits"


def _scores(manifest: Manifest) -> str:
    """Largest loss of score, through the precision, of an exit that the policy uses; empty if it was not measured."""
    scores, record = manifest.scores, manifest.calibration
    if scores is None or record is None:
        return ""
    losses = zip(manifest.exits, scores.losses, strict=True)
    loss, layer = max((loss, layer) for layer, loss in losses if record.histogram[layer - 1])
    cost = f"loses at most {100 * loss:.2f} points (layer {layer})" if loss > 0 else "loses nothing"
    return f"an exit that the policy uses {cost} to the checkpoint, on {scores.examples} examples"


def _layers(before: int, segment: Segment) -> str:
    """The layers that a segment executes; ``before`` is the last layer of the previous segment."""
    if segment.layer == 0:
        return "embeddings"
    one = segment.layer == before + 1
    layers = f"layer {segment.layer}" if one else f"layers {before + 1} to {segment.layer}"
    return layers if segment.repeat == 1 else f"{layers}, the file {segment.repeat} times"


def _files(segment: Segment) -> list[str]:
    """Files of the segment and of its constant inputs."""
    return [segment.loaded.file, *(tensor.file for tensor in segment.constants.values())]


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder (.mlpackage)."""
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())


def _threshold(policy: ExitPolicy, layer: int) -> str:
    """The threshold of a layer; one per class if they differ."""
    if layer in policy.off:
        return "off"
    threshold = policy.thresholds[layer - 1]
    return " / ".join(f"{each:.4g}" for each in (threshold if isinstance(threshold, tuple) else (threshold,)))


def _policy(manifest: Manifest) -> str:
    if manifest.calibration is None:
        return "never early: not calibrated"
    if len(manifest.exits) == 1:
        return f"one exit: every input runs all {manifest.model.layers} layers"
    criterion = CRITERIA[manifest.policy.criterion]
    side = "above" if criterion.higher_is_more_certain else "below"
    sign = f"at or {side}" if criterion.inclusive else side
    patience = manifest.policy.patience
    consecutive = f" at {patience} consecutive exits" if patience > 1 else ""
    return f"{manifest.policy.criterion} is {sign} the layer's threshold{consecutive}"


def _calibration(manifest: Manifest) -> str:
    record = manifest.calibration
    if record is None:
        return "no: run berxit-calibrate on the checkpoint, then export again"
    return (
        f"{record.description}: {record.score:.4f} of {record.full_depth_score:.4f}, average exit layer"
        f" {record.average_exit_layer:.2f}, on {record.examples} examples"
    )
