"""Moving what is quantised: stochastic rounding of codes, low-rank compensation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax
from zojax import noise, quantization, trainables
from zojax.virtual import VirtualArray

FORMATS = ["int8", "int4", "nf4", "codebook"]


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def quantized(format, shape=(64, 24), **options) -> VirtualArray:
    options = {"group_size": 32, "where": lambda _: True, **options}
    return zojax.quantize([normal(*shape)], format, **options)[0]


@pytest.mark.parametrize("format", FORMATS)
def test_a_step_is_right_in_expectation(format):
    base = quantized(format).base
    before = np.asarray(base.materialize(), np.float64)
    delta = 0.01 * normal(64, 24, seed=1)
    keys = noise.fold_in(noise.words(jax.random.key(3)), jnp.arange(400, dtype=jnp.uint32))
    after = jax.jit(jax.vmap(lambda k: quantization.stepped(base, delta, k).materialize()))(keys)
    after = np.asarray(after, np.float64)
    # entries at the ends of the range may not go beyond it
    groups = np.abs(before).reshape(2, 32, 24).max(1, keepdims=True)
    inside = (np.abs(before + delta).reshape(2, 32, 24) < 0.8 * groups).reshape(64, 24)
    error = (after.mean(0) - before - np.asarray(delta))[inside]
    spread = after.std(0)[inside] / np.sqrt(len(keys))
    assert spread.max() > 0
    # all of them together, to five standard errors; each to Hoeffding's bound of 1e-6 in all
    assert abs(error.sum()) < 5 * np.sqrt((spread**2).sum())
    gap = np.max(after.max(0) - after.min(0))
    assert np.abs(error).max() < gap * np.sqrt(np.log(2 * error.size / 1e-6) / (2 * len(keys)))
    # and each result is a level: at most two are seen
    assert max(len(np.unique(column)) for column in after.reshape(400, -1)[:, ::97].T) <= 2


@pytest.mark.parametrize("format", FORMATS)
def test_no_step_leaves_the_codes(format):
    base = quantized(format).base
    key = noise.words(jax.random.key(0))
    same = quantization.stepped(base, jnp.zeros(base.shape), key)
    # a quotient that rounds below its level may fall by one level, once in 2^23
    assert (np.asarray(same.materialize()) != np.asarray(base.materialize())).mean() < 1e-3


def test_steps_beyond_the_range_stay_at_its_end():
    base = quantized("int4").base
    up = quantization.stepped(base, jnp.full(base.shape, 1e3), noise.words(jax.random.key(0)))
    assert set(np.unique(up.codes)) == {15 * 17}


def test_files_with_zeros_move_too():
    plain = quantized("int4").base
    zeros = jnp.full(plain.scales.shape, 5, jnp.int8)
    base = quantization.Quantized(
        plain.codes, plain.scales, zeros, None, "int4", 64, -2, plain.decoded
    )
    step = jnp.repeat(plain.scales.astype(jnp.float32), 32, 0)  # one level up
    up = quantization.stepped(base, step, noise.words(jax.random.key(0))).materialize()
    gained = np.asarray(up - base.materialize())
    top = np.asarray(base.materialize()) >= 9.5 * np.asarray(step)
    np.testing.assert_allclose(gained[~top], np.asarray(step)[~top], rtol=1e-4)


def test_directions_and_updates_take_quantised_parameters():
    """QuZO's setting: what moves are the codes; E[loss] falls by exp(-2 lr steps) = 0.3."""
    target = normal(32, 16, seed=5)
    start = {"w": quantized("int8", (32, 16), group_size=32)}

    def loss(params):
        return 0.5 * jnp.sum((params["w"] - target) ** 2)

    @jax.jit
    def step(params, key):
        found = zojax.estimate(loss, zojax.mezo(2**-6, 8))(key, params)
        grads = zojax.gradient(zojax.mezo(2**-6, 8), found.keys, found.coefficients, params)
        updates = jax.tree.map(lambda g: -2e-3 * g, grads)
        return zojax.apply_updates(params, updates, key=jax.random.fold_in(key, 1))

    params, first = start, float(loss({"w": start["w"].materialize()}))
    for i in range(300):
        params = step(params, jax.random.key(i))
    assert float(loss({"w": params["w"].materialize()})) < 0.5 * first


def test_steps_below_half_a_level_are_not_lost():
    target = normal(32, 16, seed=5)
    leaf = start = quantized("int8", (32, 16), group_size=32)
    half = 0.5 * float(leaf.base.scales.astype(jnp.float32).min())

    @jax.jit
    def step(leaf, key):
        delta = jnp.clip(-5e-3 * (leaf.materialize() - target), -0.9 * half, 0.9 * half)
        return zojax.apply_updates([leaf], [delta], key=key)[0]

    for i in range(500):
        leaf = step(leaf, jax.random.key(i))

    def error(w):
        return float(jnp.sum((w - target) ** 2))

    # rounded to nearest, no code would ever change
    assert error(leaf.materialize()) < 0.1 * error(start.materialize())


def test_an_update_of_quantised_weights_needs_a_key():
    leaf = quantized("nf4")
    with pytest.raises(ValueError, match=r"leaf \['w'\] is quantised: pass key="):
        zojax.apply_updates({"w": leaf}, {"w": jnp.zeros(leaf.shape)})
    dense = VirtualArray(leaf.materialize())
    with pytest.raises(ValueError, match="has no one thing to update"):
        zojax.apply_updates({"w": dense}, {"w": jnp.zeros(leaf.shape)}, key=jax.random.key(0))


@pytest.mark.parametrize("rank", [1, 4])
def test_compensation_is_the_best_of_its_rank(rank):
    w = normal(3, 32, 16)
    small = zojax.quantize({"w": w}, "int4", group_size=32)
    error = np.asarray(w, np.float64) - np.asarray(small["w"].materialize(), np.float64)
    better = quantization.compensate(small, {"w": w}, rank)["w"].materialize()
    left = np.asarray(w, np.float64) - np.asarray(better, np.float64)
    # Eckart and Young: what is left are the other singular values
    expected = np.sqrt((np.linalg.svd(error)[1][:, rank:] ** 2).sum(-1))
    np.testing.assert_allclose(np.sqrt((left**2).sum((1, 2))), expected, rtol=1e-4)


def test_moments_make_the_outputs_best():
    w, x = normal(32, 16), normal(400, 32, seed=1) * jnp.geomspace(10, 0.1, 32)
    small = zojax.quantize({"w": w}, "int4", group_size=32)
    moments = {"w": x.T @ x / 400}

    def error(**options):
        better = quantization.compensate(small, {"w": w}, 4, **options)["w"].materialize()
        return float(jnp.sum((x @ (w - better)) ** 2))

    residual = np.asarray(x @ (w - small["w"].materialize()), np.float64)
    best = (np.linalg.svd(residual)[1][4:] ** 2).sum()
    assert error(moments=moments) <= 1.001 * best
    assert error() > 1.5 * best


def test_factors_train_the_compensation():
    w = normal(2, 32, 16)
    small = zojax.quantize({"w": w, "bias": jnp.zeros(3)}, "int4", group_size=32)
    params = quantization.compensate(small, {"w": w, "bias": jnp.zeros(3)}, 2)
    split = trainables.factors(params)
    assert split.trainable["bias"] is None
    merged = split.merge(split.trainable, split.frozen)
    np.testing.assert_array_equal(merged["w"].materialize(), params["w"].materialize())
    doubled = jax.tree.map(lambda x: 2 * x, split.trainable)
    found = split.merge(doubled, split.frozen)["w"].materialize() - small["w"].materialize()
    once = params["w"].materialize() - small["w"].materialize()
    np.testing.assert_allclose(found, 4 * once, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="no leaf has a low-rank term"):
        trainables.factors(small)


def test_replaced_entries_are_not_compensated():
    w = normal(32, 16)
    split = zojax.sensitive({"w": w}, {"w": jnp.square(w)}, 0.01)
    frozen = zojax.quantize(split.frozen, "int4", group_size=32)
    better = quantization.compensate(frozen, {"w": w}, 16)
    found = split.merge(split.trainable, better)["w"].materialize()
    # full rank: everything but the entries is exact, and they have no term of their own
    np.testing.assert_allclose(found, w, atol=1e-5)


BAD = [
    (dict(rank=0), "rank must be at least 1, found 0"),
    (dict(moments={"w": jnp.eye(16)}), r"moments of leaf \['w'\] have shape \(16, 16\)"),
    (dict(params={"w": jnp.zeros((16, 32))}), r"has shape \(32, 16\), before it was \(16, 32\)"),
]


@pytest.mark.parametrize("options,message", BAD)
def test_bad_compensation(options, message):
    w = {"w": normal(32, 16)}
    small = zojax.quantize(w, "int4", group_size=32)
    with pytest.raises(ValueError, match=message):
        quantization.compensate(small, **{"params": w, "rank": 2, **options})
    with pytest.raises(ValueError, match="no leaf is quantised"):
        quantization.compensate(w, w, 2)
