"""The public functions of ``berxit``: fine-tune, evaluate, calibrate, export, measure and compare.

Each command parses its options, calls one of these functions and prints the result. The functions print nothing:
``progress`` receives the steps (``runtime/progress.py``), ``report`` the lines that a user should read. Paths may be
``str`` or ``Path``. Every function raises InputError for an argument that the caller can change, and BerxitError for
any other failure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from berxit import devices
from berxit.runtime.arguments import refuse_alone
from berxit.runtime.errors import InputError
from berxit.runtime.policies import adaptive_criterion_from, criterion_from, criterion_named
from berxit.runtime.progress import Progress, silent
from berxit.toolkit.rule_options import RuleOptions

if TYPE_CHECKING:
    from berxit.exporters.options import ExportOptions
    from berxit.runtime.backend_options import Options
    from berxit.runtime.bench_result import BenchResult
    from berxit.runtime.bundle import Manifest
    from berxit.runtime.calibration import Calibration
    from berxit.runtime.tuning import TuningResult
    from berxit.toolkit.comparison.benches import BenchComparison
    from berxit.toolkit.comparison.models import ModelComparison
    from berxit.toolkit.evaluation_report import Evaluation
    from berxit.toolkit.scoring.corpus import CorpusPredictions
    from berxit.toolkit.scoring.files import FilePredictions
    from berxit.train.evaluation import Predictions
    from berxit.train.in_memory import Data
    from berxit.train.options import TrainingOptions

Report = Callable[[str], None]
"""Receiver of one line of text."""


def _ignore(line: str) -> None:
    """Ignores a line."""


@dataclass(frozen=True)
class FineTuned:
    """Result of ``fine_tune``."""

    checkpoint: Path
    """Folder with config.json, model.safetensors and the tokenizer; ``transformers`` loads it."""
    data: Path
    """File or folder with the training data; a table in memory was stored there."""
    calibration_data: Path | None
    """Data with a dev split: the folder ``data``, or the file of the held-out rows. None if there is neither."""
    main_process: bool
    """False in all but one process of torchrun or accelerate."""


@dataclass(frozen=True)
class FileEvaluation:
    """Scores of all exits on one file, and the outputs from which they were computed."""

    file: Path
    evaluation: Evaluation
    predictions: Predictions

    def write(self, folder: Path | str) -> list[Path]:
        """Writes predictions.npz, eval.json, eval.md and, if matplotlib is installed, eval.png."""
        from berxit.toolkit.evaluation_files import write_evaluation

        return write_evaluation(self.evaluation, self.predictions, Path(folder))


@dataclass(frozen=True)
class Exported:
    """Result of ``export``."""

    bundle: Path
    manifest: Manifest
    report: tuple[str, ...]
    """Lines of the parity check and of the calibration."""
    warnings: tuple[str, ...]
    """Reasons why scores or golden inputs are not reliable, and measurements that were skipped."""
    device: devices.Device | None
    """Profile of ``device``; None if a target was given instead."""


def fine_tune(
    options: TrainingOptions,
    data: Data | None,
    output: Path | str,
    *,
    task: str = "custom",
    text_columns: Sequence[str] = (),
    label_column: str | None = None,
    heads: Sequence[str] | Mapping[str, str] = (),
    kind: str | None = None,
    regression: bool = False,
    metric: str | None = None,
    positive: str | None = None,
    tensorboard: Path | str | None = None,
    force: bool = False,
    progress: Progress = silent,
    report: Report = _ignore,
) -> FineTuned:
    """Fine-tunes an encoder so that every layer can make a prediction, and writes the checkpoint ``output``.

    ``data``: a file, a folder with train and dev files, a table (data frame, datasets.Dataset, list of dictionaries,
    dictionary of columns), or a dictionary of such tables by split. None downloads the data of a built-in ``task``. Of
    data without a dev split, a tenth of the rows is held out and stored in the checkpoint.
    ``text_columns`` to ``positive`` describe a custom task; by default its columns are ``text`` and ``label``, and its
    kind is classification. ``regression=True`` is the same as ``kind="regression"``. ``heads``: named heads, head name
    -> column with its classes, or "NAME=COLUMN" each.
    ``tensorboard``: folder for TensorBoard logs. ``force``: replace an existing ``output``. The same call continues an
    interrupted run.
    """
    from berxit.train.checkpoint import DEV_FILE
    from berxit.train.fine_tuning import fine_tune as run
    from berxit.train.fine_tuning import refuse_other_than_checkpoint
    from berxit.train.hub import task_data
    from berxit.train.splitting import has_dev
    from berxit.train.tasks import TaskOptions, kind_of
    from berxit.train.trainer import processes_here, summary_writer

    if tensorboard is not None:
        summary_writer()  # a missing package is an error before any line about the data
    output = Path(output)
    if isinstance(heads, Mapping):
        heads = [f"{name}={column}" for name, column in heads.items()]
    described = TaskOptions(text_columns, label_column, kind_of(kind, regression), metric, positive, heads)
    described.check(task)
    refuse_other_than_checkpoint(output, force)
    processes = processes_here()
    with processes.local_main_process_first():  # one process per machine downloads or stores the data
        files = task_data(task, data, "train", report)
    known = described.task(task, files, skip_bad_rows=options.skip_bad_rows)
    logs = None if tensorboard is None else Path(tensorboard)
    run(known, files, options, output, logs=logs, force=force, progress=progress, report=report)
    held_out = output / DEV_FILE
    dev = files if has_dev(files) else held_out if held_out.is_file() else None
    return FineTuned(output, files, dev, processes.is_main_process)


def evaluate(
    checkpoint: Path | str,
    data: Data | None = None,
    *,
    split: str = "dev",
    criterion: str | None = None,
    batch_size: int = 32,
    skip_bad_rows: bool = False,
    progress: Progress = silent,
    report: Report = _ignore,
) -> list[FileEvaluation]:
    """Scores every exit of a checkpoint, and computes the trade-off curve of every exit criterion, from one pass.

    Returns one evaluation per file: a split has one file, except MNLI's dev split, which has two. ``data``: as in
    ``fine_tune``; None uses the rows that training held out, or downloads the data of the checkpoint's task.
    ``criterion``: the criterion whose thresholds are listed, a name or FILE.py:NAME; None selects the default for the
    task.
    """
    from berxit.runtime.examples import split_files
    from berxit.toolkit.evaluation_report import evaluate as evaluation_of
    from berxit.train.calibration import read_policy
    from berxit.train.checkpoint import load_checkpoint
    from berxit.train.evaluation import best_device, predict
    from berxit.train.tasks import task_of

    checkpoint = Path(checkpoint)
    criterion = adaptive_criterion_from(criterion) if criterion else None
    files = split_files(_untrained_data(checkpoint, data, split, report), split)
    model, tokenizer = load_checkpoint(checkpoint, best_device())
    calibrated = read_policy(checkpoint)
    found = []
    for file in files:
        examples = task_of(model.config).read(file, split, skip_bad_rows=skip_bad_rows)
        if examples.skipped:
            report(examples.skipped_line(file))
        predictions = predict(model, tokenizer, examples, batch_size, progress, str(file))
        policy = calibrated.policy if calibrated else None
        evaluation = evaluation_of(predictions, criterion, policy, examples.texts)
        found.append(FileEvaluation(file, evaluation, predictions))
    return found


def calibrate(
    checkpoint: Path | str,
    data: Data | None = None,
    *,
    keep: float | None = None,
    risk: float | None = None,
    risk_of: str | None = None,
    per: str | None = None,
    delta: float | None = None,
    optimistic: bool = False,
    budget_ms: float | None = None,
    bench: Path | str | None = None,
    accept_noise: bool = False,
    split: str = "dev",
    criterion: str | None = None,
    fixed: bool = False,
    patience: int = 1,
    off: Sequence[int] = (),
    full_depth_classes: Sequence[str] = (),
    fit_temperatures: bool = False,
    thresholds_per_exit: bool = False,
    batch_size: int = 32,
    skip_bad_rows: bool = False,
    progress: Progress = silent,
    report: Report = _ignore,
) -> Calibration:
    """Chooses the exit threshold of a checkpoint and writes it to the checkpoint's exit_policy.json.

    One of three rules chooses it:

    - ``keep`` (default 0.99) and ``delta`` (default 0.1): the cheapest threshold whose score on new data is at least
      this share of the last exit's, with probability 1 - ``delta``; with ``optimistic`` instead the cheapest one whose
      score on this data is high enough;
    - ``risk`` and ``delta``: the cheapest threshold whose risk on new inputs is at most ``risk``, with probability
      1 - ``delta``. ``risk_of``: "disagreement" with the last exit (default; the data needs no labels), "label-error"
      above the last exit's, or "misses:CLASS". ``per``: "all" inputs together, every "class", or the inputs that exit
      by any "exit";
    - ``budget_ms`` and ``bench`` (a bench.json of a bundle of this checkpoint): the best score within a mean latency in
      milliseconds. ``accept_noise``: use a bench of a busy machine, too.

    The other arguments describe the policies among which the rule chooses: the ``criterion``, a name or FILE.py:NAME;
    ``patience``, the number of consecutive exits that must pass the threshold; ``off``, layers whose exit is switched
    off; ``full_depth_classes``, for which no input exits early; fitted temperatures and thresholds per exit.
    ``fixed``: instead, one exit layer for all inputs; an export then has no deeper layers.

    ``data``: data that the checkpoint was not trained on, as in ``evaluate``. Exports copy the policy to the bundle.
    """
    options = RuleOptions(keep, risk, risk_of, per, delta, optimistic, budget_ms, bench, accept_noise)
    of_adaptive = patience > 1 or off or full_depth_classes or fit_temperatures or thresholds_per_exit
    if fixed and (criterion or of_adaptive):
        raise InputError("--fixed excludes --criterion and every other option of an adaptive policy: omit them")
    criterion = "fixed" if fixed else criterion_from(criterion) if criterion else None
    if criterion and of_adaptive and not criterion_named(criterion).adaptive:
        raise InputError(f"--criterion {criterion} excludes every option of an adaptive policy: omit them")
    from berxit.train.calibration import calibrate as run
    from berxit.train.configuration import MultiExitConfig
    from berxit.train.evaluation import default_criterion
    from berxit.train.families import PolicySpec

    checkpoint = Path(checkpoint)
    untrained = _untrained_data(checkpoint, data, split, report)
    config = MultiExitConfig.from_pretrained(str(checkpoint))
    return run(
        checkpoint,
        untrained,
        split=split,
        spec=PolicySpec(
            criterion or default_criterion(regression=config.regression, lte=config.lte),
            patience,
            tuple(off),
            tuple(full_depth_classes),
            fit_temperatures,
            thresholds_per_exit,
        ),
        rule=options.rule(checkpoint),
        batch_size=batch_size,
        skip_bad_rows=skip_bad_rows,
        progress=progress,
        report=report,
    )


def _untrained_data(checkpoint: Path, data: Data | None, split: str, report: Report) -> Path:
    """The file or folder of ``data``, or the task's data if it is None. If training held out rows of this data as the
    dev split, the file of these rows."""
    from berxit.train.checkpoint import read_config
    from berxit.train.hub import task_data
    from berxit.train.splitting import held_out_rows

    task = read_config(checkpoint)["task"]
    files = None if data is None else _files(data, split)
    if (held_out := held_out_rows(checkpoint, files, split)) is not None:
        report(f"using {held_out}, the rows that training held out")
        return held_out
    return task_data(task, files, split, report)


def default_bundle(checkpoint: Path, target: str) -> Path:
    """Folder of the bundle if no output is given: CHECKPOINT-TARGET, beside the checkpoint."""
    return checkpoint.with_name(f"{checkpoint.resolve().name}-{target}")


def export(
    checkpoint: Path | str,
    output: Path | str | None = None,
    *,
    target: str | None = None,
    device: str | None = None,
    options: ExportOptions | None = None,
    data: Data | None = None,
    scores: bool = True,
    most_flips: float | None = None,
    accept_noise: bool = False,
    sign: Path | str | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Exported:
    """Splits a checkpoint into one segment per layer, verifies every exit, and writes the bundle ``output``.

    ``target``: onnxruntime, tensorrt or coreml. ``device``: a name from ``berxit devices``, which selects the target
    and the defaults of ``options``. ``output``: by default CHECKPOINT-TARGET. ``data``: the calibration data; None uses
    the texts that ``calibrate`` stored. ``scores``: for a precision that may change predictions, run the calibration
    data through the bundle and choose the threshold from its outputs. ``most_flips``: write nothing if more than this
    percentage of these predictions differ from the checkpoint's full depth. ``accept_noise``: with exits="auto", choose
    on a busy machine, too. ``sign``: PEM file of a private ed25519 key, which signs the bundle. ``force``: replace an
    existing ``output``.
    """
    from berxit.exporters.export import export as run
    from berxit.exporters.options import ExportOptions
    from berxit.exporters.targets import TARGETS

    checkpoint = Path(checkpoint)
    profile = _profile(device, target) if device else None
    options = options or ExportOptions()
    if profile:
        first = target in (None, profile.targets[0])
        target = target or profile.targets[0]
        options = _with_defaults(options, profile) if first else options
    if target is None:
        raise InputError(
            f"the target is missing: give --target {', '.join(TARGETS)}, or --device with a name of berxit devices"
        )
    folder = default_bundle(checkpoint, target) if output is None else Path(output)
    lines: list[str] = []
    warnings: list[str] = []
    manifest = run(
        checkpoint,
        target,
        folder,
        options=options,
        force=force,
        accept_noise=accept_noise,
        scores=scores,
        most_flips=most_flips,
        data=None if data is None else _files(data, "dev"),
        sign=None if sign is None else Path(sign),
        progress=progress,
        report=lines.append,
        warn=warnings.append,
    )
    return Exported(folder, manifest, tuple(lines), tuple(warnings), profile)


def _profile(name: str, target: str | None) -> devices.Device:
    profile = devices.find(name)
    if profile is None:
        raise InputError(f"unknown device '{name}': choose {', '.join(d.name for d in devices.DEVICES)}")
    if target not in (None, *profile.targets):
        raise InputError(f"device '{name}' runs bundles for {' or '.join(profile.targets)}, not for {target}")
    return profile


def _with_defaults(options: ExportOptions, profile: devices.Device) -> ExportOptions:
    """The options, with the device's values for those that were not given."""
    from dataclasses import replace

    version = options.target_version or profile.target_version
    lengths = options.lengths or profile.lengths if version == profile.target_version else options.lengths
    return replace(
        options,
        precision=options.precision or profile.precision,
        layout=options.layout or profile.layout,
        target_version=version,
        lengths=lengths,
    )


def bench(
    bundle: Path | str,
    data: Data | None = None,
    *,
    device: str = "auto",
    split: str = "dev",
    limit: int | None = None,
    backend: str | None = None,
    backend_options: Options | None = None,
    threads: int | None = None,
    tune: bool = False,
    accept_noise: bool = False,
    lazy: bool = False,
    thresholds: int = 7,
    preset: str = "standard",
    queries: int | None = None,
    seconds: float = 10.0,
    progress: Progress = silent,
) -> BenchResult:
    """Measures a bundle on this device: latency against average exit layer, one input at a time.

    ``data``: labelled inputs, as in ``evaluate``; None measures the bundle's golden inputs, without a score. ``limit``:
    use the first so many inputs. ``tune``: use the fastest of the installed backends, their options and thread counts.
    ``preset``: rules by which the result is valid, ``standard`` or ``single-stream``. ``queries`` and ``seconds``:
    least number of queries per operating point (None: the preset's), and least total time. ``write_result`` of
    ``berxit.runtime.bench_report`` stores the result as bench.json, which ``calibrate`` and ``compare`` read.
    """
    from berxit.runtime.benchmark import bench as run
    from berxit.runtime.bundle import read_manifest
    from berxit.runtime.examples import find_split, read_examples_for
    from berxit.runtime.tuning import tune as tuned_by

    bundle = Path(bundle)
    if data is None:
        refuse_alone({"--limit": limit}, "--data")
    if not tune:
        refuse_alone({"--accept-noise": accept_noise}, "--tune")
    examples = None
    if data is not None:
        model = read_manifest(bundle, verify=False).model
        examples = read_examples_for(model, find_split(_files(data, split), split)).head(limit)
    tuned: tuple[TuningResult, ...] = ()
    if tune:
        manifest = read_manifest(bundle)
        tuned = tuned_by(
            bundle,
            manifest,
            backend=backend,
            backend_options=backend_options,
            threads=threads,
            accept_noise=accept_noise,
            progress=progress,
        )
    return run(
        bundle,
        device,
        examples=examples,
        backend=backend,
        backend_options=backend_options,
        threads=threads,
        tuned=tuned,
        lazy=lazy,
        thresholds=thresholds,
        preset=preset,
        queries=queries,
        seconds=seconds,
        progress=progress,
    )


def predict(
    bundle: Path | str,
    file: Path | str,
    output: Path | str | None = None,
    *,
    threshold: float | None = None,
    text_columns: Sequence[str] = (),
    label_column: str | None = None,
    use_labels: bool = True,
    flips: bool = False,
    scores: bool = True,
    backend: str | None = None,
    threads: int | None = None,
    skip_bad_rows: bool = False,
    force: bool = False,
    progress: Progress = silent,
    report: Report = _ignore,
) -> FilePredictions:
    """Predicts every row of a TSV, CSV, JSONL or Parquet file, and writes ``output`` (.csv, .jsonl or .parquet).

    The output contains the columns of the file, then prediction, exit_layer, certainty, truncated, and with ``scores``
    the probability of each class. The same call continues an interrupted run. For texts in memory, use
    ``EarlyExitRunner.predict_batch``.

    ``threshold``: exit threshold at every layer; None uses the bundle's. ``text_columns`` and ``label_column``: by
    default those of the training data. With labels, the result contains the score, the confusion matrix and the wrong
    rows. ``flips``: run full depth, too, and report the predictions that differ from it. ``skip_bad_rows``: skip rows
    that cannot be read or have no text. ``force``: replace an existing ``output``.
    """
    from berxit.runtime.bundle import read_manifest
    from berxit.runtime.examples import skipped_line
    from berxit.runtime.runner import EarlyExitRunner
    from berxit.toolkit.scoring.files import predict_file
    from berxit.toolkit.scoring.inputs import read_input
    from berxit.toolkit.scoring.writers import check_output

    file, output = Path(file), None if output is None else Path(output)
    if output is not None:
        check_output(output, force=force)
    else:
        refuse_alone({"--no-scores": not scores, "--force": force}, "--output")
    if label_column is not None and not use_labels:
        raise InputError("--label-column and --no-labels exclude each other: omit one")
    data = read_input(
        file,
        read_manifest(bundle, verify=False).model,
        text_columns=text_columns,
        label_column=label_column,
        use_labels=use_labels,
        skip_bad_rows=skip_bad_rows,
    )
    if data.skipped:
        report(skipped_line(data.skipped, file))
    with EarlyExitRunner.load(bundle, backend=backend, threads=threads) as runner:
        policy = runner.policy if threshold is None else runner.policy.with_threshold(threshold)
        found = predict_file(
            runner, data, output, policy=policy, flips=flips, scores=scores, force=force, progress=progress
        )
    if found.resumed:
        report(f"continued an interrupted run: {found.resumed} of {data.rows} rows were predicted before")
    return found


def score(
    bundle: Path | str,
    corpus: Path | str,
    output: Path | str,
    *,
    engine: str,
    workers: int = 1,
    address: str | None = None,
    text_columns: Sequence[str] = (),
    threshold: float | None = None,
    scores: bool = True,
    backend: str | None = None,
    force: bool = False,
    progress: Progress = silent,
    report: Callable[[str], None] = lambda line: None,
) -> CorpusPredictions:
    """Predicts every row of a corpus on a data engine, and writes ``output``, a folder of Parquet files.

    ``corpus``: a file, or a folder of files of one format. ``engine``: ray or spark. ``workers``: number of worker
    processes, each with one thread. ``address``: a Ray cluster or a Spark master; None starts the engine on this
    machine. The bundle, the corpus and the output must have the same paths on all machines. Every row of the corpus is
    one row of the output. A row without a text has no prediction, and its reason is in the column problem. In your own
    pipeline, use ``BatchScorer``. ``report``: called with a line before the engine starts, which takes seconds.
    """
    from berxit.toolkit.scoring.batch_scorer import BatchScorer
    from berxit.toolkit.scoring.corpus import score_corpus
    from berxit.toolkit.scoring.engines import ENGINES

    if engine not in ENGINES:
        raise InputError(f"unknown engine '{engine}': choose {' or '.join(ENGINES)}")
    scorer = BatchScorer(bundle, text_columns=text_columns, threshold=threshold, scores=scores, backend=backend)
    return score_corpus(
        scorer,
        Path(corpus),
        Path(output),
        engine=engine,
        workers=workers,
        address=address,
        force=force,
        progress=progress,
        report=report,
    )


def compare(
    first: Path | str,
    second: Path | str,
    data: Data | None = None,
    *,
    split: str = "dev",
    limit: int | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> ModelComparison | BenchComparison:
    """Compares two bundles, a checkpoint and a bundle, two checkpoints, or two bench.json files.

    ``data``: labelled texts, as in ``evaluate``; None uses a bundle's golden inputs. ``limit``: use the first so many
    rows. Both results have ``text()`` and ``regressions(percent)``.
    """
    from berxit.toolkit.comparison.benches import bench_file, compare_benches
    from berxit.toolkit.comparison.models import compare_models

    first, second = Path(first), Path(second)
    benches = bench_file(first), bench_file(second)
    if benches[0] and benches[1]:
        options = {"--data": data, "--limit": limit, "--threads": threads}
        if given := [flag for flag, value in options.items() if value is not None]:
            raise InputError(f"{given[0]} goes with models, and {first} is a bench: omit {given[0]}")
        return compare_benches(benches[0], benches[1])
    if benches[0] or benches[1]:
        raise InputError(f"{first} and {second}: only one of them is a bench. Give two benches, or two models")
    files = None if data is None else _files(data, split)
    return compare_models(first, second, data=files, split=split, limit=limit, threads=threads, progress=progress)


def _files(data: Data, split: str) -> Path:
    """The file or folder of ``data``."""
    from berxit.train.in_memory import data_files

    return data_files(data, split)
