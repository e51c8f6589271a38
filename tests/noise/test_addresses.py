"""Leaves of any shape and size: odd, empty, and larger than any memory."""

import jax.numpy as jnp
import numpy as np
import pytest

from zojax import noise
from zojax.virtual import Noise

KEY = jnp.array([5, 6], jnp.uint32)
DISTRIBUTIONS = ["rademacher", "nibble_sum", "gaussian"]


def _leaf(shape, distribution="nibble_sum"):
    return Noise.of_leaf(KEY, 1.0, distribution, shape)


def _expected(rows, cols):
    """Elements by address, from `noise.bits` alone."""
    rows = np.asarray(rows, np.uint64).astype(np.uint32)
    cols = np.asarray(cols, np.uint64).astype(np.uint32)
    unit = noise.round_coefficient(170**-0.5)
    return unit * noise.nibble_sum(noise.bits(KEY, rows[:, None], cols[None]))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (1, 1), (5, 1), (1, 5), (3, 5, 7), (2, 1, 3, 1)])
def test_a_term_is_the_noise_of_its_leaf(shape, distribution):
    bits = noise.leaf_bits(KEY, shape)
    expected = getattr(noise, distribution)(bits)
    if distribution == "nibble_sum":
        expected = expected * noise.round_coefficient(170**-0.5)
    found = _leaf(shape, distribution).materialize()
    assert found.shape == shape and found.dtype == jnp.float32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 3), (0, 0)])
def test_an_empty_leaf_has_empty_noise(shape, distribution):
    term = _leaf(shape, distribution)
    assert term.materialize().shape == shape
    assert term.transpose(tuple(reversed(range(len(shape))))).materialize().shape == shape[::-1]
    assert noise.leaf_bits(KEY, shape).shape == shape


@pytest.mark.parametrize(
    "shape, row, col",
    [
        ((2**20, 2**20), 2**20 - 3, 2**20 - 4),  # 2**40 elements
        ((2**32 - 1, 3), 2**32 - 4, 0),  # every row there is
        ((3, 2**32 - 1), 0, 2**32 - 5),
        ((2**32 - 1, 2**32 - 1), 2**31 + 7, 2**31 - 1),
    ],
)
def test_a_corner_of_a_leaf_of_more_than_two_to_the_32_elements(shape, row, col):
    term = _leaf(shape)
    corner = term.slice((row, col), (3, 3), (1, 1))
    expected = _expected(np.arange(row, row + 3), np.arange(col, col + 3))
    np.testing.assert_array_equal(corner.materialize(), expected)
    traced = term.slice((jnp.uint32(row), jnp.uint32(col)), (3, 3), (1, 1))
    np.testing.assert_array_equal(traced.materialize(), expected)
    flipped = term.transpose((1, 0)).slice((col, row), (3, 3), (1, 1))
    np.testing.assert_array_equal(flipped.materialize(), expected.T)
    whole_row = term.slice((row, 0), (1, shape[1]), (1, 1)).slice((0, col), (1, 3), (1, 1))
    np.testing.assert_array_equal(whole_row.materialize(), expected[:1])


def test_layers_of_a_huge_stack():
    """(layers, heads, rows, columns): the rows of the leaf are all axes but the last."""
    shape = (64, 32, 2**20, 2**14)
    layer, head, row, col = 63, 31, 2**20 - 2, 2**14 - 5
    first = (layer * 32 + head) * 2**20 + row
    expected = _expected([first, first + 1], np.arange(col, col + 5))
    cut = _leaf(shape).slice((layer, 0, 0, 0), (1, 32, 2**20, 2**14), (1, 1, 1, 1))
    cut = cut.reshape((32, 2**20, 2**14)).slice((head, row, col), (1, 2, 5), (1, 1, 1))
    np.testing.assert_array_equal(cut.materialize()[0], expected)
    merged = _leaf(shape).reshape((64 * 32 * 2**20, 2**14))
    np.testing.assert_array_equal(
        merged.slice((first, col), (2, 5), (1, 1)).materialize(), expected
    )
    picked = cut.reshape((2, 5)).rows(jnp.array([1, 0, 1]), 0)
    np.testing.assert_array_equal(picked, expected[jnp.array([1, 0, 1])])


def test_strided_slices_far_out():
    term = _leaf((2**32 - 1, 2**32 - 1)).slice((0, 5), (3, 4), (2**31 - 1, 2**30))
    expected = _expected([i * (2**31 - 1) for i in range(3)], [5 + i * 2**30 for i in range(4)])
    np.testing.assert_array_equal(term.materialize(), expected)
    again = term.slice((1, 1), (1, 1), (3, 3))  # a stride beyond 2**32 that no element uses
    np.testing.assert_array_equal(
        again.slice((0, 0), (1, 1), (1, 1)).materialize(), expected[1:2, 1:2]
    )


@pytest.mark.parametrize("shape", [(2**32,), (2**32, 1), (1, 2**32), (2**16, 2**16, 1)])
def test_more_rows_or_columns_than_addresses_are_an_error(shape):
    for make in (_leaf, lambda shape: noise.leaf_bits(KEY, shape)):
        with pytest.raises(
            ValueError, match=r"rows.*at most 2\*\*32 - 1 of each: reshape the leaf"
        ):
            make(shape)


def test_an_unknown_distribution_is_an_error():
    with pytest.raises(ValueError, match="unknown distribution 'cauchy'; choose one of gaussian"):
        _leaf((2, 2), "cauchy")
