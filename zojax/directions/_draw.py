"""Numbers of many leaves drawn at once: compile time does not grow with the number of leaves."""

from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zojax import noise
from zojax.directions._direction import floating_leaves
from zojax.directions._segments import Layout, segments
from zojax.noise._bits import COLUMN, FOLD_TAG, threefry_words
from zojax.virtual import Noise, Term
from zojax.virtual._buffer import barrier_but_on_cpu, outlined
from zojax.virtual._noise import CHEAP, numbers_of
from zojax.virtual._row_keys import RowKeys, Run
from zojax.virtual._slices import Slice, in_square, slices, square_size, unknown_places
from zojax.virtual._stored import Stored


@outlined
def _hash(keys, first, second) -> jax.Array:
    return threefry_words(keys[..., 0], keys[..., 1], first, second, axis=1)


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
    keys, second = noise.words(keys), jnp.uint32(second)
    if keys.ndim > 1:  # of many as an array too, so that any two such hashes are one computation
        second = jnp.broadcast_to(second, first.shape)
    # numbers that XLA does not know, for it would write the hash of known ones otherwise
    return _hash(*barrier_but_on_cpu((keys, first, second)))


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
            return in_square(made.reshape(made.shape[0], -1), count)

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


def independent(key, params, distribution: str) -> list[Term]:
    """A term for each leaf, its entries drawn one by one.

    The noise of vectors is stored, as every token uses it; that of matrices is made where it is
    used, from the keys of their rows, which are stored for several leaves together.
    """
    shapes = tuple(jnp.shape(leaf) for leaf in floating_leaves(params))
    found = segments(shapes, together=distribution not in CHEAP)
    own, stored, starts = _stored(key, found, len(shapes), distribution)
    terms: dict[int, Term] = {}
    row_keys: dict[int, RowKeys] = {}
    for layout, members in found.items():
        for i, leaves in enumerate(members):
            for leaf, part, run, place in zip(
                leaves, layout.parts, layout.run_of, layout.places, strict=True
            ):
                if leaf < 0:
                    continue
                start = starts[place] if place in layout.shared_places else None
                if run in layout.stored:
                    values = stored[layout, run][i].part(
                        place if start is None else start, part.keys
                    )
                    terms[leaf] = Stored.of_part(values, distribution, shapes[leaf])
                else:
                    segment, known = stored[layout, None][i], place if start is None else None
                    row_keys[leaf] = RowKeys(segment, start, known, part.rows, part.blocks, run)
    return [
        terms[i] if i in terms
        else Noise.of_leaf(own[i].get(), 1.0, distribution, shape, row_keys.get(i))
        for i, shape in enumerate(shapes)
    ]  # fmt: skip


def _stored(
    key, found: dict[Layout, list[tuple[int, ...]]], count: int, distribution: str
) -> tuple[list[Slice], dict[tuple[Layout, Run | None], list[Slice]], dict[int, jax.Array]]:
    """The key of each leaf; of each segment the keys of rows, at None, and the numbers of its
    stored runs; and the places that segments share, as XLA sees them."""
    leaves = [np.resize(m, (square_size(len(m)), len(m[0]))) for m in found.values()]
    leaves.append(np.resize(np.arange(count), (square_size(count), 1)))
    # the same key may be made twice: so a segment's lie next to each other
    table = hashed(key, np.maximum(np.concatenate([a.ravel() for a in leaves]), 0))
    start, squares, counts, sizes = 0, {}, [], []
    for layout, members in found.items():
        keys = _row_keys(layout, len(members), start)(table)
        start += square_size(len(members)) * len(layout.parts)
        squares[layout, None] = keys
        sizes.append((layout.keys, 2))
        for run in layout.stored:
            squares[layout, run] = _numbers(run, len(members), distribution)(keys)
            sizes.append((run.count, run.width))
        counts += [len(members)] * (1 + len(layout.stored))
    arrays = [*squares.values(), in_square(table[start:], count)]
    shared = {place for layout in found for place in layout.shared_places}
    at = unknown_places(arrays, sorted(shared))
    *cut, own = slices(arrays, [*counts, count], [*sizes, (2,)], at)
    return own, dict(zip(squares, cut, strict=True)), at.starts


@lru_cache(maxsize=64)
def _row_keys(layout: Layout, count: int, start: int) -> Callable:
    """From the keys of leaves those of their rows, for segments of one layout, in a square."""
    size, parts = square_size(count), layout.parts

    def make(table):
        keys = table[start : start + size * len(parts)].reshape(size, -1, 2)
        row, steps = jnp.arange(layout.keys, dtype=jnp.uint32), np.zeros((), np.uint32)
        if len(parts) > 1:
            part = np.repeat(np.arange(len(parts)), [p.keys for p in parts])
            keys = keys.at[:, part].get(mode="promise_in_bounds")
            rows = [np.repeat(np.arange(p.rows, dtype=np.uint32), p.blocks) for p in parts]
            row = jnp.asarray(np.concatenate(rows))
            # the bit rule adds to the first word what is proportional to the column
            of_blocks = [np.tile(np.arange(p.blocks) * p.width, p.rows) for p in parts]
            steps = (np.concatenate(of_blocks) * COLUMN % 2**32).astype(np.uint32)
        found = threefry_words(keys[..., 0], keys[..., 1], row, jnp.zeros_like(row), axis=2)
        if steps.any():
            found = found + np.stack([steps, np.zeros_like(steps)], 1)
        return in_square(found, count)

    return outlined(make)


@lru_cache(maxsize=64)
def _numbers(run: Run, count: int, distribution: str) -> Callable:
    """The numbers of a run of each segment, in a square, from its keys in one."""

    def make(keys):
        words = keys.reshape(square_size(count), -1, 2)[:, run.first : run.first + run.count]
        cols = jnp.arange(run.width, dtype=jnp.uint32)
        found = numbers_of(distribution, (words[..., 0, None], words[..., 1, None]), cols)
        return in_square(found, count)

    return outlined(make)
