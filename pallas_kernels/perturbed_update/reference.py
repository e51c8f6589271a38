"""The update in plain JAX, which is also what runs."""

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels._tile import numbers, round_to
from zojax import noise

# directions in one fusion; more compile slowly
_UNROLLED = 16
_BELOW = 2**16 - 1  # bits of float32 that bfloat16 has not


def perturbed_update_reference(
    w: jax.Array,
    key_words: jax.Array,
    coefficients: jax.Array,
    address: jax.Array,
    *,
    distribution: str,
    rounding_key: jax.Array | None,
) -> jax.Array:
    """Arguments as for `perturbed_update`, with `address` the uint32[2] of (row, col)."""
    shape, (row, col) = (w.shape[0], w.shape[1]), (address[0], address[1])

    def add(total, words, coefficients):
        for k, c in zip(words, coefficients, strict=True):
            total = total + c * numbers(k[0], k[1], row, col, shape, distribution)
        return total

    total, count = w.astype(jnp.float32), key_words.shape[0]
    whole = (count - 1) // _UNROLLED * _UNROLLED
    if whole > 0:
        chunks = (
            key_words[:whole].reshape(-1, _UNROLLED, 2),
            coefficients[:whole].reshape(-1, _UNROLLED),
        )
        total, _ = lax.scan(lambda total, chunk: (add(total, *chunk), None), total, chunks)
    total = add(total, key_words[whole:], coefficients[whole:])
    if rounding_key is None:
        return round_to(total, w.dtype)
    rows = row + lax.broadcasted_iota(jnp.uint32, (shape[0], 1), 0)
    cols = col + lax.broadcasted_iota(jnp.uint32, (1, shape[1]), 1)
    return _round_stochastically(total, noise.bits(rounding_key, rows, cols))


def _round_stochastically(total: jax.Array, bits: jax.Array) -> jax.Array:
    """To bfloat16: a random number is added below the last bit that is kept, the rest is cut."""
    raw = lax.bitcast_convert_type(total, jnp.uint32)
    kept = (raw + (bits & jnp.uint32(_BELOW))) & jnp.uint32(2**32 - 1 - _BELOW)
    rounded = lax.bitcast_convert_type(kept, jnp.float32)
    return jnp.where(jnp.isfinite(total), rounded, total).astype(jnp.bfloat16)
