"""The same numbers in plain JAX."""

import jax

from pallas_kernels._tile import Distribution, address_of, numbers


def counter_noise_reference(
    key_words: jax.Array,
    shape: tuple[int, int],
    *,
    row: jax.Array | int = 0,
    col: jax.Array | int = 0,
    distribution: Distribution,
) -> jax.Array:
    """Noise of the rectangle that starts at (row, col); arguments as for `counter_noise`."""
    address = address_of(row, col)
    return numbers(key_words[0], key_words[1], address[0], address[1], shape, distribution)
