"""The bare matrix products are those of the model, and every way to compute them does the same ones."""

from __future__ import annotations

import pytest

from benchmarks.side_by_side.products import WAYS, MatrixProducts, Product, Shape
from berxit.runtime.tokenization import TokenBatch

SMALL = Shape(layers=2, hidden=64, wide=256, heads=2)


def test_flops_are_those_of_the_matrix_products() -> None:
    """One layer of d = 2, wide 8, 3 tokens: qkv and output 4 d^2, up and down 2 x 16, twice 3^2 x 2 of attention."""
    assert Shape(layers=1, hidden=2, wide=8, heads=1).flops(3) == 2 * 3 * (4 * 4 + 2 * 16) + 2 * 2 * 9 * 2


def test_a_last_layer_of_one_token_has_that_much_less_to_do() -> None:
    """Keys and values of 3 tokens (2 d^2), the rest of one: query, output (2 d^2), up, down (32), attention 3 x 2."""
    alone = Shape(layers=1, hidden=2, wide=8, heads=1, last_alone=True)
    assert alone.flops(3) == 2 * 3 * 8 + 2 * (2 * 4 + 32) + 2 * 2 * 3 * 2
    assert Product(3, 2, 4) in set(alone.products(1, 3))


@pytest.mark.parametrize("precision", list(WAYS))
def test_the_quickest_way_is_found_for_each_shape(precision: str) -> None:
    products = MatrixProducts(SMALL, 1, precision)
    batches = [TokenBatch.pad([[1] * 20] * rows, [[0] * 20] * rows, 0) for rows in (1, 3)]
    for batch in batches:
        assert products.full(batch).shape == (len(batch), 1)
        assert products.way(batch) in WAYS[precision]
    assert set(products.quickest) == {(1, 20), (3, 20)}


def test_every_way_is_one_that_this_torch_and_this_runtime_have() -> None:
    """A way that fails is left out silently; in 32 bits none may."""
    for way in WAYS["fp32"].values():
        way(tuple(SMALL.products(2, 8)), 1)()
