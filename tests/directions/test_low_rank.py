"""Factors that are kept for some steps, and orthonormal ones."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax
from zojax import noise
from zojax.virtual import LowRank

KEY = jax.random.key(0)
W = {"w": jnp.asarray(np.random.default_rng(0).standard_normal((6, 5)), jnp.float32)}
KEPT = [zojax.low_rank(2, refresh=3), zojax.subspace(2, refresh=3)]
each_kept = pytest.mark.parametrize("direction", KEPT, ids=lambda d: d.name)


@partial(jax.jit, static_argnums=0)
def _terms(direction, key, params, step):
    return direction.terms(key, params, step)


def _right(direction, step, key=KEY, params=W):
    (term,) = _terms(direction, key, params, step)
    assert isinstance(term, LowRank)
    return np.asarray(term.right)


@each_kept
def test_the_right_factor_is_kept_for_a_period(direction):
    other = jax.random.key(7)
    for period in (0, 3, 6):
        first = _right(direction, period)
        np.testing.assert_array_equal(_right(direction, period + 2, other), first)
        np.testing.assert_array_equal(_right(direction, jnp.int32(period + 1)), first)
        assert np.all(_right(direction, period + 3) != first)


@each_kept
def test_the_left_factor_is_fresh_in_every_sample(direction):
    keys = noise.fold_in(KEY, jnp.arange(3))
    lefts = [_terms(direction, key, W, 0)[0].left for key in keys]
    assert np.all(lefts[0] != lefts[1]) and np.all(lefts[1] != lefts[2])


@pytest.mark.parametrize("make", [zojax.low_rank, zojax.subspace])
def test_the_kept_factor_has_a_key_of_its_own(make):
    same, also = make(2, 3, key=4), make(2, 3, key=jax.random.key(4))
    np.testing.assert_array_equal(_right(same, 0), _right(also, 0))
    assert np.all(_right(same, 0) != _right(make(2, 3, key=5), 0))


@each_kept
def test_every_step_updates_along_what_it_asked(direction):
    """LOZO's bug, every `refresh` steps: the update must follow a refresh the forward has seen."""
    loss = lambda p: jnp.sum(p["w"] * jnp.arange(30.0).reshape(6, 5))  # noqa: E731
    slope = np.arange(30.0)
    estimator = zojax.mezo(0.5, direction=direction)

    @jax.jit
    def run(key, step):
        found = zojax.estimate(loss, estimator)(key, W, step=step)
        _, grads = zojax.value_and_grad(loss, estimator)(key, W, step=step)
        return found, grads, direction.terms(found.keys[0], W, step)[0].materialize()

    for step in range(7):
        found, grads, z = run(jax.random.key(step), step)
        z = np.asarray(z, np.float64).ravel()
        # thirty products of up to 30 z, and parameters of about one, over mu
        error = 60 * 2**-24 * (slope @ (abs(z) + 3)) / 0.5
        assert abs(float(found.coefficients[0]) - slope @ z) < error
        expected = float(found.coefficients[0]) * z
        bound = 16 * 2**-24 * abs(expected).max()
        np.testing.assert_allclose(np.ravel(grads["w"]), expected, rtol=0, atol=bound)


def test_within_a_period_low_rank_stays_in_the_span_of_its_factor():
    """E z z^T = I (x) B B^T / rank over the samples of one period."""
    keys = noise.fold_in(KEY, jnp.arange(20_000))
    direction = zojax.low_rank(2, refresh=3)
    z = jax.jit(jax.vmap(lambda k: direction.terms(k, W, 4)[0].materialize()))(keys)
    z = np.asarray(z, np.float64)
    b = _right(direction, 5).squeeze().astype(np.float64)
    second = np.einsum("kij,kil->jl", z, z) / len(keys) / 6
    expected = b @ b.T / 2
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    # a mean of 120,000 products of correlated normals, whose variance is at most twice the scale's
    assert np.all(abs(second - expected) < 5 * scale * (2 / (6 * len(keys))) ** 0.5)


@pytest.mark.parametrize("shape", [(6, 5), (3, 8, 5), (4, 2, 3, 5)])
def test_a_subspace_is_orthonormal_and_has_r_squared_dimensions(shape):
    """Z = sqrt(mn)/r U X V^T: many samples of one period span r^2 dimensions a first index."""
    r, params = 2, {"w": jnp.zeros(shape)}
    direction = zojax.subspace(r, refresh=3)
    keys = noise.fold_in(KEY, jnp.arange(64))
    z = jax.jit(jax.vmap(lambda k: direction.terms(k, params, 0)[0].materialize()))(keys)
    z = np.asarray(z, np.float64).reshape(64, -1)
    layers = shape[0] if len(shape) > 2 else 1
    values = np.linalg.svd(z, compute_uv=False)
    assert np.all(values[: layers * r * r] > 0.1) and np.all(values[layers * r * r :] < 1e-4)
    v = _right(direction, 0, params=params).reshape(shape[-1], r)
    np.testing.assert_allclose(v.T @ v, np.eye(r), atol=8 * 2**-23)


def test_a_subspace_of_a_small_matrix_is_all_of_it():
    params = {"w": jnp.zeros((7, 2)), "v": jnp.zeros(3), "s": jnp.zeros(()), "e": jnp.zeros((0, 4))}
    terms = dict(zip(sorted(params), _terms(zojax.subspace(16), KEY, params, 0), strict=True))
    assert terms["w"].rank == 2 and not isinstance(terms["v"], LowRank)
    assert terms["e"].materialize().shape == (0, 4)


@pytest.mark.parametrize("make", [zojax.low_rank, zojax.subspace])
@pytest.mark.parametrize(
    "rank, refresh, name", [(0, 3, "rank"), (2, 0, "refresh"), (2, -1, "refresh")]
)
def test_a_rank_or_refresh_below_one_is_an_error(make, rank, refresh, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, found"):
        make(rank, refresh)


def test_a_step_decomposes_once_for_all_queries_and_the_update():
    """XLA hoists both QR decompositions out of the loop over queries and shares them."""
    estimator = zojax.mezo(1e-3, 4, direction=zojax.subspace(4))
    x = jnp.ones((8, 64))
    vg = zojax.value_and_grad(lambda w: jnp.sum((x @ w) ** 2), estimator)
    step = jax.jit(lambda key, w, i: vg(key, w, step=i))
    text = step.lower(KEY, jnp.zeros((64, 32)), jnp.int32(3)).compile().as_text()
    target = 'custom_call_target="lapack_sgeqrf'
    assert text.count(target) == 2
