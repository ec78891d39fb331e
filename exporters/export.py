"""From checkpoint to bundle: cut, write, check every exit against the checkpoint, and only then put it in place."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import numpy as np
import numpy.typing as npt
import torch

from berxit.devices import recognise, this_machine
from berxit.exporters.bundle_scores import bundle_pass, calibration_file, calibration_texts, compare, describe_scores
from berxit.exporters.exit_placement import Placement, checked_exits, place_exits, quiet_costs
from berxit.exporters.golden_samples import golden_texts, of_every_length
from berxit.exporters.options import ExportOptions
from berxit.exporters.segments import split_segments
from berxit.runtime.backends import open_backend
from berxit.runtime.bundle import (
    SCHEMA_VERSION,
    DataFile,
    Manifest,
    ModelInfo,
    Parity,
    read_manifest,
    sha256,
    write_manifest,
)
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.golden import Golden, deviations, read_golden, tokenized, write_golden
from berxit.runtime.loop import Backend
from berxit.runtime.metrics import positive_class
from berxit.runtime.policies import ExitPolicy
from berxit.runtime.progress import Progress, silent
from berxit.runtime.storage import write_whole
from berxit.runtime.tokenization import Text, TextTokenizer
from berxit.train.calibration import POLICY_FILE, CalibratedPolicy, choose, choose_again, read_policy, stored_pass
from berxit.train.checkpoint import apply_umask, load_checkpoint
from berxit.train.encoding import as_tensors
from berxit.train.modeling import MultiExitModel
from berxit.train.tasks import Task, task_of
from berxit.train.tokenizing import revealing_texts

TARGETS = {
    "onnxruntime": "berxit.exporters.onnx.onnxruntime",
    "tensorrt": "berxit.exporters.onnx.tensorrt",
    "coreml": "berxit.exporters.coreml.target",
}
"""Target -> the module that writes it. A new target is one line here and one module with

PRECISIONS                                          precision -> how far an exit may be off; the first is the default
OPTIONS                                             which ExportOptions it takes, beside precision
write_segments(segments, folder, options, bar)      writes the files, returns what the manifest says of them
checking_backend(folder, manifest, threads)         runs what was written, here and now, for the parity check

and, where it differs from the others, PACKAGES (what wrote it), MAX_BATCH (rows a segment takes), PROOF (what the
parity check says, and what it does not), LEAST_PSNR (precision -> dB that every exit's logits must reach), SCORED (the
precisions whose scores are measured on the calibration data), EVERY_LENGTH (whether golden inputs must come in each of
the lengths) and with_defaults(options, segments), which fills in what is left open.
"""


ROUNDING = 1e-6
"""Relative difference below which an exit needs no PSNR: the rounding of float32, however small its logits are."""


@dataclass(frozen=True)
class ExitParity:
    """How near one exported exit is to the checkpoint's."""

    layer: int
    max_diff: float
    """Of logits relative to ``scale``, and of LTE certainty."""
    psnr: float
    """In dB, of the logits."""
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
        return f"-[{mark}] layer {self.layer:02d}: {off}"


def export(  # noqa: PLR0915
    checkpoint: Path,
    target: str,
    output: Path,
    *,
    options: ExportOptions = ExportOptions(),  # noqa: B008 - frozen
    force: bool = False,
    accept_noise: bool = False,
    scores: bool = True,
    data: Path | None = None,
    progress: Progress = silent,
    report: Callable[[str], None] = lambda line: None,
    warn: Callable[[str], None] | None = None,
) -> Manifest:
    """Writes the bundle ``output`` for a target, whole or not at all.

    ``scores``: run what a precision may change over the calibration data, measure what it costs, and choose the
    thresholds from its outputs. ``data``: the file (or its folder) that the checkpoint was calibrated on, for a
    checkpoint that does not contain its texts; default: the texts that the calibration stored. It also gives the golden
    inputs where the checkpoint has no samples. ``accept_noise``: place exits automatically on a busy machine, too.
    ``report`` receives every line of the parity check, ``warn`` (default: ``report``) what was not measured, and why
    scores or golden inputs may mean little.

    Raises InputError for an unknown target or precision, an output that exists, or a precision that needs texts of the
    task where there are none; BerxitError for a checkpoint that cannot be read or an exit that differs from it.
    """
    writer = target_module(target)
    options = options.checked_for(target, writer)
    precision = str(options.precision)
    model, tokenizer = load_checkpoint(checkpoint)
    scored = precision if precision in getattr(writer, "SCORED", ()) else None
    warn = warn or report
    calibrated = stored = read_policy(checkpoint)
    if calibrated and calibrated.policy.layers != model.layers:
        raise BerxitError(
            f"{checkpoint / POLICY_FILE} is for {calibrated.policy.layers} layers, the model has {model.layers}:"
            " run berxit-calibrate again"
        )
    data_file = None
    if data and scores and stored and scored:  # else --data gives golden inputs, or nothing
        data_file = calibration_file(data, checkpoint, stored.calibration)
    samples = golden_texts(checkpoint, model.config, data_file or data, scored, warn)
    segments, placed = split_segments(model), None
    if options.exits == "auto":
        placed = automatic_exits(checkpoint, target, options, calibrated, data, progress, accept_noise=accept_noise)
        report(str(placed))
        options = replace(options, exits=placed.exits)
    if options.exits:
        exits = checked_exits(options.exits, model.layers)
        segments = segments.with_exits(exits)
        if calibrated:
            calibrated = choose_again(stored_pass(checkpoint, calibrated), calibrated.calibration, exits)
            report(f"calibrated for these exits: {calibrated.calibration.summary()}")
    if hasattr(writer, "with_defaults"):
        options = writer.with_defaults(options, segments)
    longest = model.config.max_length
    if options.lengths:  # no input is longer than the model takes, none is cut shorter than the longest of them
        options = replace(options, lengths=tuple(sorted({min(length, longest) for length in options.lengths})))
        longest = options.lengths[-1]
    with write_whole(output, force=force) as folder:
        shutil.copyfile(checkpoint / "tokenizer.json", folder / "tokenizer.json")
        tokenizer = TextTokenizer(folder / "tokenizer.json", longest, tokenizer.pad_token_id)
        if getattr(writer, "EVERY_LENGTH", False):
            samples = of_every_length(samples, options.lengths, tokenizer)
        golden = make_golden(model, tokenizer, samples, longest)
        write_golden(golden, folder / "golden.json")
        with progress(len(segments.layers) + 1) as bar:
            written = writer.write_segments(segments, folder, options, bar)
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            target=target,
            precision=precision,
            model=model_info(model, tokenizer.pad_token_id, longest),
            tokenizer=DataFile("tokenizer.json", sha256(folder / "tokenizer.json")),
            segments=written,
            policy=calibrated.policy if calibrated else ExitPolicy.full_depth(model.layers, model.config.regression),
            lengths=options.lengths,
            max_batch=options.max_batch or getattr(writer, "MAX_BATCH", None),
            threads=options.threads,
            calibration=asdict(calibrated.calibration) if calibrated else None,
            parity=Parity(
                "PyTorch, fp32", writer.PRECISIONS[precision], (), golden.scale(regression=model.config.regression)
            ),
            golden=DataFile("golden.json", sha256(folder / "golden.json")),
            made_with={
                name: version(name)
                for name in ("berxit", "torch", "transformers", "numpy", *getattr(writer, "PACKAGES", ("onnx",)))
            },
        )
        backend = writer.checking_backend(folder, manifest, None)
        manifest = _checked(manifest, writer, backend, golden, checkpoint, report)
        if scores and stored and scored:
            task = task_of(model.config)
            manifest = _scored(
                manifest,
                backend,
                tokenizer,
                task,
                checkpoint,
                stored,
                data_file,
                progress,
                report,
                warn,
            )
        del backend  # it maps files of a folder that is about to be renamed
        if placed and manifest.calibration:
            placed = placed.under(manifest.calibration["histogram"])
            manifest.calibration["placement"] = asdict(placed)
            if manifest.scores:
                report(f"expected with this threshold: {placed.expected_ms:.2f} ms per input")
        for line in manifest.calibration["warnings"] if manifest.calibration else ():
            warn(line)
        write_manifest(manifest, folder)
        apply_umask(folder)
    return manifest


def _checked(
    manifest: Manifest,
    writer: ModuleType,
    backend: Backend,
    golden: Golden,
    checkpoint: Path,
    report: Callable[[str], None],
) -> Manifest:
    """With every exit's difference from the checkpoint. Raises BerxitError where one is too large."""
    atol, least_psnr = manifest.parity.atol, getattr(writer, "LEAST_PSNR", {}).get(manifest.precision, -math.inf)
    scale = manifest.parity.scale
    found = deviations(backend, golden, manifest.model.pad_token_id, scale)
    parity = [
        ExitParity(layer, exit_.max_diff, exit_.psnr, atol, scale, least_psnr)
        for layer, exit_ in zip(manifest.exits, found, strict=True)
    ]
    for line in parity:
        report(str(line))
    if proof := getattr(writer, "PROOF", None):
        report(proof)
    if bad := [line for line in parity if not line.good]:
        raise BerxitError(f"{len(bad)} of {len(parity)} exits differ from {checkpoint}: {bad[0]}. Nothing was written")
    max_diff = tuple(exit_.max_diff for exit_ in parity)
    if manifest.precision in getattr(writer, "SCORED", ()):  # a wide tolerance: a device may be off twice what we were
        atol = min(atol, 2 * max(max_diff))
    return replace(manifest, parity=replace(manifest.parity, atol=atol, max_diff=max_diff))


def _scored(
    manifest: Manifest,
    backend: Backend,
    tokenizer: TextTokenizer,
    task: Task,
    checkpoint: Path,
    stored: CalibratedPolicy,
    data_file: Path | None,
    progress: Progress,
    report: Callable[[str], None],
    warn: Callable[[str], None],
) -> Manifest:
    """With every exit's score on the calibration data beside the checkpoint's, and thresholds of its own; as it is,
    and ``warn`` receives the reason, where that data is not available."""
    c = stored.calibration
    try:
        expected = stored_pass(checkpoint, stored).at_exits(manifest.exits)
        texts = calibration_texts(checkpoint, expected, c, task, data_file)
    except BerxitError as error:
        warn(f"what {manifest.precision} costs was not measured, the thresholds are the checkpoint's: {error}")
        return manifest
    found = bundle_pass(backend, tokenizer, texts, expected, progress)
    scores = compare(expected, found, c)
    chosen = choose(found, c.criterion, c.asked, c.data, c.data_sha256)
    report(describe_scores(scores, manifest.exits, chosen.calibration.histogram, manifest.precision))
    report(f"calibrated on its own answers: {chosen.calibration.summary()}")
    return replace(manifest, policy=chosen.policy, calibration=asdict(chosen.calibration), scores=scores)


def automatic_exits(
    checkpoint: Path,
    target: str,
    options: ExportOptions,
    calibrated: CalibratedPolicy | None,
    data: Path | None,
    progress: Progress,
    *,
    accept_noise: bool = False,
) -> Placement:
    """Exits where they pay: measured on two bundles, one with all exits and one with the last only, on this machine and
    with as many threads as the bundle will run with.

    Raises InputError for a checkpoint that was not calibrated: nobody knows where its inputs would leave; and on a
    machine that does not run the target.
    """
    here = recognise(this_machine())
    if target not in here.targets:
        raise InputError(
            f"--exits auto measures here, and a {here.name} does not run {target}: name them, as --exits 2,4"
        )
    if calibrated is None:
        raise InputError(f"--exits auto needs to know where inputs leave: run berxit-calibrate {checkpoint} first")
    layers = calibrated.policy.layers
    with TemporaryDirectory() as scratch:
        bundles = Path(scratch) / "all", Path(scratch) / "last"
        export(
            checkpoint,
            target,
            bundles[0],
            options=replace(options, exits=()),
            scores=False,
            data=data,
            progress=progress,
        )
        manifest = export(
            checkpoint, target, bundles[1], options=replace(options, exits=(layers,)), scores=False, data=data
        )
        threads = options.threads or here.threads
        both = [open_backend(bundle, read_manifest(bundle), threads) for bundle in bundles]
        golden = read_golden(bundles[0], manifest)
        inputs = golden.one_by_one(manifest.model.pad_token_id)
        costs = quiet_costs(both[0], both[1], inputs, progress, accept_noise=accept_noise)
    calibration, predictions = calibrated.calibration, stored_pass(checkpoint, calibrated)
    return place_exits(layers, lambda exits: choose_again(predictions, calibration, exits).calibration.histogram, costs)


def target_module(target: str) -> ModuleType:
    if target not in TARGETS:
        raise InputError(f"unknown target '{target}': choose one of {', '.join(TARGETS)}")
    return import_module(TARGETS[target])


def model_info(model: MultiExitModel, pad_token_id: int, max_length: int) -> ModelInfo:
    config = model.config
    return ModelInfo(
        family=config.backbone.model_type,
        task=config.task,
        kind="regression" if config.regression else "classification",
        labels=config.labels,
        metric=config.metric,
        text_columns=config.text_columns,
        label_column=config.label_column,
        layers=model.layers,
        hidden_size=model.hidden_size,
        max_length=max_length,
        pad_token_id=pad_token_id,
        lte=config.lte,
        positive=positive_class(config.metric, config.labels),
    )


@torch.no_grad()
def make_golden(
    model: MultiExitModel,
    tokenizer: TextTokenizer,
    samples: Sequence[Text],
    max_length: int,
) -> Golden:
    """The checkpoint's outputs for the samples, as one padded batch; and the ids of texts that reveal a runner whose
    tokenizer differs."""
    batch = tokenizer(samples)
    outputs = model(**as_tensors(batch))
    cases = tokenized(samples, batch)
    revealing = revealing_texts(len(model.config.text_columns) == 2, max_length)
    return Golden(
        texts=tuple(case.texts for case in cases),
        input_ids=tuple(case.input_ids for case in cases),
        token_type_ids=tuple(case.token_type_ids for case in cases),
        tokenization=tokenized(revealing, tokenizer(revealing)),
        logits=shortest(outputs.exit_logits.numpy()).tolist(),
        lte=None if outputs.certainties is None else shortest(outputs.certainties.numpy()).tolist(),
    )


def shortest(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """The same values with the fewest decimals that still give the same float32."""
    return np.array([float(str(value)) for value in values.ravel()]).reshape(values.shape)
