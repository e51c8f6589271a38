"""Many small arrays in a square: each is cut out where it is used, and compiled once."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zojax.virtual._slices import in_square, slices, square_size


def _squares(counts, shapes):
    """Squares of arrays that hold their own number, from a thousand times that of the square."""
    squares = []
    for i, (count, shape) in enumerate(zip(counts, shapes, strict=True)):
        number = 1000 * i + np.arange(square_size(count), dtype=np.float32)
        arrays = np.multiply.outer(number, np.ones(shape, np.float32))
        squares.append(in_square(jnp.asarray(arrays), count))
    return squares


@pytest.mark.parametrize("is_traced", [True, False], ids=["traced", "eager"])
def test_each_slice_is_its_array(is_traced):
    counts, shapes = [1, 2, 5, 30], [(3,), (2, 2), (4, 1), ()]

    def cut(squares):
        return [[s.get() for s in found] for found in slices(squares, counts, shapes)]

    squares = _squares(counts, shapes)
    for i, found in enumerate((jax.jit(cut) if is_traced else cut)(squares)):
        for j, array in enumerate(found):
            np.testing.assert_array_equal(array, np.full(shapes[i], 1000 * i + j, np.float32))


def test_places_that_no_slice_needs_are_dropped():
    counts, shapes = [100], [(8,)]
    squares = _squares(counts, shapes)

    def cut(used):
        def run(squares):
            (found,) = slices(squares, counts, shapes)
            return [jnp.sin(found[i].get()) for i in used]

        text = jax.jit(run).lower(squares).compile().as_text()
        (loop,) = re.findall(r"= \(([^)]*)\)\S* while\(", text)
        return loop.count("u32[]"), len(re.findall(r"^%fused_computation\S* \(", text, re.M))

    # a row and a column for each, and the number that each takes turns with
    assert cut([11])[0] <= 4
    (few, few_kernels), (many, many_kernels) = cut([11, 23]), cut([11, 23, 47, 59])
    assert many - few <= 8
    # two slices more are two kernels more: nothing is made for the places themselves
    assert many_kernels - few_kernels <= 2
