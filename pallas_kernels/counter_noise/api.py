"""What a caller sees."""

import jax
import jax.numpy as jnp

from pallas_kernels._tile import Distribution, address_of, check_distribution, check_words
from pallas_kernels.counter_noise.tpu import counter_noise_tpu


def counter_noise(
    key_words: jax.Array,
    shape: tuple[int, int],
    *,
    row: jax.Array | int = 0,
    col: jax.Array | int = 0,
    distribution: Distribution,
    block: tuple[int, int] = (256, 512),
    interpret: bool | None = None,
) -> jax.Array:
    """Noise of a rectangle of a leaf, the same bits as `zojax.noise` in any tiling.

    Args:
        key_words: uint32[2].
        shape: static (rows, columns), of any size.
        row: uint32 address of the first row.
        col: uint32 address of the first column.
        distribution: "rademacher", "nibble_sum" or "gaussian".
        block: static tile; on a TPU multiples of (8, 128), or at least the whole axis.
        interpret: run in Pallas' interpreter; by default wherever the backend is not a TPU. The
            kernel lowers for TPU; GPUs have the reference, which XLA fuses into its consumer.

    Returns:
        float32 array of that shape.

    Raises:
        ValueError: if a size is below 1, or the distribution is unknown.
        TypeError: if `key_words` is not uint32[2].
    """
    check_words("key_words", key_words, (2,))
    check_distribution(distribution)
    if min(*shape, *block) < 1 or len(shape) != 2 or len(block) != 2:
        raise ValueError(f"shape and block must be two positive sizes, found {shape} and {block}")
    if interpret is None:
        interpret = jax.default_backend() != "tpu"
    block = (min(block[0], shape[0]), min(block[1], shape[1]))
    address = jnp.concatenate([key_words, address_of(row, col)])
    return counter_noise_tpu(address, (shape[0], shape[1]), distribution, block, interpret)
