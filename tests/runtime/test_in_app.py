"""Use of a runner in apps: types of batches, wrong arguments, pickling, chdir, and forked child processes."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from berxit.runtime import EarlyExitRunner
from berxit.runtime.arguments import as_texts
from berxit.runtime.errors import BerxitError, InputError

TEXTS = ["the cat sat", "a dog ran under the big red tree", "stop"]
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@pytest.fixture(scope="module")
def runner(bundle: Path) -> EarlyExitRunner:
    return EarlyExitRunner.load(bundle, threads=1)


def answers(found: list[Any]) -> list[tuple[Any, ...]]:
    return [(each.label, each.exit_layer, each.scores) for each in found]


BATCHES: dict[str, Callable[[], Any]] = {
    "tuple": lambda: tuple(TEXTS),
    "generator": lambda: (text for text in TEXTS),
    "iterator": lambda: iter(TEXTS),
    "map": lambda: map(str, TEXTS),
    "array of str": lambda: np.array(TEXTS),
    "array of object": lambda: np.array(TEXTS, dtype=object),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_predict_batch_accepts_ordered_collections(runner: EarlyExitRunner, kind: str) -> None:
    assert answers(runner.predict_batch(BATCHES[kind]())) == answers(runner.predict_batch(TEXTS))


@pytest.mark.parametrize("index", [[7, 3, 3], ["x", "y", "z"], [2, 1, 0]])
def test_predict_batch_ignores_index_of_column(runner: EarlyExitRunner, index: list[Any]) -> None:
    pandas = pytest.importorskip("pandas")
    column = pandas.Series(TEXTS, index=index)
    assert answers(runner.predict_batch(column)) == answers(runner.predict_batch(TEXTS))
    one = runner.predict_batch(column[:1])
    assert answers(one) == answers(runner.predict_batch(TEXTS[:1]))


def test_predict_batch_rejects_data_frame(runner: EarlyExitRunner) -> None:
    pandas = pytest.importorskip("pandas")
    with pytest.raises(InputError, match="not a DataFrame: give one column"):
        runner.predict_batch(pandas.DataFrame({"text": TEXTS}))


@pytest.mark.parametrize(
    "batch", [{"the cat": 1}, {"the cat", "a dog"}, "the cat", b"the cat", None, 3, 2.5, object(), [], iter(())]
)
def test_predict_batch_rejects_other_types(runner: EarlyExitRunner, batch: Any) -> None:
    with pytest.raises(InputError, match="batch") as failure:
        runner.predict_batch(batch)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("text", [None, 3, b"the cat", float("nan"), np.array(3)])
def test_predict_batch_rejects_elements_that_are_not_text(runner: EarlyExitRunner, text: Any) -> None:
    for call in (runner.predict, runner.stream, lambda text: runner.predict_batch([text])):
        with pytest.raises(InputError):
            call(text)
    with pytest.raises(InputError, match="text 1"):
        runner.predict_batch(["the cat", text])


def test_as_texts_converts_lists_and_array_rows_to_pairs() -> None:
    pairs = [("a", "b"), ("c", "d")]
    for batch in (pairs, [list(pair) for pair in pairs], np.array(pairs), np.array(pairs, dtype=object), iter(pairs)):
        assert as_texts(batch) == pairs


WRONG = {
    "threads of str": {"threads": "2"},
    "threads of float": {"threads": 2.0},
    "threads of bool": {"threads": True},
    "too many threads": {"threads": 10**6},
    "no threads": {"threads": 0},
    "a flag of str": {"lazy": "no"},
    "a flag of int": {"verify": 0},
    "tune of None": {"tune": None},
    "device of int": {"device": 3},
    "backend of list": {"backend": ["onnxruntime"]},
}


@pytest.mark.parametrize("name", WRONG)
def test_load_names_wrong_argument(bundle: Path, name: str) -> None:
    (argument,) = WRONG[name]
    with pytest.raises(InputError, match=f"{argument} is ") as failure:
        EarlyExitRunner.load(bundle, **WRONG[name])  # type: ignore[arg-type]
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("path", [None, 3, ["bundle"]])
def test_load_rejects_bundle_that_is_not_a_path(path: Any) -> None:
    with pytest.raises(InputError, match=r"bundle is .*: give the path of a folder"):
        EarlyExitRunner.load(path)


@pytest.mark.parametrize("name", ["threshold", "deadline_ms"])
@pytest.mark.parametrize("value", ["5", [0.5], True, None.__class__, b"1", 1j])
def test_predict_rejects_numbers_of_wrong_type(runner: EarlyExitRunner, name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{name} is .*: give a number"):
        runner.predict("the cat", **{name: value})


def test_predict_accepts_numpy_numbers(bundle: Path, runner: EarlyExitRunner) -> None:
    assert EarlyExitRunner.load(bundle, threads=np.int64(1)).backend.threads == 1  # type: ignore[arg-type]
    assert runner.predict("the cat", threshold=np.float32(0.5), deadline_ms=np.int32(60_000)).label


def test_load_keeps_relative_path_valid_after_chdir(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundle.parent)
    loaded = EarlyExitRunner.load(bundle.name, threads=1, lazy=True)
    monkeypatch.chdir(tmp_path)
    assert len(list(loaded.stream("the cat"))) == 3
    assert len(list(pickle.loads(pickle.dumps(loaded)).stream("the cat"))) == 3


@pytest.mark.parametrize("lazy", [False, True])
def test_unpickled_runner_predicts_equally(bundle: Path, lazy: bool) -> None:
    loaded = EarlyExitRunner.load(bundle, threads=2, lazy=lazy)
    loaded.policy = loaded.policy.with_threshold(0.55)
    again = pickle.loads(pickle.dumps(loaded))
    assert (again.policy, again.backend.threads, again.manifest) == (loaded.policy, 2, loaded.manifest)
    assert answers(again.predict_batch(TEXTS)) == answers(loaded.predict_batch(TEXTS))
    assert answers(copy.deepcopy(loaded).predict_batch(TEXTS)) == answers(loaded.predict_batch(TEXTS))


def test_pickled_runner_runs_in_spawned_process(runner: EarlyExitRunner, tmp_path: Path) -> None:
    (tmp_path / "runner").write_bytes(pickle.dumps(runner))
    code = "import pickle, sys; print(pickle.load(open('runner', 'rb')).predict('the cat sat').label)"
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == runner.predict("the cat sat").label


def test_unpickling_names_missing_bundle(bundle: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(bundle, tmp_path / "moved"))
    pickled = pickle.dumps(EarlyExitRunner.load(moved, threads=1))
    shutil.rmtree(moved)
    with pytest.raises(BerxitError, match=r"no bundle at .*moved"):
        pickle.loads(pickled)


def test_runner_without_load_cannot_be_pickled(runner: EarlyExitRunner) -> None:
    made = EarlyExitRunner(runner.manifest, runner.tokenizer, runner.backend)
    with pytest.raises(BerxitError, match=r"only a runner from EarlyExitRunner\.load can be pickled"):
        pickle.dumps(made)


PARENT = """
import json, os, signal, sys, threading, time
from berxit.runtime import EarlyExitRunner

bundle, backend, threads, lazy, forks = sys.argv[1:]
threads, lazy, forks = int(threads), lazy == "lazy", int(forks)
backend, _, option = backend.partition(":")
options = {option: True} if option else {}
text = "the lamp is great"
runner = EarlyExitRunner.load(bundle, backend=backend, backend_options=options, threads=threads, lazy=lazy)
expected = runner.predict(text).scores
going = True

def work():
    while going:
        runner.predict_batch([text] * 32)

busy = threading.Thread(target=work)
busy.start()
statuses = []
for _ in range(forks):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        {child}
        sys.exit(7)  # as a worker of a preloading server ends
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
going = False
busy.join()
assert runner.predict(text).scores == expected
print(json.dumps(statuses))
"""


def forked(child: str, *arguments: object) -> list[int]:
    """Exit codes of forked child processes that run ``child`` while a thread of the parent predicts."""
    code = PARENT.replace("{child}", child)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    found = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    statuses: list[int] = json.loads(found.stdout.splitlines()[-1])
    return statuses


@needs_fork
@pytest.mark.parametrize(("threads", "lazy"), [(1, "lazy"), (2, "eager")])
def test_forked_child_predicts_and_exits(bundle: Path, threads: int, lazy: str) -> None:
    child = "assert runner.predict(text).scores == expected"
    assert forked(child, bundle, "onnxruntime", threads, lazy, 3) == [7] * 3


@needs_fork
def test_forked_child_without_prediction_exits(bundle: Path) -> None:
    assert forked("pass", bundle, "onnxruntime", 2, "eager", 3) == [7] * 3


@needs_fork
def test_forked_child_can_fork_load_and_stream(bundle: Path) -> None:
    child = """
        assert len(list(runner.stream(text))) == 3
        assert EarlyExitRunner.load(bundle, threads=threads).predict(text).scores == expected
        grandchild = os.fork()
        assert runner.predict(text).scores == expected
        if grandchild == 0:
            sys.exit(5)
        assert os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]) == 5
    """
    assert forked(child.strip(), bundle, "onnxruntime", 2, "eager", 2) == [7] * 2


@needs_fork
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_forked_child_recreates_threads(bundle: Path) -> None:
    child = """
        assert len(os.listdir("/proc/self/task")) == 1
        runner.predict(text)
        assert len(os.listdir("/proc/self/task")) >= 1 + 4  # the main thread, and one more for each of four sessions
    """
    assert forked(child.strip(), bundle, "onnxruntime", 2, "eager", 1) == [7]


@needs_fork
@pytest.mark.parametrize(("backend", "package"), [("openvino", "openvino"), ("onnxruntime:shared_pool", "onnxruntime")])
def test_forked_child_reports_unsupported_backend(bundle: Path, backend: str, package: str) -> None:
    installed = pytest.importorskip(package)
    if "shared_pool" in backend and not hasattr(installed, "set_global_thread_pool_sizes"):
        pytest.skip("ONNX Runtime has no process-wide thread pool before 1.23")
    child = """
        def load():
            return EarlyExitRunner.load(bundle, backend=backend, backend_options=options, threads=2)

        for call in (lambda: runner.predict(text), load):
            try:
                call()
                sys.exit(1)
            except Exception as error:
                assert "spawn or forkserver, or load no bundle before the fork" in str(error), error
    """
    assert forked(child.strip(), bundle, backend, 2, "eager", 2) == [7] * 2


@needs_fork
def test_forked_child_rejects_replaced_bundle(bundle: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(bundle, tmp_path / "copy"))
    child = """
        import pathlib
        manifest = pathlib.Path(bundle) / "manifest.json"
        manifest.write_text(manifest.read_text().replace('"cat"', '"lion"'))
        try:
            runner.predict(text)
        except Exception as error:
            assert "was replaced after it was loaded: load it again in this forked process" in str(error), error
            sys.exit(3)
    """
    assert forked(child.strip(), copied, "onnxruntime", 1, "eager", 1) == [3]
