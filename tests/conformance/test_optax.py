"""The estimator inside optax's transformations, compiled as a whole and scanned."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zojax
from tests.conformance.links import LINKS
from tests.conformance.problem import PARAMS, QUADRATIC, flat, loss
from tests.conformance.recipes import RECIPES

CHEAP = zojax.mezo(0.5, direction=zojax.rademacher())
STEPS = 4


def _scanned(transformation, params=PARAMS, steps=STEPS):
    """Parameters after each step, by one compiled scan."""

    def step(carry, _):
        params, state = carry
        updates, state = transformation.update(None, state, params, value_fn=loss, data=QUADRATIC)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, None, length=steps))
    (_, state), path = run((params, transformation.init(params)))
    return path, state


WRAPPERS = ("masked", "partition", "MultiSteps", "apply_if_finite", "schedule_free")


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_chain_compiles_as_a_whole(name):
    """Its steps are those of the link on estimates that were made one by one."""
    link = LINKS[name]
    found, _ = _scanned(optax.chain(zojax.zeroth_order(CHEAP, key=7), link))
    estimated = _gradient()
    params, state = PARAMS, link.init(PARAMS)
    for step in range(STEPS):
        gradients = estimated(jax.random.fold_in(jax.random.key(7), step), params, step)
        updates, state = jax.jit(link.update)(gradients, state, params)
        params = optax.apply_updates(params, updates)
        # losses of 30 rounded otherwise, over mu; Adam makes steps of one size of all gradients
        np.testing.assert_allclose(
            flat(jax.tree.map(lambda a, step=step: a[step], found)), flat(params), rtol=0, atol=1e-4
        )


@functools.cache
def _gradient():
    vg = zojax.value_and_grad(loss, CHEAP)
    return jax.jit(lambda key, params, step: vg(key, params, QUADRATIC, step=step)[1])


def test_links_around_links_keep_an_estimators_memory():
    """Everything at once, around an estimator that learns, as much as the estimator alone."""
    estimator = RECIPES["moving_baseline"].make()

    def make(learning_rate):
        return optax.chain(
            zojax.zeroth_order(estimator, key=7),
            optax.apply_if_finite(optax.clip_by_global_norm(1e6), 3),
            optax.masked(optax.sgd(learning_rate), {"b": True, "w": True}),
        )

    rate = optax.linear_schedule(1e-3, 0.0, STEPS)
    found, state = _scanned(optax.inject_hyperparams(make)(learning_rate=rate))
    plain, expected = _scanned(optax.chain(zojax.zeroth_order(estimator, key=7), optax.sgd(rate)))
    np.testing.assert_allclose(flat(found), flat(plain), rtol=0, atol=1e-5)
    inner = state.inner_state[0]
    assert inner.count == STEPS and inner.memory[0].count == STEPS
    np.testing.assert_allclose(inner.memory[0].baseline, expected[0].memory[0].baseline, rtol=1e-5)


def test_mu_is_a_hyper_parameter_that_can_be_changed_between_steps():
    make = lambda mu: zojax.zeroth_order(CHEAP._replace(mu=mu), key=7)  # noqa: E731
    transformation, traces = optax.inject_hyperparams(make)(mu=0.5), []

    @jax.jit
    def update(state):
        traces.append(None)
        return transformation.update(None, state, PARAMS, value_fn=loss, data=QUADRATIC)

    state = transformation.init(PARAMS)
    for step, mu in enumerate((0.5, 0.125)):
        state.hyperparams["mu"] = jnp.float32(mu)
        _, state = update(state)
        key = jax.random.fold_in(jax.random.key(7), step)
        # the mean of both sides tells mu: L + mu^2 / 2 z.Hz
        expected = zojax.estimate(loss, CHEAP._replace(mu=mu))(key, PARAMS, QUADRATIC).value
        np.testing.assert_allclose(state.inner_state.value, expected, rtol=1e-5)
    assert len(traces) == 1


def test_signs_momentum_and_adam_descend():
    """ZO-sign, momentum and ZO-Adam are optax behind the estimator: the loss falls."""
    start = float(loss(PARAMS, QUADRATIC))
    estimator = zojax.mezo(0.5, 4, direction=zojax.rademacher())
    rules = {
        "sign": optax.chain(optax.scale_by_sign(), optax.scale(-1e-2)),
        "momentum": optax.sgd(2e-3, momentum=0.9),
        "adam": optax.adam(1e-2),
    }

    def run(rule):
        transformation = optax.chain(zojax.zeroth_order(estimator, key=0), rule)
        path, _ = _scanned(transformation, steps=100)
        return jax.tree.map(lambda a: a[-1], path)

    for name, rule in rules.items():
        assert float(loss(run(rule), QUADRATIC)) < start - 1, name
