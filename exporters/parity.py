"""Parity check: every exit of the written segments against the checkpoint, on the golden inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from berxit.exporters.targets import Precision
from berxit.exporters.writing import Written
from berxit.runtime.bundle import Parity
from berxit.runtime.errors import BerxitError
from berxit.runtime.golden import deviations
from berxit.runtime.loop import Backend

ROUNDING = 1e-6
"""Relative difference below which an exit needs no PSNR: the rounding of float32, however small its logits are."""
DEVICE_MARGIN = 2.0
"""With a scored precision, a device may differ by this factor of the difference at export. Its ``atol`` alone would
accept a wrong exit."""


@dataclass(frozen=True)
class ExitParity:
    """Difference of one exported exit from the checkpoint's."""

    what: str
    """The exit, for the report."""
    max_diff: float
    """Largest difference of logits, relative to ``scale``, and of LTE certainty."""
    psnr: float
    """PSNR of the logits in dB."""
    atol: float
    scale: float = 1.0
    least_psnr: float = -math.inf

    @property
    def good(self) -> bool:
        return self.max_diff <= self.atol and (self.psnr >= self.least_psnr or self.max_diff <= ROUNDING)  # not for NaN

    def __str__(self) -> str:
        mark = "✓" if self.good else "x"
        least = f" (at least: {self.least_psnr:.0f})" if math.isfinite(self.least_psnr) else ""
        relative = f", relative to {self.scale:.2g}" if self.scale != 1 else ""
        off = f"max diff {self.max_diff:.1e} (atol: {self.atol:.0e}{relative}), PSNR {self.psnr:.0f} dB{least}"
        return f"-[{mark}] {self.what}: {off}"


def verify(
    written: Written,
    backend: Backend,
    precision: Precision,
    proof: str | None,
    checkpoint: Path,
    report: Callable[[str], None],
) -> Parity:
    """Compares all exits and returns the manifest's record. ``report`` receives one line per exit,
    and ``proof``, the target's line about what the check verifies.

    Raises BerxitError if an exit differs from the checkpoint by more than the precision allows.
    """
    draft, scale = written.draft, written.draft.parity.scale

    def compared(backend: Backend, names: Sequence[str]) -> list[ExitParity]:
        found = deviations(backend, written.golden, draft.model.pad_token_id, scale)
        return [
            ExitParity(name, exit_.max_diff, exit_.psnr, precision.atol, scale, precision.least_psnr)
            for name, exit_ in zip(names, found, strict=True)
        ]

    exits = compared(backend, [f"layer {layer:02d}" for layer in draft.exits])
    one_graph = backend.one_graph()
    lines = [*exits, *(compared(one_graph, ["one graph (without exits)"]) if one_graph else [])]
    for line in lines:
        report(str(line))
    if proof:
        report(proof)
    if bad := [line for line in lines if not line.good]:
        raise BerxitError(f"{len(bad)} of {len(lines)} exits differ from {checkpoint}: {bad[0]}. Nothing was written")
    max_diff = tuple(exit_.max_diff for exit_ in exits)
    atol = min(precision.atol, DEVICE_MARGIN * max(max_diff)) if precision.scored else precision.atol
    return replace(draft.parity, atol=atol, max_diff=max_diff)
