"""A batch in parts: the same numbers at the memory of one part."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zojax
from tests.benchmarks import gpt

KEY = jax.random.key(0)
DRAW = np.random.default_rng(0)
W = jnp.asarray(DRAW.standard_normal((3, 4)), jnp.float32)
BATCH = {
    "x": jnp.asarray(DRAW.standard_normal((6, 3)), jnp.float32),
    "y": jnp.asarray(DRAW.standard_normal(6), jnp.float32),
}


def _each(w, batch):
    return jnp.square(jnp.tanh(batch["x"] @ w).sum(1) - batch["y"])


def _mean(w, batch):
    return jnp.mean(_each(w, batch))


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_parts_are_the_whole(size):
    """Concatenated in the order of the batch; means equal but for the order of six additions."""
    parts = zojax.microbatched(_each, size)
    # rows of a product are rounded alike whatever their number, or nearly so
    np.testing.assert_allclose(parts(W, BATCH), _each(W, BATCH), rtol=1e-5, atol=1e-6)
    found = jax.jit(zojax.microbatched(_mean, size))(W, BATCH)
    np.testing.assert_allclose(found, _mean(W, BATCH), rtol=12 * 2**-24)
    both = zojax.microbatched(lambda w, b: (_mean(w, b), {"each": _each(w, b), "x": b["x"]}), size)
    loss, aux = both(W, BATCH)
    np.testing.assert_array_equal(aux["x"], BATCH["x"])
    np.testing.assert_allclose(loss, aux["each"].mean(), rtol=12 * 2**-24)


@pytest.mark.parametrize("per_example", [False, True])
@pytest.mark.parametrize("direction", [zojax.gaussian(), zojax.low_rank(1)], ids=lambda d: d.name)
def test_an_estimate_of_parts_is_the_estimate(direction, per_example):
    fun = _each if per_example else _mean
    estimator = zojax.mezo(0.25, 3, direction=direction, batch_size=2)

    def ask(fun):
        return zojax.estimate(fun, estimator, per_example=per_example)(KEY, W, BATCH)

    whole, parts = ask(fun), ask(zojax.microbatched(fun, 2))
    # losses of size ten over 2 mu
    np.testing.assert_allclose(parts.coefficients, whole.coefficients, rtol=0, atol=1e-4)
    assert parts.losses.plus.shape == whole.losses.plus.shape


def test_the_batch_by_name_in_an_optax_chain():
    tx = optax.chain(zojax.zeroth_order(zojax.mezo(0.25), key=0), optax.sgd(0.1))
    state = tx.init(W)
    whole, _ = tx.update(None, state, W, value_fn=_mean, batch=BATCH)
    parts, _ = tx.update(None, state, W, value_fn=zojax.microbatched(_mean, 3), batch=BATCH)
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-4)


def test_a_low_precision_loss_is_averaged_in_float32():
    """512 ones in bfloat16 would stop at 256."""
    ones = lambda w, x: jnp.mean(x).astype(jnp.bfloat16)  # noqa: E731
    assert zojax.microbatched(ones, 1)(None, jnp.ones(512)) == 1
    assert zojax.microbatched(ones, 1)(None, jnp.ones(512)).dtype == jnp.float32


def test_batches_that_do_not_fit_are_errors():
    with pytest.raises(ValueError, match="6 examples is not a multiple of the microbatch size 4"):
        zojax.microbatched(_mean, 4)(W, BATCH)
    with pytest.raises(ValueError, match=r"\['x'\]: \[6\], \['y'\]: \[5\]"):
        zojax.microbatched(_mean, 2)(W, {**BATCH, "y": BATCH["y"][:5]})
    with pytest.raises(ValueError, match=r"leading axis of examples, found \['s'\]: \[\]"):
        zojax.microbatched(_mean, 2)(W, {"s": 1.0})
    with pytest.raises(ValueError, match="found size=0"):
        zojax.microbatched(_mean, 0)
    with pytest.raises(TypeError, match=r"found 1 positional arguments and \['data'\] by name"):
        zojax.microbatched(_mean, 2)(W, data=BATCH)


def _temporaries(fn, *args) -> int:
    return jax.jit(fn).lower(*args).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
    "scanned, direction",
    [
        (True, zojax.rademacher()),
        (False, zojax.low_rank(1)),
        (False, zojax.rademacher()),
    ],
    ids=["scanned-dense", "unrolled-low_rank", "unrolled-dense"],
)
def test_directions_times_microbatches_need_one_forward_of_a_microbatch(scanned, direction):
    """Three directions, eight microbatches: the temporaries of one forward of one of them."""
    shape = gpt.Shape(layers=4 if scanned else 3, width=512, vocabulary=1024, batch=4)
    params = gpt.parameters(shape, scanned)
    loss = functools.partial(gpt.loss, heads=shape.heads)
    tokens = jax.ShapeDtypeStruct((shape.batch, shape.length), jnp.int32)
    many = jax.ShapeDtypeStruct((8 * shape.batch, shape.length), jnp.int32)
    ask = zojax.estimate(
        zojax.microbatched(loss, shape.batch), zojax.mezo(num_samples=3, direction=direction)
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    forward = _temporaries(loss, params, tokens)
    found = _temporaries(lambda *args: ask(*args).coefficients, key, params, many)
    assert found <= 1.1 * forward, (found, forward)
