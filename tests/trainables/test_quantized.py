"""Trainables of quantised weights, and several trainables at once."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zojax
from zojax import trainables
from zojax.virtual import is_virtual, materialize

DRAW = np.random.default_rng(0)
LAYERS, WIDTH = 3, 16


def _normal(*shape):
    return jnp.asarray(DRAW.standard_normal(shape), jnp.float32)


PARAMS = {
    "bias": _normal(WIDTH),
    "layers": {"kernel": _normal(LAYERS, WIDTH, WIDTH) / 4},
    "out": _normal(WIDTH, 4),
}
SCORES = jax.tree.map(lambda p: jnp.asarray(DRAW.random(p.shape), jnp.float32), PARAMS)
X, Y = _normal(32, WIDTH), _normal(32, 4)


def _forward(params, x):
    x = jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, params["layers"]["kernel"])[0]
    return (x + params["bias"]) @ params["out"]


def _loss(params, batch):
    x, y = batch
    return jnp.mean(jnp.square(_forward(params, x) - y))


def _quantized(format):
    return zojax.quantize(PARAMS, format, group_size=8)


SMALL = {format: _quantized(format) for format in ("int8", "int4", "nf4", "codebook")}
NF4 = materialize(SMALL["nf4"])
WHERE = lambda path: path == "layers/kernel"  # noqa: E731

SPLITS = {
    "full": zojax.full,
    "select": lambda p: zojax.select(p, WHERE),
    "sensitive": lambda p: zojax.sensitive(p, SCORES, 0.1),
    "magnitude": lambda p: trainables.magnitude(p, 0.1),
    "lora": lambda p: zojax.lora(p, jax.random.key(0), 2, where=WHERE),
    "blocks": lambda p: trainables.blocks(p, [0, -1]),
    "scales": zojax.scales,
    "sensitive and scales": lambda p: zojax.compose(
        zojax.sensitive(p, SCORES, 0.1), zojax.scales(p)
    ),
    "scales and sensitive": lambda p: zojax.compose(
        zojax.scales(p), zojax.sensitive(p, SCORES, 0.1)
    ),
    "lora and sensitive": lambda p: zojax.compose(
        zojax.lora(p, jax.random.key(0), 2, where=WHERE), zojax.sensitive(p, SCORES, 0.1)
    ),
    "blocks and bias": lambda p: zojax.compose(
        trainables.blocks(p, [1]),
        zojax.bias_and_norm(p),
        zojax.lora(p, jax.random.key(0), 1, where=WHERE),
    ),
}  # fmt: skip


def _same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", SPLITS)
def test_merge_of_split_is_the_identity_over_four_bits(name):
    trainable, frozen, merge = SPLITS[name](SMALL["nf4"])
    merged = jax.jit(lambda trainable: materialize(merge(trainable, frozen)))
    _same(merged(trainable), NF4)
    # all that moves is float32, and moves something
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(trainable))
    far = merged(jax.tree.map(lambda v: v + 1, trainable))
    assert not np.array_equal(
        far["layers"]["kernel"], materialize(SMALL["nf4"])["layers"]["kernel"]
    )


@pytest.mark.parametrize("name", ["blocks and bias", "lora and sensitive"])
def test_the_estimate_is_that_of_the_materialised_problem(name):
    trainable, frozen, merge = SPLITS[name](SMALL["nf4"])
    estimator, key = zojax.mezo(2.0**-6, 2), jax.random.key(1)
    virtual = lambda t, f, b: zojax.virtualize(_loss)(merge(t, f), b)  # noqa: E731
    dense = lambda t, f, b: _loss(materialize(merge(t, f)), b)  # noqa: E731
    found, expected = (
        jax.jit(zojax.estimate(f, estimator))(key, trainable, frozen, (X, Y))
        for f in (virtual, dense)
    )
    size = float(np.max(np.asarray(expected.losses.plus)))
    for a, b in zip(found.losses[1:3], expected.losses[1:3], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=100 * 2**-24 * size)


def test_a_split_can_be_quantised_before_and_after():
    """After: the entries keep their own values. Before: they start at the rounded ones."""
    trainable, frozen, merge = zojax.sensitive(PARAMS, SCORES, 0.1)
    after = merge(trainable, zojax.quantize(frozen, "int4", group_size=8))
    before = zojax.sensitive(SMALL["int4"], SCORES, 0.1)
    _same(before.frozen.index, frozen.index)
    kernel = materialize(after)["layers"]["kernel"].reshape(LAYERS, -1)
    index = np.asarray(frozen.index["layers"]["kernel"])
    picked = np.take_along_axis(np.asarray(kernel), index, 1)
    np.testing.assert_array_equal(picked, trainable["layers"]["kernel"])
    leaf = before.merge(*before[:2])["layers"]["kernel"]
    assert leaf.base is before.frozen.params["layers"]["kernel"].base and leaf.entries is not None
    # without its largest entries a group has a finer scale: the rest is nearer on the whole
    dense = np.asarray(PARAMS["layers"]["kernel"]).reshape(LAYERS, -1)
    rest = np.ones(dense.shape, bool)
    np.put_along_axis(rest, index, False, 1)
    rounded = np.asarray(materialize(SMALL["int4"])["layers"]["kernel"]).reshape(LAYERS, -1)
    error = [np.square(x - dense)[rest].sum() for x in (np.asarray(kernel), rounded)]
    assert error[0] < error[1]


def test_scales_multiply_the_codes():
    for format in ("int8", "codebook"):
        small, split = SMALL[format], zojax.scales(SMALL[format])
        doubled = jax.tree.map(lambda s: 2 * s, split.trainable)
        moved = materialize(split.merge(doubled, split.frozen))["layers"]["kernel"]
        np.testing.assert_array_equal(moved, 2 * materialize(small)["layers"]["kernel"], format)
        least = split.merge(jax.tree.map(lambda s: s - 100, doubled), split.frozen)
        assert np.all(np.asarray(least["layers"]["kernel"].base.scales) == np.float32(1e-7))


def test_scales_that_are_powers_stay_positive():
    split = zojax.scales(SMALL["nf4"], positive="exp")
    merged = split.merge(split.trainable, split.frozen)["layers"]["kernel"]
    expected = np.asarray(SMALL["nf4"]["layers"]["kernel"].base.scales, np.float32)
    # log and exp round: the logarithm, of size below 8, to 2^-22
    np.testing.assert_allclose(merged.base.scales, expected, rtol=2**-20)
    low = jax.tree.map(lambda s: s - 30, split.trainable)
    assert np.all(np.asarray(split.merge(low, split.frozen)["layers"]["kernel"].base.scales) > 0)


def test_codebooks_move_their_levels():
    split = zojax.codebook(SMALL["codebook"])
    assert split.trainable["layers"]["kernel"].shape == (LAYERS, 16, WIDTH)
    assert split.trainable["bias"] is None
    _same(
        materialize(split.merge(split.trainable, split.frozen)),
        materialize(SMALL["codebook"]),
    )
    base = SMALL["codebook"]["layers"]["kernel"].base
    up = split.merge(jax.tree.map(lambda t: t + 0.5, split.trainable), split.frozen)
    step = materialize(up)["layers"]["kernel"] - materialize(SMALL["codebook"])["layers"]["kernel"]
    scale = np.broadcast_to(np.asarray(base.scales, np.float32), step.shape)
    np.testing.assert_allclose(step, 0.5 * scale, rtol=0, atol=4 * 2**-24 * scale.max())


def test_errors_of_scales():
    for make in (zojax.scales, zojax.codebook):
        with pytest.raises(ValueError, match="no leaf is quantised; the leaves are bias"):
            make(PARAMS)
    with pytest.raises(ValueError, match="no leaf has a codebook"):
        zojax.codebook(SMALL["nf4"])
    with pytest.raises(ValueError, match='positive must be "clamp" or "exp"'):
        zojax.scales(SMALL["nf4"], positive="square")  # pyright: ignore
    leaf = SMALL["nf4"]["layers"]["kernel"]
    minus = replace(leaf, base=leaf.base.with_scales(-leaf.base.scales))
    with pytest.raises(ValueError, match="leaf layers/kernel has a scale that is negative or NaN"):
        zojax.scales({"layers": {"kernel": minus}})


def test_qzo_is_the_rule_of_its_paper():
    """s <- max(s - lr clip(c) z, 1e-7), of losses that are asked at s +- mu z."""
    lr, mu, limit = 0.002, 2.0**-7, 25.0
    split = zojax.scales(SMALL["int4"])
    estimator = zojax.qzo(mu, limit=limit)
    loss = lambda t, b: zojax.virtualize(_loss)(split.merge(t, split.frozen), b)  # noqa: E731
    tx = optax.chain(zojax.zeroth_order(estimator, key=3), optax.sgd(lr))
    state, theta = tx.init(split.trainable), split.trainable
    expected, clipped, at_least = theta, [], []

    @jax.jit
    def step(state, theta):
        updates, state = tx.update(None, state, theta, value_fn=loss, b=(X, Y))
        theta = optax.apply_updates(theta, updates)
        return state, jax.tree.map(lambda s: jnp.maximum(s, 1e-7), theta)

    @jax.jit
    def direction(i):
        words = estimator.scheme.keys(jax.random.fold_in(jax.random.key(3), i))[0]
        return [t.materialize() for t in zojax.gaussian().terms(words, theta)]

    dense = jax.jit(lambda theta: _loss(materialize(split.merge(theta, split.frozen)), (X, Y)))
    for i in range(6):
        z = jax.tree.unflatten(jax.tree.structure(theta), direction(i))
        plus, minus = (
            float(dense(jax.tree.map(lambda s, z, mu=mu: s + mu * z, expected, z)))
            for mu in (mu, -mu)
        )
        c = (plus - minus) / (2 * mu)
        clipped.append(abs(c) > limit)
        step_size = lr * np.clip(c, -limit, limit)
        expected = jax.tree.map(lambda s, z, a=step_size: jnp.maximum(s - a * z, 1e-7), expected, z)
        at_least += [bool((s == np.float32(1e-7)).any()) for s in jax.tree.leaves(expected)]
        state, theta = step(state, theta)
        # each loss is right to some roundings, over 2 mu
        atol = 6 * lr * 100 * 2**-24 * abs(plus) / (2 * mu) * 4
        jax.tree.map(
            lambda a, b, atol=atol: np.testing.assert_allclose(a, b, rtol=0, atol=atol),
            theta,
            expected,
        )
    assert any(clipped) and not all(clipped) and any(at_least)


def test_qzo_learns_and_a_loss_that_is_not_finite_is_seen():
    split = zojax.scales(SMALL["int4"])
    target = _forward(PARAMS | {"layers": {"kernel": PARAMS["layers"]["kernel"] * 0.5}}, X)
    loss = lambda t, b: zojax.virtualize(_loss)(split.merge(t, split.frozen), b)  # noqa: E731
    tx = optax.chain(zojax.zeroth_order(zojax.qzo(1e-3, 2), key=0), optax.adam(3e-3))

    @jax.jit
    def train(theta, state):
        def step(carry, _):
            theta, state = carry
            updates, state = tx.update(None, state, theta, value_fn=loss, b=(X, target))
            return (optax.apply_updates(theta, updates), state), None

        return jax.lax.scan(step, (theta, state), length=100)[0][0]

    theta = train(split.trainable, tx.init(split.trainable))
    of = jax.jit(loss)
    before, after = (float(of(t, (X, target))) for t in (split.trainable, theta))
    assert after < before / 2
    merged = split.merge(theta, split.frozen)["layers"]["kernel"].base
    assert merged.codes is SMALL["int4"]["layers"]["kernel"].base.codes
    ask = jax.jit(zojax.estimate(loss, zojax.qzo()))
    bad = ask(jax.random.key(0), theta, (X * jnp.nan, target))
    assert not np.isfinite(bad.value) and np.isnan(bad.coefficients).all()  # clipping hides no NaN


def test_composed_trainables_are_a_tuple_over_parameters_that_are_stored_once():
    split = SPLITS["sensitive and scales"](SMALL["nf4"])
    assert len(split.trainable) == 2 and split.frozen.rest == (None,)
    arrays = {id(x) for x in jax.tree.leaves(SMALL["nf4"])}
    stored = [id(x) for x in jax.tree.leaves(split.frozen) if id(x) in arrays]
    assert len(stored) == len(set(stored)) == len(arrays)
    other = SPLITS["scales and sensitive"](SMALL["nf4"])
    assert other.frozen.rest[0].params is None
    # the two orders are the same function
    moved = jax.tree.map(lambda x: x * 1.25, split.trainable)
    a = split.merge(moved, split.frozen)
    b = other.merge(moved[::-1], other.frozen)
    _same(materialize(a), materialize(b))


def test_compose_errors():
    entries = zojax.sensitive(PARAMS, SCORES, 0.1)
    with pytest.raises(ValueError, match="two splits or more"):
        zojax.compose(entries)
    with pytest.raises(ValueError, match="split 1 has nothing frozen.*put it first"):
        zojax.compose(entries, zojax.full(PARAMS))
    twice = zojax.compose(entries, trainables.magnitude(PARAMS, 0.1))
    with pytest.raises(ValueError, match="kernel.*has entries of another split already"):
        twice.merge(twice.trainable, twice.frozen)


def test_blocks_move_their_layers_alone():
    split = trainables.blocks(PARAMS, [2, 0])
    assert split.trainable["layers"]["kernel"].shape == (2, WIDTH, WIDTH)
    assert split.trainable["out"] is None
    moved = jax.tree.map(lambda v: v + jnp.array([1.0, 2.0])[:, None, None], split.trainable)
    virtual = split.merge(moved, split.frozen)
    kernel = np.array(PARAMS["layers"]["kernel"])
    kernel[2] += 1
    kernel[0] += 2
    expected = PARAMS | {"layers": {"kernel": kernel}}
    np.testing.assert_array_equal(materialize(virtual)["layers"]["kernel"], kernel)
    uses = {
        "scan": _forward,
        "index": lambda p, x: x @ p["layers"]["kernel"][2] @ p["layers"]["kernel"][-2].T,
        "part": lambda p, x: x[:, :5] @ p["layers"]["kernel"][0, 1:6, ::2],
        "rows": lambda p, x: p["layers"]["kernel"][0][jnp.array([3, 1])],
        "cast": lambda p, x: x @ p["layers"]["kernel"].astype(jnp.bfloat16)[2].astype(jnp.float32),
        "all": lambda p, x: jnp.einsum("bi,lij->lbj", x, p["layers"]["kernel"]),
    }
    for name, use in uses.items():
        found, dense = (jax.jit(zojax.virtualize(use))(p, X) for p in (virtual, expected))
        np.testing.assert_allclose(
            found, dense, rtol=0, atol=64 * 2**-24 * np.abs(dense).max(), err_msg=name
        )


def test_blocks_copy_no_stack():
    """One layer is dense at a time, of a stack of sixteen."""
    params = {
        "layers": {"kernel": jnp.zeros((16, 64, 64))},
        "bias": jnp.zeros(64),
        "out": jnp.zeros((64, 4)),
    }
    split = trainables.blocks(params, [3])
    asked = jax.jit(
        zojax.estimate(
            lambda t, f, x: jnp.sum(zojax.virtualize(_forward)(split.merge(t, f), x)),
            zojax.mezo(),
        )
    )
    key = jax.random.key(0)
    compiled = asked.lower(key, split.trainable, split.frozen, jnp.zeros((2, 64))).compile()
    matrix = 4 * 64 * 64
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * matrix


def test_blocks_errors():
    for layers in ([], [3], [-4]):
        with pytest.raises(ValueError, match="leaf layers/kernel has 3 layers"):
            trainables.blocks(PARAMS, layers)
    with pytest.raises(ValueError, match="has a layer twice"):
        trainables.blocks(PARAMS, [1, -2])
    with pytest.raises(ValueError, match="no leaf is a stack of layers; the leaves are bias"):
        trainables.blocks({"bias": jnp.ones(3)}, [0])


def test_params_keep_their_kind():
    """Merged leaves are virtual over the same base: no weight is copied."""
    for name in ("sensitive", "lora", "sensitive and scales"):
        split = SPLITS[name](SMALL["nf4"])
        leaf = split.merge(split.trainable, split.frozen)["layers"]["kernel"]
        assert is_virtual(leaf)
        assert leaf.base.codes is SMALL["nf4"]["layers"]["kernel"].base.codes
