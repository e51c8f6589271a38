"""Coordinate sweeps: which coordinates, and what they cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax

KEY = jax.random.key(0)
LAYERS = 6


def _chain():
    """A loss through equal layers, each with a matrix, and its parameters."""
    keys = jax.random.split(KEY, LAYERS)
    params = {f"layer_{i}": jax.random.normal(k, (64, 64)) / 8 for i, k in enumerate(keys)}
    x = jax.random.normal(jax.random.key(1), (32, 64))

    def loss(params):
        h = x
        for i in range(LAYERS):
            h = jnp.tanh(h @ params[f"layer_{i}"])
        return jnp.mean(h**2)

    return loss, params


def test_features_before_a_leaf_are_computed_once():
    """Floating-point operations of sweeps over four coordinates of each matrix of a chain."""
    loss, params = _chain()
    flops = lambda f: jax.jit(f).lower(params).compile().cost_analysis()["flops"]  # noqa: E731
    forward = flops(loss)
    picked = jax.tree.map(lambda p: jnp.arange(4, dtype=jnp.uint32), params)
    sweep = zojax.deepzero_by_layer(picked, batch_size=5)
    ask = zojax.estimate(loss, sweep)
    queries = zojax.estimators.num_queries(sweep)
    assert queries == 5 * LAYERS
    # layer i is computed once for the sweeps after it, and 5 times for its own and those before it
    expected = sum(i + 5 * (LAYERS - i) for i in range(LAYERS)) / LAYERS * forward
    assert flops(lambda p: ask(KEY, p).coefficients) < 1.1 * expected
    assert expected < 0.7 * queries * forward

    whole = zojax.value_and_grad(loss, zojax.deepzero(picked))(KEY, params)[1]
    parts = zojax.value_and_grad(loss, sweep)(KEY, params)[1]
    exact = jax.grad(loss)(params)
    for name, leaf in exact.items():
        np.testing.assert_allclose(parts[name], whole[name], rtol=0, atol=2e-5)
        # forward differences with mu = 5e-3: curvature times mu / 2, and the rounding of the loss
        np.testing.assert_allclose(
            parts[name].ravel()[:4], leaf.ravel()[:4], rtol=0, atol=5e-3 / 2 * 0.1 + 2e-5
        )
        assert not np.any(parts[name].ravel()[4:])


def test_grasp_with_shared_directions_is_the_hessian_gradient_product():
    """On a quadratic the differences along shared directions are exact in expectation."""
    h = jnp.linspace(0.5, 4, 12).reshape(3, 4)
    loss = lambda w: 0.5 * jnp.sum(h * w**2)  # noqa: E731
    w = jax.random.normal(KEY, (3, 4))
    estimator = zojax.mezo(1e-2, 192, direction=zojax.rademacher(), batch_size=384)
    scores = jax.jit(zojax.grasp_scores(loss, estimator, mu=0.1))
    found = np.mean([scores(jax.random.key(i), w) for i in range(40)], axis=0)
    # E[z z^T H z z^T g] / n^2 over n directions is H g (1 - 1/n) + (...) / n
    true = -w * h * h * w
    correlation = np.corrcoef(found.ravel(), np.asarray(true).ravel())[0, 1]
    assert correlation > 0.98


def test_layers_share_the_coordinates_by_their_largest_scores():
    scores = {
        "a": jnp.arange(12.0).reshape(3, 4),
        "b": -jnp.arange(6.0).reshape(2, 3),
        "c": jnp.ones(5),
    }
    counts = zojax.layer_counts(scores, density=0.5)
    # nine of eighteen: 11 ... 4 of a, and 5, 4 of b, where the tie at the threshold is kept
    assert counts == {"a": 8, "b": 2, "c": 5}
    positions = zojax.draw_positions(KEY, scores, counts)
    for name, leaf in scores.items():
        drawn = np.asarray(positions[name])
        assert drawn.shape == (counts[name],) and len(set(drawn)) == len(drawn)
        assert drawn.max() < leaf.size
    again = zojax.draw_positions(jax.random.key(1), scores, counts)
    assert not np.array_equal(again["a"], positions["a"])


def test_a_refresh_compiles_nothing():
    loss, params = _chain()
    counts = jax.tree.map(lambda p: 3, params)
    traces = []

    @jax.jit
    def step(key, params, positions):
        traces.append(1)
        return zojax.value_and_grad(loss, zojax.deepzero(positions))(key, params)[1]

    draw = jax.jit(lambda key: zojax.draw_positions(key, params, counts))
    for i in range(3):
        positions = draw(jax.random.key(i))
        grads = step(KEY, params, positions)
        for name, leaf in grads.items():
            moved = np.flatnonzero(leaf)
            assert set(moved) <= set(np.asarray(positions[name]).tolist())
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: zojax.layer_counts({"a": jnp.ones((2, 2))}, 1.5), r"density must be in \(0, 1\]"),
        (lambda: zojax.layer_counts({"a": jnp.full((2, 2), jnp.nan)}, 0.5), r"\['a'\] contain NaN"),
        (lambda: zojax.draw_positions(KEY, {"a": jnp.ones(3)}, {"a": 4}), r"\['a'\] has 3 entries"),
        (lambda: zojax.deepzero({"a": jnp.zeros(0, jnp.uint32)}), "at least one active coordinate"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ({"a": jnp.array([7], jnp.uint32)}, r"go from 7 to 7; it has 6 entries"),
        ({"a": jnp.ones(2)}, "expected a vector of integers"),
        ({"b": jnp.array([1], jnp.uint32)}, "not a tree like the parameters"),
    ],
)
def test_positions_of_another_tree_are_refused(positions, message):
    loss = lambda p: jnp.sum(p["a"] ** 2)  # noqa: E731
    with pytest.raises(ValueError, match=message):
        zojax.value_and_grad(loss, zojax.deepzero(positions))(KEY, {"a": jnp.ones((2, 3))})
