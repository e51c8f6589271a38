"""The bit rule: (key, row, col) -> 32 bits. Frozen by golden vectors in the tests.

Changing anything here changes every stored journal. The code uses nothing but uint32 adds,
multiplies, shifts and xors, which every backend and every Pallas lowering has.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_ROUNDS = 13
COLUMN = 0x9E3779B9  # times a column: what it adds to the first word of its row's key
FOLD_TAG = 0x7A6F6A61


def _u32(x) -> jax.Array:
    return jnp.uint32(x) if isinstance(x, int) else jnp.asarray(x).astype(jnp.uint32)


def threefry2x32(key0, key1, x0, x1) -> tuple[jax.Array, jax.Array]:
    """Threefry-2x32 with 13 rounds, the fewest that pass BigCrush (Salmon et al., SC 2011)."""
    schedule = (key0, key1, key0 ^ key1 ^ jnp.uint32(0x1BD11BDA))
    # in this order, into which XLA would bring known x, and so for all x
    x0, x1 = schedule[0] + x0, schedule[1] + x1
    for i in range(_ROUNDS):
        rotation = _ROTATIONS[(i // 4) % 2][i % 4]
        x0 = x0 + x1
        x1 = (x1 << jnp.uint32(rotation)) | (x1 >> jnp.uint32(32 - rotation))
        x1 = x1 ^ x0
        if i % 4 == 3:
            injection = i // 4 + 1
            x0 = x0 + schedule[injection % 3]
            x1 = x1 + schedule[(injection + 1) % 3] + jnp.uint32(injection)
    return x0, x1


def threefry_words(key0, key1, x0, x1, axis: int) -> jax.Array:
    """Both words of `threefry2x32`, along a new axis.

    Where they are stacked XLA compiles the hash once for each of them.
    """
    first, second = threefry2x32(key0, key1, x0, x1)
    shape = list(first.shape)
    shape.insert(axis % (first.ndim + 1), 2)
    is_first = lax.broadcasted_iota(jnp.uint32, shape, axis % len(shape)) == 0
    return jnp.where(is_first, jnp.expand_dims(first, axis), jnp.expand_dims(second, axis))


def words(key: jax.Array) -> jax.Array:
    """The two words of a key.

    Args:
        key: a typed key (`jax.random.key`) of any implementation, or uint32[..., 2] words.

    Returns:
        uint32[..., 2].
    """
    data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    if data.dtype != jnp.uint32 or data.shape[-1] not in (2, 4):
        raise TypeError(
            f"expected a typed key or uint32 words of shape (..., 2), found {data.dtype}"
            f"{list(data.shape)}; make a key with jax.random.key(seed)"
        )
    if data.shape[-1] == 2:
        return data
    return threefry_words(*(data[..., i] for i in range(4)), axis=-1)


def fold_in(key: jax.Array, data) -> jax.Array:
    """A new key from a key and an integer: `threefry(key, (data, tag))`.

    Args:
        key: typed key or uint32[2] words.
        data: integer in [0, 2**32), any shape.

    Returns:
        uint32 words, shape of `data` + (2,).
    """
    w = words(key)
    tag = jnp.full(jnp.shape(data), FOLD_TAG, jnp.uint32)
    return threefry_words(w[..., 0], w[..., 1], _u32(data), tag, axis=-1)


def row_keys(key: jax.Array, rows) -> tuple[jax.Array, jax.Array]:
    """Two words for each row, `threefry(key, (row, 0))`; computed once per row.

    Args:
        key: typed key or uint32[2] words.
        rows: integers in [0, 2**32), any shape.

    Returns:
        Two uint32 arrays of the shape of `rows`.
    """
    w = words(key)
    rows = _u32(rows)
    return threefry2x32(w[0], w[1], rows, jnp.zeros_like(rows))


def bits(key: jax.Array, rows, cols) -> jax.Array:
    """32 random bits for each element (row, col).

    Args:
        key: typed key or uint32[2] words.
        rows: integers in [0, 2**32).
        cols: integers in [0, 2**32), broadcastable with `rows`.

    Returns:
        uint32 array of the broadcast shape.

    >>> import jax.numpy as jnp
    >>> from zojax import noise
    >>> words = jnp.array([1, 2], jnp.uint32)
    >>> [hex(b) for b in noise.bits(words, 0, jnp.arange(2)).tolist()]
    ['0x5aa681fa', '0xac95ed6e']
    """
    w = words(key)
    return bits_of_words(w[0], w[1], rows, cols)


def bits_of_words(key0: jax.Array, key1: jax.Array, rows, cols) -> jax.Array:
    """`bits` of a key in two scalars, for kernels, where a key is no array of its own.

    Args:
        key0: first uint32 word.
        key1: second uint32 word.
        rows: as for `bits`.
        cols: as for `bits`.

    Returns:
        uint32 array of the broadcast shape.
    """
    rows = _u32(rows)
    return _mix(*threefry2x32(key0, key1, rows, jnp.zeros_like(rows)), cols)


def bits_of_row_keys(key0: jax.Array, key1: jax.Array, cols) -> jax.Array:
    """The bits of rows whose keys are known: `bits` without its hash.

    Args:
        key0: first word of the key of each element's row, as from `row_keys`.
        key1: second word.
        cols: as for `bits`, broadcastable with the words.

    Returns:
        uint32 array of the broadcast shape.
    """
    return _mix(key0, key1, cols)


def top_bits_of_row_keys(key0: jax.Array, key1: jax.Array, cols) -> jax.Array:
    """`bits_of_row_keys`, of which only the highest 15 bits are right; in fewer operations.

    Args:
        key0, key1, cols: as for `bits_of_row_keys`.

    Returns:
        uint32 array of the broadcast shape.
    """
    return _multiplied(key0, key1, cols)


def stacked_bits(keys: jax.Array, rows: int, cols: int) -> jax.Array:
    """The bits of many leaves of one size, in one call.

    Args:
        keys: uint32[leaves, 2] words.
        rows: static number of rows of each leaf.
        cols: static number of columns of each leaf.

    Returns:
        uint32 (leaves, rows, cols): `leaf_bits(keys[i], (rows, cols))` for each i in turn.
    """
    row = jnp.arange(rows, dtype=jnp.uint32)[None, :, None]
    key0, key1 = keys[:, 0, None, None], keys[:, 1, None, None]
    return bits_of_words(key0, key1, row, jnp.arange(cols, dtype=jnp.uint32))


def _mix(r0: jax.Array, r1: jax.Array, cols) -> jax.Array:
    x = _multiplied(r0, r1, cols)
    return x ^ (x >> jnp.uint32(15))


def _multiplied(r0: jax.Array, r1: jax.Array, cols) -> jax.Array:
    x = _u32(cols) * jnp.uint32(COLUMN) + r0
    x = x ^ (x >> jnp.uint32(16))
    x = x * jnp.uint32(0x21F0AAAD)
    x = x ^ (x >> jnp.uint32(15))
    x = x + r1
    return x * jnp.uint32(0xD35A2D97)


def leaf_bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """32 random bits for every element of a leaf: last axis columns, all others rows.

    Args:
        key: typed key or uint32[2] words.
        shape: static shape of the leaf.

    Returns:
        uint32 array of that shape.

    Raises:
        ValueError: if there are 2**32 or more rows or columns.
    """
    if max(math.prod(shape[:-1]), *shape[-1:], 0) >= 2**32:
        raise ValueError(
            f"a leaf of shape {shape} has 2**32 or more rows or columns; noise addresses at most "
            "2**32 - 1 of each: reshape the leaf so that both fit"
        )
    if not shape or 0 in shape:
        return jnp.zeros(shape, jnp.uint32) if 0 in shape else bits(key, 0, 0)
    rows = jnp.arange(math.prod(shape[:-1]), dtype=jnp.uint32)[:, None]
    return bits(key, rows, jnp.arange(shape[-1], dtype=jnp.uint32)[None]).reshape(shape)
