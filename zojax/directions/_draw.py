"""Numbers of many leaves drawn at once: compile time does not grow with the number of leaves."""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from zojax import noise
from zojax.directions._direction import floating_leaves
from zojax.noise._bits import FOLD_TAG, threefry_words
from zojax.virtual import Noise, Term
from zojax.virtual._buffer import Slice, in_square, outlined, slices, square_size
from zojax.virtual._noise import DISTRIBUTIONS
from zojax.virtual._stored import Stored

_MOST_STORED = 2**16  # entries of a vector whose noise is stored
_LEAST_COLUMNS = 64  # of a leaf whose row keys are stored: eight bytes a row


@outlined
def _hash(keys, first, second) -> jax.Array:
    return threefry_words(keys[:, 0], keys[:, 1], first, second, axis=1)


def hashed(keys, first, second=FOLD_TAG) -> jax.Array:
    """`noise.fold_in(keys[i], first[i])`, or the key of row `first[i]` where `second` is 0.

    A hash takes XLA long to compile; those of one number of keys are compiled once.

    Args:
        keys: uint32[2] or [n, 2].
        first: integers, (n,).
        second: integer.

    Returns:
        uint32[n, 2].
    """
    first = jnp.asarray(first, jnp.uint32)
    keys = jnp.broadcast_to(noise.words(keys), (*first.shape, 2))
    # numbers that XLA does not know, for it would write the hash of known ones otherwise
    return _hash(*lax.optimization_barrier((keys, first, jnp.full_like(first, second))))


def leaf_key_table(key, count: int) -> jax.Array:
    """A key for each leaf, uint32[count, 2]."""
    return hashed(key, np.arange(count, dtype=np.uint32))


def leaf_keys(key, count: int) -> list[jax.Array]:
    """The same keys, one by one."""

    def keys_of(places):
        return hashed(key, places)

    return [k.get() for k in alike([0] * count, keys_of, lambda keys, part, _: keys[part])]


def alike(kinds: Sequence[Hashable], keys_of: Callable, make: Callable) -> list[Slice]:
    """`make(keys_of([i]), slice(0, 1), kinds[i])[0]` for each i, those of one kind by one call.

    Args:
        kinds: what `make` must know of each, for example a size.
        keys_of: `places -> keys`, a tree of arrays (len(places), ...), of a constant vector of
            places. Called once: all keys are made in the order in which they are used.
        make: `(keys, those that count, a slice of n, kind) -> (n, ...)`.

    Returns:
        Slices of arrays that are stored.
    """
    members: dict[Hashable, list[int]] = {}
    for i, kind in enumerate(kinds):
        members.setdefault(kind, []).append(i)
    if not members:
        return []
    filled = [np.resize(places, square_size(len(places))) for places in members.values()]
    keys, start = keys_of(np.concatenate(filled).astype(np.uint32)), 0
    squares, counts, shapes = [], [], {}
    for kind, places in members.items():
        count, size = len(places), square_size(len(places))

        def draw(keys, kind=kind, count=count, part=slice(start, start + size)):
            made = make(keys, part, kind)
            shapes[kind] = made.shape[1:]
            return in_square(made, count)

        squares.append(outlined(draw)(keys))
        counts.append(count)
        start += size
    found: list[Any] = [None] * len(kinds)
    for places, cut in zip(
        members.values(), slices(squares, counts, [shapes[k] for k in members]), strict=True
    ):
        for i, value in zip(places, cut, strict=True):
            found[i] = value
    return found


def _is_small(shape: tuple[int, ...]) -> bool:
    return 0 < math.prod(shape) <= _MOST_STORED


def independent(key, params, distribution: str) -> list[Term]:
    """A term for each leaf, its entries drawn one by one.

    The noise of vectors is stored, as every token uses it; that of matrices is made where it is
    used, from the keys of their rows where several leaves have as many.
    """
    shapes = [jnp.shape(leaf) for leaf in floating_leaves(params)]
    stored = [i for i, shape in enumerate(shapes) if len(shape) < 2 and _is_small(shape)]
    wide = [i for i, shape in enumerate(shapes) if len(shape) > 1 and shape[-1] >= _LEAST_COLUMNS]
    rows = {i: math.prod(shapes[i][:-1]) for i in wide}
    alike_rows = Counter(rows.values())
    several = [i for i in wide if alike_rows[rows[i]] > 1]
    leaf = np.array([*stored, *several, *range(len(shapes))])
    kinds = [("numbers", math.prod(shapes[i])) for i in stored]
    kinds += [("row keys", rows[i]) for i in several] + [("key", 0)] * len(shapes)

    def keys_of(places):
        """The key of each leaf, and that of its first row."""
        keys = hashed(key, leaf[places])
        return keys, hashed(keys, np.zeros(len(places), np.uint32), 0)

    def make(keys, part, kind):
        (keys, first_rows), (what, size) = keys, kind
        if what == "numbers":
            cols = jnp.arange(size, dtype=jnp.uint32)
            words = first_rows[part, 0, None], first_rows[part, 1, None]
            return DISTRIBUTIONS[distribution](noise.bits_of_row_keys(*words, cols))
        if what == "key":
            return keys[part]
        rows = jnp.arange(size, dtype=jnp.uint32)[None]
        words = keys[part, 0, None], keys[part, 1, None]
        return threefry_words(*words, rows, jnp.zeros_like(rows), axis=1)

    found = iter(alike(kinds, keys_of, make))
    terms: dict[int, Term] = {
        i: Stored.of_numbers(next(found).get().reshape(shapes[i]), distribution) for i in stored
    }
    row_keys = {i: next(found) for i in several}
    keys = [k.get() for k in found]
    return [
        terms[i] if i in terms
        else Noise.of_leaf(keys[i], 1.0, distribution, shape, row_keys.get(i))
        for i, shape in enumerate(shapes)
    ]  # fmt: skip
