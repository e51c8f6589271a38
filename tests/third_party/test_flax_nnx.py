"""Flax nnx modules: split into a graph and states, merged inside the loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zojax
from tests.third_party.checks import (
    EPS,
    assert_steps_do_not_retrace,
    assert_virtual_is_materialized,
    covering,
    explained,
    fallbacks,
)

TOKENS = jax.random.randint(jax.random.key(1), (2, 5), 0, 23)
IMAGES = jax.random.normal(jax.random.key(2), (2, 8, 8, 3))
KEY = jax.random.key(5)


class Block(nnx.Module):
    def __init__(self, rngs):
        self.attention_norm = nnx.RMSNorm(12, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 12, decode=False, rngs=rngs)
        self.norm = nnx.LayerNorm(12, rngs=rngs)
        self.first = nnx.Linear(12, 24, rngs=rngs)
        self.second = nnx.Linear(24, 12, use_bias=False, rngs=rngs)

    def __call__(self, x):
        mask = nnx.make_causal_mask(jnp.ones(x.shape[:2]))
        x = x + self.attention(self.attention_norm(x), mask=mask)
        return x + self.second(nnx.silu(self.first(self.norm(x))))


class Decoder(nnx.Module):
    """Layers stacked by vmap and walked by scan, embedding tied to the output."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(23, 12, rngs=rngs)
        make = nnx.split_rngs(splits=3)(nnx.vmap(Block, in_axes=0, out_axes=0))
        self.layers = make(rngs)
        self.head = self.embed

    def __call__(self, tokens):
        walk = nnx.scan(
            lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry, length=3
        )
        return self.head.attend(walk(self.embed(tokens), self.layers))


class ConvNet(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Conv(3, 6, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.second = nnx.Conv(6, 8, (3, 3), strides=2, feature_group_count=2, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, images):
        x = self.second(nnx.relu(self.norm(self.first(images))))
        return self.out(jnp.mean(self.dropout(x), (1, 2)))


# class, input, weights on the longest path
MODELS = {"decoder": (Decoder, TOKENS, 3 * 8 + 2), "conv": (ConvNet, IMAGES, 5)}

# biases with an axis for the heads: no vectors, and added rather than multiplied
ATTENTION = "['layers']['attention']"
ADDED = {"decoder": [f"{ATTENTION}['{n}']['bias'].value" for n in ("query", "key", "value")]}


@functools.cache
def build(name):
    make, inputs, depth = MODELS[name]
    graph, params, rest = nnx.split(make(nnx.Rngs(0)), nnx.Param, ...)

    def fn(params, rest, inputs):
        return nnx.merge(graph, params, rest)(inputs)

    return fn, params, (rest, inputs), depth


@pytest.mark.parametrize("name, direction", covering(MODELS))
def test_virtual_is_materialized(name, direction):
    fn, params, args, depth = build(name)
    assert_virtual_is_materialized(fn, direction, params, *args, depth=depth, scale=0.1)


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_is_seen_and_none_falls_back_but_these(name):
    fn, params, args, _ = build(name)
    found = fallbacks(explained(fn, "low_rank", params, *args))
    assert found == {(leaf, "add") for leaf in ADDED.get(name, ())}


def test_steps_do_not_retrace():
    fn, params, args, _ = build("decoder")
    assert_steps_do_not_retrace(lambda p, *a: jnp.mean(fn(p, *a) ** 2), params, *args)


# What a user may pass as parameters: the page on virtual arrays says what these tests show.


class Linear(nnx.Module):
    def __init__(self, rngs, *, batch_norm=False, dropout=False):
        self.layer = nnx.Linear(4, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs) if batch_norm else None
        self.dropout = nnx.Dropout(0.5, rngs=rngs) if dropout else None

    def __call__(self, x):
        x = self.layer(x)
        x = x if self.norm is None else self.norm(x)
        return x if self.dropout is None else self.dropout(x)


X = jax.random.normal(jax.random.key(3), (6, 4))
ESTIMATOR = zojax.mezo(num_samples=2)


def _loss(model, x):
    return jnp.mean((model(x) - 1) ** 2)


@pytest.mark.parametrize(
    "jit", [pytest.param(lambda fn: fn, marks=pytest.mark.slow, id="eager"), jax.jit, nnx.jit]
)
def test_a_module_of_weights_alone_is_a_tree_of_parameters(jit):
    model = Linear(nnx.Rngs(0))
    graph, state = nnx.split(model)
    value, grads = jit(zojax.value_and_grad(_loss, ESTIMATOR))(KEY, model, X)
    expected = zojax.value_and_grad(lambda s, x: _loss(nnx.merge(graph, s), x), ESTIMATOR)
    expected_value, expected_grads = expected(KEY, state, X)
    assert isinstance(grads, Linear)
    # one rounding of the two losses, divided by 2 mu and multiplied by an entry of z
    tolerance = 8 * EPS * float(value) / 2e-3
    np.testing.assert_allclose(value, expected_value, rtol=8 * EPS)
    for name in ("kernel", "bias"):
        a, b = (getattr(tree["layer"], name)[...] for tree in (nnx.state(grads), expected_grads))
        np.testing.assert_allclose(a, b, atol=4 * tolerance, rtol=0)


def test_a_module_with_random_state_is_refused_and_names_it():
    model = Linear(nnx.Rngs(0), dropout=True)
    with pytest.raises(TypeError, match=r"leaf \.dropout\.rngs\.\S+ has dtype .*zojax\.masked"):
        zojax.value_and_grad(_loss, ESTIMATOR)(KEY, model, X)


def test_statistics_are_perturbed_with_the_module_but_not_with_its_split():
    model = Linear(nnx.Rngs(0), batch_norm=True)
    model.eval()
    _, grads = zojax.value_and_grad(_loss, ESTIMATOR)(KEY, model, X)
    assert jnp.any(grads.norm.mean[...] != 0)  # to jax a batch statistic is an array like others

    graph, params, rest = nnx.split(model, nnx.Param, ...)
    vg = zojax.value_and_grad(lambda p, r, x: _loss(nnx.merge(graph, p, r), x), ESTIMATOR)
    _, grads = vg(KEY, params, rest, X)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    assert "mean" not in nnx.to_pure_dict(grads)["norm"]


def test_shared_variables_are_one_parameter_after_a_split_and_two_in_a_module():
    class Tied(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(5, 4, rngs=rngs)
            self.head = self.embed

    model = Tied(nnx.Rngs(0))
    graph, params = nnx.split(model)
    assert len(jax.tree.leaves(params)) == 1 and len(jax.tree.leaves(model)) == 2
    vg = zojax.value_and_grad(lambda m: jnp.sum(m.embed.embedding[...] ** 2), ESTIMATOR)
    _, grads = vg(KEY, model)
    first, second = jax.tree.leaves(grads)
    assert jnp.any(first != second)


def test_state_that_the_loss_changes_comes_back_as_auxiliary_output():
    model = Linear(nnx.Rngs(0), batch_norm=True, dropout=True)
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params, rest, x):
        model = nnx.merge(graph, params, rest)
        return _loss(model, x), nnx.state(model, nnx.Not(nnx.Param))

    vg = jax.jit(zojax.value_and_grad(loss, ESTIMATOR, has_aux=True))
    (_, rest), _ = vg(KEY, params, rest, X)
    _loss(model, X)  # one ordinary call changes the module in the same way
    after = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))["norm"]
    found = nnx.to_pure_dict(rest)
    assert int(found["dropout"]["rngs"]["count"]) == 1
    # the running mean is of activations at weights moved by mu z: |z| < 5, |x| . 4 entries
    for name in ("mean", "var"):
        np.testing.assert_allclose(found["norm"][name], after[name], atol=0.1 * 1e-3 * 5 * 20)
        assert jnp.all(jnp.isfinite(found["norm"][name]))


def test_state_that_is_closed_over_is_refused_by_flax():
    graph, params, rest = nnx.split(Linear(nnx.Rngs(0), batch_norm=True), nnx.Param, ...)
    vg = zojax.value_and_grad(lambda p, x: _loss(nnx.merge(graph, p, rest), x), ESTIMATOR)
    with pytest.raises(Exception, match="Cannot mutate BatchStat from a different trace level"):
        vg(KEY, params, X)
    # a copy may change, and is dropped
    vg = zojax.value_and_grad(
        lambda p, x: _loss(nnx.merge(graph, p, rest, copy=True), x), ESTIMATOR
    )
    assert jnp.isfinite(vg(KEY, params, X)[0])
