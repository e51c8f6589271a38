"""Numbers of many leaves drawn at once: compile time does not grow with the number of leaves."""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zojax import noise
from zojax.directions._direction import floating_leaves
from zojax.virtual import Noise, Term
from zojax.virtual._buffer import Slice, outlined, slices, stack_size
from zojax.virtual._noise import DISTRIBUTIONS
from zojax.virtual._stored import Stored

_MOST_STORED = 2**16  # entries of a vector whose noise is stored
_LEAST_COLUMNS = 64  # of a leaf whose row keys are stored: eight bytes a row


def leaf_key_table(key, count: int) -> jax.Array:
    """A key for each leaf, uint32[count, 2]."""
    return noise.fold_in(key, jnp.arange(count, dtype=jnp.uint32))


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
    stacks = []
    for kind, places in members.items():
        filled = np.resize(places, stack_size(len(places)))
        stacks.append(outlined(lambda keys, kind=kind: make(keys, kind))(keys[filled]))
    found: list[Any] = [None] * len(kinds)
    counts = [len(places) for places in members.values()]
    for places, cut in zip(members.values(), slices(stacks, counts), strict=True):
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
    hashed = [i for i in wide if alike_rows[rows[i]] > 1]
    kinds = [("numbers", math.prod(shapes[i])) for i in stored]
    kinds += [("row keys", rows[i]) for i in hashed] + [("key", 0)] * len(shapes)

    def make(keys, kind):
        what, size = kind
        if what == "numbers":
            return DISTRIBUTIONS[distribution](noise.stacked_bits(keys, 1, size)[:, 0])
        if what == "key":
            return keys
        words = jax.vmap(noise.row_keys, (0, None))(keys, jnp.arange(size))
        return jnp.stack(words, axis=1)

    found = iter(alike(table[np.array([*stored, *hashed, *range(len(shapes))])], kinds, make))
    terms: dict[int, Term] = {
        i: Stored.of_numbers(next(found).get().reshape(shapes[i]), distribution) for i in stored
    }
    row_keys = {i: next(found) for i in hashed}
    keys = [k.get() for k in found]
    return [
        terms[i] if i in terms
        else Noise.of_leaf(keys[i], 1.0, distribution, shape, row_keys.get(i))
        for i, shape in enumerate(shapes)
    ]  # fmt: skip
