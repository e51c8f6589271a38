"""The best of a few step lengths."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zojax

KEY = jax.random.key(0)
DRAW = np.random.default_rng(0)
PARAMS = {"b": jnp.zeros(2), "w": jnp.asarray(DRAW.standard_normal((3, 2)), jnp.float32)}
UPDATES = jax.tree.map(lambda p: jnp.asarray(DRAW.standard_normal(p.shape), p.dtype), PARAMS)
X = jnp.asarray(DRAW.standard_normal((5, 3)), jnp.float32)


def _each(params, x):
    return jnp.square(jnp.tanh(x @ params["w"] + params["b"]).sum(1) - 1)


def _loss(params, x):
    return jnp.mean(_each(params, x))


def _at(scale, params=PARAMS, updates=UPDATES):
    return jax.tree.map(lambda p, u: p + scale * u, params, updates)


@pytest.mark.parametrize("loss", [_loss, _each], ids=["mean", "per_example"])
def test_the_scale_is_the_best_of_all(loss):
    scales = (4.0, 1.0, 0.5, -0.5, -2.0)
    losses = [float(_loss(_at(s), X)) for s in scales]
    tx = zojax.scale_by_best(scales)
    step = jax.jit(lambda u, p: tx.update(u, tx.init(p), p, value_fn=loss, x=X))
    updates, state = step(UPDATES, PARAMS)
    best = scales[int(np.argmin(losses))]
    assert sorted(losses)[1] - min(losses) > 1e-3 and best != scales[0]
    assert state.scale == best
    np.testing.assert_allclose(state.value, min(losses), rtol=1e-6)
    chex.assert_trees_all_equal(updates, jax.tree.map(lambda u: best * u, UPDATES))


def test_a_conservative_chain_never_rises():
    """The rate is twenty times too large; with zero among the scales that costs steps, no more."""
    quadratic = lambda w: jnp.sum(jnp.arange(1.0, 9.0) * jnp.square(w))  # noqa: E731

    def run(*last):
        tx = optax.chain(zojax.zeroth_order(zojax.mezo(), key=1), optax.sgd(0.2), *last)

        @jax.jit
        def step(w, state):
            updates, state = tx.update(None, state, w, value_fn=quadratic)
            return optax.apply_updates(w, updates), state

        w, state, losses = jnp.ones(8), tx.init(jnp.ones(8)), [36.0]
        for _ in range(100):
            w, state = step(w, state)
            losses.append(float(quadratic(w)))
        return losses, state

    losses, state = run(zojax.scale_by_best((1.0, 0.25, 0.0625, 0.0)))
    assert all(b <= a for a, b in zip(losses, losses[1:], strict=False))
    assert losses[-1] < 0.1 * losses[0] and state[-1].value == losses[-1]
    three, _ = run(zojax.scale_by_best((1.0, 0.0, -1.0)))
    assert all(b <= a for a, b in zip(three, three[1:], strict=False))
    assert not run()[0][-1] < losses[0]  # it diverges


def test_nan_is_never_best_and_ties_go_to_the_first():
    scale = lambda fun, scales: zojax.scale_by_best(scales).update(  # noqa: E731
        jnp.ones(1), None, jnp.zeros(1), value_fn=fun
    )
    log = lambda w: -jnp.log(jnp.sum(1 - w))  # noqa: E731  NaN beyond one, falling below zero
    updates, state = scale(log, (2.0, -1.0, 0.5))
    assert state.scale == -1 and updates == -1
    updates, state = scale(lambda w: jnp.sum(w) * 0, (0.5, 1.0))
    assert state.scale == 0.5 and updates == 0.5
    for nothing in (jnp.nan, jnp.inf):
        updates, state = scale(lambda w, x=nothing: x + jnp.sum(w), (1.0, 0.5))
        assert state.scale == 0 and updates == 0 and state.value == jnp.inf


def test_the_scale_zero_heals_updates_that_are_not_finite():
    tx = zojax.scale_by_best((1.0, 0.0))
    bad = jnp.array([jnp.nan, jnp.inf, 1.0])
    updates, state = tx.update(bad, None, jnp.ones(3), value_fn=lambda w: jnp.sum(w))
    assert state.scale == 0 and not updates.any()


def test_an_order_chooses_in_place_of_a_loss():
    """RankSGD's line search: x + 2^-j u and x itself, ranked by someone."""
    scales = (1.0, 0.5, 0.25, 0.0)
    seen = []

    def best_of(points):
        seen.append(points)
        return min(range(len(points)), key=lambda i: float(_loss(points[i], X)))

    tx = zojax.scale_by_best(scales, best_of=best_of)
    updates, state = tx.update(UPDATES, None, PARAMS)
    expected, by_loss = zojax.scale_by_best(scales).update(
        UPDATES, None, PARAMS, value_fn=_loss, x=X
    )
    chex.assert_trees_all_equal(updates, expected)
    assert state.scale == by_loss.scale and jnp.isnan(state.value)
    chex.assert_trees_all_close(seen[0], [_at(s) for s in scales], rtol=0, atol=0)


def test_updates_of_bfloat16_parameters_keep_their_dtype():
    w = jnp.ones(3, jnp.bfloat16)
    updates, _ = zojax.scale_by_best((0.5, 1.0)).update(
        w, None, w, value_fn=lambda w: jnp.sum(w.astype(jnp.float32))
    )
    assert updates.dtype == jnp.bfloat16 and (updates == 0.5).all()


def test_one_candidate_at_a_time():
    """Six candidates need the temporaries of one: no copy of the parameters for each."""
    w = jax.ShapeDtypeStruct((512, 512), jnp.float32)
    x = jax.ShapeDtypeStruct((4, 512), jnp.float32)

    def temporaries(scales):
        tx = zojax.scale_by_best(scales)
        fun = lambda u, w, x: tx.update(  # noqa: E731
            u, None, w, value_fn=lambda w, x: jnp.sum(jnp.tanh(x @ w)), x=x
        )[1]
        return jax.jit(fun).lower(w, w, x).compile().memory_analysis().temp_size_in_bytes

    assert temporaries((1.0, 0.5, 0.25, 0.125, 0.0625, 0.0)) <= temporaries((1.0, 0.5)) + 4096


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="at least one scale"):
        zojax.scale_by_best(())
    tx = zojax.scale_by_best()
    with pytest.raises(ValueError, match="scale_by_best needs params"):
        tx.update(UPDATES, None, value_fn=_loss, x=X)
    with pytest.raises(ValueError, match="scale_by_best needs value_fn"):
        tx.update(UPDATES, None, PARAMS)
    with pytest.raises(ValueError, match=r"a scalar, or a vector.*found \[5, 2\]"):
        tx.update(UPDATES, None, PARAMS, value_fn=lambda p: X @ p["w"])
    ask = zojax.scale_by_best(best_of=lambda points: 4)
    with pytest.raises(ValueError, match="a number from 0 to 3, found 4"):
        ask.update(UPDATES, None, PARAMS)
    with pytest.raises(ValueError, match="outside jit"):
        jax.jit(lambda p: ask.update(UPDATES, None, p)[0])(PARAMS)
