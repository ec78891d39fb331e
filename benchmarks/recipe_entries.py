"""The commands behind results/recipes, and behind the studies of their checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.result_entry import ENCODERS, OUTPUT, Entry

RECIPE_ENCODERS = {**ENCODERS, "mpnet": "$MODELS/mpnet-base"}
STRATEGIES = ("default", "joint", "two-stage", "self-distillation")
"""Recipes that differ in the strategy only. ``default`` is alternating."""
ACROSS = ("tradeoff", "layerwise")
"""Studies of all strategies. The other studies are of ``default``."""


@dataclass(frozen=True)
class Recipes:
    """Recipes of one encoder on one task, with seeds 42, 43 and 44."""

    task: str
    data: str
    rows: int
    encoder: str = "minilm"
    names: tuple[str, ...] = STRATEGIES
    options: tuple[str, ...] = ("--bf16",)
    studies: tuple[str, ...] = (*ACROSS, "criteria")

    @property
    def folder(self) -> str:
        """Folder below results/recipes."""
        return self.task if self.encoder == "minilm" else f"{self.task}-{self.encoder}"

    @property
    def stored(self) -> tuple[str, ...]:
        """The files of the studies."""
        return self.files(*(f"{study}-{self.task}" for study in self.studies))

    def files(self, *names: str) -> tuple[str, ...]:
        return tuple(f"recipes/{self.folder}/{name}.json" for name in names)

    @property
    def trained(self) -> str:
        return f"{OUTPUT}/recipes-{self.folder}"

    def comparison(self, names: tuple[str, ...], more: str = "") -> str:
        """The command that trains the recipes and compares them."""
        lte = () if "lte" in self.studies else ("--no-lte",)
        chosen = "".join(f" --recipe '{name}'" for name in names)
        options = "".join(f" --train-option={option}" for option in (*self.options, *lte))
        return (
            f"python benchmarks/recipes.py {self.task} --model {RECIPE_ENCODERS[self.encoder]}"
            f" --data $DATA/{self.data} --train-rows {self.rows}{options}{chosen}{more} --output {self.trained}"
        )

    def commands(self) -> Iterator[str]:
        """The commands of the studies, on the checkpoints of the recipes."""
        strategies = [name for name in STRATEGIES if name in self.names]
        for study in self.studies:
            runs = " ".join(f"{self.trained}/{name}-*" for name in (strategies if study in ACROSS else ["default"]))
            yield f"berxit-study {study} {runs} --data $DATA/{self.data} --output {self.trained}/studies"


REGRESSION = (*ACROSS, "lte", "certainty")
SST2_RECIPES = ("default", "joint", "paper", "first token", "one learning rate", "self-distillation")
SST2 = Recipes("sst2", "SST-2", 2000, names=SST2_RECIPES, options=(), studies=("tradeoff", "criteria"))
WITHOUT_TWO_STAGE = ("default", "joint", "self-distillation")
RECIPES = (
    Recipes("sick", "SICK", 2000, names=WITHOUT_TWO_STAGE, options=(), studies=("tradeoff", "lte")),
    Recipes("mrpc", "MRPC", 2000, names=("default", "joint"), options=(), studies=("tradeoff", "criteria")),
    Recipes("rte", "RTE", 2000, names=("default", "joint")),
    Recipes("stsb", "STS-B", 2000, names=WITHOUT_TWO_STAGE, studies=REGRESSION),
    Recipes("sst2", "SST-2", 2000, "bge", names=("default", "joint")),
    Recipes("mrpc", "MRPC", 1000, "bge"),
    Recipes("rte", "RTE", 1000, "bge", names=("default", "joint")),
    Recipes("sick", "SICK", 1000, "bge", names=WITHOUT_TWO_STAGE, studies=REGRESSION),
    Recipes("stsb", "STS-B", 1000, "bge", names=WITHOUT_TWO_STAGE, studies=REGRESSION),
    Recipes("mrpc", "MRPC", 1000, "mpnet", names=("default", "joint")),
)
LIMIT = "berxit-train --bf16 --limit-train 2000 --no-lte --task mrpc --model $MINILM --data $DATA/MRPC"
PROBED = f"{OUTPUT}/recipes-mrpc-bge"

RECIPE_ENTRIES = (
    Entry(
        "recipes",
        tuple(file for each in (SST2, *RECIPES) for file in each.files("recipes")),
        700,
        (
            SST2.comparison((), " --seeds 42"),
            SST2.comparison(SST2.names),
            SST2.comparison((), " --only-table"),
            *(each.comparison(each.names) for each in RECIPES),
        ),
    ),
    Entry(
        "studies-of-recipes",
        tuple(file for each in (SST2, *RECIPES) for file in each.stored),
        30,
        tuple(command for each in (SST2, *RECIPES) for command in each.commands()),
        after=("recipes",),
    ),
    Entry(
        "limit",
        ("studies/limit-mrpc.json",),
        15,
        (
            *(f"{LIMIT} --strategy limit --layers {n} --output {OUTPUT}/limit-{n}" for n in range(1, 7)),
            f"{LIMIT} --output {OUTPUT}/limit-alternating",
            f"berxit-study limit {OUTPUT}/limit-* --data $DATA/MRPC --output {OUTPUT}/studies",
        ),
    ),
    Entry(
        "probe",
        ("studies/probe-mrpc.json",),
        2,
        (f"berxit-study probe {PROBED}/joint-* {PROBED}/default-* --data $DATA/MRPC --output {OUTPUT}/studies",),
        after=("recipes",),
    ),
)
