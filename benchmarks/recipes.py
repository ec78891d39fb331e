"""Training recipes, compared by the area under the trade-off curve on rows that were not used for any choice.

    python benchmarks/recipes.py sst2 --model MODEL --data SST-2 --train-rows 2000 --output recipes/sst2-minilm

Trains every recipe once per seed on the first rows of the training split, and scores the official dev split, which no
training uses. A recipe is the default of ``berxit-train`` with the options in RECIPES. Finished checkpoints in OUTPUT
are kept, so the command can be repeated after an interruption, and extended by more recipes or seeds. ``--only-table``
trains nothing. Writes recipes.json, recipes.md, and the checkpoints OUTPUT/RECIPE-SEED, on which ``berxit-study`` can
run.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np

from berxit.runtime.console import debug_option, progress_bar, run
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.results import write_results
from berxit.runtime.tables import markdown_table
from berxit.toolkit.commands.options import PATH, silence_library_logs

RECIPES: dict[str, tuple[str, ...]] = {
    "default": (),
    "joint": ("--strategy", "joint"),
    "two-stage": ("--strategy", "two-stage"),
    "self-distillation": ("--strategy", "self-distillation"),
    "paper": ("--paper",),
    "first token": ("--pooling", "first"),
    "one learning rate": ("--head-learning-rate", "5e-5"),
    "warm-up": ("--warm-up-steps", "60"),
    "distillation": ("--distillation", "1"),
    "linear weights": ("--layer-weights", "linear"),
}
"""Recipe -> its options beside the defaults: strategy ``alternating``, mean pooling, exits' learning rate 1e-3, no
warm-up, no distillation, equal weights of the exits."""
COSTS = (0.45, 0.6)
"""Shares of saved layers at which scores are reported."""


@click.command(help=__doc__)
@click.argument("task")
@click.option("--model", type=PATH, required=True, help="The pre-trained encoder.")
@click.option("--data", type=PATH, required=True, help="Folder with the train and dev split.")
@click.option("--train-rows", type=click.IntRange(1), help="Train on the first rows only.  [default: all]")
@click.option("--recipe", "recipes", multiple=True, type=click.Choice(list(RECIPES)), help="Can be repeated; all.")
@click.option("--seeds", default="42,43,44", show_default=True)
@click.option("--train-option", "options", multiple=True, help="Option of berxit-train for all recipes: --lte.")
@click.option("--only-table", is_flag=True, help="Use the checkpoints that exist.")
@click.option("--output", type=PATH, required=True)
@debug_option
def main(
    task: str,
    model: Path,
    data: Path,
    train_rows: int | None,
    recipes: tuple[str, ...],
    seeds: str,
    options: tuple[str, ...],
    only_table: bool,
    output: Path,
) -> None:
    silence_library_logs()
    chosen = recipes or tuple(RECIPES)
    common = [f"--task={task}", f"--model={model}", f"--data={data}", *options]
    common += [f"--limit-train={train_rows}"] if train_rows else []
    if not only_table:
        for seed in seeds.split(","):  # seed by seed, so that an interrupted comparison has every recipe
            for recipe in chosen:
                train([*common, *RECIPES[recipe], f"--seed={seed}"], folder_of(output, recipe, seed))
    found = {
        recipe: [folder for seed in seeds.split(",") if (folder := folder_of(output, recipe, seed)).is_dir()]
        for recipe in chosen
    }
    compared = compare({recipe: folders for recipe, folders in found.items() if folders}, data, output)
    text = table(compared)
    click.echo(text)
    write_results(output, "recipes", {"task": task, "train_rows": train_rows, **compared}, text)


def folder_of(output: Path, recipe: str, seed: str) -> Path:
    return output / f"{recipe.replace(' ', '-')}-{seed}"


def train(arguments: list[str], folder: Path) -> None:
    """Trains a checkpoint unless it exists. Raises BerxitError if the command fails."""
    if folder.is_dir():
        return
    click.echo(f"training {folder.name}")
    program = [sys.executable, "-m", "berxit.toolkit", "train", *arguments, f"--output={folder}", "--quiet"]
    result = subprocess.run(program, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if result.returncode:
        raise BerxitError(f"{folder.name}: {(result.stderr.strip() or 'no message').splitlines()[-1]}")


def compare(checkpoints: dict[str, list[Path]], data: Path, output: Path) -> dict[str, Any]:
    """The numbers of every recipe, and its difference from the first. Raises InputError without checkpoints."""
    from berxit.toolkit.studies.claims import judge
    from berxit.toolkit.studies.operating import operating
    from berxit.toolkit.studies.reference import reference_of
    from berxit.toolkit.studies.request import Request
    from berxit.toolkit.studies.runs import Group
    from berxit.toolkit.studies.tradeoff import common_criterion, side_of
    from berxit.toolkit.sweep.ranking import area_under
    from berxit.train.sweeps import sweep

    paths = [path for folders in checkpoints.values() for path in folders]
    if not paths:
        raise InputError(f"{output} has no checkpoints: run without --only-table")
    request = Request(paths, output, data, bar=lambda label: progress_bar(label, False))
    runs = {run.folder: run for run in request.runs}
    groups = {
        recipe: Group(runs[folders[0]].model, recipe, tuple(runs[folder] for folder in folders))
        for recipe, folders in checkpoints.items()
    }
    base = next(iter(groups))
    criterion, reference = common_criterion(request.runs), reference_of(groups[base])
    sides, entries = {}, []
    for recipe, group in groups.items():
        sweeps = [sweep(each.predictions, criterion) for each in group.runs]
        sides[recipe] = side_of(request, group, sweeps, reference)
        areas = [area_under(each.curve(), reference.floor) for each in sweeps]
        lowest = float(max(each.curve().layers[0] for each in sweeps))
        at = operating(group, criterion, reference_of(group), request.bootstrap, lowest, costs=COSTS, gains=(99.0,))
        claim = judge(sides[recipe], sides[base], group.model) if recipe != base else None
        entries.append(
            {
                "recipe": recipe,
                "options": list(RECIPES[recipe]),
                "seeds": [each.seed for each in group.runs],
                "area": float(np.mean(areas)),
                "areas": areas,
                "layer_scores": group.mean_layer_scores,
                "against_first": asdict(claim) if claim else None,
                **at.entry(),
            }
        )
    return {
        "model": groups[base].model,
        "criterion": criterion,
        "metric": request.metric,
        "rows": len(request.runs[0].predictions.labels),
        "constant": reference.floor,
        "recipes": entries,
    }


def table(compared: dict[str, Any]) -> str:
    """One row per recipe, sorted by area."""
    entries = compared["recipes"]
    header = ["recipe", "seeds", "area", "by seed", "full depth", f"difference from {entries[0]['recipe']}", "verdict"]
    header += [f"at {share:.0%} saved, of full depth" for share in COSTS]
    rows = []
    for each in sorted(entries, key=lambda entry: -entry["area"]):
        claim = each["against_first"]
        difference = claim["difference"] if claim else None
        rows.append(
            [
                each["recipe"],
                str(len(each["seeds"])),
                f"{each['area']:.4f}",
                f"{min(each['areas']):.4f} to {max(each['areas']):.4f}",
                f"{each['layer_scores'][-1]:.4f}",
                "{value:+.2f} [{low:+.2f}, {high:+.2f}]".format(**difference) if difference else "-",
                {"holds": "better", "does not hold": "worse"}.get(claim["verdict"], "undecided") if claim else "-",
                *(f"{at['relative']:.1f}%" if at["relative"] is not None else "-" for at in each["at_cost"]),
            ]
        )
    return markdown_table(header, rows)


if __name__ == "__main__":
    run(main)
