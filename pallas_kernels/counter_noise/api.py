"""What a caller sees."""

import jax
import jax.numpy as jnp

from pallas_kernels.counter_noise.kernel import counter_noise_tiles
from pallas_kernels.counter_noise.reference import Distribution


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
        distribution: "rademacher" or "gaussian".
        block: static tile; on a TPU multiples of (8, 128), or at least the whole axis.
        interpret: run in Pallas' interpreter; by default wherever the backend is not a TPU. The
            kernel lowers for TPU; GPUs have the reference, which XLA fuses into its consumer.

    Returns:
        float32 array of that shape.

    Raises:
        ValueError: if a size is below 1 or the distribution is unknown.
        TypeError: if `key_words` is not uint32[2].
    """
    if key_words.shape != (2,) or key_words.dtype != jnp.uint32:
        raise TypeError(
            f"key_words must be uint32[2], found {key_words.dtype}{list(key_words.shape)}; "
            "zojax.noise.words(key) gives them"
        )
    if min(*shape, *block) < 1 or len(shape) != 2 or len(block) != 2:
        raise ValueError(f"shape and block must be two positive sizes, found {shape} and {block}")
    if distribution not in ("rademacher", "gaussian"):
        raise ValueError(f"distribution must be rademacher or gaussian, found {distribution!r}")
    if interpret is None:
        interpret = jax.default_backend() != "tpu"
    origin = jnp.stack([jnp.asarray(x).astype(jnp.uint32) for x in (row, col)])
    block = (min(block[0], shape[0]), min(block[1], shape[1]))
    address = jnp.concatenate([key_words, origin])
    return counter_noise_tiles(address, (shape[0], shape[1]), distribution, block, interpret)
