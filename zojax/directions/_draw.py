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
from zojax.noise._bits import FOLD_TAG, threefry2x32
from zojax.virtual import Noise, Term
from zojax.virtual._buffer import Slice, in_square, outlined, slices, square_size
from zojax.virtual._noise import DISTRIBUTIONS
from zojax.virtual._stored import Stored

_MOST_STORED = 2**16  # entries of a vector whose noise is stored
_LEAST_COLUMNS = 64  # of a leaf whose row keys are stored: eight bytes a row


@outlined
def _hash(keys, first, second) -> jax.Array:
    return jnp.stack(threefry2x32(keys[:, 0], keys[:, 1], first, second), axis=1)


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
    return [k.get() for k in alike(leaf_key_table(key, count), [0] * count, lambda keys, _: keys)]


def alike(keys: jax.Array, kinds: Sequence[Hashable], make: Callable) -> list[Slice]:
    """`make(keys[i : i + 1], kinds[i])[0]` for each i, those of one kind by one call.

    Args:
        keys: (count, ...).
        kinds: what `make` must know of each, for example a size.
        make: `(keys (n, ...), kind) -> (n, ...)`.

    Returns:
        Slices of arrays that are stored.
    """
    members: dict[Hashable, list[int]] = {}
    for i, kind in enumerate(kinds):
        members.setdefault(kind, []).append(i)
    squares, counts, shapes = [], [], []
    for kind, places in members.items():
        filled, count = np.resize(places, square_size(len(places))), len(places)

        def draw(keys, kind=kind, count=count):
            return in_square(make(keys, kind), count)

        squares.append(outlined(draw)(keys[filled]))
        counts.append(count)
        shapes.append(jax.eval_shape(lambda k, kind=kind: make(k, kind)[0], keys[:1]).shape)
    found: list[Any] = [None] * len(kinds)
    for places, cut in zip(members.values(), slices(squares, counts, shapes), strict=True):
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
    table = leaf_key_table(key, len(shapes))
    stored = [i for i, shape in enumerate(shapes) if len(shape) < 2 and _is_small(shape)]
    wide = [i for i, shape in enumerate(shapes) if len(shape) > 1 and shape[-1] >= _LEAST_COLUMNS]
    rows = {i: math.prod(shapes[i][:-1]) for i in wide}
    alike_rows = Counter(rows.values())
    several = [i for i in wide if alike_rows[rows[i]] > 1]
    kinds = [("numbers", math.prod(shapes[i])) for i in stored]
    kinds += [("row keys", rows[i]) for i in several] + [("key", 0)] * len(shapes)
    first_rows = hashed(table, np.zeros(len(shapes), np.uint32), 0)

    def make(keys, kind):
        what, size = kind
        if what == "numbers":
            cols = jnp.arange(size, dtype=jnp.uint32)
            words = keys[:, 0, None], keys[:, 1, None]
            return DISTRIBUTIONS[distribution](noise.bits_of_row_keys(*words, cols))
        if what == "key":
            return keys
        words = jax.vmap(noise.row_keys, (0, None))(keys, jnp.arange(size))
        return jnp.stack(words, axis=1)

    places = [*(len(shapes) + i for i in stored), *several, *range(len(shapes))]
    keys = jnp.concatenate([table, first_rows])[np.array(places)]
    found = iter(alike(keys, kinds, make))
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
