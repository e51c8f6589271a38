"""The GPU benchmark runs what it says: the public API's step and MeZO's loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import zojax
from tests.benchmarks import device_cases, llama, steps
from zojax import noise
from zojax.virtual import Noise

SHAPE = llama.Shape(layers=2, width=64, hidden=96, heads=4, vocabulary=128, length=8)


def test_sparse_is_the_step_of_a_sensitive_split(monkeypatch):
    monkeypatch.setattr(device_cases, "RATE", steps.RATE)
    loss = functools.partial(llama.loss, heads=SHAPE.heads)
    abstract = llama.parameters(SHAPE, jnp.float32)
    params = steps.initialize(0, abstract, scale=0.2)
    scores = steps.initialize(1, abstract)
    scores["layers"] |= {"norm1": None, "norm2": None}
    scores |= {"embedding": None, "head": None}
    split = zojax.sensitive(params, scores, steps.DENSITY)
    theta, index = device_cases.abstract_entries(abstract)
    assert jax.tree.map(jnp.shape, split.trainable) == jax.tree.map(jnp.shape, theta)
    assert jax.tree.map(jnp.shape, split.frozen.index) == jax.tree.map(jnp.shape, index)
    tokens = jnp.arange(8)[None]
    key = jax.random.key(3)
    run = jax.jit(steps.sparse_step(loss, split.merge))
    expected, _ = run(split.trainable, key, split.frozen, tokens)
    run = jax.jit(device_cases.sparse_step(loss))
    found, _ = run(split.trainable, key, params, split.frozen.index, tokens)
    for a, b, start in zip(*map(jax.tree.leaves, (found, expected, split.trainable)), strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.any(a != start)


def test_sweeps_go_along_the_direction_and_back():
    params = {"w": jnp.asarray(np.random.default_rng(0).standard_normal((40, 50)), jnp.float32)}
    key = jax.random.key(5)
    sweep = jax.jit(device_cases.sweep(zojax.rademacher()))
    there = sweep(params, key, 0.25)
    z = Noise.of_leaf(noise.fold_in(key, 0), 0.25, "rademacher", (40, 50)).materialize()
    np.testing.assert_array_equal(there["w"], params["w"] + z)
    back = sweep(sweep(there, key, -0.5), key, 0.25)
    # three roundings of values below eight
    np.testing.assert_allclose(back["w"], params["w"], rtol=0, atol=3 * 8 * 2.0**-24)


def test_positions_are_distinct_ascending_and_hold_the_values():
    params = steps.initialize(0, llama.parameters(SHAPE))
    theta, index = device_cases.entries_of(params, *device_cases.abstract_entries(params))
    at, values = np.asarray(index["layers"]["gate"]), theta["layers"]["gate"]
    assert at.shape == (2, 6) and np.all(np.diff(at) > 0) and at.min() >= 0 and at.max() < 64 * 96
    flat = np.asarray(params["layers"]["gate"], np.float32).reshape(2, -1)
    np.testing.assert_array_equal(values, np.take_along_axis(flat, at, 1))
