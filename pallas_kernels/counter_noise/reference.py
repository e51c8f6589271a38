"""The same numbers in plain JAX."""

from typing import Literal

import jax
import jax.numpy as jnp

from zojax import noise

Distribution = Literal["rademacher", "gaussian"]


def counter_noise_reference(
    key_words: jax.Array,
    shape: tuple[int, int],
    *,
    row: jax.Array | int = 0,
    col: jax.Array | int = 0,
    distribution: Distribution,
) -> jax.Array:
    """Noise of the rectangle that starts at (row, col); arguments as for `counter_noise`."""
    rows = jnp.asarray(row).astype(jnp.uint32) + jnp.arange(shape[0], dtype=jnp.uint32)
    cols = jnp.asarray(col).astype(jnp.uint32) + jnp.arange(shape[1], dtype=jnp.uint32)
    bits = noise.bits(key_words, rows[:, None], cols[None])
    return {"rademacher": noise.rademacher, "gaussian": noise.gaussian}[distribution](bits)
