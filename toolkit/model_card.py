"""Model card of a checkpoint or bundle: the README.md of its repository on the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from berxit.devices import Machine
from berxit.runtime.backends import BACKENDS
from berxit.runtime.bundle import Manifest
from berxit.runtime.calibration import Calibration
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.hub import REPOSITORY
from berxit.runtime.json_data import parse, read_json
from berxit.runtime.measurement import Line
from berxit.runtime.noise import Noise, bench_problems
from berxit.runtime.policies import CRITERIA, ExitPolicy
from berxit.runtime.tables import markdown_table, plural

BENCH_KEYS = ("task", "layers", "device", "machine", "backend", "threads", "precision", "by_layer", "policy", "line")
"""Keys of bench.json that a card uses."""


@dataclass(frozen=True)
class CardFacts:
    """Content of a card."""

    format: str
    """"bundle" or "checkpoint"."""
    family: str
    task: str
    kind: str
    """Name in runtime.kinds.KINDS."""
    labels: tuple[str, ...]
    """Class or label names; empty for regression."""
    metric: str
    pairs: bool
    layers: int
    exits: tuple[int, ...]
    max_length: int
    calibration: Calibration | None
    """Record of the calibration; None if the model is not calibrated."""
    policy: ExitPolicy | None
    scores: dict[str, dict[int, float]]
    """Name of a column -> layer -> score."""
    target: str | None = None
    """None for a checkpoint."""
    precision: str | None = None
    base_model: str | None = None
    """The pre-trained encoder; None for a bundle, whose manifest does not name it."""


def facts_of_bundle(manifest: Manifest) -> CardFacts:
    """The content of a bundle's card, from its manifest."""
    model, scores = manifest.model, manifest.scores
    columns = {}
    if scores is not None:
        columns = {
            f"{scores.metric} of the checkpoint": dict(zip(manifest.exits, scores.checkpoint, strict=True)),
            f"{scores.metric} of this bundle": dict(zip(manifest.exits, scores.bundle, strict=True)),
        }
    return CardFacts(
        format="bundle",
        family=model.family,
        task=model.task,
        kind=model.kind,
        labels=model.labels,
        metric=model.metric,
        pairs=len(model.text_columns) == 2,
        layers=model.layers,
        exits=manifest.exits,
        max_length=model.max_length,
        calibration=manifest.calibration,
        policy=manifest.policy if manifest.calibration else None,
        scores=columns,
        target=manifest.target,
        precision=manifest.precision,
    )


def facts_of_checkpoint(folder: Path) -> CardFacts:
    """The content of a checkpoint's card, from its JSON files and the results of berxit-eval.

    Raises BerxitError for a folder that is not a checkpoint.
    """
    from berxit.train.backbones import adapter_for
    from berxit.train.calibration import read_policy
    from berxit.train.checkpoint import read_config, read_record
    from berxit.train.configuration import MultiExitConfig

    read_config(folder)
    config = MultiExitConfig.from_pretrained(str(folder))
    layers = adapter_for(config.backbone).layers
    calibrated = read_policy(folder)
    columns = {}
    for path in sorted(folder.glob("eval-*/eval.json")):
        data = read_json(path)
        scores = data.get("layer_scores", ())
        columns[f"{data.get('metric')} on {path.parent.name.removeprefix('eval-')}"] = dict(enumerate(scores, start=1))
    return CardFacts(
        format="checkpoint",
        family=str(config.backbone.model_type),
        task=config.task,
        kind=config.kind,
        labels=tuple(config.labels),
        metric=config.metric,
        pairs=len(config.text_columns) == 2,
        layers=layers,
        exits=tuple(range(1, layers + 1)),
        max_length=config.max_length,
        calibration=calibrated.calibration if calibrated else None,
        policy=calibrated.policy if calibrated else None,
        scores=columns,
        base_model=read_record(folder).get("options", {}).get("model"),
    )


def model_card(facts: CardFacts, repository: str, bench: Path | None = None) -> str:
    """The card as Markdown with a YAML header. ``bench``: a bench.json of the model, for a line about its latency.

    Raises InputError for a bench of another model, BerxitError for a file that is not a bench.
    """
    name = repository.partition("/")[2]
    kinds = {
        "classification": "classification into",
        "multilabel": "any number of the labels",
        "tokens": "tags of the words:",
        "heads": "one class for each head:",
    }
    kind = f"{kinds[facts.kind]} {', '.join(facts.labels)}" if facts.labels else facts.kind
    run_by = f" for {facts.target}, {facts.precision}" if facts.target else ""
    blocks = [
        _front_matter(facts, name),
        f"# {name}",
        f"An early-exiting {facts.family} encoder ({facts.format}{run_by}) for the task {facts.task}: {kind} of"
        f" {'pairs of texts' if facts.pairs else 'texts'}. Every exit makes a prediction, and an input stops at the"
        " first exit that is certain enough.",
        markdown_table(["property", "value"], _properties(facts)),
        "## Calibration",
        _calibration(facts),
    ]
    if facts.scores:
        blocks += ["## Scores", markdown_table(*_scores(facts))]
    if bench is not None:
        blocks += ["## Latency", _latency(facts, bench)]
    blocks += ["## Use", _use(facts, repository)]
    return "\n\n".join(blocks) + "\n"


def _front_matter(facts: CardFacts, name: str) -> str:
    """The YAML header of the card. Values are written as JSON, which is valid YAML."""
    header: dict[str, Any] = {
        "library_name": "berxit",
        "pipeline_tag": "text-classification",
        "tags": [tag for tag in ("berxit", "early-exit", facts.family, facts.target, facts.precision) if tag],
        "metrics": [facts.metric],
        "berxit": {"format": facts.format, "layers": facts.layers, "exits": list(facts.exits)},
    }
    if facts.base_model and REPOSITORY.fullmatch(facts.base_model):
        header["base_model"] = facts.base_model
    record = facts.calibration
    if record is not None:
        layers = f"average exit layer {record.average_exit_layer:.2f} of {facts.layers}"
        metrics = [
            {"type": facts.metric, "value": round(record.score, 4), "name": f"early exit, {layers}"},
            {"type": facts.metric, "value": round(record.full_depth_score, 4), "name": "full depth"},
        ]
        dataset = {"name": record.data, "type": facts.task}
        result = {"task": {"type": "text-classification"}, "dataset": dataset, "metrics": metrics}
        header["model-index"] = [{"name": name, "results": [result]}]
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in header.items()]
    return "\n".join(["---", *lines, "---"])


def _properties(facts: CardFacts) -> list[list[str]]:
    rows = [
        ["layers", str(facts.layers)],
        ["exits after layers", ", ".join(map(str, facts.exits))],
        ["tokens per input, at most", str(facts.max_length)],
    ]
    if facts.target:
        rows.append(["runs on", ", ".join(info.name for info in BACKENDS.get(facts.target, ()))])
    if facts.base_model:
        rows.append(["pre-trained encoder", facts.base_model])
    return rows


def _calibration(facts: CardFacts) -> str:
    record = facts.calibration
    if record is None or facts.policy is None:
        return "Not calibrated: every input runs through all layers."
    criterion = CRITERIA[facts.policy.criterion]
    side = "above" if criterion.higher_is_more_certain else "below"
    sides = f"at or {side}" if criterion.inclusive else side
    exits = f"An input exits when its {facts.policy.criterion} is {sides} {record.threshold:.4g}"
    if record.settings:
        exits = f"Exit policy: {record.describe_policy()}; an input exits {sides} the threshold"
    lines = [
        f"{exits}. Rule: {record.description}.",
        f"On the {record.examples} examples of {record.data}: {facts.metric} {record.score:.4f} at early exit,"
        f" {record.full_depth_score:.4f} at full depth; average exit layer {record.average_exit_layer:.2f} of"
        f" {facts.layers}. The threshold was chosen on these examples, so the score is optimistic.",
    ]
    return "\n\n".join([*lines, *(f"Limitation: {warning}" for warning in record.warnings)])


def _scores(facts: CardFacts) -> tuple[list[str], list[list[str]]]:
    rows = [
        [str(layer), *(f"{scores[layer]:.4f}" if layer in scores else "" for scores in facts.scores.values())]
        for layer in facts.exits
    ]
    return ["exit layer", *facts.scores], rows


def _latency(facts: CardFacts, bench: Path) -> str:
    path = bench / "bench.json" if bench.is_dir() else bench
    data = read_json(path)
    if missing := set(BENCH_KEYS) - set(data):
        raise BerxitError(f"{path} is not a bench.json: key '{min(missing)}' is missing. Run berxit-bench again")
    found = data["task"], data["layers"], data["precision"]
    expected = facts.task, facts.layers, facts.precision or data["precision"]
    if found != expected:
        raise InputError(
            f"{path} is the bench of another model ({found[0]}, {found[1]} layers, {found[2]}), this one is"
            f" {expected[0]}, {expected[1]} layers, {expected[2]}: give a bench of this model"
        )
    full = data["by_layer"][str(facts.layers)]["latency"]["mean"]
    early = f"{full:.2f} ms per input at full depth"
    if data["policy"]:
        mean = data["policy"]["latency"]["mean"]
        early = (
            f"{mean:.2f} ms per input at early exit, {full:.2f} ms at full depth ({full / mean:.2f}x), average exit"
            f" layer {data['policy']['average_exit_layer']:.2f}"
        )
    machine: Machine = parse(Machine, data["machine"], f"{path}: machine")
    text = (
        f"{early}: mean on {machine} ({data['device']}), {data['backend']} {data['precision']},"
        f" {plural(data['threads'], 'CPU thread')}, one input at a time, tokenization included."
    )
    line: Line | None = parse(Line, data["line"], f"{path}: line") if data["line"] else None
    noise: Noise | None = parse(Noise, data["noise"], f"{path}: noise") if data.get("noise") else None
    problems: Sequence[str] = bench_problems(noise, line)
    return f"{text} Limitation: noisy measurement: {'; '.join(problems)}." if problems else text


def _use(facts: CardFacts, repository: str) -> str:
    if facts.target:
        texts = '"first text", "second text"' if facts.pairs else '"a text"'
        code = (
            "from berxit import EarlyExitRunner\n\n"
            f'with EarlyExitRunner.from_pretrained("{repository}") as runner:\n'
            f"    prediction = runner.predict({texts})\n"
            "    print(prediction.label, prediction.exit_layer, prediction.latency_ms)"
        )
        extra = BACKENDS[facts.target][0].extra if facts.target in BACKENDS else facts.target
        return f"Requires berxit with the extras `{extra}` and `hub`.\n\n```python\n{code}\n```"
    code = (
        "import berxit\nfrom huggingface_hub import snapshot_download\n\n"
        f'exported = berxit.export(snapshot_download("{repository}"), "bundle", target="onnxruntime")\n'
        "runner = berxit.EarlyExitRunner.load(exported.bundle)"
    )
    return f"Requires berxit with the extras `export` and `hub`.\n\n```python\n{code}\n```"
