"""What a caller sees. There is no kernel: XLA makes one fusion of this, in place where donated."""

import jax
import jax.numpy as jnp

from pallas_kernels._tile import Distribution, address_of, check_distribution, check_words
from pallas_kernels.perturbed_update.reference import perturbed_update_reference


def perturbed_update(
    w: jax.Array,
    key_words: jax.Array,
    coefficients: jax.Array,
    *,
    row: jax.Array | int = 0,
    col: jax.Array | int = 0,
    distribution: Distribution,
    rounding_key: jax.Array | None = None,
) -> jax.Array:
    """`w + sum_s coefficients[s] * Z_s`, read and written once.

    `Z_s[i, j] = distribution(bits(key_words[s], row + i, col + j))`. The sum is made in float32, in
    the order of the directions, and rounded once to the dtype of w. Up to 16 directions are one
    fusion over w, which takes the place of w where that is donated; of more, 16 at a time go over a
    float32 copy. Integer noise with coefficients from `zojax.noise.round_coefficient` gives the
    same bits on every device and in every layout.

    There is no Pallas kernel: a kernel would read and write the same bytes and draw the same bits.

    Args:
        w: float32 or bfloat16 [R, C].
        key_words: uint32 [S, 2], as from `zojax.noise.words`.
        coefficients: float32 [S].
        row: uint32 address of the first row of w in its leaf; may be traced.
        col: uint32 address of the first column; may be traced.
        distribution: "rademacher", "nibble_sum" or "gaussian", as in `zojax.noise`; not scaled.
        rounding_key: uint32 [2] words; rounds bfloat16 stochastically, with the bits of this key at
            the same addresses: up with the probability that makes the expectation exact. None
            rounds to nearest.

    Returns:
        Like w.

    Raises:
        ValueError: if w is not two-dimensional, the distribution is unknown, or float32 is to be
            rounded stochastically.
        TypeError: if dtypes are others than those above.
    """
    check_distribution(distribution)
    if w.ndim != 2:
        raise ValueError(
            f"w must be two-dimensional, found {w.shape}; reshape all but the last axis"
        )
    if w.dtype not in (jnp.float32, jnp.bfloat16):
        raise TypeError(f"w must be float32 or bfloat16, found {w.dtype}")
    if coefficients.ndim != 1 or coefficients.dtype != jnp.float32:
        raise TypeError(
            f"coefficients must be float32[S], found {coefficients.dtype}{list(coefficients.shape)}"
        )
    check_words("key_words", key_words, (coefficients.shape[0], 2))
    if rounding_key is not None:
        check_words("rounding_key", rounding_key, (2,))
        if w.dtype != jnp.bfloat16:
            raise ValueError(f"{w.dtype} is not rounded stochastically; pass no rounding_key")
    return perturbed_update_reference(
        w, key_words, coefficients, address_of(row, col), distribution=distribution,
        rounding_key=rounding_key,
    )  # fmt: skip
