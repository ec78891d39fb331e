"""The paper's claims, judged again on stored curves of studies that older versions wrote.

    python benchmarks/stored_claims.py results/studies --output results/studies

Reads tradeoff-TASK.json, lte-TASK.json and layerwise-TASK.md of a folder, clips every curve at the constant prediction,
and computes the areas again. These files contain mean curves, but neither the predictions of the rows nor the curves of
single seeds, so an interval cannot be computed: by the rule of ``berxit-study``, every claim is undecided. Writes
claims.json and claims.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from berxit.runtime.console import run
from berxit.runtime.errors import InputError
from berxit.runtime.json_data import read_json
from berxit.runtime.results import write_results
from berxit.runtime.tables import markdown_table
from berxit.toolkit.commands.options import PATH
from berxit.toolkit.studies.claims import UNDECIDED
from berxit.train.curves import Curve, area_above

ALTERNATING, JOINT = "alternating", "joint"
SEEDS = re.compile(r" \(mean of (\d+)\)")
CONSTANT = re.compile(r"constant prediction scores (-?[\d.]+)")
IGNORED = ("no lte",)
"""Parts of a label that older versions showed for one strategy only."""


@dataclass(frozen=True)
class StoredClaim:
    """The claim that A is above B, from mean curves."""

    task: str
    model: str
    first: str
    second: str
    seeds: tuple[int, int]
    constant: float
    """Relative score of the constant prediction, in percent."""
    as_stored: tuple[float, float]
    """Areas of A above B and of B above A, in percent x layers, with scores below the constant prediction."""
    clipped: tuple[float, float]
    """The same areas with every score clipped at the constant prediction."""
    verdict: str
    reason: str


@click.command()
@click.argument("folder", type=PATH)
@click.option("--output", type=PATH, required=True)
def command(folder: Path, output: Path) -> None:
    claims = [claim for path in sorted(folder.glob("tradeoff-*.json")) for claim in strategy_claims(path)]
    claims += [claim for path in sorted(folder.glob("lte-*.json")) for claim in lte_claims(path)]
    if not claims:
        raise InputError(f"no tradeoff-TASK.json or lte-TASK.json in {folder}: give the folder of a study's results")
    header = ["task", "model", "A", "B", "seeds", "constant", "areas as stored", "clipped", "A is above B", "reason"]
    text = markdown_table(header, [_row(claim) for claim in claims])
    note = (
        "Areas of A above B and of B above A, in percent x layers: as stored, and with scores below the constant"
        " prediction counted as the constant prediction. The stored files contain no predictions of rows, so there is"
        " no interval, and every claim is undecided."
    )
    write_results(output, "claims", {"claims": [asdict(claim) for claim in claims]}, f"{note}\n\n{text}")
    click.echo(f"{note}\n\n{text}")


def strategy_claims(path: Path) -> Iterator[StoredClaim]:
    """Alternating above joint, for every two lines of a model whose labels contain the same options."""
    task = path.stem.removeprefix("tradeoff-")
    lines = read_json(path)["curves"]
    for line in lines:
        for other in lines:
            same = line["model"] == other["model"] and _options(line) == _options(other)
            if same and (_strategy(line), _strategy(other)) == (ALTERNATING, JOINT):
                names = SEEDS.sub("", line["label"]), SEEDS.sub("", other["label"])
                seeds = _seeds(line["label"]), _seeds(other["label"])
                floor = 100 * constant_of(path.parent, task) / line["reference"]
                yield claim(task, line["model"], names, seeds, floor, (curve(line), curve(other)))


def lte_claims(path: Path) -> Iterator[StoredClaim]:
    """LTE above layer-wise up to half of the depth, and above patience, for every line."""
    task = path.stem.removeprefix("lte-")
    for line in read_json(path)["lines"]:
        curves = {name: curve(each) for name, each in line["curves"].items()}
        half = curves["layer-wise"].layers[-1] / 2
        floor = 100 * constant_of(path.parent, task) / line["reference"]
        seeds = (_seeds(line["label"]),) * 2
        model = f"{line['model']}, {SEEDS.sub('', line['label'])}"
        for other, until in (("layer-wise", half), ("patience", np.inf)):
            name = other if until == np.inf else f"{other}, up to layer {half:g}"
            yield claim(task, model, ("LTE", name), seeds, floor, (curves["LTE"], curves[other]), until)


def claim(
    task: str,
    model: str,
    names: tuple[str, str],
    seeds: tuple[int, int],
    floor: float,
    curves: tuple[Curve, Curve],
    until: float = np.inf,
) -> StoredClaim:
    stored = area_above(*curves, until).area, area_above(*curves[::-1], until).area
    above = [each.clipped(floor) for each in curves]
    clipped = area_above(*above, until).area, area_above(*above[::-1], until).area
    tolerance = names[1] == "patience"
    reason = "one seed" if min(seeds) < 2 else "rows not stored"
    reason += "; the tolerance of patience was chosen on the reported rows" if tolerance else ""
    return StoredClaim(task, model, *names, seeds, floor, stored, clipped, UNDECIDED, reason)


def curve(line: dict[str, Any]) -> Curve:
    layers = np.array(line["average_exit_layer"])
    return Curve(layers, np.array(line["relative"]), round(float(layers[-1])))


def constant_of(folder: Path, task: str) -> float:
    """The score of the constant prediction, from the conditions of layerwise-TASK.md."""
    path = folder / f"layerwise-{task}.md"
    found = CONSTANT.search(path.read_text(encoding="utf-8")) if path.is_file() else None
    if found is None:
        raise InputError(f"{path} does not contain the constant prediction's score: rerun berxit-study layerwise")
    return float(found[1])


def _strategy(line: dict[str, Any]) -> str:
    return str(line["label"]).split(",")[0].split(" (")[0]


def _options(line: dict[str, Any]) -> list[str]:
    parts = SEEDS.sub("", line["label"]).split(", ")[1:]
    return [part for part in parts if part not in IGNORED]


def _seeds(label: str) -> int:
    found = SEEDS.search(label)
    return int(found[1]) if found else 1


def _row(claim: StoredClaim) -> list[str]:
    areas = [f"{above:.1f}, {below:.1f}" for above, below in (claim.as_stored, claim.clipped)]
    start = [claim.task, claim.model, claim.first, claim.second, " and ".join(map(str, claim.seeds))]
    return [*start, f"{claim.constant:.1f}%", *areas, claim.verdict, claim.reason]


if __name__ == "__main__":
    run(command)
