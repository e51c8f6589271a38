"""Virtual = materialised on a GPU, in the arithmetic of float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import zojax
from tests.virtual.arrays import make

pytestmark = pytest.mark.device

IDS = np.array([[0, 3, 3], [5, 1, 0]])


def _image(w, x):
    image = jnp.sin(jnp.arange(2 * 5 * 6 * 2, dtype=jnp.float32)).reshape(2, 5, 6, 2)
    return lax.conv_general_dilated(
        image, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


# name: (shape of the weight, function of the weight and x (3, 6))
CASES = {
    "matmul": ((6, 8), lambda w, x: x @ w),
    "matmul of the transpose": ((8, 6), lambda w, x: x @ w.T),
    "heads": ((6, 8), lambda w, x: jnp.einsum("bi,ihk->bhk", x, w.reshape(6, 2, 4))),
    "scan": ((4, 6, 6), lambda w, x: lax.scan(lambda c, w: (jnp.tanh(c @ w), w[0]), x, w)),
    "lookup": ((6, 8), lambda w, x: w[IDS]),
    "tied": ((6, 6), lambda w, x: jnp.tanh(w[IDS[0]] @ w) @ w.T),
    "convolution": ((3, 2, 2, 4), _image),
    "elementwise": ((6, 8), lambda w, x: (w * 2).sum() + jnp.exp(w[0])),
}
LARGE = {
    "matmul": ((768, 1500), lambda w, x: x @ w),
    "matmul of the transpose": ((1500, 768), lambda w, x: x @ w.T),
    "scan": (
        (2, 768, 768),
        lambda w, x: lax.scan(lambda c, w: (jnp.tanh(c @ w / 768**0.5), None), x, w)[0],
    ),
}
KINDS = ("gaussian", "rademacher", "low_rank_1", "tall_2", "entries", "two_terms")


def _compare(fn, kinds, shape, x, terms):
    """Within `terms` roundings of float32 of the sum of the products' sizes, a deep sum's bound."""
    arrays = {kind: make(kind, shape) for kind in kinds}
    pairs = lambda ws, x: {  # noqa: E731
        kind: (zojax.virtualize(fn)(w, x), fn(w.materialize(), x)) for kind, w in ws.items()
    }
    with jax.default_matmul_precision("highest"):
        found = jax.jit(pairs)(arrays, x)
    for kind, (a, b) in found.items():
        for found_leaf, expected in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            assert found_leaf.dtype == expected.dtype and found_leaf.shape == expected.shape
            size = max(1.0, float(jnp.abs(expected).max()))
            np.testing.assert_allclose(
                found_leaf, expected, rtol=0, atol=terms * 2**-24 * size, err_msg=kind
            )


@pytest.mark.parametrize("name", CASES)
def test_virtual_is_materialised(name, gpu):
    del gpu
    shape, fn = CASES[name]
    x = jnp.asarray(np.random.default_rng(1).standard_normal((3, 6), np.float32))
    _compare(fn, KINDS, shape, x, 80)


@pytest.mark.parametrize("name", LARGE)
def test_large_weights(name, gpu):
    """Large enough to be made in panels; sums of 768 products."""
    del gpu
    shape, fn = LARGE[name]
    x = jnp.asarray(np.random.default_rng(1).standard_normal((64, 768), np.float32))
    _compare(fn, KINDS, shape, x, 768)
