"""Rounded coefficients: the rounding itself, and the exact products it is for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zojax import noise

DRAW = np.random.default_rng(0)
# every exponent, either sign: random bit patterns are mostly numbers of random size
PATTERNS = DRAW.integers(0, 2**32, 2**16, dtype=np.uint64).astype(np.uint32)
FINITE = PATTERNS[(PATTERNS & 0x7F800000) != 0x7F800000]


def _rounded(bits):
    found = noise.round_coefficient(jax.lax.bitcast_convert_type(jnp.asarray(bits), jnp.float32))
    return np.asarray(jax.lax.bitcast_convert_type(found, jnp.uint32))


def _nearest(x):
    """To 13 mantissa bits by float64, ties to even; the exponent stops at the subnormals'."""
    x = np.asarray(x, np.float64)
    exponent = np.maximum(np.frexp(x)[1] - 1, -126)
    step = np.ldexp(1.0, exponent - 13)
    with np.errstate(over="ignore"):
        return (np.rint(x / step) * step).astype(np.float32)


def test_rounds_to_the_nearest_ties_to_even():
    expected = _nearest(FINITE.view(np.float32)).view(np.uint32)
    np.testing.assert_array_equal(_rounded(FINITE), expected)


def test_is_the_reduced_precision_of_xla():
    x = FINITE[(FINITE & 0x7F800000) != 0].view(np.float32)  # XLA flushes subnormals
    expected = jax.lax.reduce_precision(jnp.asarray(x), exponent_bits=8, mantissa_bits=13)
    np.testing.assert_array_equal(noise.round_coefficient(x), expected)


@pytest.mark.parametrize(
    "bits, expected",
    [
        (0x00000000, 0x00000000),  # zero
        (0x80000000, 0x80000000),  # minus zero
        (0x7F800000, 0x7F800000),  # infinity
        (0xFF800000, 0xFF800000),  # minus infinity
        (0x7FC00000, 0x7FC00000),  # NaN
        (0x7F800001, 0x7F800001),  # a NaN whose mark is in the dropped bits
        (0xFFFFFFFF, 0xFFFFFFFF),  # a NaN that an addition would carry to zero
        (0x00000001, 0x00000000),  # least subnormal
        (0x00000200, 0x00000000),  # subnormal tie, to even
        (0x00000600, 0x00000800),  # subnormal tie, to even
        (0x007FFFFF, 0x00800000),  # greatest subnormal to least normal
        (0x3F800200, 0x3F800000),  # 1 + 2**-14: tie, to even
        (0x3F800201, 0x3F800400),
        (0x3F800600, 0x3F800800),  # tie, to even
        (0x3FFFFFFF, 0x40000000),  # carries into the exponent
        (0xBFFFFFFF, 0xC0000000),
        (0x7F7FFC00, 0x7F7FFC00),  # greatest with 13 bits
        (0x7F7FFE00, 0x7F800000),  # overflows
    ],
)
def test_golden(bits, expected):
    assert hex(int(_rounded(np.uint32([bits]))[0])) == hex(expected)


def test_the_relative_error_is_at_most_two_to_the_minus_fourteen():
    x = FINITE[((FINITE >> 23) & 0xFF > 0) & ((FINITE >> 23) & 0xFF < 0xFE)].view(np.float32)
    error = abs(np.asarray(noise.round_coefficient(x), np.float64) / x.astype(np.float64) - 1)
    assert error.max() <= 2**-14 and error.max() > 0.99 * 2**-14


def test_products_with_small_integers_are_exact():
    c = np.asarray(noise.round_coefficient(DRAW.standard_normal(512).astype(np.float32)))
    n = np.arange(-1024, 1025)
    products = c[:, None].astype(np.float64) * n
    np.testing.assert_array_equal(products.astype(np.float32).astype(np.float64), products)


def test_shape_dtype_jit_and_vmap():
    x = jnp.asarray(DRAW.standard_normal((3, 4)), jnp.float32)
    expected = noise.round_coefficient(x)
    assert expected.shape == (3, 4) and expected.dtype == jnp.float32
    np.testing.assert_array_equal(jax.jit(noise.round_coefficient)(x), expected)
    np.testing.assert_array_equal(jax.vmap(noise.round_coefficient)(x), expected)
    assert noise.round_coefficient(2).shape == ()
    assert noise.round_coefficient(jnp.float16(1.5)).dtype == jnp.float32
