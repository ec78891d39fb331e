"""The result of the bench: content of bench.json."""

from __future__ import annotations

from dataclasses import dataclass, field

from berxit import devices
from berxit.runtime.backend_options import OptionValue
from berxit.runtime.bench_records import BenchRecords
from berxit.runtime.cold_start import ColdStart
from berxit.runtime.energy import Energy
from berxit.runtime.json_data import NOT_STORED
from berxit.runtime.measurement import Line, Measured
from berxit.runtime.noise import Noise, bench_problems
from berxit.runtime.speed_up import SpeedUp
from berxit.runtime.throughput import Throughput
from berxit.runtime.tuning import TuningResult
from berxit.runtime.validity import Validity

CALIBRATED = "calibrated"
"""Name of the operating point with the bundle's own thresholds."""
FULL_DEPTH = "full depth"
ONE_GRAPH = "one graph"
"""Name of the operating point at full depth as one graph (without exits)."""


@dataclass(frozen=True)
class BenchResult:
    """Content of bench.json: the measurements and their conditions."""

    bundle: str
    target: str
    backend: str
    """The backend that ran the segments."""
    precision: str
    task: str
    metric: str | None
    """None for inputs without labels."""
    layers: int
    device: str
    machine: devices.Machine
    threads: int
    inputs: int
    rounds: int
    boundary: str
    self_check: float
    """The largest difference from the checkpoint over all exits of the golden inputs, on this device; of logits,
    relative to the manifest's ``parity.scale``."""
    by_layer: dict[int, Measured]
    """Layer with an exit -> latency and score if every input exits there."""
    by_threshold: dict[float, Measured]
    criterion: str
    policy: Measured | None
    """The bundle's own thresholds; None if it is not calibrated."""
    line: Line | None
    """None for a bundle with one exit: one depth determines no line."""
    before: devices.Reading
    after: devices.Reading
    versions: dict[str, str]
    lazy: bool = False
    """True if a layer was loaded when an input first reached it."""
    memory_mib: float | None = None
    """Resident memory of the process after every input ran under the bundle's own policy, before any other measurement.
    With ``lazy``, without the layers that no input reached."""
    tuned: tuple[TuningResult, ...] = ()
    """With --tune: latency with every backend, option and number of threads, the fastest first, which ran the bench."""
    constant_score: float | None = None
    """The score of the best prediction that is the same for every input; None without labels."""
    warnings: tuple[str, ...] = ()
    """Scores at chance."""
    noise: Noise | None = None
    """None in the results of an older version."""
    backend_options: dict[str, OptionValue] = field(default_factory=dict)
    sensors: dict[str, devices.Sampled | None] = field(default_factory=dict)
    """Sensor -> its samples while the latencies were measured; None for a sensor that the machine does not have. Empty
    in the results of an older version."""
    energy: dict[str, Energy] = field(default_factory=dict)
    """Operating point, ``full depth`` or ``calibrated`` -> energy per input. Empty without a power sensor."""
    one_graph: Measured | None = None
    """Full depth as one graph (without exits); None if the bundle does not contain it."""
    size_mib: float | None = None
    """Size of the bundle on disk. None in the results of an older version, as all following values."""
    cold_start: ColdStart | None = None
    """Load time, first prediction and memory in new processes; also None if no new process can run."""
    throughput: tuple[Throughput, ...] = ()
    """Inputs per second of full depth and of the calibrated policy, at each batch size above 1."""
    speed_ups: dict[str, SpeedUp] = field(default_factory=dict)
    """Speed-up of the calibrated policy over another operating point: ``full depth``, ``one graph``, or the best fixed
    exit as ``layer 4``."""
    validity: Validity | None = None
    calibration: str = ""
    """Rule and result of the calibration, in sentences; empty without a calibration record."""
    calibration_warnings: tuple[str, ...] = ()
    """Warnings of the calibration record."""
    records: BenchRecords | None = field(default=None, metadata=NOT_STORED, repr=False, compare=False)
    """Single queries and the outputs of every exit, which queries.json contains; None for a stored result."""

    def noise_problems(self) -> list[str]:
        """Reasons why no decision should depend on this bench; empty for a quiet machine."""
        return bench_problems(self.noise, self.line)

    @property
    def full_depth(self) -> Measured:
        """Latency and score at the last layer."""
        return self.by_layer[self.layers]

    @property
    def best_fixed(self) -> int | None:
        """The fastest exit layer whose score is at least the policy's. None if there is none, without a policy, and
        without labels."""
        if self.policy is None or self.policy.score is None:
            return None
        least = self.policy.score
        enough = {
            k: each.latency.mean for k, each in self.by_layer.items() if each.score is not None and each.score >= least
        }
        return min(enough, key=lambda layer: enough[layer], default=None)
