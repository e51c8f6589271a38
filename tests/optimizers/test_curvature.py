"""The Hessian's diagonal from second differences."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import zojax
from zojax.directions import combine_squares

DRAW = np.random.default_rng(0)
PARAMS = {
    "b": jnp.asarray(DRAW.standard_normal(2), jnp.float32),
    "w": jnp.asarray(DRAW.standard_normal((2, 3)), jnp.float32),
}
SIZE = 8
_ROOT = DRAW.standard_normal((SIZE, SIZE))
# far from diagonal, with both signs on the diagonal
HESSIAN = jnp.asarray(_ROOT + _ROOT.T, jnp.float32)


def _quadratic(params):
    x = ravel_pytree(params)[0]
    return 0.5 * x @ (HESSIAN @ x) + jnp.sum(x)


def _samples(num_samples, count, hessian=HESSIAN, mu=1.0):
    def loss(params):
        x = ravel_pytree(params)[0]
        return 0.5 * x @ (hessian @ x) + jnp.sum(x)

    tx = zojax.hessian_diagonal(mu, num_samples)
    state = tx.init(PARAMS)

    def one(i):
        now = state._replace(count=i)
        return ravel_pytree(tx.update(None, now, PARAMS, value_fn=loss)[0])[0]

    return np.asarray(jax.jit(jax.vmap(one))(jnp.arange(count)), np.float64)


@pytest.mark.parametrize("num_samples", [1, 2, 4])
def test_unbiased(num_samples):
    found = _samples(num_samples, 20_000)
    error = found.mean(0) - np.diag(np.asarray(HESSIAN, np.float64))
    assert np.all(abs(error) < 5 * found.std(0) / len(found) ** 0.5)


def test_several_directions_take_the_trace_out_of_the_variance():
    """H = I: moments of normal numbers give the variance of an entry in closed form.

    One direction: `E Q^2 s^2 - 1` with `Q = z.z`, `s = (z_i^2 - 1) / 2`. Several: with q = Q - d,
    `(E q^2 s^2 - 1 + (E q^2 E s^2 + (E q s)^2) / (n - 1)) / n`, and `E q s = 1`.
    """
    one, eight = _samples(1, 20_000, jnp.eye(SIZE)), _samples(8, 20_000, jnp.eye(SIZE))
    m, even = SIZE - 1, [1, 1, 3, 15, 105]  # E z^0, E z^2, ...
    square = even[4] - 2 * even[3] + even[2]  # E z^4 (z^2 - 1)^2
    cross = even[3] - 2 * even[2] + even[1]  # E z^2 (z^2 - 1)^2
    theory = (square + 2 * m * cross + 2 * (m**2 + 2 * m)) / 4 - 1

    def close(found, theory):
        squares = (found - 1) ** 2
        bound = 5 * squares.mean(1).std() / len(found) ** 0.5
        return abs(squares.mean() - theory) < bound

    assert close(one, theory)
    centred = (square - 2 * cross + 2 + 2 * 2 * m) / 4 - 1
    others = (2 * SIZE * 2 / 4 + 1) / 7
    assert close(eight, (centred + others) / 8)
    assert eight.var() < one.var() / 25


def test_signs_would_see_nothing():
    keys = jnp.arange(8, dtype=jnp.uint32).reshape(4, 2)
    found = combine_squares(zojax.rademacher(), keys, jnp.ones(4), PARAMS)
    assert not any(leaf.any() for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize("argument", ["value_fn", pytest.param("obj_fn", marks=pytest.mark.slow)])
def test_sophia_goes_down_a_badly_scaled_valley(argument):
    """Curvatures from 0.1 to 100 and a gradient made of losses, in one jitted step."""
    curvature = jnp.logspace(-1, 2, 8)
    loss = lambda w: 0.5 * jnp.sum(curvature * jnp.square(w))  # noqa: E731
    sophia = optax.contrib.sophia(
        0.03,
        b1=0.9,
        b2=0.95,
        gamma=1.0,
        weight_decay=0.0,
        update_interval=2,
        hessian_diagonal_fn=zojax.hessian_diagonal(0.1, 16, key=1),
    )
    if argument == "value_fn":
        tx = optax.chain(zojax.zeroth_order(zojax.mezo(0.1, 16), key=0), sophia)

        @jax.jit
        def step(w, state, i):
            updates, state = tx.update(None, state, w, value_fn=loss)
            return optax.apply_updates(w, updates), state
    else:
        tx = sophia
        vg = zojax.value_and_grad(loss, zojax.mezo(0.1, 16))

        @jax.jit
        def step(w, state, i):
            _, grads = vg(jax.random.fold_in(jax.random.key(0), i), w)
            updates, state = tx.update(grads, state, w, obj_fn=loss)
            return optax.apply_updates(w, updates), state

    w, state = jnp.ones(8), tx.init(jnp.ones(8))
    for i in range(200):
        w, state = step(w, state, i)
    inner = state[1][0] if argument == "value_fn" else state[0]
    assert inner.hessian_fn_state.count == 100
    # the average is of the last forty estimates, each with an error of |H| sqrt(2 / 16)
    error = 116 * (2 / 16) ** 0.5 / 40**0.5
    np.testing.assert_allclose(inner.nu, curvature, rtol=0, atol=5 * error)
    assert loss(w) < 0.02 * loss(jnp.ones(8)), loss(w)


def test_the_diagonal_is_in_the_dtype_of_the_parameters():
    w = jnp.ones(4, jnp.bfloat16)
    tx = optax.contrib.sophia(0.1, hessian_diagonal_fn=zojax.hessian_diagonal(0.5))
    loss = lambda w: jnp.sum(jnp.square(w.astype(jnp.float32)))  # noqa: E731
    _, state = tx.update(w, tx.init(w), w, value_fn=loss)
    assert state[0].nu.dtype == jnp.bfloat16


def test_queries_that_are_not_finite_teach_nothing():
    """The loss is infinite where w < 0: about half of the directions are lost, no entry is."""
    loss = lambda w: jnp.where(jnp.sum(w) < 0, jnp.inf, jnp.sum(jnp.square(w)))  # noqa: E731
    w = jnp.full(4, 0.3)
    tx = zojax.hessian_diagonal(1.0, 16)
    found = zojax.estimate(loss, zojax.mezo(1.0, 16))(jax.random.fold_in(jax.random.key(0), 0), w)
    lost = int(jnp.sum(~jnp.isfinite(found.coefficients)))
    assert 0 < lost < 14
    diagonal, _ = tx.update(None, tx.init(w), w, value_fn=loss)
    assert jnp.isfinite(diagonal).all() and diagonal.any()
    nothing, _ = tx.update(None, tx.init(w), w, value_fn=lambda w: jnp.sum(w) * jnp.nan)
    assert not nothing.any()


def test_what_is_missing_is_named():
    tx = zojax.hessian_diagonal()
    with pytest.raises(ValueError, match="hessian_diagonal needs params"):
        tx.update(None, tx.init(PARAMS), value_fn=_quadratic)
    with pytest.raises(ValueError, match="hessian_diagonal needs value_fn or obj_fn"):
        tx.update(None, tx.init(PARAMS), PARAMS)
