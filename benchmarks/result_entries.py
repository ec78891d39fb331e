"""The table of the commands behind the files in results/. ``benchmarks/results.py`` lists and runs them."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.recipe_entries import RECIPE_ENTRIES
from benchmarks.result_entry import ENCODERS, OUTPUT, Entry

MEAN = "--pooling mean --head-learning-rate 1e-3"
TRAIN = "berxit-train --learning-rate 5e-5 --batch-size 16 --bf16"
PRECISIONS = ("fp32", "int8")


def _checkpoint(encoder: str, task: str, folder: str, options: str = MEAN) -> str:
    """The command that trains a checkpoint for several entries."""
    return f"{TRAIN} --model {ENCODERS[encoder]} --task {task} {options} --data $DATA/{folder} --output"


def _bench(name: str, folder: str, precision: str) -> tuple[str, str]:
    """The commands that export and measure a calibrated checkpoint."""
    checkpoint, bundle = f"{OUTPUT}/{name}", f"{OUTPUT}/{name}-{precision}"
    return (
        f"berxit-export --target onnxruntime {checkpoint} --precision {precision} --output {bundle}",
        f"python -m runtime.bench {bundle} --data $DATA/{folder} --threads 2 --output {bundle}-bench",
    )


def _example(name: str, kind: str, *files: str) -> Entry:
    """The entry of the sample data of a kind of task: MiniLM-L6, with four benches on the test split."""
    data, checkpoint = f"--data toolkit/sample/{name}", f"{OUTPUT}/{name}"
    requested = f"python benchmarks/requested_heads.py {checkpoint} {data} --output {checkpoint}-requested"
    return Entry(
        name,
        tuple(f"{name}/{file}.json" for file in ("eval", *files, *(f"{p}-{t}" for p in PRECISIONS for t in (1, 2)))),
        10,
        (
            f"berxit-train --model $MINILM --task custom {kind} {data} --pooling mean --epochs 3 --batch-size 16"
            f" --learning-rate 2e-4 --head-learning-rate 3e-3 --max-length 48 --output {checkpoint}",
            f"berxit-calibrate {checkpoint} {data}",
            f"berxit-eval {checkpoint} {data} --split test --output {checkpoint}-eval",
            *([requested] if files else []),
            *(
                f"berxit-export --target onnxruntime {checkpoint} --precision {p} --output {checkpoint}-{p}"
                for p in PRECISIONS
            ),
            *(
                f"python -m runtime.bench {checkpoint}-{p} {data} --split test --threads {t}"
                f" --output {checkpoint}-{p}-{t}"
                for p in PRECISIONS
                for t in (1, 2)
            ),
        ),
    )


def _held_out() -> Iterator[str]:
    """The commands that hold out rows, train without them, and store the passes over all rows that training has not
    seen."""
    for task, folder, rows in (
        ("mrpc", "MRPC", "--rows 800"),
        ("sst2", "SST-2", "--rows 3000 --train-rows 12000"),
        ("stsb", "STS-B", "--rows 1000"),
        ("sick", "SICK", "--rows 800"),
    ):
        data = f"{OUTPUT}/{folder}"
        yield f"python benchmarks/holdout.py $DATA/{folder} {rows} --output {data}"
        yield f"(cat {data}/held-out.tsv; tail -n +2 {data}/dev.tsv) > {data}/unseen.tsv"
        for encoder, model in ENCODERS.items():
            epochs = "--epochs 2 " if task == "sst2" else ""
            name = f"{OUTPUT}/{task}-{encoder}"
            yield f"{TRAIN} --model {model} --task {task} {MEAN} {epochs}--data {data} --output {name}"
            yield f"berxit-calibrate {name} --data {data}/unseen.tsv"


SIDE = "python -m benchmarks.side_by_side"
UNSEEN = tuple(f"{task}={OUTPUT}/{task}-bge" for task in ("mrpc", "sst2", "stsb", "sick"))
HELD_OUT_ROWS = {"mrpc": 800, "sst2": 3000, "stsb": 1000, "sick": 800}

ENTRIES = (
    Entry("quickstart", ("quickstart/bench.json",), 3, ("make quickstart",)),
    Entry(
        "single-stream",
        ("quickstart/single-stream.json",),
        6,
        (
            "python -m runtime.bench quickstart/bundle --data toolkit/sample/test.tsv --preset single-stream"
            f" --threads 2 --output {OUTPUT}/single-stream",
        ),
        after=("quickstart",),
    ),
    _example("slots", "--kind tokens"),
    _example("heads", "--head intent --head when", "requested"),
    _example("multilabel", "--kind multilabel --label-column labels"),
    Entry(
        "mrpc-minilm",
        ("mrpc-minilm/bench.json",),
        12,
        (
            "berxit-train --paper --model $MINILM --task mrpc --learning-rate 5e-5 --data $DATA/MRPC --output"
            f" {OUTPUT}/first",
            f"berxit-calibrate {OUTPUT}/first --data $DATA/MRPC --optimistic",
            *_bench("first", "MRPC", "fp32"),
        ),
    ),
    Entry(
        "mrpc-minilm-mean",
        ("mrpc-minilm/bench-mean.json",),
        12,
        (
            f"berxit-train --paper --model $MINILM --task mrpc --learning-rate 5e-5 {MEAN} --data $DATA/MRPC --output"
            f" {OUTPUT}/mean",
            f"berxit-calibrate {OUTPUT}/mean --data $DATA/MRPC --optimistic",
            *_bench("mean", "MRPC", "fp32"),
        ),
    ),
    Entry(
        "mrpc-vnni",
        tuple(f"mrpc-vnni/{name}.json" for name in ("bge-fp32", "bge-int8", "minilm-fp32", "minilm-int8")),
        30,
        tuple(
            command
            for encoder in ENCODERS
            for command in (
                f"{_checkpoint(encoder, 'mrpc', 'MRPC')} {OUTPUT}/vnni-{encoder}",
                f"berxit-calibrate {OUTPUT}/vnni-{encoder} --data $DATA/MRPC --optimistic",
                *_bench(f"vnni-{encoder}", "MRPC", "fp32"),
                *_bench(f"vnni-{encoder}", "MRPC", "int8"),
            )
        ),
    ),
    Entry(
        "sst2",
        ("sst2/fp32.json", "sst2/int8.json"),
        45,
        (
            f"{_checkpoint('bge', 'sst2', 'SST-2', f'--no-lte {MEAN} --epochs 1')} {OUTPUT}/sst2",
            f"berxit-calibrate {OUTPUT}/sst2 --data $DATA/SST-2 --optimistic",
            *_bench("sst2", "SST-2", "fp32"),
            *_bench("sst2", "SST-2", "int8"),
        ),
    ),
    Entry(
        "runtime",
        ("studies/runtime-mrpc.json",),
        1,
        (
            f"berxit-study runtime {OUTPUT}/vnni-*-fp32 {OUTPUT}/vnni-*-int8 --data $DATA/MRPC"
            f" --output {OUTPUT}/studies",
        ),
        after=("mrpc-vnni",),
    ),
    Entry(
        "flops",
        ("studies/flops.json",),
        1,
        (f"berxit-study flops {OUTPUT}/mrpc-bge {OUTPUT}/mrpc-minilm --output {OUTPUT}/studies",),
        after=("held-out",),
    ),
    Entry(
        "held-out",
        ("thresholds/unseen-rows.json", "learned/learned.json"),
        240,
        (
            *_held_out(),
            f"python benchmarks/thresholds.py synthetic {' '.join(UNSEEN)} --rows 400 --rows 800 --splits 500 --output"
            f" {OUTPUT}/thresholds",
            "python benchmarks/learned.py "
            + " ".join(
                f"{task}-{layers}={OUTPUT}/{task}-{encoder}/calibration_pass.npz"
                for encoder, layers in (("minilm", 6), ("bge", 12))
                for task in HELD_OUT_ROWS
            )
            + f" --rows 400 --splits 40 --output {OUTPUT}/learned",
        ),
    ),
    Entry(
        "new-rows",
        ("new-rows/new-rows.json",),
        2,
        (
            f"python benchmarks/new_rows.py mrpc-6={OUTPUT}/mrpc-minilm=800 mrpc-12={OUTPUT}/mrpc-bge=800"
            f" stsb-12={OUTPUT}/stsb-bge=1000 --output {OUTPUT}/new-rows",
        ),
        after=("held-out",),
    ),
    Entry(
        "learned-guarantee",
        tuple(f"learned/thresholds-{t}-{c}.json" for t in ("mrpc", "sst2") for c in ("confidence", "learned")),
        60,
        tuple(
            f"python benchmarks/thresholds.py {task}={OUTPUT}/{task}-minilm --criterion {criterion} --rows 400"
            f" --splits 100 --output {OUTPUT}/thresholds-{task}-{criterion}"
            for task in ("mrpc", "sst2")
            for criterion in ("confidence", "learned")
        ),
        after=("held-out",),
    ),
    Entry(
        "null-space",
        ("learned/null-space.json",),
        8,
        (
            "python -m benchmarks.null_space "
            + " ".join(
                f"{task}-12={OUTPUT}/{task}-bge:{OUTPUT}/{folder}/unseen.tsv"
                for task, folder in (("mrpc", "MRPC"), ("sst2", "SST-2"))
            )
            + f" --splits 40 --output {OUTPUT}/learned",
        ),
        after=("held-out",),
    ),
    Entry(
        "policy-cost",
        ("learned/policy-cost.json",),
        2,
        (f"python benchmarks/policy_cost.py --output {OUTPUT}/policy-cost",),
    ),
    Entry(
        "side-by-side",
        ("side-by-side/large.json", "side-by-side/small.json", "side-by-side/real.json"),
        90,
        (
            f"{SIDE} --seconds 45 --output {OUTPUT}/large",
            f"{SIDE} --layers 6 --hidden 384 --lengths 32 --seconds 20 --no-memory --output {OUTPUT}/small",
            f"{SIDE} --checkpoint {OUTPUT}/vnni-bge --data $DATA/MRPC --threads 2 --keep 0.995 --seconds 20 --no-memory"
            f" --output {OUTPUT}/real",
        ),
        after=("mrpc-vnni",),
    ),
    Entry(
        "side-by-side-unseen",
        ("side-by-side/unseen.json", *(f"side-by-side/unseen-{task}.json" for task in HELD_OUT_ROWS)),
        25,
        (
            *(
                command
                for task, folder in (("mrpc", "MRPC"), ("sst2", "SST-2"), ("stsb", "STS-B"), ("sick", "SICK"))
                for command in (
                    f"berxit-calibrate {OUTPUT}/{task}-bge --data {OUTPUT}/{folder}/unseen.tsv --criterion learned",
                    f"{SIDE} --checkpoint {OUTPUT}/{task}-bge --data {OUTPUT}/{folder}/unseen.tsv --threads 1,2"
                    f" --seconds 20 --no-memory --output {OUTPUT}/unseen-{task}",
                )
            ),
            f"{SIDE}.summary "
            + " ".join(f"{task}={OUTPUT}/unseen-{task}/side_by_side.json" for task in HELD_OUT_ROWS)
            + f" --output {OUTPUT}/unseen",
        ),
        after=("held-out",),
    ),
    Entry(
        "deadline",
        ("side-by-side/deadline.json",),
        2,
        (f"python benchmarks/deadline.py {OUTPUT}/mean-fp32 --data $DATA/MRPC --threads 2 --output {OUTPUT}/deadline",),
        after=("mrpc-minilm-mean",),
    ),
    Entry(
        "long-inputs",
        ("long-inputs/int8.json", "long-inputs/fp32.json"),
        15,
        (
            f"{TRAIN} --model $MINILM --task mrpc {MEAN} --max-length 512 --data $DATA/MRPC --output {OUTPUT}/long",
            "git worktree add build/before 9886e2e",  # the last commit that adds the mask to the scores
            *(
                f"env PYTHONPATH={code} berxit-export --target onnxruntime {OUTPUT}/long --precision {precision}"
                f" --output {OUTPUT}/{precision}-{name}"
                for precision in ("int8", "fp32")
                for code, name in (("build/before", "before"), (".", "now"))
            ),
            f"python benchmarks/full_depth.py {OUTPUT}/int8-before {OUTPUT}/int8-now --tokens 16"
            f" --tokens 64 --tokens 128 --tokens 512 --seconds 20 --output {OUTPUT}/long-int8",
            f"python benchmarks/full_depth.py {OUTPUT}/fp32-before {OUTPUT}/fp32-now --tokens 16"
            f" --tokens 64 --tokens 512 --seconds 15 --output {OUTPUT}/long-fp32",
        ),
    ),
    Entry(
        "kills",
        ("reliability/kills.json",),
        60,
        (f"python benchmarks/kills.py $MINILM toolkit/sample --kills 200 --output {OUTPUT}/kills",),
    ),
    Entry(
        "reliability",
        tuple(
            f"reliability/{name}.json"
            for name in ("policy-cases", "soak", "architectures", "mutations-onnxruntime", "mutations-openvino")
        ),
        150,
        (
            f"python benchmarks/policy_cases.py --output {OUTPUT}/policy-cases",
            f"python benchmarks/soak.py quickstart/bundle --data toolkit/sample/test.tsv --output {OUTPUT}/soak",
            f"python benchmarks/architectures.py --configurations 500 --output {OUTPUT}/architectures",
            "make test-models",
            *(
                f"python benchmarks/mutations.py build/test-models/bundles/bundle --backend {backend}"
                f" --mutations 10000 --output {OUTPUT}/mutations-{backend}"
                for backend in ("onnxruntime", "openvino")
            ),
        ),
        after=("quickstart",),
    ),
    Entry(
        "swaps",
        ("reliability/swaps.json",),
        8,
        (
            "python benchmarks/swaps.py quickstart/bundle --swaps 1000 --threads 4 --minutes 0.4"
            f" --output {OUTPUT}/swaps",
        ),
        after=("quickstart",),
    ),
    Entry(
        "int8-rows",
        ("reliability/int8-rows-mrpc.json", "reliability/int8-rows-sst2.json"),
        20,
        (
            f"python benchmarks/int8_rows.py {OUTPUT}/vnni-minilm-int8 OLD --data $DATA/MRPC --threads 1 --threads 2"
            f" --output {OUTPUT}/int8-rows",
        ),
        after=("mrpc-vnni",),
    ),
    Entry(
        "serving",
        ("serving/mrpc-int8.json", "serving/quickstart.json"),
        20,
        (
            "python benchmarks/serving_load.py quickstart/bundle --data toolkit/sample/test.tsv --limit 288 --threads 1"
            f" --seconds 4 --output {OUTPUT}/serving-quickstart",
            f"python benchmarks/serving_load.py {OUTPUT}/vnni-minilm-int8 --data $DATA/MRPC --limit 500 --threads 1"
            f" --seconds 2 --output {OUTPUT}/serving",
        ),
        after=("quickstart", "mrpc-vnni"),
    ),
    Entry(
        "corpora",
        (*(f"corpora/{name}.json" for name in ("kills", "throughput", "regrouping-mrpc", "regrouping-sst2")),),
        50,
        (
            "python benchmarks/corpus.py quickstart/bundle --data toolkit/sample/test.tsv --rows 48000 --rounds 3"
            f" --output {OUTPUT}/corpus",
            f"python benchmarks/corpus.py quickstart/bundle --data toolkit/sample/test.tsv --rows 100000 --kill"
            f" --output {OUTPUT}/corpus-kill",
            f"python benchmarks/regrouping.py {OUTPUT}/mean-fp32 --data $DATA/MRPC --rows 800 --rounds 3 --output"
            f" {OUTPUT}/regrouping-mrpc",
            f"python benchmarks/regrouping.py {OUTPUT}/sst2-fp32 --data $DATA/SST-2 --rows 2000 --rounds 3"
            f" --output {OUTPUT}/regrouping-sst2",
        ),
        after=("quickstart", "mrpc-minilm-mean"),
    ),
    Entry(
        "encoders",
        ("encoders/one-graph.json",),
        2,
        (f"python benchmarks/one_graph.py --tokens 128 --rounds 200 --output {OUTPUT}/one-graph",),
    ),
    Entry(
        "monitoring",
        ("monitoring/sample.json", "monitoring/mrpc.json", "monitoring/sst2.json"),
        10,
        tuple(
            f"python benchmarks/drift.py {checkpoint} --output {OUTPUT}/drift-{name}"
            for name, checkpoint in (
                ("sample", "quickstart/checkpoint"),
                ("mrpc", f"{OUTPUT}/mrpc-bge"),
                ("sst2", f"{OUTPUT}/sst2-bge"),
            )
        ),
        after=("quickstart", "held-out"),
    ),
    Entry(
        "coreml",
        tuple(
            f"coreml/{name}.json"
            for name in ("minilm-compressed", "minilm-fp", "pre-trained-bge", "pre-trained-minilm")
        ),
        30,
        tuple(
            command
            for precision in ("fp32", "fp16", "int8", "palette6")
            for command in (
                f"berxit-export --target coreml {OUTPUT}/vnni-minilm --precision {precision}"
                f" --output {OUTPUT}/{precision}",
                f"berxit compare {OUTPUT}/vnni-minilm {OUTPUT}/{precision} --data $DATA/MRPC --output"
                f" {OUTPUT}/agreement-{precision}.json",
            )
        ),
        after=("mrpc-vnni",),
    ),
    Entry(
        "coreml-albert",
        ("coreml/albert-precisions.json", "coreml/albert-precisions-options.json"),
        40,
        (
            "python benchmarks/albert_base.py $MODELS/rxnmapper-albert $DATA/SST-2/train.tsv --output"
            f" {OUTPUT}/albert-base",
            f"berxit-train --model {OUTPUT}/albert-base --task sst2 --data $DATA/SST-2 --strategy joint"
            " --pooling mean --learning-rate 2e-4 --head-learning-rate 1e-3 --limit-train 32000 --epochs 2"
            f" --batch-size 32 --max-length 64 --output {OUTPUT}/albert-sst2",
            f"python benchmarks/coreml_precisions.py {OUTPUT}/albert-sst2 --output {OUTPUT}/albert-precisions.json",
            f"python benchmarks/coreml_precisions.py {OUTPUT}/albert-sst2 --target-options float16-exits,shared-body"
            f" --output {OUTPUT}/albert-precisions-options.json",
        ),
    ),
    Entry(
        "swift-tokenizers",
        ("coreml/swift-tokenizers.json",),
        12,
        (
            "python -m benchmarks.swift_tokenizers --texts 1000000 --seed 0 --swift tools/swift_on_linux.sh --output"
            f" {OUTPUT}/swift-tokenizers.json",
        ),
    ),
    Entry(
        "javascript-tokenizers",
        ("runners/javascript-tokenizers.json",),
        15,
        (
            "python -m benchmarks.swift_tokenizers --javascript --texts 300000 --seed 0 --output"
            f" {OUTPUT}/javascript-tokenizers.json",
        ),
    ),
    Entry(
        "javascript",
        ("runners/javascript.json", "runners/javascript-quickstart.json"),
        10,
        (
            "berxit-export --target onnxruntime quickstart/checkpoint --precision int8 --data toolkit/sample --output"
            f" {OUTPUT}/quickstart-int8",
            f"python -m benchmarks.javascript quickstart/bundle {OUTPUT}/quickstart-int8 --data toolkit/sample/dev.tsv"
            f" --data $DATA/SST-2/dev.tsv --output {OUTPUT}/js",
            "python -m benchmarks.javascript quickstart/bundle --data toolkit/sample/dev.tsv"
            f" --output {OUTPUT}/js-quickstart",
        ),
        after=("quickstart",),
    ),
    Entry(
        "c-runner",
        ("runners/c-runner.json", "runners/c-runner-tiny.json"),
        4,
        (
            f"python -m benchmarks.c_runner quickstart/bundle {OUTPUT}/quickstart-int8 --data toolkit/sample/test.tsv"
            f" --output {OUTPUT}/c-runner",
            "python -m benchmarks.c_runner build/test-models/bundles/bundle --data toolkit/sample/test.tsv --length 16"
            f" --length 32 --seconds 5 --output {OUTPUT}/c-runner-tiny",
        ),
        after=("javascript", "reliability"),
    ),
    Entry(
        "studies-of-one-seed",
        ("studies/certainty-mrpc.json", "studies/lte-mrpc.json"),
        3,
        tuple(
            f"berxit-study {name} {OUTPUT}/mrpc-bge {OUTPUT}/mrpc-minilm --data $DATA/MRPC --output {OUTPUT}/studies"
            for name in ("certainty", "lte")
        ),
        after=("held-out",),
    ),
    *RECIPE_ENTRIES,
    Entry(
        "sweep",
        ("sweep/sweep.json",),
        4,
        (
            "berxit sweep --model $MINILM --task sst2 --data $DATA/SST-2 --limit-train 800 --epochs 2 --trials 5"
            f" --strategy alternating --strategy joint --no-lte --output {OUTPUT}/sweep",
        ),
    ),
)
