"""Two 4-bit codes a byte, without interleaving.

Within each atom of rows, byte row i holds row i in its low half and row i + atom/2 in its high
half: unpacking is two masks and a concatenation, and a kernel takes the halves as two products.
"""

import jax
import jax.numpy as jnp
from jax import lax

_ATOM = 128


def atom_of(length: int) -> int:
    """Rows packed together: 128 if that divides the axis, else all of them, made even."""
    return _ATOM if length % _ATOM == 0 else length + length % 2


def pack(codes: jax.Array, axis: int) -> jax.Array:
    """uint8 codes below 16 to half as many bytes along an axis.

    Args:
        codes: uint8 (..., K, ...).
        axis: of K; an odd K is padded with one zero.

    Returns:
        uint8 (..., ceil(K / 2), ...).
    """
    axis = axis % codes.ndim
    length = codes.shape[axis]
    atom = atom_of(length)
    if length % 2:
        codes = jnp.pad(codes, [(0, int(i == axis)) for i in range(codes.ndim)])
    low, high = jnp.split(_atoms(codes, axis, atom), 2, axis + 1)
    return _merged(low | (high << 4), axis)


def unpack(packed: jax.Array, axis: int, length: int) -> jax.Array:
    """The inverse of `pack`.

    Args:
        packed: uint8 (..., ceil(K / 2), ...).
        axis: of K.
        length: K.

    Returns:
        uint8 (..., K, ...), below 16.
    """
    axis = axis % packed.ndim
    bytes_ = _atoms(packed, axis, atom_of(length) // 2)
    codes = _merged(jnp.concatenate([bytes_ & 15, bytes_ >> 4], axis + 1), axis)
    return lax.slice_in_dim(codes, 0, length, axis=axis)


def unpack_rows(packed: jax.Array, axis: int, length: int, index: jax.Array) -> jax.Array:
    """Single rows of what `unpack` gives: `take(unpack(packed), index, axis)`.

    Args:
        packed: uint8 (..., ceil(K / 2), ...).
        axis: of K.
        length: K.
        index: int32[n] below K.
    """
    axis = axis % packed.ndim
    atom = atom_of(length)
    half, place = atom // 2, index % atom
    found = jnp.take(packed, index // atom * half + place % half, axis=axis)
    shift = jnp.where(place < half, 0, 4).astype(jnp.uint8)
    return (found >> shift.reshape(-1, *(1,) * (packed.ndim - 1 - axis))) & 15


def _atoms(array: jax.Array, axis: int, size: int) -> jax.Array:
    return array.reshape(*array.shape[:axis], -1, size, *array.shape[axis + 1 :])


def _merged(array: jax.Array, axis: int) -> jax.Array:
    return array.reshape(*array.shape[:axis], -1, *array.shape[axis + 2 :])
