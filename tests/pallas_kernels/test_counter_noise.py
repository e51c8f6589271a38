"""The kernel in Pallas' interpreter equals the reference; and it lowers for a TPU."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.counter_noise import counter_noise, counter_noise_reference
from zojax import noise

KEY = jnp.array([1, 2], jnp.uint32)


def _assert_equal(found, expected, distribution):
    assert found.dtype == jnp.float32
    if distribution != "gaussian":
        np.testing.assert_array_equal(found, expected)
    else:
        # same bits; log and the polynomial may be contracted in another way
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("distribution", ["rademacher", "nibble_sum", "gaussian"])
@pytest.mark.parametrize(
    "shape, block",
    [
        ((16, 256), (16, 256)),
        ((20, 300), (8, 128)),
        ((1, 1), (8, 128)),
        ((7, 5), (3, 2)),
        ((33, 130), (256, 512)),
    ],
)
def test_equals_the_reference(shape, block, distribution):
    """Every tiling, with edges cut, at any address, through the wrap of 32 bits."""
    make = partial(counter_noise, block=block, interpret=True)
    make, reference = (
        jax.jit(partial(fn, shape=shape, distribution=distribution))
        for fn in (make, counter_noise_reference)
    )
    for row, col in [(0, 0), (1000, 70_000), (2**32 - 10, 2**32 - 100)]:
        address = {"row": jnp.uint32(row), "col": jnp.uint32(col)}
        _assert_equal(make(KEY, **address), reference(KEY, **address), distribution)


@pytest.mark.parametrize("distribution", ["rademacher", "nibble_sum", "gaussian"])
def test_the_reference_is_the_noise_of_a_leaf(distribution):
    leaf = getattr(noise, distribution)(noise.leaf_bits(KEY, (3, 4, 8))).reshape(12, 8)
    found = counter_noise_reference(KEY, (5, 6), row=4, col=1, distribution=distribution)
    np.testing.assert_allclose(found, leaf[4:9, 1:7], rtol=0, atol=2e-6)


def test_the_default_interprets_where_there_is_no_tpu():
    found = counter_noise(KEY, (8, 128), distribution="rademacher")
    expected = counter_noise_reference(KEY, (8, 128), distribution="rademacher")
    np.testing.assert_array_equal(found, expected)


def test_addresses_may_be_traced():
    make = jax.jit(partial(counter_noise, shape=(8, 16), distribution="rademacher"))
    for row in (0, 8):
        expected = counter_noise_reference(KEY, (8, 16), row=row, distribution="rademacher")
        np.testing.assert_array_equal(make(KEY, row=row), expected)


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
@pytest.mark.parametrize("shape", [(256, 512), (20, 300)])
def test_lowers_for_tpu(shape, distribution):
    make = partial(
        counter_noise, shape=shape, distribution=distribution, block=(8, 128), interpret=False
    )
    lowered = jax.jit(make).trace(KEY).lower(lowering_platforms=("tpu",))
    assert lowered.as_text().count("tpu_custom_call") == 1


@pytest.mark.parametrize("key", [jnp.zeros(2, jnp.int32), jnp.zeros(4, jnp.uint32)])
def test_what_is_no_key_is_an_error(key):
    with pytest.raises(TypeError, match=r"key_words must be uint32\[2\], found"):
        counter_noise(key, (2, 2), distribution="gaussian")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"shape": (0, 2), "distribution": "gaussian"}, "two positive sizes"),
        ({"shape": (2, 2, 2), "distribution": "gaussian"}, "two positive sizes"),
        ({"shape": (2, 2), "distribution": "uniform"}, "nibble_sum, gaussian, found 'uniform'"),
    ],
)
def test_bad_arguments_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        counter_noise(KEY, **arguments)
