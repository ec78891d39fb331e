"""The calibration rule, as a caller of the API or of a command names it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from berxit.runtime.errors import InputError

if TYPE_CHECKING:
    from berxit.train.rules import Rule


@dataclass(frozen=True)
class RuleOptions:
    """Numbers of one of the rules; None: not given. Checked without importing torch.

    Raises InputError for two rules, or an option of a rule that was not chosen.
    """

    keep: float | None = None
    risk: float | None = None
    risk_of: str | None = None
    per: str | None = None
    delta: float | None = None
    optimistic: bool = False
    budget_ms: float | None = None
    bench: Path | str | None = None
    accept_noise: bool = False

    def __post_init__(self) -> None:
        rules = {"--keep": self.keep, "--risk": self.risk, "--budget-ms": self.budget_ms}
        given = [flag for flag, value in rules.items() if value is not None]
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)} exclude each other: choose one")
        if self.optimistic and (self.risk is not None or self.budget_ms is not None):
            raise InputError("--optimistic goes with --keep: omit --optimistic, or give --keep")
        if self.delta is not None and (self.optimistic or self.budget_ms is not None):
            raise InputError("--delta goes with --keep or --risk, without --optimistic: omit --delta")
        for flag, value in (("--risk-of", self.risk_of), ("--per", self.per)):
            if value is not None and self.risk is None:
                raise InputError(f"{flag} goes with --risk: add it, or omit {flag}")
        if self.bench is not None and self.budget_ms is None:
            raise InputError("--bench goes with --budget-ms: add it, or omit --bench")
        if self.accept_noise and self.budget_ms is None:
            raise InputError("--accept-noise goes with --budget-ms: add it, or omit --accept-noise")
        if self.budget_ms is not None and self.bench is None:
            raise InputError(
                "--budget-ms needs --bench bench.json: export the checkpoint, then berxit-bench the bundle"
            )

    def rule(self, checkpoint: Path) -> Rule:
        """The rule for a checkpoint. Raises InputError for a number out of range, and as ``Budget.of_bench`` does."""
        from berxit.train.configuration import MultiExitConfig
        from berxit.train.risks import DISAGREEMENT
        from berxit.train.rules import DELTA, Budget, Keep, Risk

        delta = DELTA if self.delta is None else self.delta
        if self.risk is not None:
            return Risk(self.risk, delta, self.risk_of or DISAGREEMENT, self.per or "all")
        if self.budget_ms is not None and self.bench is not None:
            config = MultiExitConfig.from_pretrained(str(checkpoint))
            return Budget.of_bench(self.budget_ms, Path(self.bench), config, accept_noise=self.accept_noise)
        return Keep(0.99 if self.keep is None else self.keep, delta, self.optimistic)
