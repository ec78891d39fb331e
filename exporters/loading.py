"""Everything that an export reads from a checkpoint, read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from berxit.exporters.segments import Segments, split_segments
from berxit.runtime.errors import BerxitError
from berxit.runtime.tokenization import TextTokenizer
from berxit.train.calibration import POLICY_FILE, CalibratedPolicy, choose_again, read_policy, stored_pass
from berxit.train.checkpoint import load_checkpoint
from berxit.train.evaluation import Predictions
from berxit.train.modeling import MultiExitModel


@dataclass
class LoadedCheckpoint:
    """A checkpoint in memory."""

    path: Path
    model: MultiExitModel
    tokenizer: TextTokenizer
    segments: Segments
    """With an exit after every layer. The arrays are views of the model's weights."""
    calibrated: CalibratedPolicy | None
    """None if the checkpoint was never calibrated."""

    @property
    def fixed(self) -> bool:
        """True if every input exits at the last layer: ``berxit-calibrate --fixed`` chose it."""
        return self.calibrated is not None and self.calibrated.policy.criterion == "fixed"

    def shortened(self) -> LoadedCheckpoint:
        """The checkpoint without the layers after its fixed exit, which no input reaches."""
        assert self.calibrated is not None
        layers = int(self.calibrated.calibration.threshold)
        model = self.model.first_layers(layers)
        shorter = LoadedCheckpoint(self.path, model, self.tokenizer, split_segments(model), self.calibrated)
        shorter.calibration_pass = self.calibration_pass.first_layers(layers)
        return shorter

    @cached_property
    def calibration_pass(self) -> Predictions:
        """The stored pass over the calibration data. Raises BerxitError if it is missing or damaged."""
        assert self.calibrated is not None
        return stored_pass(self.path, self.calibrated)

    def calibrated_for(self, exits: Sequence[int], *, estimate: bool = True) -> CalibratedPolicy:
        """The policy that the same calibration rule chooses for these exits. ``estimate`` as in ``choose``; raises as
        ``calibration_pass`` does."""
        assert self.calibrated is not None
        return choose_again(self.calibration_pass, self.calibrated.calibration, exits, estimate=estimate)


def load(path: Path) -> LoadedCheckpoint:
    """Raises BerxitError for a checkpoint that cannot be read, or whose policy is for another number of layers."""
    model, tokenizer = load_checkpoint(path)
    calibrated = read_policy(path)
    if calibrated and calibrated.policy.layers != model.layers:
        raise BerxitError(
            f"{path / POLICY_FILE} is for {calibrated.policy.layers} layers, the model has {model.layers}:"
            " run berxit-calibrate again"
        )
    loaded = LoadedCheckpoint(path, model, tokenizer, split_segments(model), calibrated)
    return loaded.shortened() if loaded.fixed else loaded
