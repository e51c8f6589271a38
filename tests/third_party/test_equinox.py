"""Equinox modules: partitioned into arrays and the rest, combined inside the loss."""

import functools

import jax
import jax.numpy as jnp
import pytest

from tests.third_party.checks import (
    assert_steps_do_not_retrace,
    assert_virtual_is_materialized,
    covering,
    explained,
    fallbacks,
)

eqx = pytest.importorskip("equinox", reason="needs equinox, of the `test` extra")

TOKENS = jax.random.randint(jax.random.key(1), (2, 5), 0, 23)
IMAGES = jax.random.normal(jax.random.key(2), (2, 3, 8, 8))


def attention(key):
    """Embedding, attention, norm and head, written for one sequence and batched by vmap."""
    keys = jax.random.split(key, 4)
    layers = {
        "embed": eqx.nn.Embedding(23, 12, key=keys[0]),
        "attention": eqx.nn.MultiheadAttention(2, 12, use_output_bias=True, key=keys[1]),
        "norm": eqx.nn.LayerNorm(12),
        "mlp": eqx.nn.MLP(12, 7, 16, 2, key=keys[2]),
    }

    def fn(layers, tokens):
        def one(tokens):
            x = jax.vmap(layers["embed"])(tokens)
            x = x + layers["attention"](x, x, x)
            return jax.vmap(lambda t: layers["mlp"](layers["norm"](t)))(x)

        return jax.vmap(one)(tokens)

    return layers, fn


def recurrent(key):
    """A GRU cell under scan, as the equinox documentation has it."""
    keys = jax.random.split(key, 3)
    layers = {
        "embed": eqx.nn.Embedding(23, 6, key=keys[0]),
        "cell": eqx.nn.GRUCell(6, 10, key=keys[1]),
        "head": eqx.nn.Linear(10, 7, key=keys[2]),
    }

    def fn(layers, tokens):
        def one(tokens):
            def step(state, token):
                return layers["cell"](layers["embed"](token), state), None

            state, _ = jax.lax.scan(step, jnp.zeros(10), tokens)
            return layers["head"](state)

        return jax.vmap(one)(tokens)

    return layers, fn


def conv(key):
    keys = jax.random.split(key, 3)
    model = eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(3, 6, 3, key=keys[0]),
            eqx.nn.GroupNorm(2, 6),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.Conv2d(6, 4, 3, stride=2, key=keys[1]),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Linear(16, 5, key=keys[2]),
        ]
    )
    return model, lambda model, images: jax.vmap(model)(images)


# maker, input, weights on the longest path
MODELS = {
    "attention": (attention, TOKENS, 7),
    "recurrent": (recurrent, TOKENS, 2 * 5 + 2),
    "conv": (conv, IMAGES, 5),
}


@functools.cache
def build(name):
    make, inputs, depth = MODELS[name]
    model, apply = make(jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def fn(params, inputs):
        return apply(eqx.combine(params, static), inputs)

    return fn, params, inputs, depth


@pytest.mark.parametrize("name, direction", covering(MODELS))
def test_virtual_is_materialized(name, direction):
    fn, params, inputs, depth = build(name)
    assert_virtual_is_materialized(fn, direction, params, inputs, depth=depth, scale=0.1)


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_is_seen_and_none_falls_back(name):
    fn, params, inputs, _ = build(name)
    found = fallbacks(explained(fn, "low_rank", params, inputs))
    assert found == set()


def test_steps_do_not_retrace():
    fn, params, inputs, _ = build("attention")
    assert_steps_do_not_retrace(lambda p, x: jnp.mean(fn(p, x) ** 2), params, inputs)
