"""Matrix multiplications of the side-by-side benchmark: their FLOPs, and all implementations."""

from __future__ import annotations

import pytest

from benchmarks.side_by_side.products import WAYS, MatrixProducts, Product, Shape
from berxit.runtime.tokenization import TokenBatch

SMALL = Shape(layers=2, hidden=64, wide=256, heads=2)


def test_shape_flops_count_matrix_multiplications() -> None:
    """One layer, d = 2, intermediate size 8, 3 tokens: QKV and output 4 d^2, up and down 2 x 16, attention 2 x 3^2 x
    2."""
    assert Shape(layers=1, hidden=2, wide=8, heads=1).flops(3) == 2 * 3 * (4 * 4 + 2 * 16) + 2 * 2 * 9 * 2


def test_shape_flops_with_one_token_in_last_layer() -> None:
    """Keys and values for 3 tokens (2 d^2), the rest for one: query, output (2 d^2), up, down (32), attention 3 x 2."""
    alone = Shape(layers=1, hidden=2, wide=8, heads=1, last_alone=True)
    assert alone.flops(3) == 2 * 3 * 8 + 2 * (2 * 4 + 32) + 2 * 2 * 3 * 2
    assert Product(3, 2, 4) in set(alone.products(1, 3))


@pytest.mark.parametrize("precision", list(WAYS))
def test_matrix_products_select_fastest_implementation_per_shape(precision: str) -> None:
    products = MatrixProducts(SMALL, 1, precision)
    batches = [TokenBatch.pad([[1] * 20] * rows, [[0] * 20] * rows, 0) for rows in (1, 3)]
    for batch in batches:
        assert products.full(batch).shape == (len(batch), 1)
        assert products.way(batch) in WAYS[precision]
    assert set(products.fastest) == {(1, 20), (3, 20)}


def test_fp32_implementations_are_supported() -> None:
    """The benchmark omits unsupported implementations silently; all fp32 implementations must be supported."""
    for way in WAYS["fp32"].values():
        way(tuple(SMALL.products(2, 8)), 1)()
