"""TensorRT backend on stand-ins for every recorded version; see tensorrt_standin.py."""

from __future__ import annotations

import dataclasses
import gc
import json
import re
import shutil
import sys
import threading
import weakref
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import SHARED, prepared, quick_and_slow
from fake_cuda import driver_of_this_process
from tensorrt_standin import NAMES, TensorRt, World

from berxit.runtime.backends import BACKENDS, forking, open_backend
from berxit.runtime.backends.onnxruntime import open_backend as open_onnxruntime
from berxit.runtime.backends.tensorrt import TensorRtBackend, backend, engines
from berxit.runtime.backends.tensorrt.cuda import Cuda, Gpu
from berxit.runtime.backends.tensorrt.engines import EngineCache, key_of, prepare_engines
from berxit.runtime.backends.tensorrt.plan import ALIGNMENT, plan_for
from berxit.runtime.backends.tensorrt.versions import BUILDERS, Api, load
from berxit.runtime.bundle import Manifest, read_manifest
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.golden import differences, read_golden
from berxit.runtime.kinds import KINDS
from berxit.runtime.loop import Backend, every_exit, exit_loop
from berxit.runtime.policies import ExitPolicy
from berxit.runtime.progress import Bar, silent
from berxit.runtime.spans import Words
from berxit.runtime.tokenization import TokenBatch
from berxit.runtime.tuning import tune

pytestmark = pytest.mark.usefixtures("cuda_driver")
PACKAGE = Path(backend.__file__).parent
OPTIONS = [
    {},
    {"run_ahead": True},
    {"cuda_graphs": True},
    {"zero_copy": True},
    {"run_ahead": True, "cuda_graphs": True, "zero_copy": True},
]
ORIN, RTX = Gpu("Orin", (8, 7), 8), Gpu("RTX 4060", (8, 9), 24)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, backbone_folders: dict) -> dict[str, Path]:
    """Name -> tiny bundle for TensorRT: one for each precision, an old version, and a shared body."""
    build = partial(export_bundles, checkpoint=checkpoint, backbone_folders=backbone_folders)
    return {path.name: path for path in prepared(tmp_path_factory, "tensorrt", build).iterdir()}


def export_bundles(folder: Path, checkpoint: Path, backbone_folders: dict) -> None:
    import torch
    from small_models import TOKENS
    from transformers import AutoTokenizer

    from berxit.exporters.export import export
    from berxit.exporters.options import ExportOptions
    from berxit.train.checkpoint import TrainingRecord, save_checkpoint
    from berxit.train.modeling import MultiExitModel

    torch.manual_seed(0)
    labels = {"id2label": {0: "no", 1: "yes", 2: "may"}, "label2id": {"no": 0, "yes": 1, "may": 2}}
    albert = MultiExitModel.from_backbone(
        backbone_folders["albert"], **labels, num_labels=3, lte=False, max_length=32, exit_head="pooler"
    )
    (folder / "albert-checkpoint").mkdir()
    tokenizer = AutoTokenizer.from_pretrained(backbone_folders["albert"])
    record = TrainingRecord({}, "train.tsv", "0", 0, 0, 0.0, 0.0, "cpu", {})
    save_checkpoint(
        folder / "albert-checkpoint", albert, tokenizer, record, ["the cat sat", "dog", "a red tree is big"]
    )
    tags = MultiExitModel.from_backbone(backbone_folders["bert"], **TOKENS, lte=True, max_length=32)
    (folder / "tokens-checkpoint").mkdir()
    save_checkpoint(
        folder / "tokens-checkpoint",
        tags,
        AutoTokenizer.from_pretrained(backbone_folders["bert"]),
        record,
        ["the cat sat", "dog", "a red tree is big"],
    )
    made = {
        "tokens": (folder / "tokens-checkpoint", ExportOptions("fp16", (8, 32), 3)),
        "fp32": (checkpoint, ExportOptions("fp32", (8, 16, 32), 3)),
        "fp16": (checkpoint, ExportOptions("fp16", (16, 32), 4)),
        "int8": (checkpoint, ExportOptions("int8", (32,), 2)),
        "bf16": (checkpoint, ExportOptions("bf16", (16, 32), 4)),
        "exits": (checkpoint, ExportOptions("fp32", (8, 32), 3, exits=(2, 3))),
        "exits-albert": (folder / "albert-checkpoint", ExportOptions("int8", (32,), 3, exits=(1, 3))),
        "repeat": (folder / "albert-checkpoint", ExportOptions("fp32", (8, 32), 3, exits=(1, 3))),
        "last": (checkpoint, ExportOptions("fp16", (16, 32), 4, exits=(3,))),
        "old": (checkpoint, ExportOptions("fp16", (16, 32), 4, "jetpack5")),
        "old-int8": (checkpoint, ExportOptions("int8", (32,), 4, "jetpack6.0")),
        "oldest-int8": (checkpoint, ExportOptions("int8", (32,), 4, "jetpack5")),
        "albert": (folder / "albert-checkpoint", ExportOptions("fp32", (16, 32), 4)),
        "old-albert": (folder / "albert-checkpoint", ExportOptions("fp32", (16, 32), 4, "jetpack5")),
    }
    for name, (source, options) in made.items():
        export(source, "tensorrt", folder / name, options=options)


class Machine:
    """Stand-in of one version on the fake CUDA driver, with an engine cache."""

    def __init__(self, version: str, cache: Path) -> None:
        self.driver = driver_of_this_process()
        self.world = World(self.driver)
        self.api = Api("tensorrt-rtx" if version.startswith("rtx") else "tensorrt", TensorRt(version, self.world))
        self.cuda = Cuda.open()
        self.gpu = RTX if version.startswith("rtx") else self.cuda.gpu()
        self.cache = EngineCache(cache)

    def prepare(self, folder: Path, manifest: Manifest | None = None) -> dict[str, Path]:
        return prepare_engines(folder, manifest or read_manifest(folder), self.api, self.gpu, self.cache)

    def open(self, folder: Path, **options: bool) -> TensorRtBackend:
        manifest = read_manifest(folder)
        return TensorRtBackend(folder, manifest, self.api, self.cuda, self.prepare(folder), **options)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine("10.3.0", tmp_path)


def random_batch(seed: int, rows: int, longest: int = 32) -> TokenBatch:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, rows)
    ids = [rng.integers(5, 27, length).tolist() for length in lengths]
    return TokenBatch.pad(ids, [[0] * len(row) for row in ids], 0)


class InTurn:
    """Policy in which given shares of the rows exit, regardless of the outputs."""

    temperatures = (1.0, 1.0, 1.0)

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def certainty(self, layer: int, logits: np.ndarray, lte: object, memory: object) -> tuple:
        return logits[:, 0], None

    def exits(self, layer: int, certainty: np.ndarray, logits: np.ndarray | None = None) -> np.ndarray:
        return np.full(len(certainty), True) if layer == 3 else self.rng.random(len(certainty)) < 0.4


def answers(found: Backend, batch: TokenBatch, seed: int, kind: str = "classification") -> list[tuple]:
    return [(r.layer, r.rows.tolist(), r.logits) for r in exit_loop(found, batch, InTurn(seed), KINDS[kind])]


def assert_same(first: list[tuple], second: list[tuple], atol: float = 1e-5) -> None:
    assert [step[:2] for step in first] == [step[:2] for step in second]
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(one[2], other[2], atol=atol)


def bundle_for(version: str, kind: str) -> str:
    int8 = "oldest-int8" if version.startswith("8.5") else "old-int8"
    return {"fp16": "old", "albert": "old-albert", "int8": int8}[kind] if version.startswith("8.") else kind


@pytest.mark.parametrize(
    ("version", "kind"),
    quick_and_slow(
        [(version, kind) for version in NAMES for kind in ("fp16", "albert", "int8")],
        quick=[
            *((version, "fp16") for version in NAMES),
            ("8.5.3", "int8"),
            ("10.3.0", "int8"),
            ("rtx1.7", "albert"),
        ],
    ),
)
def test_outputs_match_checkpoint_on_every_version(version: str, kind: str, bundles: dict, tmp_path: Path) -> None:
    folder = bundles[bundle_for(version, kind)]
    manifest = read_manifest(folder)
    found = Machine(version, tmp_path).open(folder)
    off = differences(found, read_golden(folder, manifest), manifest.model.pad_token_id)
    assert max(off) <= {"fp16": 2e-2, "albert": 1e-5, "int8": 0.5}[kind]


@pytest.mark.parametrize("version", ["10.3.0", "rtx1.7"])
def test_labels_of_words_match_checkpoint(version: str, bundles: dict, tmp_path: Path) -> None:
    folder = bundles["tokens"]
    manifest = read_manifest(folder)
    found = Machine(version, tmp_path).open(folder)
    assert max(differences(found, read_golden(folder, manifest), manifest.model.pad_token_id)) <= 2e-2
    reference = open_onnxruntime(folder, manifest, 1)
    for seed in range(4):
        plain = random_batch(seed, rows=1 + 2 * seed)
        words = tuple(Words.of("w " * n, [(i, 2 * i, 2 * i + 1) for i in range(n)]) for n in plain.lengths.tolist())
        batch = replace(plain, words=words)
        assert_same(answers(found, batch, seed, "tokens"), answers(reference, batch, seed, "tokens"), atol=2e-2)


@pytest.mark.parametrize("version", ["10.3.0", "11.4.0.106", "rtx1.7"])
def test_bfloat16_outputs_match_checkpoint(version: str, bundles: dict, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the stand-in rounds to bfloat16 with the exporter, which needs torch")
    manifest = read_manifest(bundles["bf16"])
    found = Machine(version, tmp_path).open(bundles["bf16"])
    off = differences(found, read_golden(bundles["bf16"], manifest), manifest.model.pad_token_id)
    assert 1e-3 < max(off) <= 0.2


@pytest.mark.parametrize(("kind", "exits"), [("exits", (2, 3)), ("exits-albert", (1, 3)), ("last", (3,))])
def test_bundles_with_fewer_exits_match_checkpoint(
    kind: str, exits: tuple[int, ...], bundles: dict, tmp_path: Path
) -> None:
    manifest = read_manifest(bundles[kind])
    for options in OPTIONS:
        found = Machine("10.3.0", tmp_path).open(bundles[kind], **options)
        assert found.exits == manifest.exits == exits
        off = differences(found, read_golden(bundles[kind], manifest), manifest.model.pad_token_id)
        assert max(off) <= {"exits": 1e-5, "exits-albert": 0.5, "last": 2e-2}[kind]
    assert [segment.repeat for segment in manifest.segments[1:]] == (
        [1, 2] if kind == "exits-albert" else [1] * len(exits)
    )


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *(("fp32", options) for options in OPTIONS),
        *((kind, OPTIONS[-1]) for kind in ("albert", "exits", "repeat")),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value) or "plain",
)
def test_exiting_rows_do_not_change_other_rows(kind: str, options: dict, bundles: dict, machine: Machine) -> None:
    folder = bundles[kind]
    reference = open_onnxruntime(folder, read_manifest(folder), 1)
    found = machine.open(folder, **options)
    for seed in range(8):  # includes more rows than max_batch, which run in parts
        batch = random_batch(seed, rows=1 + seed % 8)
        assert_same(answers(found, batch, seed), answers(reference, batch, seed))
    if options.get("cuda_graphs"):
        assert machine.driver.calls("cuGraphLaunch") > 0


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options) or "plain")
def test_each_exit_needs_one_copy_to_host(options: dict, bundles: dict, machine: Machine) -> None:
    found = machine.open(bundles["fp32"], **options)
    batch = random_batch(1, rows=1)
    list(exit_loop(found, batch, ExitPolicy.full_depth(3, False)))
    before, live = machine.driver.copies_out(), machine.driver.live()
    list(exit_loop(found, batch, ExitPolicy.full_depth(3, False)))
    assert machine.driver.copies_out() - before == (0 if options.get("zero_copy") else 3)
    assert machine.driver.live() == live  # no further allocations


@pytest.mark.parametrize("call", ["wait", "copy_in", "copy_out", "move"])
def test_standin_detects_missing_calls(
    call: str, bundles: dict, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bundles["fp32"]
    reference = open_onnxruntime(folder, read_manifest(folder), 1)
    found = machine.open(folder)
    batch = random_batch(3, rows=3)
    with np.errstate(all="ignore"), monkeypatch.context() as patch:
        patch.setattr(machine.cuda, call, lambda *arguments: None)
        try:
            wrong = answers(found, batch, 3)
        except BerxitError:  # the loop rejects garbage outputs, and the Gather of the embeddings garbage token ids
            machine.driver.errors.clear()
            return
    with pytest.raises(AssertionError):
        assert_same(wrong, answers(reference, batch, 3))


def test_concurrent_callers_do_not_interfere(bundles: dict, machine: Machine) -> None:
    folder = bundles["fp32"]
    reference = open_onnxruntime(folder, read_manifest(folder), 1)
    found = machine.open(folder)
    batches = [random_batch(seed, rows=1 + seed % 4) for seed in range(6)]
    expected = [answers(reference, batch, seed) for seed, batch in enumerate(batches)]
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for _ in range(4):
                assert_same(answers(found, batches[seed], seed), expected[seed])
        except BaseException as error:  # re-raised in the thread of the test
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_interleaved_loops_use_separate_memory(bundles: dict, machine: Machine) -> None:
    folder = bundles["fp32"]
    reference = open_onnxruntime(folder, read_manifest(folder), 1)
    found = machine.open(folder, run_ahead=True)
    one, two = random_batch(1, rows=2, longest=8), random_batch(2, rows=2, longest=8)
    loops = [exit_loop(found, batch, InTurn(seed)) for seed, batch in ((1, one), (2, two))]
    steps: list[list] = [[], []]
    for _ in range(3):
        for place, loop in enumerate(loops):
            steps[place] += [(r.layer, r.rows.tolist(), r.logits) for r in [next(loop, None)] if r]
    assert_same(steps[0], answers(reference, one, 1))
    assert_same(steps[1], answers(reference, two, 2))


def test_memory_is_reused_after_loop_ends(bundles: dict, machine: Machine) -> None:
    found = machine.open(bundles["fp32"])
    blocks = []
    for _ in range(5):
        loop = exit_loop(found, random_batch(1, rows=1), ExitPolicy.full_depth(3, False))
        next(loop)
        del loop
        blocks.append(machine.driver.live()["memory"])
    assert blocks == blocks[:1] * 5


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options) or "plain")
@pytest.mark.parametrize("how", ["close", "forget"])
def test_close_frees_resources_in_order(how: str, options: dict, bundles: dict, machine: Machine) -> None:
    found = machine.open(bundles["albert"], **options)
    for rows in (1, 3):
        answers(found, random_batch(rows, rows), 1)
    kinds = {"memory", "pinned", "stream", "event"} | ({"launchable"} if options.get("cuda_graphs") else set())
    assert set(machine.driver.live()) == kinds
    machine.driver.forget_released()
    if how == "close":
        found.close()
        found.close()  # a second close has no effect
        with pytest.raises(BerxitError, match=r"this runner was closed .* load the bundle again"):
            found.embed(random_batch(1, 1))
    else:
        del found
    assert machine.driver.live() == {}
    released = machine.world.released()
    order = list(dict.fromkeys(released))
    assert order.index("context") < order.index("engine") < order.index("runtime") < order.index("memory")
    assert released.count("context") == machine.world.contexts
    assert "busy" not in released
    if options.get("cuda_graphs"):
        assert order[0] == "launchable"


def test_failed_open_frees_all_resources(bundles: dict, machine: Machine) -> None:
    built = machine.prepare(bundles["fp32"])
    built["segments/layer_03.onnx"].write_bytes(b"damaged")
    with pytest.raises(BerxitError, match="cannot load the engine"):
        TensorRtBackend(bundles["fp32"], read_manifest(bundles["fp32"]), machine.api, machine.cuda, built)
    assert machine.driver.live() == {}


RELEASES = {"cuMemFree", "cuMemFreeHost", "cuStreamDestroy", "cuEventDestroy", "cuGraphDestroy", "cuGraphExecDestroy"}
OF_THE_STANDIN = {"cuLaunchHostFunc", "cuStreamIsCapturing"}


def test_each_failed_cuda_call_is_one_line_and_leaks_nothing(bundles: dict, machine: Machine) -> None:
    folder, driver = bundles["albert"], machine.driver
    manifest, built = read_manifest(folder), machine.prepare(folder)

    def run() -> None:
        with closing(TensorRtBackend(folder, manifest, machine.api, Cuda.open(), built, cuda_graphs=True)) as found:
            for _ in range(2):  # once for the capture, once with the graphs
                list(exit_loop(found, random_batch(1, rows=1), ExitPolicy.full_depth(3, False)))

    driver.reset()
    run()
    counts = {name: driver.calls(name) for name in driver.functions() if not name.startswith(("cuCtx", "cuDevice"))}
    for skipped in (*RELEASES, *OF_THE_STANDIN):
        counts.pop(skipped)
    assert len(counts) == 11
    for function, count in counts.items():
        for first in sorted({1, (count + 1) // 2}):
            driver.reset()
            driver.fail(f"{function}=999@{first}")
            try:
                run()
            except BerxitError as error:
                assert re.fullmatch(r"CUDA's cuda\w+ failed with cudaErrorUnknown: start this .*", str(error)), function
            else:  # Without a graph, the layers run call by call.
                assert function in ("cuStreamEndCapture", "cuGraphInstantiate")
            assert driver.live() == {}, (function, first)


def test_open_rejects_engine_that_differs_from_manifest(bundles: dict, machine: Machine, tmp_path: Path) -> None:
    built, manifest = machine.prepare(bundles["fp32"]), read_manifest(bundles["fp32"])
    first, second, *others = manifest.segments
    for change, message in (
        ({"name": "logit"}, "layer_01.onnx: the file has no output 'logit'"),
        ({"dtype": "float16"}, r"'logits' is float32 .* in the file and float16 .* in the manifest"),
        (
            {"shape": ("batch", 3)},
            r"'logits' is float32 \(\?, 2\) in the file and float32 \(batch, 3\) in the manifest",
        ),
    ):
        outputs = tuple(replace(o, **change) if o.role == "logits" else o for o in second.outputs)
        other = replace(manifest, segments=(first, replace(second, outputs=outputs), *others))
        with pytest.raises(BerxitError, match=message):
            TensorRtBackend(bundles["fp32"], other, machine.api, Machine("10.3.0", tmp_path).cuda, built)


def test_forked_child_neither_runs_nor_frees(bundles: dict, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    found = machine.open(bundles["fp32"])
    monkeypatch.setattr(forking, "_watched", weakref.WeakKeyDictionary({found: None}))
    monkeypatch.setattr(forking, "_skip_native_exit_handlers", lambda: None)
    monkeypatch.setattr(forking, "generation", 0)
    machine.driver.forget_released()
    with forking.opening:
        forking.opening.acquire()
        forking._in_child()
    for call in (found.embed, found.layer, found.keep):
        with pytest.raises(BerxitError, match="'tensorrt' was opened before this process was forked"):
            call()
    del found, call
    gc.collect()
    assert not machine.world.released()


def test_contexts_are_created_per_used_length(bundles: dict, machine: Machine) -> None:
    found = machine.open(bundles["fp32"])
    assert machine.world.contexts == 0
    for _ in range(2):
        answers(found, random_batch(1, rows=2, longest=8), 1)
        assert machine.world.contexts == 4
    answers(found, random_batch(1, rows=2, longest=32), 1)
    assert machine.world.contexts == 8


@pytest.mark.parametrize("fails", ["execute_async_v3", "cuGraphInstantiate"])
def test_failed_graph_capture_falls_back_to_plain_execution(fails: str, bundles: dict, machine: Machine) -> None:
    folder = bundles["fp32"]
    reference = open_onnxruntime(folder, read_manifest(folder), 1)
    found = machine.open(folder, cuda_graphs=True)
    if fails.startswith("cu"):
        machine.driver.fail(f"{fails}=801")
    else:
        machine.world.refuses.add(fails)
    for seed in range(4):
        batch = random_batch(seed, rows=1)
        assert_same(answers(found, batch, seed), answers(reference, batch, seed))
    assert "graph" not in machine.driver.live()
    assert machine.driver.calls("cuGraphLaunch") == 0


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("create_network", "rejected a network: it gave no reason"),
        ("create_builder_config", "rejected a builder configuration: it gave no reason"),
        (
            "set_optimization_profile_async",
            r"rejected profile 1 of segments/embeddings\.onnx: Error in set optimization",
        ),
        ("set_input_shape", r"rejected shape \(1, \d+\) of input_ids of segments/embeddings\.onnx"),
        ("set_tensor_address", r"rejected an address for input_ids of segments/embeddings\.onnx"),
        ("add_optimization_profile", "rejected an optimization profile"),
        ("set_shape", r"rejected the shapes \(1, 8\) to \(3, 8\) of input input_ids: Shape provided for min"),
        ("set_timing_cache", "rejected an empty timing cache"),
        ("create_execution_context", r"created no execution context of segments/embeddings\.onnx"),
        ("build_serialized_network", r"could not build .*embeddings\.onnx: it gave no reason\. Give it more memory"),
        ("Builder", r"cannot use the GPU here \(pybind11::init\(\): factory .*; CUDA initialization failure"),
        ("Runtime", r"cannot use the GPU here \(pybind11::init\(\): factory .*; CUDA initialization failure"),
    ],
)
def test_every_refusal_is_one_line(call: str, said: str, bundles: dict, machine: Machine) -> None:
    machine.world.refuses.add(call)
    with pytest.raises(BerxitError, match=rf"^TensorRT 10\.3\.0 {said}") as caught:
        machine.open(bundles["fp32"]).embed(random_batch(1, rows=1))
    assert len(str(caught.value).splitlines()) == 1


def test_rtx_runtime_cache_is_stored_for_next_process(bundles: dict, tmp_path: Path) -> None:
    folder, kept = bundles["fp32"], [b""]
    manifest = read_manifest(folder)
    for expected in (b"kkkk", b"kkkkkkkk"):  # the stand-in adds an entry when a context runs for the first time
        rtx = Machine("rtx1.7", tmp_path)
        found = TensorRtBackend(
            folder, manifest, rtx.api, rtx.cuda, rtx.prepare(folder), kernels=kept[-1], keep_kernels=kept.append
        )
        answers(found, random_batch(1, rows=1), 1)
        list(exit_loop(found, random_batch(1, rows=1), ExitPolicy.full_depth(3, False)))
        found.close()
        assert kept[-1] == expected
    rtx = Machine("rtx1.7", tmp_path)
    found = TensorRtBackend(
        folder, manifest, rtx.api, rtx.cuda, rtx.prepare(folder), kernels=b"of another GPU", keep_kernels=kept.append
    )
    list(exit_loop(found, random_batch(1, rows=1), ExitPolicy.full_depth(3, False)))
    found.close()
    assert kept[-1] == b"kkkk"
    rtx.world.refuses.add("set_runtime_cache")
    with pytest.raises(BerxitError, match="rejected a runtime cache"):
        rtx.open(folder).embed(random_batch(1, rows=1))


def test_state_can_be_advanced_only_once(bundles: dict, machine: Machine) -> None:
    found = machine.open(bundles["fp32"])
    state = found.embed(random_batch(1, rows=2))
    found.layer(1, state)
    with pytest.raises(BerxitError, match="can be used only once"):
        found.layer(1, state)


def test_embed_rejects_input_longer_than_profile(bundles: dict, machine: Machine) -> None:
    found = machine.open(bundles["fp32"])
    with pytest.raises(InputError, match=r"40 tokens is longer than the bundle takes \(32\)"):
        found.embed(TokenBatch.pad([[5] * 40], [[0] * 40], 0))


def test_cuda_graphs_need_tensorrt_8_6(bundles: dict, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"option cuda-graphs of tensorrt needs TensorRT 8\.6, this is TensorRT 8\.5"):
        Machine("8.5.3", tmp_path).open(bundles["old"], cuda_graphs=True)
    reference = open_onnxruntime(bundles["old"], read_manifest(bundles["old"]), 1)
    machine = Machine("8.6.1", tmp_path)
    found, batch = machine.open(bundles["old"], cuda_graphs=True), random_batch(1, rows=1)
    for _ in range(2):
        assert_same(answers(found, batch, 1), answers(reference, batch, 1), atol=2e-2)
    assert machine.driver.calls("cuGraphLaunch") > 0


def test_contexts_of_8_6_need_the_sharing_of_profiles(
    bundles: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Api, "_sharing", None)
    built = Machine("8.6.1", tmp_path)
    manifest, engine_files = read_manifest(bundles["old"]), built.prepare(bundles["old"])
    monkeypatch.undo()
    machine = Machine("8.6.1", tmp_path)
    found = TensorRtBackend(bundles["old"], manifest, machine.api, machine.cuda, engine_files, cuda_graphs=True)
    with pytest.raises(BerxitError, match=r"rejected profile 0 of segments/layer_01\.onnx: Error in set optimization"):
        answers(found, random_batch(0, rows=1, longest=8), 1)
        answers(found, random_batch(0, rows=2, longest=8), 1)


# --- engines -------------------------------------------------------------------------------------------------------


def test_engines_are_cached(bundles: dict, machine: Machine) -> None:
    machine.prepare(bundles["fp32"])
    assert machine.world.built == ["embeddings.onnx", "layer_01.onnx", "layer_02.onnx", "layer_03.onnx"]
    machine.prepare(bundles["fp32"])
    assert len(machine.world.built) == 4
    assert machine.cache.read_kept("timing", machine.api, ORIN) == b"tttt"  # all engines use the same timing cache


@pytest.mark.parametrize("kept", [b"damaged", b"of another version"])
def test_unusable_timing_cache_is_recreated(kept: bytes, bundles: dict, machine: Machine) -> None:
    machine.cache.write_kept("timing", machine.api, ORIN, kept)
    machine.prepare(bundles["fp32"])
    assert machine.cache.read_kept("timing", machine.api, ORIN) == b"tttt"


def test_shared_body_has_one_engine(bundles: dict, machine: Machine) -> None:
    machine.prepare(bundles["albert"])
    assert machine.world.built == ["embeddings.onnx", "body_01.onnx"]


def test_engine_is_rebuilt_if_key_differs(bundles: dict, machine: Machine, tmp_path: Path) -> None:
    folder = bundles["fp32"]
    manifest = read_manifest(folder)
    machine.prepare(folder)
    machine.prepare(folder, dataclasses.replace(manifest, lengths=(32,)))
    machine.prepare(folder, dataclasses.replace(manifest, max_batch=1))
    assert len(machine.world.built) == 12
    newer = Machine("10.7.0", tmp_path)
    newer.prepare(folder)
    assert len(newer.world.built) == 4
    segment = manifest.segments[1]
    key = key_of(manifest, segment, machine.api, ORIN)
    others = [
        dataclasses.replace(key, **{name: value})
        for name, value in {
            "gpu": "Other", "capability": (8, 6), "multiprocessors": 16, "precision": "fp16", "segment": "0",
            "builder": "x", "version": "9", "lengths": (1,), "max_batch": 99, "recipe": 1,
        }.items()
    ]  # fmt: skip
    assert {field.name for field in dataclasses.fields(key)} == {
        name for other in others for name in dataclasses.asdict(key) if getattr(other, name) != getattr(key, name)
    }
    assert len({key.digest, *(other.digest for other in others)}) == 11


def test_rtx_engine_key_depends_on_compute_capability_only(bundles: dict, tmp_path: Path) -> None:
    manifest = read_manifest(bundles["fp32"])
    rtx = Machine("rtx1.7", tmp_path)
    one, other = (
        key_of(manifest, manifest.segments[0], rtx.api, Gpu(name, (8, 9))) for name in ("RTX 4060", "RTX 4090")
    )
    assert one == other
    with pytest.raises(InputError, match="cannot build for compute capability 87: it knows 75, 80, 86, 89, 120, 121"):
        prepare_engines(bundles["fp32"], manifest, rtx.api, ORIN, rtx.cache)


def test_engine_that_cannot_be_loaded_names_remedy(bundles: dict, machine: Machine) -> None:
    folder = bundles["fp32"]
    built = machine.prepare(folder)
    built["segments/layer_02.onnx"].write_bytes(b"damaged")
    with pytest.raises(
        BerxitError, match=r"cannot load the engine of segments/layer_02.onnx: the engine is of another"
    ):
        TensorRtBackend(folder, read_manifest(folder), machine.api, machine.cuda, built)


@pytest.mark.parametrize(
    ("version", "kind", "message"),
    [
        (
            "8.6.1",
            "int8",
            r"int8 was exported for jetpack6\.1 \(opset 19\), but TensorRT 8\.6\.1 reads opsets up to 17: export again"
            r" with --target-version jetpack6\.0$",
        ),
        ("8.5.3", "old-int8", r"for jetpack6\.0 \(opset 17\), but .* up to 16: .*--target-version jetpack5$"),
    ],
)
def test_opset_is_compared_before_a_file_is_parsed(
    version: str, kind: str, message: str, bundles: dict, tmp_path: Path
) -> None:
    machine = Machine(version, tmp_path)
    with pytest.raises(BerxitError, match=message):
        machine.prepare(bundles[kind])
    assert machine.world.builders == 0


def test_bundle_without_opset_runs_on_tensorrt_10_only(bundles: dict, tmp_path: Path) -> None:
    manifest = dataclasses.replace(read_manifest(bundles["old"]), opset=None, target_version=None)
    Machine("10.3.0", tmp_path).prepare(bundles["old"], manifest)
    with pytest.raises(
        BerxitError, match=r"older berxit, which did not record the opset: .* --target-version jetpack6\.0"
    ):
        Machine("8.6.1", tmp_path).prepare(bundles["old"], manifest)


def test_too_old_tensorrt_is_rejected(bundles: dict, machine: Machine) -> None:
    machine.api.version = "8.4.1"
    with pytest.raises(BerxitError, match=r"^TensorRT 8\.4\.1 is too old for .*: install 8\.5 or a newer one$"):
        machine.prepare(bundles["fp32"])


def test_one_builder_builds_all_engines(bundles: dict, machine: Machine) -> None:
    machine.prepare(bundles["fp32"])
    assert machine.world.builders == 1
    machine.prepare(bundles["fp32"])  # from the cache
    assert machine.world.builders == 1


def test_engines_are_deserialized_one_by_one(bundles: dict, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    living: list[int] = [0]
    most: list[int] = []

    class Counted(bytes):
        def __init__(self, content: bytes) -> None:
            living[0] += 1
            most.append(living[0])

        def __del__(self) -> None:
            living[0] -= 1

    real = engines.read_engine
    monkeypatch.setattr(backend, "read_engine", lambda path: Counted(real(path)))
    machine.open(bundles["fp32"])
    assert most == [1] * 4


def test_engine_deleted_from_the_cache_is_reported(bundles: dict, machine: Machine) -> None:
    built, manifest = machine.prepare(bundles["fp32"]), read_manifest(bundles["fp32"])
    built["segments/layer_02.onnx"].unlink()
    with pytest.raises(BerxitError, match=r"\.engine is missing: another process cleared the engine cache"):
        TensorRtBackend(bundles["fp32"], manifest, machine.api, machine.cuda, built)


class Notes:
    """A bar that stores its notes, or raises an exception."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.notes: list[str] = []
        self.error = error

    def __call__(self, length: int) -> AbstractContextManager[Notes]:
        return nullcontext(self)

    def update(self, n_steps: int) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)
        if self.error:
            raise self.error


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0", "11.4.0.106", "rtx1.7"])
def test_build_reports_its_steps_and_expected_duration(version: str, bundles: dict, tmp_path: Path) -> None:
    machine, bar = Machine(version, tmp_path), Notes()
    folder = bundles[bundle_for(version, "albert")]
    manifest, lines = read_manifest(folder), list[str]()
    gpu = machine.gpu
    prepare_engines(folder, manifest, machine.api, gpu, machine.cache, progress=bar, report=lines.append)
    steps = [f"{file}: Tactic Selection {step}/2" for file in ("embeddings", "body_01") for step in (1, 2)]
    assert bar.notes == ([] if version == "8.6.1" else steps)
    assert lines[0].endswith("no build on this GPU is recorded yet; it can take minutes")
    for file in machine.cache.folder.glob("*.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"seconds": 90.0}))
    (machine.cache.folder / "damaged.json").write_text("[")
    again = dataclasses.replace(manifest, max_batch=1)
    prepare_engines(folder, again, machine.api, gpu, machine.cache, report=lines.append)
    assert lines[1].endswith("expected: 3 min, as an engine took 90.0 s in earlier builds")


def test_interrupted_build_stops_and_stores_nothing(bundles: dict, machine: Machine) -> None:
    bar = Notes(KeyboardInterrupt())
    manifest = read_manifest(bundles["fp32"])
    with pytest.raises(KeyboardInterrupt):
        prepare_engines(bundles["fp32"], manifest, machine.api, ORIN, machine.cache, progress=bar)
    assert len(bar.notes) == 1
    assert not list(machine.cache.folder.glob("*.engine"))


def test_warm_up_prepares_every_length(bundles: dict, machine: Machine) -> None:
    reference = open_onnxruntime(bundles["fp32"], read_manifest(bundles["fp32"]), 1)
    found = machine.open(bundles["fp32"], cuda_graphs=True)
    found.warm_up()
    world = machine.world
    before = world.contexts, machine.driver.live()
    assert machine.driver.calls("cuGraphLaunch") == 3 * 3  # three layers at three lengths
    for longest in (8, 16, 32):
        batch = TokenBatch.pad([[5] * longest], [[0] * longest], 0)
        assert_same(answers(found, batch, 1), answers(reference, batch, 1))
    assert (world.contexts, machine.driver.live()) == before


def is_half(values: np.ndarray) -> bool:
    return bool((values == values.astype(np.float16)).all())


@pytest.mark.parametrize(("version", "kind"), [("8.6.1", "old-int8"), ("8.5.3", "oldest-int8"), ("8.5.3", "old")])
def test_exits_of_tensorrt_8_are_float32(
    version: str, kind: str, bundles: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in rounds every layer to float16 that is not constrained to float32."""
    folder, batch = bundles[kind], random_batch(1, rows=4)
    exits = list(every_exit(Machine(version, tmp_path).open(folder), batch))
    assert not any(is_half(output.logits) for output in exits)
    assert not any(is_half(output.lte) for output in exits)
    monkeypatch.setattr(Api, "_float32_layers", lambda self, network: [])
    with pytest.raises(BerxitError, match="did not keep the names of float32 layers: export in fp32"):
        Machine(version, tmp_path / "two").open(folder)


def test_decomposed_norms_of_tensorrt_8_are_float32(bundles: dict, tmp_path: Path) -> None:
    for kind in ("oldest-int8", "old"):
        machine = Machine("8.5.3", tmp_path)
        precisions: dict[str, str | None] = {}
        real = machine.api.trt.Builder.build_serialized_network

        def build(self, network, config, real=real, precisions=precisions):  # type: ignore[no-untyped-def]
            layers = [network.get_layer(i) for i in range(network.num_layers)]
            precisions |= {layer._name: layer._precision for layer in layers if layer._kind in ("REDUCE", "UNARY")}
            return real(self, network, config)

        machine.api.trt.Builder.build_serialized_network = build
        machine.prepare(bundles[kind])
        norms = {name: p for name, p in precisions.items() if "reducemean" in name or "sqrt" in name}
        assert len(norms) >= 3
        assert set(norms.values()) == {"FLOAT"}
        assert None in precisions.values()  # GELU's Erf


def test_build_reports_unwritable_cache(bundles: dict, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BerxitError, match="Set BERXIT_CACHE to a folder with room"):
        Machine("10.3.0", tmp_path / "file").prepare(bundles["fp32"])


# --- plan ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fp32", "fp16", "albert"])
def test_plan_aligns_tensors_without_overlap(kind: str, bundles: dict) -> None:
    manifest = read_manifest(bundles[kind])
    plan = plan_for(manifest, 4, 16)
    ends = 0
    for place in sorted(plan.places.values(), key=lambda place: place.offset):
        assert place.offset % ALIGNMENT == 0
        assert place.offset >= ends
        ends = place.offset + 4 * place.row_bytes
    assert ends <= plan.size
    assert plan.places["hidden.0"].row_bytes == 16 * 32 * (2 if kind == "fp16" else 4)
    assert plan.inputs.start == 0
    assert plan.inputs.stop == plan.outputs[0].start
    assert plan.outputs[0].stop == plan.outputs[1].start


# --- names that the code uses --------------------------------------------------------------------------------------


def test_recorded_names_match_api_listings() -> None:
    recorded = SHARED / "tensorrt-api"
    if not recorded.exists():
        pytest.skip("the recorded names of TensorRT are not beside the project")
    listed = {path.stem for path in recorded.glob("*.json")}
    assert set(NAMES) == {*listed, "8.5.3"}  # of 8.5, which JetPack 5 has: from the sources of its bindings
    wanted = {kind: {name for names in NAMES.values() for name in names[kind]} for kind in NAMES["8.6.1"]}
    for version in listed:
        kept = NAMES[version]
        full = json.loads((recorded / f"{version}.json").read_text(encoding="utf-8"))
        for kind, names in kept.items():
            members = set((full.get(kind) or {"members": []})["members"])
            assert set(names) == wanted[kind] & members, f"{version} {kind}"


def test_standin_rejects_names_missing_in_version(bundles: dict, tmp_path: Path) -> None:
    for version, kind, name in (
        ("8.6.1", "ICudaEngine", "device_memory_size_v2"),
        ("10.3.0", "IExecutionContext", "execute_async_v2"),
        ("11.4.0.106", "ICudaEngine", "create_execution_context_without_device_memory"),
        ("11.4.0.106", "IBuilderConfig", "max_workspace_size"),
        ("11.4.0.106", "IRuntimeConfig", "create_runtime_cache"),
    ):
        made = object.__new__(TensorRt(version, World(driver_of_this_process())).classes[kind])
        with pytest.raises(AttributeError, match=f"this TensorRT has no {kind}.{name}"):
            getattr(made, name)
        with pytest.raises(AttributeError, match=f"this TensorRT has no {kind}.{name}"):
            setattr(made, name, 1)
    module = TensorRt("11.4.0.106", World(driver_of_this_process()))
    assert not hasattr(module.BuilderFlag, "FP16")
    assert not hasattr(module.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH")
    assert not hasattr(module, "ComputeCapability")


def test_standin_rejects_code_for_another_version(
    bundles: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Api, "_always_shares_profiles", False)
    monkeypatch.setattr(Api, "_sharing", None)
    Machine("10.3.0", tmp_path).open(bundles["fp32"]).embed(random_batch(1, rows=1))
    with pytest.raises(AttributeError, match="create_execution_context_without_device_memory"):
        Machine("11.4.0.106", tmp_path).open(bundles["fp32"]).embed(random_batch(1, rows=1))


def test_float32_engines_disable_tf32(bundles: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in rejects TF32."""
    real = Api.set_precision

    def forgets(self: Api, config: object, network: object, precision: str, *, exits: bool) -> None:
        real(self, config, network, precision, exits=exits)
        config._flags.add("TF32")  # type: ignore[attr-defined]

    for version, name in (("8.6.1", "old"), ("10.3.0", "fp16"), ("11.4.0.106", "fp32"), ("rtx1.7", "fp32")):
        Machine(version, tmp_path / "one").prepare(bundles[name])
        with monkeypatch.context() as patch, pytest.raises(AssertionError, match="with 10 bits"):
            patch.setattr(Api, "set_precision", forgets)
            Machine(version, tmp_path / "two").prepare(bundles[name])


def test_open_without_tensorrt_names_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(
        BerxitError, match=r"needs tensorrt, which is not installed here: .*\[(tensorrt-cu1[23]|jetson7?)\]"
    ):
        load("tensorrt")


def test_builder_is_found_under_all_module_names() -> None:
    for info in BACKENDS["tensorrt"]:
        for builder, modules in BUILDERS.items():
            if info.name == builder:
                assert {info.package, info.other_package} - {None} == set(modules)
    other = dataclasses.replace(BACKENDS["tensorrt"][0], package="no_such_module", other_package="json")
    assert other.installed
    assert not dataclasses.replace(other, other_package=None).installed


def test_open_backend_opens_tensorrt_bundle(
    bundles: dict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine("10.3.0", tmp_path)
    monkeypatch.setenv("BERXIT_CACHE", str(tmp_path))
    monkeypatch.setattr(backend, "load", lambda builder: machine.api)
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__spec__=SimpleNamespace()))
    folder = shutil.copytree(bundles["fp32"], tmp_path / "bundle")
    lengths: list[int] = []

    def progress(length: int) -> AbstractContextManager[Bar]:
        lengths.append(length)
        return silent(length)

    found = open_backend(folder, read_manifest(folder), backend="tensorrt", progress=progress)
    assert found.name == "tensorrt"
    assert "builds 4 of 4 engines for Orin" in caplog.text
    assert machine.world.contexts == 4 * 3  # warm
    options = {"cuda_graphs": True, "run_ahead": True}
    found = open_backend(folder, read_manifest(folder), backend="tensorrt", backend_options=options)
    assert found.label == "tensorrt (cuda-graphs, run-ahead)"
    with pytest.raises(InputError, match="no backend 'tensorrt-fast' runs bundles for tensorrt"):
        open_backend(folder, read_manifest(folder), backend="tensorrt-fast")
    tried = tune(folder, read_manifest(folder), backend="tensorrt", seconds=0, accept_noise=True)
    labels = {"tensorrt", "tensorrt (cuda-graphs)", "tensorrt (run-ahead)", "tensorrt (cuda-graphs, run-ahead)"}
    assert labels <= {each.label for each in tried}
    assert len(tried) == 8
    assert {each.threads for each in tried} == {1}
    machine.driver.fail("cuMemHostGetDevicePointer=801")
    caplog.clear()
    tried = tune(folder, read_manifest(folder), backend="tensorrt", seconds=0, accept_noise=True)
    assert labels == {each.label for each in tried}
    [line] = [record.getMessage() for record in caplog.records if "not measured" in record.getMessage()]
    assert line.startswith("not measured: tensorrt (zero-copy), ")
    assert "CUDA's cudaHostGetDevicePointer failed" in line
    assert engines.WORKSPACE_MIB > 0
