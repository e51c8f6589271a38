"""Flax linen modules, put together the ordinary way."""

import functools

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from tests.third_party.checks import (
    assert_steps_do_not_retrace,
    assert_virtual_is_materialized,
    covering,
    explained,
    fallbacks,
)

TOKENS = jax.random.randint(jax.random.key(1), (2, 5), 0, 23)
IMAGES = jax.random.normal(jax.random.key(2), (2, 8, 8, 3))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        y = nn.LayerNorm()(x)
        mask = nn.make_causal_mask(jnp.ones(x.shape[:2]))
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(y, mask=mask)
        y = nn.gelu(nn.Dense(24)(nn.LayerNorm()(x)))
        return x + nn.Dense(12)(y), None


class Decoder(nn.Module):
    """Layers under scan and remat, embedding tied to the output."""

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(23, 12)
        layers = nn.scan(
            nn.remat(Block, prevent_cse=False),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
        )
        x, _ = layers(name="layers")(embed(tokens), None)
        return embed.attend(nn.RMSNorm()(x))


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.RNN(nn.LSTMCell(10))(nn.Embed(23, 6)(tokens))
        return nn.Dense(7)(x)


class ConvNet(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.relu(nn.GroupNorm(2)(nn.Conv(6, (3, 3))(images)))
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(8, (3, 3), strides=2)(x)))
        return nn.Dense(5)(nn.avg_pool(x, (4, 4)).reshape(x.shape[0], -1))


# module, input, weights on the longest path
MODELS = {
    "decoder": (Decoder(), TOKENS, 3 * 8 + 3),
    "recurrent": (Recurrent(), TOKENS, 2 * 5 + 2),
    "conv": (ConvNet(), IMAGES, 6),
}

# biases with an axis for the heads: no vectors, and added rather than multiplied
ATTENTION = "['layers']['MultiHeadDotProductAttention_0']"
ADDED = {"decoder": [f"{ATTENTION}['{n}']['bias']" for n in ("query", "key", "value")]}


@functools.cache
def build(name):
    module, inputs, depth = MODELS[name]
    variables = jax.jit(module.init)(jax.random.key(0), inputs)
    fixed = {k: v for k, v in variables.items() if k != "params"}

    def fn(params, inputs):
        return module.apply({"params": params, **fixed}, inputs)

    return fn, variables["params"], inputs, depth


@pytest.mark.parametrize("name, direction", covering(MODELS))
def test_virtual_is_materialized(name, direction):
    fn, params, inputs, depth = build(name)
    assert_virtual_is_materialized(fn, direction, params, inputs, depth=depth, scale=0.1)


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_is_seen_and_none_falls_back_but_these(name):
    fn, params, inputs, _ = build(name)
    found = fallbacks(explained(fn, "low_rank", params, inputs))
    assert found == {(leaf, "add") for leaf in ADDED.get(name, ())}


def test_what_becomes_of_each_weight_of_the_decoder():
    fn, params, inputs, _ = build("decoder")
    uses = explained(fn, "low_rank", params, inputs).uses
    how = {
        (u.leaf, u.primitive): u.how
        for u in uses
        if u.leaf not in ADDED["decoder"] and u.how != "vector"
    }
    layer = "['layers']"
    names = ["query", "key", "value", "out"]
    matrices = [f"{ATTENTION}['{n}']['kernel']" for n in names]
    matrices += [f"{layer}['Dense_{i}']['kernel']" for i in (0, 1)]
    embedding = "['Embed_0']['embedding']"
    expected = {(leaf, "dot_general"): "fused" for leaf in (*matrices, embedding)}
    assert how == expected | {(embedding, "gather"): "rows"}


def test_steps_do_not_retrace():
    fn, params, inputs, _ = build("decoder")
    assert_steps_do_not_retrace(lambda p, x: jnp.mean(fn(p, x) ** 2), params, inputs)
