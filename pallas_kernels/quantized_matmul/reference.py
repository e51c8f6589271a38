"""The same in plain JAX: the weights decoded, then multiplied."""

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels._tile import round_to

HALF = 64  # rows in each half of an atom of 128 rows


def quantized_matmul_reference(
    x: jax.Array,
    codes: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    table: jax.Array | None,
    entries: tuple[jax.Array, jax.Array] | None,
    *,
    levels: tuple[float, ...] | None,
    out_dtype,
) -> jax.Array:
    """`x[s] @ decode(codes, scales[s])`, entries set in the decoded weights.

    Arguments as for `quantized_matmul`, with scales [S or 1, G, N] and values of entries
    [S or 1, E].
    """
    number = decode(codes, x.shape[2], levels, zeros, table)
    many = max(scales.shape[0], 1 if entries is None else entries[1].shape[0])

    def weight(s):
        w = _scaled(number, scales[min(s, scales.shape[0] - 1)], x.dtype)
        if entries is None:
            return w
        index, values = entries[0], entries[1][min(s, entries[1].shape[0] - 1)]
        return (
            w.reshape(-1)
            .at[index]
            .set(round_to(values.astype(jnp.float32), w.dtype))
            .reshape(w.shape)
        )

    def product(x, w):
        dimensions = (((x.ndim - 1,), (0,)), ((), ()))
        out = lax.dot_general(x, w, dimensions, preferred_element_type=jnp.float32)
        return out.astype(out_dtype)

    if many == 1:
        return product(x, weight(0))
    return jnp.stack([product(x[s], weight(s)) for s in range(many)])


def decode(
    codes: jax.Array,
    length: int,
    levels: tuple[float, ...] | None,
    zeros: jax.Array | None,
    table: jax.Array | None,
) -> jax.Array:
    """What codes stand for before they are multiplied by their scales.

    Args:
        codes: int8 [K, N], or uint8 [ceil(K / 2), N], two 4-bit codes a byte.
        length: K.
        levels: 16 numbers, for codes of 4 bits without zeros and table.
        zeros: int8 [G, N], subtracted from 4-bit codes.
        table: float32 [16, N], each column's own levels.

    Returns:
        float32 [K, N].
    """
    if codes.dtype == jnp.int8:
        return codes.astype(jnp.float32)
    low_high = jnp.stack([codes & 15, codes >> 4])
    half = HALF if length % (2 * HALF) == 0 else codes.shape[0]
    atoms = low_high.reshape(2, -1, half, codes.shape[1]).transpose(1, 0, 2, 3)
    codes = atoms.reshape(-1, codes.shape[1])[:length]
    if table is not None:
        rows = table.astype(jnp.float32)
        return choose(codes, [rows[i : i + 1] for i in range(16)])
    if zeros is not None:
        each = jnp.repeat(zeros.astype(jnp.float32), length // zeros.shape[0], axis=0)
        return codes.astype(jnp.float32) - each
    assert levels is not None
    return of_levels(codes, levels)


def of_levels(codes: jax.Array, levels: tuple[float, ...]) -> jax.Array:
    """float32 levels of 4-bit codes; those that are consecutive integers by a subtraction."""
    if all(b - a == 1 for a, b in zip(levels, levels[1:], strict=False)):
        return codes.astype(jnp.float32) + jnp.float32(levels[0])
    return choose(codes, [jnp.float32(x) for x in levels])


def choose(codes: jax.Array, levels: list[jax.Array]) -> jax.Array:
    """`levels[codes]` by comparing bits, which is elementwise, and needs no lookup in a kernel."""
    for bit in range(4):
        is_set = (codes & (1 << bit)) != 0
        levels = [
            jnp.where(is_set, high, low)
            for low, high in zip(levels[::2], levels[1::2], strict=True)
        ]
    return levels[0]


def _scaled(number: jax.Array, scales: jax.Array, dtype) -> jax.Array:
    groups = scales.shape[0]
    grouped = number.reshape(groups, -1, number.shape[1])
    whole = (grouped * scales.astype(jnp.float32)[:, None]).reshape(number.shape)
    return round_to(whole, dtype)
