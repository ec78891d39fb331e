"""Arithmetic of the numpy executor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("coremltools", reason="coremltools is not installed here: pip install -e '.[coreml]'")

from conftest import MakeCheckpoint

from berxit.exporters.coreml.executor import Arithmetic, MilFunction, open_package
from berxit.exporters.coreml.package import new_function, write_package
from berxit.exporters.coreml.silenced_coremltools import ct, mb, types
from berxit.exporters.coreml.target import checking_backend
from berxit.exporters.export import export
from berxit.exporters.options import ExportOptions
from berxit.runtime.golden import deviations, read_golden

COARSE = Arithmetic(float16_sums=True, flush_to_zero=True)
SIZE = 4096
"""Terms of a sum: float16 has no odd numbers above 2048."""
RANDOM = np.random.default_rng(0)


def package(path: Path) -> Path:
    """One function per op, on x (1, SIZE) of ones, or the small ``tiny`` (1, 4)."""
    ones = np.ones((1, SIZE), np.float16)
    zero = np.zeros(1, np.float16)
    ops = {
        "linear": lambda x: mb.linear(x=x, weight=ones, bias=zero),
        "matmul": lambda x: mb.matmul(x=x, y=ones.T),
        "transposed": lambda x: mb.matmul(x=x, y=ones, transpose_y=True),
        "reduce_sum": lambda x: mb.reduce_sum(x=x, axes=[1], keep_dims=True),
        "conv": lambda x: mb.conv(
            x=mb.reshape(x=x, shape=[1, SIZE, 1, 1]), weight=ones[:, :, None, None], bias=zero, pad_type="valid"
        ),
        "in_float32": lambda x: mb.reduce_sum(x=mb.cast(x=x, dtype="fp32"), axes=[1], keep_dims=True),
    }
    functions = {}
    for name, write in ops.items():
        with new_function({"x": mb.placeholder(shape=(1, SIZE), dtype=types.fp16)}, ct.target.iOS18) as made_:
            made_.set_outputs([mb.identity(x=write(made_.inputs["x"]), name="y")])
        functions[name] = made_
    write_package(functions, path, ct.target.iOS18)
    return path


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return package(tmp_path_factory.mktemp("sums") / "sums.mlpackage")


def run(function: MilFunction, x: np.ndarray) -> float:
    return float(function({"x": x})["y"].ravel()[0])


@pytest.mark.parametrize("op", ["linear", "matmul", "transposed", "reduce_sum", "conv"])
def test_float16_sums_round_after_every_term(op: str, sums: Path) -> None:
    x = np.ones((1, SIZE), np.float16)
    assert run(open_package(sums)[op], x) == SIZE
    assert run(open_package(sums, Arithmetic(float16_sums=True))[op], x) == 2048  # 2048 + 1 rounds to 2048


def test_float16_sums_do_not_change_float32_ops(sums: Path) -> None:
    assert run(open_package(sums, COARSE)["in_float32"], np.ones((1, SIZE), np.float16)) == SIZE


def test_flush_to_zero_removes_subnormal_numbers_only(sums: Path) -> None:
    x = np.zeros((1, SIZE), np.float16)
    x[0, :2] = 2.0**-14, 2.0**-15
    flushed = open_package(sums, Arithmetic(flush_to_zero=True))["reduce_sum"]
    assert run(open_package(sums)["reduce_sum"], x) == 2.0**-14 + 2.0**-15
    assert run(flushed, x) == 2.0**-14


@pytest.mark.parametrize("op", ["layer_norm", "softmax"])
def test_float16_sums_of_norm_and_softmax_stay_close(op: str, tmp_path: Path) -> None:
    with new_function({"x": mb.placeholder(shape=(1, 4, 64), dtype=types.fp16)}, ct.target.iOS18) as made_:
        x = made_.inputs["x"]
        gamma, beta = RANDOM.normal(size=(2, 64)).astype(np.float16)
        found = mb.softmax(x=x, axis=-1) if op == "softmax" else None
        found = found or mb.layer_norm(x=x, axes=[-1], gamma=gamma, beta=beta, epsilon=np.float16(1e-5))
        made_.set_outputs([mb.identity(x=found, name="y")])
    write_package({"main": made_}, tmp_path / "a.mlpackage", ct.target.iOS18)
    feeds = {"x": RANDOM.normal(size=(1, 4, 64)).astype(np.float16)}
    exact, coarse = (
        open_package(tmp_path / "a.mlpackage", each)["main"](feeds)["y"] for each in (Arithmetic(), COARSE)
    )
    gap = np.abs(exact.astype(np.float32) - coarse.astype(np.float32)).max()
    assert 0 < gap < 0.02


@pytest.mark.parametrize("layout", ["tokens", "ane"])
@pytest.mark.parametrize("names", [(), ("float16-exits",)], ids=["", "float16-exits"])
def test_exits_stay_within_the_tolerance_under_coarse_arithmetic(
    layout: str,
    names: tuple[str, ...],
    made: MakeCheckpoint,
    tmp_path: Path,
) -> None:
    bundle = tmp_path / "bundle"
    options = ExportOptions(layout=layout, target_options=names)
    manifest = export(made("bert", pooling="mean"), "coreml", bundle, options=options)
    golden = read_golden(bundle, manifest)
    backends = [checking_backend(bundle, manifest, None, each) for each in (Arithmetic(), COARSE)]
    exact, coarse = (
        max(each.max_diff for each in deviations(backend, golden, manifest.model.pad_token_id)) for backend in backends
    )
    assert coarse != exact
    assert coarse <= manifest.parity.atol
