"""The estimator as a link of an optax chain."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zojax
from zojax import noise
from zojax.directions import combine

PARAMS = {"b": jnp.arange(3.0), "w": jnp.ones((2, 3))}
TARGET = jnp.float32(0.5)


def _loss(params, target):
    return sum(((p - target) ** 2).sum() for p in jax.tree.leaves(params))


def _gradient(step, estimator, seed=0, params=PARAMS):
    key = jax.random.fold_in(jax.random.key(seed), step)
    return zojax.value_and_grad(_loss, estimator)(key, params, TARGET, step=step)


MEZO = zojax.mezo(0.5)
_mezo_gradient = jax.jit(lambda step: _gradient(step, MEZO))


def _update(tx, state, params=PARAMS):
    return tx.update(None, state, params, value_fn=_loss, target=TARGET)


def _close(a, b):
    chex.assert_trees_all_close(a, b, rtol=8 * 2**-24, atol=1e-7)


def test_the_update_is_the_estimate_of_its_step():
    estimator = zojax.mezo(0.5, 2)
    tx = zojax.zeroth_order(estimator, key=3)
    state = tx.init(PARAMS)
    for step in range(2):
        value, grads = _gradient(step, estimator, seed=3)
        updates, state = _update(tx, state)
        chex.assert_trees_all_equal(updates, grads)
        assert state.value == value and state.count == step + 1


@pytest.mark.parametrize(
    "link",
    [
        optax.sgd(0.1, momentum=0.9),
        optax.adam(1e-2),
        optax.clip_by_global_norm(0.01),
        optax.masked(optax.sgd(0.1), {"b": True, "w": False}),
        optax.apply_if_finite(optax.adam(1e-2), 3),
        optax.MultiSteps(optax.adam(1e-2), 3).gradient_transformation(),
    ],
    ids=["sgd", "adam", "clip", "masked", "apply_if_finite", "MultiSteps"],
)
def test_a_chain_is_its_links_applied_to_the_estimates(link):
    tx = optax.chain(zojax.zeroth_order(MEZO, key=jax.random.key(0)), link)
    state, alone = tx.init(PARAMS), link.init(PARAMS)
    update = jax.jit(lambda state: _update(tx, state))
    for step in range(4):
        updates, state = update(state)
        expected, alone = link.update(_mezo_gradient(step)[1], alone, PARAMS)
        _close(updates, expected)


def test_apply_if_finite_drops_a_step_whose_loss_is_not():
    tx = optax.chain(
        zojax.zeroth_order(zojax.mezo(), key=0), optax.apply_if_finite(optax.sgd(1.0), 5)
    )
    state = tx.init(PARAMS)
    updates, state = tx.update(None, state, PARAMS, value_fn=lambda p: p["b"].sum() * jnp.nan)
    chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, PARAMS))
    assert jnp.isnan(state[0].value) and state[1].total_notfinite == 1


def test_hyper_parameters_are_injected():
    """mu and the step size as arrays of the state: no Python branch on either."""

    def make(mu, learning_rate):
        return optax.chain(zojax.zeroth_order(zojax.fzoo(mu), key=0), optax.sgd(learning_rate))

    tx = optax.inject_hyperparams(make)(mu=0.5, learning_rate=0.1)
    state = tx.init(PARAMS)
    step = jax.jit(chex.assert_max_traces(lambda state: _update(tx, state), n=1))
    for count, mu in enumerate([0.5, 0.25]):
        state.hyperparams["mu"] = jnp.float32(mu)
        state.hyperparams["learning_rate"] = jnp.float32(mu / 2)
        updates, state = step(state)
        grads = jax.jit(lambda count, mu: _gradient(count, zojax.fzoo(mu)))(count, mu)[1]
        # std of nine losses of size fifteen, in another fusion
        chex.assert_trees_all_close(
            updates, jax.tree.map(lambda g, mu=mu: -mu / 2 * g, grads), rtol=1e-4, atol=1e-5
        )
    chex.clear_trace_counter()


def test_no_retrace_with_schedules_and_no_key_twice():
    traces, losses = [], []

    def loss(params, target):
        traces.append(None)
        return _loss(params, target)

    mu = optax.linear_schedule(0.5, 0.1, 5)
    estimator = zojax.mezo(mu)
    tx = optax.chain(zojax.zeroth_order(estimator, key=0), optax.sgd(optax.constant_schedule(0.0)))

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, state):
        updates, state = tx.update(None, state, params, value_fn=loss, target=TARGET)
        return optax.apply_updates(params, updates), state

    ask = jax.jit(lambda key, mu: zojax.estimate(_loss, zojax.mezo(mu))(key, PARAMS, TARGET))
    params, state = PARAMS, tx.init(PARAMS)
    for count in range(5):
        params, state = step(params, state)
        losses.append(float(state[0].coefficients[0]))
        expected = ask(jax.random.fold_in(jax.random.key(0), count), float(mu(count)))
        np.testing.assert_allclose(state[0].coefficients, expected.coefficients, rtol=1e-4)
    assert len(traces) == 1 and len(set(losses)) == 5
    chex.clear_trace_counter()


def test_keys_are_never_used_twice():
    """Of 2000 steps with 4 directions each, and of neighbouring seeds."""
    ask = zojax.estimate(lambda w: w.sum(), zojax.mezo(num_samples=4))
    steps = jax.vmap(
        lambda seed: jax.vmap(
            lambda t: ask(jax.random.fold_in(jax.random.key(seed), t), jnp.zeros(1)).keys
        )(jnp.arange(1000))
    )
    keys = np.asarray(jax.jit(steps)(jnp.arange(2))).reshape(-1, 2)
    assert len(np.unique(keys, axis=0)) == 8000


def test_the_state_is_arrays_and_goes_through_a_checkpoint():
    tx = optax.chain(zojax.zeroth_order(zojax.mezo(0.5, 2), key=5), optax.adam(1e-2))
    _, state = _update(tx, tx.init(PARAMS))
    leaves, tree = jax.tree.flatten(state)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    own = state[0]
    assert sum(leaf.size for leaf in jax.tree.leaves(own)) == 5
    stored = [
        np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
        for x in leaves
    ]
    restored = [
        jax.random.wrap_key_data(s) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        else jnp.asarray(s)
        for x, s in zip(leaves, stored, strict=True)
    ]  # fmt: skip
    again = jax.tree.unflatten(tree, restored)
    chex.assert_trees_all_equal(_update(tx, again)[0], _update(tx, state)[0])


def test_the_state_replays_its_step():
    estimator = zojax.mezo(0.5, 3)
    tx = zojax.zeroth_order(estimator, key=5)
    updates, state = _update(tx, tx.init(PARAMS))
    keys = noise.fold_in(jax.random.fold_in(state.key, state.count - 1), jnp.arange(3))
    replayed = combine(estimator.direction, keys, state.coefficients, PARAMS)
    chex.assert_trees_all_equal(updates, replayed)


def test_init_needs_only_shapes():
    tx = optax.chain(zojax.zeroth_order(zojax.mezo(), key=1), optax.adam(1e-3))
    abstract = jax.eval_shape(lambda: PARAMS)
    chex.assert_trees_all_equal(tx.init(abstract)[0], tx.init(PARAMS)[0])
    shapes = jax.eval_shape(tx.init, abstract)
    chex.assert_trees_all_equal_shapes_and_dtypes(shapes, tx.init(PARAMS))


@pytest.mark.parametrize("missing", ["params", "value_fn"])
def test_a_missing_argument_is_named(missing):
    tx = zojax.zeroth_order(zojax.mezo(), key=1)
    params = None if missing == "params" else PARAMS
    extra = {"value_fn": _loss} if missing == "params" else {}
    with pytest.raises(ValueError, match=f"needs {missing}: call tx.update"):
        tx.update(None, tx.init(PARAMS), params, **extra)


def test_a_quadratic_is_minimised():
    """SGD with the step of theory, lr = 1 / (2 (d + 2)), contracts by 1 - 1/(d + 2) a step."""
    d = 9
    tx = optax.chain(zojax.zeroth_order(zojax.mezo(1e-2), key=0), optax.sgd(0.5 / (d + 2)))

    def step(carry, _):
        params, state = carry
        updates, state = _update(tx, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, None, length=300))(
        (PARAMS, tx.init(PARAMS))
    )
    # expected factor (1 - 1/11)^300 = 4e-13; float32 losses leave about 1e-8
    assert _loss(params, TARGET) < 1e-6 * _loss(PARAMS, TARGET)
