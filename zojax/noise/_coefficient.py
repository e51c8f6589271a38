"""Coefficients so short that their products with integer noise are exact."""

import jax
import jax.numpy as jnp
from jax import lax

_DROPPED = 10  # of float32's 23 mantissa bits
_INFINITY = 0x7F800000


def round_coefficient(coefficient) -> jax.Array:
    """A float32 rounded to 13 mantissa bits, to nearest, ties to even.

    `c * n` is then exact in float32 for every integer |n| <= 1024, so for Rademacher signs and
    nibble sums: `w + c * n` has one rounding, whether a compiler contracts it to a fused
    multiply-add or not. That makes updates the same bits on every device and in every layout.
    The relative error is at most 2**-14 for normal numbers; subnormals are rounded to multiples
    of 2**-139, a number within half a step of the largest overflows to infinity, and NaN,
    infinities and the sign of zero pass.

    Args:
        coefficient: real scalar or array, taken as float32.

    Returns:
        float32 array of the same shape.

    >>> from zojax import noise
    >>> float(noise.round_coefficient(1 + 2**-13)), float(noise.round_coefficient(1 + 2**-14))
    (1.0001220703125, 1.0)

    Its derivative is taken to be one, that of the coefficient.
    """
    return _rounded(jnp.asarray(coefficient, jnp.float32))


@jax.custom_jvp
def _rounded(coefficient: jax.Array) -> jax.Array:
    # integer arithmetic, which no compiler takes for a multiplication that it may move
    bits = lax.bitcast_convert_type(coefficient, jnp.uint32)
    half = jnp.uint32(2 ** (_DROPPED - 1) - 1)
    rounded = bits + half + ((bits >> jnp.uint32(_DROPPED)) & jnp.uint32(1))
    rounded = rounded & jnp.uint32(2**32 - 2**_DROPPED)
    finite = (bits & jnp.uint32(0x7FFFFFFF)) < jnp.uint32(_INFINITY)
    return lax.bitcast_convert_type(jnp.where(finite, rounded, bits), jnp.float32)


@_rounded.defjvp
def _rounded_jvp(primals, tangents):
    return _rounded(*primals), tangents[0]
