"""Products by Pallas kernels: forced, chosen by what was measured, shown, and the same numbers."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax
from pallas_kernels import _autotune
from zojax.virtual import Entries, VirtualArray

K, N = 64, 24
W = 0.1 * jax.random.normal(jax.random.key(1), (3, K, N))


def _perturbed(w, direction=None, scale=0.5):
    moved = zojax.directions.perturb(
        direction or zojax.rademacher(), jax.random.key(7), {"w": w}, jnp.float32(scale)
    )
    return moved["w"]


def _uses(fn, *args, **kwargs):
    return [use.how for use in zojax.virtual.explain(fn, **kwargs)(*args).uses]


PRODUCTS = {
    "matrix": (lambda x, w: x @ w[0], (5, K)),
    "layer": (lambda x, w: x @ jax.lax.dynamic_index_in_dim(w, 2, keepdims=False), (5, K)),
    "scan": (lambda x, w: jax.lax.scan(lambda c, w: (c + (x @ w).sum(), None), 0.0, w)[0], (5, K)),
    "transposed": (lambda x, w: x @ w[1].T, (5, N)),
    "weight first": (lambda x, w: w[1].T @ x, (K, 5)),
    "more axes of x": (lambda x, w: jnp.einsum("bkt,kn->btn", x, w[0]), (2, K, 3)),
    "heads": (lambda x, w: jnp.einsum("thd,hdn->tn", x, w[0].reshape(4, -1, N)), (5, 4, K // 4)),
    "part of the columns": (lambda x, w: x @ w[0][:, 8:16], (5, K)),
    "part of the rows": (lambda x, w: x @ w[0][16:48], (5, 32)),
}  # fmt: skip

FAST = ("scan", "transposed", "weight first", "heads")


@pytest.mark.parametrize(
    "name, direction",
    [
        *(
            pytest.param(name, zojax.rademacher(), marks=() if name in FAST else pytest.mark.slow)
            for name in PRODUCTS
        ),
        pytest.param("scan", zojax.gaussian(), marks=pytest.mark.slow),
    ],
    ids=[*PRODUCTS, "gaussian"],
)
def test_a_forced_kernel_equals_the_dense_weight(name, direction):
    fn, shape = PRODUCTS[name]
    x = jax.random.normal(jax.random.key(2), shape)
    w = _perturbed(W, direction)
    assert set(_uses(fn, x, w, implementation="tpu")) == {"kernel"}
    found = jax.jit(zojax.virtualize(fn, implementation="tpu"))(x, w)
    # float32 sums of at most 64 products in another order
    np.testing.assert_allclose(found, fn(x, w.materialize()), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    "fn, shape",
    [
        (lambda x, w: jnp.einsum("tk,lkn->ltn", x, w), (5, K)),  # rows and columns interleave
        (lambda x, w: jnp.einsum("ltk,lkn->ltn", x, w), (3, 5, K)),  # a batch of weights
        (lambda x, w: x @ w[0][::2], (5, K // 2)),
    ],
)
def test_what_the_kernel_cannot_do_is_dense(fn, shape):
    x, w = jax.random.normal(jax.random.key(2), shape), _perturbed(W)
    assert _uses(fn, x, w, implementation="tpu") == ["at use"]
    found = zojax.virtualize(fn, implementation="tpu")(x, w)
    np.testing.assert_allclose(found, fn(x, w.materialize()), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    "dtype, n, how",
    [("bfloat16", 64, "kernel"), ("float32", 64, "at use"), ("bfloat16", 65, "at use")],
)
def test_the_gpu_kernel_is_taken_where_it_can_do_the_product(dtype, n, how):
    x, w = jnp.ones((5, K), dtype), _perturbed(jnp.ones((K, n), dtype))
    assert _uses(jnp.dot, x, w, implementation="gpu") == [how]


def test_low_rank_terms_are_added_to_the_kernels_product():
    x, w = jax.random.normal(jax.random.key(2), (5, K)), _perturbed(W[0])
    term = zojax.virtual.LowRank.of_matrices(jnp.ones((K, 1)), jnp.ones((N, 1)), 0.1)
    both: VirtualArray = w.plus(term)
    found = zojax.virtualize(jnp.dot, implementation="tpu")(x, both)
    np.testing.assert_allclose(found, x @ both.materialize(), rtol=2e-5, atol=2e-5)


def _estimated(value, mu=1e-3):
    """Twice the rounding of two losses in float32, over 2 mu."""
    return 4 * np.finfo(np.float32).eps * float(value) / (2 * mu)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_an_estimate_is_the_same_with_the_kernel(batch_size):
    """Queries share directions: vmap over signs and keys reaches the kernel's own rule."""
    x = jax.random.normal(jax.random.key(2), (5, K))

    def loss(w):
        return jnp.mean(jnp.tanh(x @ w[0]) ** 2)

    estimator = zojax.mezo(num_samples=2, batch_size=batch_size, direction=zojax.rademacher())
    found, expected = (
        jax.jit(zojax.estimate(loss, estimator, implementation=i))(jax.random.key(3), W)
        for i in ("tpu", "xla")
    )
    np.testing.assert_array_equal(found.keys, expected.keys)
    tolerance = _estimated(expected.value)
    np.testing.assert_allclose(found.coefficients, expected.coefficients, rtol=0, atol=tolerance)


def test_it_differentiates_as_the_dense_product():
    x, w = jax.random.normal(jax.random.key(2), (5, K)), _perturbed(W[0])
    fused = zojax.virtualize(lambda x, w: jnp.sum(jnp.sin(x @ w)), implementation="tpu")
    expected = jax.grad(lambda x: jnp.sum(jnp.sin(x @ w.materialize())))(x)
    np.testing.assert_allclose(jax.grad(fused)(x, w), expected, rtol=1e-4, atol=1e-5)


def test_by_itself_it_takes_what_was_measured_to_be_fastest(monkeypatch):
    x, w = jax.random.normal(jax.random.key(2), (5, K)), _perturbed(W[0])
    assert _uses(jnp.dot, x, w) == ["at use"]
    monkeypatch.setattr(_autotune, "choose", lambda *a, **k: _autotune.Choice("tpu", "measured"))
    assert _uses(jnp.dot, x, w) == ["kernel"]
    assert _uses(jnp.dot, x, w, implementation="xla") == ["at use"]


def test_an_optax_chain_may_ask_for_it():
    x = jax.random.normal(jax.random.key(2), (5, K))
    states = []
    for implementation in ("tpu", "xla"):
        transform = zojax.zeroth_order(zojax.mezo(), 0, implementation=implementation)
        _, state = transform.update(
            None, transform.init(W), W, value_fn=lambda w: jnp.mean((x @ w[0]) ** 2)
        )
        states.append(state)
    found, expected = (s.coefficients for s in states)
    np.testing.assert_allclose(found, expected, rtol=0, atol=_estimated(states[1].value))


FORMATS = ["int8", "int4", "nf4", "codebook"]


def _quantized(format, shape=(2, 128, 24), dtype="float32"):
    w = 0.1 * jax.random.normal(jax.random.key(4), shape, dtype)
    return zojax.quantize({"w": w}, format, group_size=32, where=lambda path: True)["w"]


@pytest.mark.parametrize("format", FORMATS)
def test_quantised_weights_are_decoded_in_the_kernel(format):
    """Layers of a scan, with entries that replace decoded values and one that is padding."""
    index = jnp.array([[3, 500, 128 * 24], [7, 8, 2000]])
    entries = Entries(jnp.array([[1.0, -2.0, 9.0], [0.5, 0.25, 4.0]]), index, (2, 128, 24))
    w = replace(_quantized(format), entries=entries)
    x = jax.random.normal(jax.random.key(2), (5, 128))

    def fn(x, w):
        return jax.lax.scan(lambda c, w: (c, x @ w), 0, w)[1]

    assert _uses(fn, x, w, implementation="tpu") == ["kernel"]
    found = jax.jit(zojax.virtualize(fn, implementation="tpu"))(x, w)
    expected = fn(*(a.astype(np.float64) for a in (np.asarray(x), np.asarray(w.materialize()))))
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    "dtype, n, how",
    [("bfloat16", 64, "kernel"), ("float32", 64, "at use"), ("bfloat16", 65, "at use")],
)
def test_the_gpu_kernel_is_taken_where_it_can_decode(dtype, n, how):
    x, w = jnp.ones((5, 128), dtype), _quantized("nf4", (128, n), dtype)
    assert _uses(jnp.dot, x, w, implementation="gpu") == [how]


def test_queries_share_the_codes_in_the_kernel():
    """Values of entries that differ by query, under vmap: the kernel's own rule."""
    w, x = _quantized("nf4", (128, 24)), jax.random.normal(jax.random.key(2), (5, 128))
    index = jnp.array([3, 500])

    def ask(values):
        moved = replace(w, entries=Entries(values, index, (128, 24)))
        return zojax.virtualize(jnp.dot, implementation="tpu")(x, moved)

    values = jnp.array([[1.0, -2.0], [0.5, 0.25], [0.0, 3.0]])
    expected = [x @ replace(w, entries=Entries(v, index, (128, 24))).materialize() for v in values]
    np.testing.assert_allclose(jax.vmap(ask)(values), jnp.stack(expected), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    "fn, shape", [(lambda x, w: x @ w.T, (5, 24)), (lambda x, w: x @ w[:, :8], (5, 128))]
)
def test_views_that_the_kernel_cannot_follow_are_dense(fn, shape):
    x, w = jax.random.normal(jax.random.key(2), shape), _quantized("nf4", (128, 24))
    found = zojax.virtualize(fn, implementation="tpu")(x, w)
    np.testing.assert_allclose(found, fn(x, w.materialize()), rtol=2e-5, atol=2e-5)
