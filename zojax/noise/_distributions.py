"""Distributions with mean 0 and variance 1, each a pure function of 32 bits."""

import math

import jax
import jax.numpy as jnp

# sin(2 pi b) = sum_k _SINE[k] b^(2k+1) on |b| <= 1/4; the first dropped term is below 6e-8.
_SINE = tuple(
    (-1) ** k * (2 * math.pi) ** (2 * k + 1) / math.factorial(2 * k + 1) for k in range(6)
)


def rademacher(bits: jax.Array) -> jax.Array:
    """-1 or +1 with equal probability, from the highest bit.

    Args:
        bits: uint32 array.

    Returns:
        float32 array of the same shape.
    """
    return 1.0 - 2.0 * (bits >> jnp.uint32(31)).astype(jnp.float32)


def gaussian(bits: jax.Array) -> jax.Array:
    """Standard normal by Box-Muller, `sqrt(-2 log u) cos(2 pi v)`, 16 bits for each of u and v.

    The grid makes |z| <= 4.86, the variance 1 to within 1e-5 and the kurtosis 2.996. The bits are
    the same on every device; the floating-point functions agree to about 1e-6.

    Args:
        bits: uint32 array.

    Returns:
        float32 array of the same shape.
    """
    u = ((bits >> jnp.uint32(16)).astype(jnp.int32).astype(jnp.float32) + 0.5) * 2.0**-16
    v = (bits & jnp.uint32(0xFFFF)).astype(jnp.int32).astype(jnp.float32) * 2.0**-16
    b = jnp.abs(v - 0.5) - 0.25
    b2 = b * b
    sine = jnp.float32(_SINE[-1])
    for coefficient in reversed(_SINE[:-1]):
        sine = sine * b2 + coefficient
    return jnp.sqrt(-2.0 * jnp.log(u)) * (sine * b)
