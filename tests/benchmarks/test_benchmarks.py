"""The benchmarks measure what they say: models of the stated sizes, fair orders, true ratios."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax
from tests.benchmarks import conv, encoder, gpt, llama, memory, steps, time

BLANK = {
    "conv": (conv.loss, conv.parameters(conv.Shape()), conv.batch(conv.Shape(batch=2)), 10),
    "encoder": (
        encoder.loss,
        encoder.parameters(encoder.Shape(), scanned=True),
        encoder.batch(encoder.Shape(batch=1)),
        7,
    ),
    "llama": (
        lambda p, b: llama.loss(p, b, 4),
        llama.parameters(llama.Shape(2, 64, 128, 4, 256), jnp.float32),
        llama.batch(llama.Shape(length=16)),
        256,
    ),
}


def _count(params) -> int:
    return sum(x.size for x in jax.tree.leaves(params))


@pytest.mark.parametrize("name", BLANK)
def test_without_weights_the_loss_is_that_of_a_guess(name):
    loss, params, batch, classes = BLANK[name]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (params, batch))
    np.testing.assert_allclose(jax.jit(loss)(*zeros), math.log(classes), rtol=1e-6)


def test_sizes_are_those_stated():
    assert _count(conv.parameters(conv.Shape())) == pytest.approx(2.8e6, rel=0.02)
    # the published count of Llama 2 7B
    assert _count(llama.parameters(llama.Shape())) == 6_738_415_616


@pytest.mark.parametrize("module", [gpt, encoder])
def test_scanned_and_unrolled_layers_are_the_same_model(module):
    shape = module.Shape(layers=2, width=64, heads=4, vocabulary=100, batch=2, length=16)
    scanned = steps.initialize(0, module.parameters(shape, scanned=True), scale=0.2)
    layers = [jax.tree.map(lambda x, i=i: x[i], scanned["layers"]) for i in range(2)]
    unrolled = scanned | {"layers": layers}
    assert jax.tree.structure(unrolled) == jax.tree.structure(module.parameters(shape, False))
    batch = jax.tree.map(
        lambda x: (
            jnp.ones(x.shape, x.dtype)
            if x.dtype == jnp.bool_
            else jnp.arange(x.size, dtype=x.dtype).reshape(x.shape) % 7
        ),
        module.batch(shape),
    )
    args = (batch, 4) if module is gpt else (batch,)
    np.testing.assert_allclose(module.loss(scanned, *args), module.loss(unrolled, *args), rtol=1e-6)


def _quadratic(params, batch):
    return jnp.sum(jnp.square(params["w"] - batch))


PARAMS = {"w": jnp.asarray(np.random.default_rng(0).standard_normal((40, 50)), jnp.float32)}
TARGET = jnp.ones((40, 50))


# |z|^2 / d: 1 for signs, of variance 2 / d for normals; a product of two such for factors
NORMS = {
    "rademacher": 0.0,
    "gaussian": (2 / 2000) ** 0.5,
    "plain_jax": (2 / 2000) ** 0.5,
    "low_rank": (2 / 40 + 2 / 50 + 4 / 2000) ** 0.5,
}


@pytest.mark.parametrize("name", NORMS)
def test_every_step_moves_along_a_direction_as_far_as_the_loss_says(name):
    """On a quadratic `delta = -rate (g.z) z`, so `|delta|^2 / (-rate delta.g)` is `|z|^2`."""
    if name == "plain_jax":
        run = steps.plain_step(_quadratic)
    else:
        run = steps.step(_quadratic, steps.DIRECTIONS[name]())
    moved, value = jax.jit(run)(PARAMS, jax.random.key(3), TARGET)
    gradient = np.asarray(2 * (PARAMS["w"] - TARGET), np.float64)
    delta = np.asarray(moved["w"], np.float64) - np.asarray(PARAMS["w"], np.float64)
    found = np.vdot(delta, delta) / (-steps.RATE * np.vdot(delta, gradient)) / delta.size
    # five standard deviations; 2 % for the roundings of a loss of 4,000 over 2 mu
    assert abs(found - 1) < 5 * NORMS[name] + 0.02, found
    assert value == pytest.approx(float(_quadratic(PARAMS, TARGET)), rel=1e-3)
    singular = np.linalg.svd(delta, compute_uv=False)
    assert (singular[1] < 1e-4 * singular[0]) == (name == "low_rank")


def test_the_sparse_step_moves_only_the_sensitive_entries():
    theta, frozen, merge = steps.sensitive(PARAMS)
    run = jax.jit(steps.sparse_step(_quadratic, merge))
    moved, value = run(theta, jax.random.key(3), frozen, TARGET)
    assert moved["w"].shape == (2,)  # a thousandth of 2,000
    dense = zojax.virtualize(lambda p: p["w"] + 0)(merge(moved, frozen))
    changed = np.flatnonzero(np.asarray(dense != PARAMS["w"]))
    assert set(changed) == set(np.asarray(frozen.index["w"]).tolist())
    assert value == pytest.approx(float(_quadratic(PARAMS, TARGET)), rel=1e-3)


def test_temporaries_are_those_of_the_optimised_program():
    """Machine code made without optimisation has the same buffers."""
    shape = conv.Shape((8, 16), blocks=1, batch=2, size=8)
    params, batch = conv.parameters(shape), conv.batch(shape)
    optimised = jax.jit(conv.loss).lower(params, batch).compile().memory_analysis()
    assert memory.temporaries(conv.loss, params, batch) == optimised.temp_size_in_bytes


def test_runs_rotate_and_the_first_opens_every_repetition():
    order = []
    runs = {name: lambda i, name=name: order.append((name, i)) for name in "fabc"}
    seconds = time.interleave(runs, 6)
    assert all(len(times) == 6 for times in seconds.values())
    rounds = [order[i : i + 4] for i in range(4, len(order), 4)]  # without the one that compiles
    assert len(rounds) == 6
    assert all(r[0][0] == "f" and sorted(n for n, _ in r) == list("abcf") for r in rounds)
    for place in (1, 2, 3):
        assert sorted(r[place][0] for r in rounds) == list("aabbcc")
    assert [i for name, i in order if name == "a"] == list(range(7))


def test_ratios_are_of_the_same_repetition():
    found = time.spread([2.0, 9.0, 8.0], [1.0, 3.0, 2.0])
    assert found == {"median": 3.0, "min": 2.0, "max": 4.0}


@pytest.mark.peers
def test_the_torch_loop_is_mezo_on_the_same_model():
    torch = pytest.importorskip("torch")
    from tests.benchmarks import torch_gpt

    shape = gpt.Shape(layers=2, width=32, heads=4, vocabulary=64, length=16)
    params = steps.initialize(0, gpt.parameters(shape, scanned=True), scale=0.2)
    tokens = np.arange(16)[None] * 3 % 64
    copied = torch_gpt.parameters(params)
    ids = torch.from_numpy(tokens.astype(np.int64))

    def ask(params=copied):
        return torch_gpt.loss(params, ids, shape.heads)

    expected = float(gpt.loss(params, jnp.asarray(tokens, jnp.int32), shape.heads))
    assert float(ask()) == pytest.approx(expected, abs=2e-6)

    # the oracle keeps z and never moves the parameters to perturb
    generator = torch.Generator().manual_seed(5)
    before = [leaf.clone() for leaf in torch_gpt.leaves(copied)]
    z = [torch.randn(leaf.shape, generator=generator) for leaf in before]

    def at(scale):
        moved = torch_gpt.parameters(params)
        for leaf, direction in zip(torch_gpt.leaves(moved), z, strict=True):
            leaf.add_(direction, alpha=scale)
        return float(ask(moved))

    mu, rate = 2.0**-6, 2.0**-6
    plus, minus = at(mu), at(-mu)
    value = torch_gpt.mezo_step(copied, ask, 5, mu, rate)
    # float32 losses of size 4, at parameters that in-place moves leave a few roundings away
    assert value == pytest.approx((plus + minus) / 2, abs=1e-5)
    step_size = rate * (plus - minus) / (2 * mu)
    for leaf, old, direction in zip(torch_gpt.leaves(copied), before, z, strict=True):
        np.testing.assert_allclose(leaf, old - step_size * direction, rtol=0, atol=2e-5)
