"""What all kernels share: the noise of a tile from its address, and masks of its edges."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from zojax import noise

Distribution = Literal["rademacher", "nibble_sum", "gaussian"]
DISTRIBUTIONS = {
    "rademacher": noise.rademacher,
    "nibble_sum": noise.nibble_sum,
    "gaussian": noise.gaussian,
}


def check_distribution(name: str) -> None:
    """ValueError if there is no such distribution."""
    if name not in DISTRIBUTIONS:
        raise ValueError(
            f"distribution must be {', '.join(DISTRIBUTIONS)}, found {name!r}; scale by its "
            "standard deviation in the coefficient"
        )


def check_words(name: str, words: jax.Array, shape: tuple[int, ...]) -> None:
    """TypeError if these are no key words of that shape."""
    if words.shape != shape or words.dtype != jnp.uint32:
        raise TypeError(
            f"{name} must be uint32{list(shape)}, found {words.dtype}{list(words.shape)}; "
            "zojax.noise.words(key) gives the words of a key"
        )


def address_of(row: jax.Array | int, col: jax.Array | int) -> jax.Array:
    """uint32[2] of the first row and column, wrapping as the bit rule does."""
    return jnp.stack([
        jnp.uint32(x % 2**32) if isinstance(x, int) else jnp.asarray(x).astype(jnp.uint32)
        for x in (row, col)
    ])  # fmt: skip


def numbers(
    key0: jax.Array,
    key1: jax.Array,
    row: jax.Array,
    col: jax.Array,
    shape: tuple[int, int],
    distribution: str,
) -> jax.Array:
    """float32 noise of the rectangle that starts at (row, col), inside or outside of a kernel.

    Args:
        key0: uint32 scalar, first word of the key.
        key1: uint32 scalar, second word.
        row: uint32 scalar, address of the first row.
        col: uint32 scalar, address of the first column.
        shape: static (rows, columns).
        distribution: of `DISTRIBUTIONS`.
    """
    # a column of rows: their keys are made once for each row of the tile, not for each element
    rows = row + lax.broadcasted_iota(jnp.uint32, (shape[0], 1), 0)
    cols = col + lax.broadcasted_iota(jnp.uint32, (1, shape[1]), 1)
    return DISTRIBUTIONS[distribution](noise.bits_of_words(key0, key1, rows, cols))


def scaled(bits: jax.Array, coefficient: jax.Array, distribution: str) -> jax.Array:
    """`coefficient * DISTRIBUTIONS[distribution](bits)`, with fewer instructions for signs."""
    if distribution != "rademacher":
        return coefficient * DISTRIBUTIONS[distribution](bits)
    sign = bits & jnp.uint32(2**31)
    return lax.bitcast_convert_type(
        lax.bitcast_convert_type(coefficient, jnp.uint32) ^ sign, jnp.float32
    )


def inside(start: jax.Array, size: int, shape: tuple[int, ...], axis: int) -> jax.Array:
    """Which elements of a tile that starts at `start` are below `size` along an axis."""
    return start + lax.broadcasted_iota(jnp.int32, shape, axis) < size


def round_to(value: jax.Array, dtype) -> jax.Array:
    """float32 rounded to nearest in a dtype, also where XLA would keep more precision."""
    if dtype == jnp.float32:
        return value
    info = jnp.finfo(dtype)
    return lax.reduce_precision(value, info.nexp, info.nmant).astype(dtype)


def like(shape: tuple[int, ...], dtype, *args: jax.Array) -> jax.ShapeDtypeStruct:
    """Of a result that varies over the manual mesh axes that any argument varies over."""
    types = [jax.typeof(a).mat for a in args]
    varying = frozenset().union(*(t.varying for t in types))
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=type(types[0])(varying=varying))
