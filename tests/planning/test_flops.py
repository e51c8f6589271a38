"""Operations are counted as theory counts them."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from zojax import planning


def count(fn, *shapes) -> int:
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return planning.matmul_flops(jax.make_jaxpr(fn)(*args))


def test_a_product_takes_two_operations_a_multiply_add():
    assert count(jnp.dot, (3, 5), (5, 7)) == 2 * 3 * 5 * 7
    assert count(lambda a, b: jnp.einsum("bij,bkj->bik", a, b), (4, 3, 5), (4, 7, 5)) == 840
    assert count(jnp.add, (3, 5), (3, 5)) == 0


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_takes_two_for_each_output_and_each_input_in_its_window(groups):
    def fn(x, w):
        return lax.conv_general_dilated(x, w, (2, 2), "VALID", feature_group_count=groups)

    # 4 images of 9 x 9, 6 channels to 8, windows of 3 x 3 every second pixel: 4 x 4 of them
    expected = 2 * 4 * 8 * 4 * 4 * (6 // groups) * 3 * 3
    assert count(fn, (4, 6, 9, 9), (8, 6 // groups, 3, 3)) == expected


def test_loops_multiply_and_calls_do_not():
    def scanned(w, x):
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    one = 2 * 3 * 5 * 5
    assert count(scanned, (7, 5, 5), (3, 5)) == 7 * one
    assert count(jax.jit(jax.checkpoint(scanned)), (7, 5, 5), (3, 5)) == 7 * one
    assert count(lambda w, x: lax.fori_loop(0, 4, lambda i, x: x @ w, x), (5, 5), (3, 5)) == 4 * one
    assert count(lambda w, x: lax.map(lambda _: x @ w, jnp.arange(6)), (5, 5), (3, 5)) == 6 * one


def test_the_dearest_branch_counts():
    def fn(x, w):
        return lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: (x @ w) @ w)

    assert count(fn, (3, 5), (5, 5)) == 2 * 2 * 3 * 5 * 5


def test_a_gradient_takes_twice_the_forward_more():
    def loss(w, x):
        return jnp.square(x @ w).sum()

    forward = count(loss, (5, 5), (3, 5))
    assert count(jax.grad(loss, (0, 1)), (5, 5), (3, 5)) == 3 * forward
