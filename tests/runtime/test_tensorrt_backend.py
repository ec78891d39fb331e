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
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import SHARED
from tensorrt_standin import NAMES, TensorRt, World, cuda_runtime

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
from berxit.runtime.loop import Backend, exit_loop
from berxit.runtime.policies import ExitPolicy
from berxit.runtime.progress import Bar, silent
from berxit.runtime.tokenization import TokenBatch
from berxit.runtime.tuning import tune

PACKAGE = Path(backend.__file__).parent
OPTIONS = [{}, {"run_ahead": True}, {"cuda_graphs": True}, {"run_ahead": True, "cuda_graphs": True}]
ORIN = Gpu("Stand-in", (8, 7), 8)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, backbone_folders: dict) -> dict[str, Path]:
    """Name -> tiny bundle for TensorRT: one for each precision, an old version, and a shared body."""
    import torch
    from transformers import AutoTokenizer

    from berxit.exporters.export import export
    from berxit.exporters.options import ExportOptions
    from berxit.train.checkpoint import TrainingRecord, save_checkpoint
    from berxit.train.modeling import MultiExitModel

    folder = tmp_path_factory.mktemp("tensorrt")
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
    made = {
        "fp32": (checkpoint, ExportOptions("fp32", (8, 16, 32), 3)),
        "fp16": (checkpoint, ExportOptions("fp16", (16, 32), 4)),
        "int8": (checkpoint, ExportOptions("int8", (32,), 2)),
        "bf16": (checkpoint, ExportOptions("bf16", (16, 32), 4)),
        "exits": (checkpoint, ExportOptions("fp32", (8, 32), 3, exits=(2, 3))),
        "exits-albert": (folder / "albert-checkpoint", ExportOptions("int8", (32,), 3, exits=(1, 3))),
        "repeat": (folder / "albert-checkpoint", ExportOptions("fp32", (8, 32), 3, exits=(1, 3))),
        "last": (checkpoint, ExportOptions("fp16", (16, 32), 4, exits=(3,))),
        "old": (checkpoint, ExportOptions("fp16", (16, 32), 4, "jetpack5")),
        "old-int8": (checkpoint, ExportOptions("int8", (32,), 4, "tensorrt8.6")),
        "albert": (folder / "albert-checkpoint", ExportOptions("fp32", (16, 32), 4)),
        "old-albert": (folder / "albert-checkpoint", ExportOptions("fp32", (16, 32), 4, "jetpack5")),
    }
    for name, (source, options) in made.items():
        export(source, "tensorrt", folder / name, options=options)
    return {name: folder / name for name in made}


class Machine:
    """Stand-in of one version, with an engine cache."""

    def __init__(self, version: str, cache: Path) -> None:
        self.world = World()
        self.api = Api("tensorrt-rtx" if version.startswith("rtx") else "tensorrt", TensorRt(version, self.world))
        self.cuda = Cuda(cuda_runtime(self.world, (8, 9) if version.startswith("rtx") else ORIN.capability))
        self.cache = EngineCache(cache)

    def prepare(self, folder: Path, manifest: Manifest | None = None) -> dict[str, bytes]:
        return prepare_engines(folder, manifest or read_manifest(folder), self.api, self.cuda.gpu(), self.cache)

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


def answers(found: Backend, batch: TokenBatch, seed: int) -> list[tuple]:
    return [(r.layer, r.rows.tolist(), r.logits) for r in exit_loop(found, batch, InTurn(seed))]


def assert_same(first: list[tuple], second: list[tuple], atol: float = 1e-5) -> None:
    assert [step[:2] for step in first] == [step[:2] for step in second]
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(one[2], other[2], atol=atol)


def bundle_for(version: str, kind: str) -> str:
    return {"fp16": "old", "albert": "old-albert", "int8": "old-int8"}[kind] if version == "8.6.1" else kind


@pytest.mark.parametrize("kind", ["fp16", "albert", "int8"])
@pytest.mark.parametrize("version", NAMES)
def test_outputs_match_checkpoint_on_every_version(version: str, kind: str, bundles: dict, tmp_path: Path) -> None:
    folder = bundles[bundle_for(version, kind)]
    manifest = read_manifest(folder)
    found = Machine(version, tmp_path).open(folder)
    off = differences(found, read_golden(folder, manifest), manifest.model.pad_token_id)
    assert max(off) <= {"fp16": 2e-2, "albert": 1e-5, "int8": 0.5}[kind]


@pytest.mark.parametrize("version", ["10.3.0", "11.4.0.106", "rtx1.7"])
def test_bfloat16_outputs_match_checkpoint(version: str, bundles: dict, tmp_path: Path) -> None:
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


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options) or "plain")
@pytest.mark.parametrize("kind", ["fp32", "albert", "exits", "repeat"])
def test_exiting_rows_do_not_change_other_rows(kind: str, options: dict, bundles: dict, machine: Machine) -> None:
    folder = bundles[kind]
    reference = open_onnxruntime(folder, read_manifest(folder), 1)
    found = machine.open(folder, **options)
    for seed in range(12):  # includes more rows than max_batch, which run in parts
        batch = random_batch(seed, rows=1 + seed % 8)
        assert_same(answers(found, batch, seed), answers(reference, batch, seed))
    if options.get("cuda_graphs"):
        assert machine.world.launched > 0


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options) or "plain")
def test_each_exit_needs_one_copy_to_host(options: dict, bundles: dict, machine: Machine) -> None:
    found = machine.open(bundles["fp32"], **options)
    batch = random_batch(1, rows=1)
    list(exit_loop(found, batch, ExitPolicy.full_depth(3, False)))
    before = machine.world.copies_out, len(machine.world.blocks), len(machine.world.pinned)
    list(exit_loop(found, batch, ExitPolicy.full_depth(3, False)))
    machine.world.run()
    after = machine.world.copies_out, len(machine.world.blocks), len(machine.world.pinned)
    assert (after[0] - before[0], *after[1:]) == (3, *before[1:])  # no further allocations


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
        except Exception:  # the Gather of the embeddings rejects garbage token ids
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
        blocks.append(len(machine.world.blocks))
    assert blocks == blocks[:1] * 5


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options) or "plain")
@pytest.mark.parametrize("how", ["close", "forget"])
def test_close_frees_resources_in_order(how: str, options: dict, bundles: dict, machine: Machine) -> None:
    found = machine.open(bundles["albert"], **options)
    for rows in (1, 3):
        answers(found, random_batch(rows, rows), 1)
    world = machine.world
    assert world.blocks
    assert world.pinned
    assert world.made
    world.gone.clear()
    if how == "close":
        found.close()
        found.close()  # a second close has no effect
        with pytest.raises(BerxitError, match=r"this runner was closed .* load the bundle again"):
            found.embed(random_batch(1, 1))
    else:
        del found
    assert not world.blocks
    assert not world.pinned
    assert not world.made
    order = list(dict.fromkeys(world.gone))
    assert order.index("context") < order.index("engine") < order.index("runtime") < order.index("memory")
    assert world.gone.count("context") == world.contexts
    if options.get("cuda_graphs"):
        assert order[0] == "launchable"


def test_failed_open_frees_all_resources(bundles: dict, machine: Machine) -> None:
    built = machine.prepare(bundles["fp32"])
    built["segments/layer_03.onnx"] = b"damaged"
    with pytest.raises(BerxitError, match="cannot load the engine"):
        TensorRtBackend(bundles["fp32"], read_manifest(bundles["fp32"]), machine.api, machine.cuda, built)
    assert not machine.world.made
    assert not machine.world.blocks


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
    machine.world.gone.clear()
    with forking.opening:
        forking.opening.acquire()
        forking._in_child()
    for call in (found.embed, found.layer, found.keep):
        with pytest.raises(BerxitError, match="'tensorrt' was opened before this process was forked"):
            call()
    del found, call
    gc.collect()
    assert not machine.world.gone


def test_contexts_are_created_per_used_length(bundles: dict, machine: Machine) -> None:
    found = machine.open(bundles["fp32"])
    assert machine.world.contexts == 0
    for _ in range(2):
        answers(found, random_batch(1, rows=2, longest=8), 1)
        assert machine.world.contexts == 4
    answers(found, random_batch(1, rows=2, longest=32), 1)
    assert machine.world.contexts == 8


def test_upload_is_complete_when_it_returns(machine: Machine) -> None:
    array = np.arange(1000, dtype=np.float32)
    address = machine.cuda.upload(array, machine.cuda.stream())
    np.testing.assert_array_equal(machine.world.at(address, array.nbytes).view(np.float32), array)


@pytest.mark.parametrize("fails", ["execute_async_v3", "cudaGraphInstantiate"])
def test_failed_graph_capture_falls_back_to_plain_execution(fails: str, bundles: dict, machine: Machine) -> None:
    folder = bundles["fp32"]
    reference = open_onnxruntime(folder, read_manifest(folder), 1)
    found = machine.open(folder, cuda_graphs=True)
    machine.world.refuses.add(fails)
    for seed in range(4):
        batch = random_batch(seed, rows=1)
        assert_same(answers(found, batch, seed), answers(reference, batch, seed))
    assert machine.world.capture is None
    assert machine.world.launched == 0


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("set_optimization_profile_async", r"rejected profile 1 of segments/embeddings\.onnx"),
        ("set_tensor_address", r"rejected an address for input_ids of segments/embeddings\.onnx"),
        ("add_optimization_profile", "rejected an optimization profile"),
        ("set_shape", r"rejected the shapes \(1, 8\) to \(3, 8\) of input input_ids"),
        ("set_timing_cache", "rejected an empty timing cache"),
    ],
)
def test_failed_api_call_raises_error(call: str, said: str, bundles: dict, machine: Machine) -> None:
    machine.world.refuses.add(call)
    with pytest.raises(BerxitError, match=rf"TensorRT 10\.3\.0 {said}: .*berxit-build --force"):
        machine.open(bundles["fp32"]).embed(random_batch(1, rows=1))


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


def test_cuda_graphs_need_tensorrt_10(bundles: dict, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"option cuda-graphs of tensorrt needs TensorRT 10, this is TensorRT 8\.6\.1"):
        Machine("8.6.1", tmp_path).open(bundles["old"], cuda_graphs=True)


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
    built["segments/layer_02.onnx"] = b"damaged"
    with pytest.raises(
        BerxitError, match=r"cannot load the engine of segments/layer_02.onnx: the engine is of another"
    ):
        TensorRtBackend(folder, read_manifest(folder), machine.api, machine.cuda, built)


def test_open_reports_unsupported_onnx_file(bundles: dict, tmp_path: Path) -> None:
    with pytest.raises(BerxitError, match=r"opset 19 is newer than 17\. Export again with the --target-version"):
        Machine("8.6.1", tmp_path).prepare(bundles["fp16"])
    assert not list(tmp_path.rglob("*.engine"))


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
    assert set(NAMES) == {path.stem for path in recorded.glob("*.json")}
    wanted = {kind: {name for names in NAMES.values() for name in names[kind]} for kind in NAMES["8.6.1"]}
    for version, kept in NAMES.items():
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
        made = object.__new__(TensorRt(version, World()).classes[kind])
        with pytest.raises(AttributeError, match=f"this TensorRT has no {kind}.{name}"):
            getattr(made, name)
        with pytest.raises(AttributeError, match=f"this TensorRT has no {kind}.{name}"):
            setattr(made, name, 1)
    module = TensorRt("11.4.0.106", World())
    assert not hasattr(module.BuilderFlag, "FP16")
    assert not hasattr(module.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH")
    assert not hasattr(module, "ComputeCapability")


def test_standin_rejects_code_for_another_version(
    bundles: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Api, "shares_profiles", False)
    Machine("10.3.0", tmp_path).open(bundles["fp32"]).embed(random_batch(1, rows=1))
    with pytest.raises(AttributeError, match="create_execution_context_without_device_memory"):
        Machine("11.4.0.106", tmp_path).open(bundles["fp32"]).embed(random_batch(1, rows=1))


def test_float32_engines_disable_tf32(bundles: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in rejects TF32, and checks on TensorRT 8 that float32 layers of the file are computed in float32."""
    real = Api.set_precision

    def forgets(self: Api, config: object, network: object, precision: str) -> None:
        real(self, config, network, precision)
        config._flags.add("TF32")  # type: ignore[attr-defined]

    for version, name in (("8.6.1", "old"), ("10.3.0", "fp16"), ("11.4.0.106", "fp32"), ("rtx1.7", "fp32")):
        Machine(version, tmp_path / "one").prepare(bundles[name])
        with monkeypatch.context() as patch, pytest.raises(AssertionError, match="with 10 bits"):
            patch.setattr(Api, "set_precision", forgets)
            Machine(version, tmp_path / "two").prepare(bundles[name])
    monkeypatch.setattr(Api, "_float32_layers", lambda self, network: [])
    with pytest.raises(AssertionError):
        Machine("8.6.1", tmp_path / "three").prepare(bundles["old"])


def test_cuda_python_has_all_called_functions() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed here")
    called = set(re.findall(r'"(cuda[A-Z]\w+)"|_runtime\.(cuda[A-Z]\w+)', (PACKAGE / "cuda.py").read_text("utf-8")))
    names = {name for pair in called for name in pair if name}
    assert len(names) > 15
    assert [name for name in sorted(names) if not hasattr(runtime, name)] == []
    assert {name for name in names if not hasattr(cuda_runtime(World()), name)} == set()


def test_open_without_gpu_raises_one_line_error(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = SimpleNamespace(cudaGetDeviceCount=lambda: (SimpleNamespace(name="cudaErrorNoDevice", __int__=None), 0))
    runtime.cudaGetDeviceCount = lambda: (100, None)
    monkeypatch.setitem(sys.modules, "cuda", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(runtime=runtime))
    with pytest.raises(BerxitError, match="whose nvidia-smi shows a GPU"):
        Cuda.open()


def test_open_without_tensorrt_names_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BerxitError, match=r"needs tensorrt, which is not installed here: .*\[(tensorrt|jetson)\]"):
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
    monkeypatch.setattr(backend.Cuda, "open", lambda: Cuda(cuda_runtime(machine.world)))
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__spec__=SimpleNamespace()))
    folder = shutil.copytree(bundles["fp32"], tmp_path / "bundle")
    lengths: list[int] = []

    def progress(length: int) -> AbstractContextManager[Bar]:
        lengths.append(length)
        return silent(length)

    found = open_backend(folder, read_manifest(folder), backend="tensorrt", progress=progress)
    assert found.name == "tensorrt"
    assert "builds 4 of 4 engines for Stand-in" in caplog.text
    options = {"cuda_graphs": True, "run_ahead": True}
    found = open_backend(folder, read_manifest(folder), backend="tensorrt", backend_options=options)
    assert found.label == "tensorrt (cuda-graphs, run-ahead)"
    with pytest.raises(InputError, match="no backend 'tensorrt-fast' runs bundles for tensorrt"):
        open_backend(folder, read_manifest(folder), backend="tensorrt-fast")
    tried = tune(folder, read_manifest(folder), seconds=0, accept_noise=True)
    labels = {"tensorrt", "tensorrt (cuda-graphs)", "tensorrt (run-ahead)", "tensorrt (cuda-graphs, run-ahead)"}
    assert labels <= {each.label for each in tried}
    assert {each.threads for each in tried} == {1}
    assert engines.WORKSPACE_MIB > 0


def test_cuda_python_accepts_argument_types() -> None:
    """Without a driver every call returns an error, but only after its arguments were converted."""
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed here")
    if int(runtime.cudaGetDeviceCount()[0]) == 0:
        pytest.skip("there is a GPU: these arguments are not for one")
    cuda = Cuda(runtime)
    calls = (
        cuda.gpu,
        cuda.stream,
        cuda.event,
        lambda: cuda.allocate(256),
        lambda: cuda.pinned(256),
        lambda: cuda.copy_in(512, 256, 16, 77),
        lambda: cuda.copy_out(512, 256, 16, 77),
        lambda: cuda.move(512, 256, 16, 77),
        lambda: cuda.wait(77),
        lambda: cuda.mark(runtime.cudaEvent_t(0), 77),
        lambda: cuda.wait_for(runtime.cudaEvent_t(0)),
        lambda: cuda.capture(lambda: None, 77),
        lambda: cuda.call("cudaStreamEndCapture", 77),
        lambda: cuda.call("cudaGraphInstantiate", runtime.cudaGraph_t(0), 0),
        lambda: cuda.call("cudaGraphDestroy", runtime.cudaGraph_t(0)),
        lambda: cuda.call("cudaGraphExecDestroy", runtime.cudaGraphExec_t(0)),
        lambda: cuda.call("cudaEventDestroy", runtime.cudaEvent_t(0)),
        lambda: cuda.call("cudaStreamDestroy", 77),
        lambda: cuda.call("cudaFree", 256),
        lambda: cuda.call("cudaFreeHost", 256),
        lambda: cuda.launch(runtime.cudaGraphExec_t(0), 77),
    )
    for call in calls:
        with pytest.raises(BerxitError, match=r"CUDA's cuda\w+ failed with cudaError"):
            call()
