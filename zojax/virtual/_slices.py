"""Many small arrays, stored together and cut out where they are used."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["square", "row", "column", "start"],
    meta_fields=["shape"],
)
@dataclass(frozen=True)
class Slice:
    """One of many small arrays that are stored in a square, or a part, cut out where it is used."""

    square: jax.Array
    row: jax.Array
    column: jax.Array
    start: jax.Array | None
    shape: tuple[int, ...]

    def get(self) -> jax.Array:
        """The slice."""
        zero = np.uint32(0)
        start, sizes = (
            (zero, self.square.shape[2:]) if self.start is None else (self.start, self.shape)
        )
        starts = (self.row, self.column, start, *(zero for _ in sizes[1:]))
        return lax.dynamic_slice(self.square, starts, (1, 1, *sizes)).reshape(self.shape)

    def part(self, start: jax.Array | int, count: int) -> "Slice":
        """`count` entries from `start` along the first axis of a slice of a square of such."""
        return replace(self, start=jnp.asarray(start, jnp.uint32), shape=(count, *self.shape[1:]))


def square_size(count: int) -> int:
    """How many arrays a square of at least `count` arrays has."""
    return -(-count // _side(count)) * _side(count)


def in_square(arrays: jax.Array, count: int) -> jax.Array:
    """`square_size(count)` small arrays along the first axis, as `slices` wants them."""
    side, (size, *shape) = _side(count), arrays.shape
    return arrays.reshape(size // side, side, *(shape or (1,)))


class Places(NamedTuple):
    """Numbers that XLA does not know, on CPU; each is a list's or a dictionary's own."""

    rows: list[jax.Array]
    columns: list[jax.Array]
    starts: dict[int, jax.Array]


def unknown_places(squares: Sequence[jax.Array], starts: Sequence[int] = ()) -> Places:
    """Where slices of squares, and parts of them, begin, so that equal uses compile once.

    XLA fuses a slice into its use, and each offset makes another kernel to compile. On CPU the
    place of a slice is therefore numbers that XLA does not know, and nothing else that uses would
    share: XLA writes a kernel otherwise where a part of it has been seen before.

    Args:
        squares: as from `in_square`.
        starts: where parts begin.
    """
    most = max(2, *(n for square in squares for n in square.shape[:2]))
    values = [*range(most), *range(most), *starts]

    def known():
        return [jnp.uint32(i) for i in values]

    traced = any(isinstance(x, Tracer) for x in squares)
    found = (
        lax.platform_dependent(cpu=partial(_unknown, values), default=known) if traced else known()
    )
    parts = dict(zip(starts, found[2 * most :], strict=True))
    return Places(found[:most], found[most : 2 * most], parts)


def slices(
    squares: Sequence[jax.Array],
    counts: Sequence[int],
    shapes: Sequence[tuple[int, ...]],
    at: Places | None = None,
) -> list[list[Slice]]:
    """Slices of squares of small arrays.

    Args:
        squares: as from `in_square`.
        counts: how many slices of each, at least 1.
        shapes: of the slices of each.
        at: as from `unknown_places`.

    Returns:
        The first `count` slices of each square.
    """
    if not squares:
        return []
    rows, columns, _ = at or unknown_places(squares)
    out = []
    for square, count, shape in zip(squares, counts, shapes, strict=True):
        found = [divmod(i, square.shape[1]) for i in range(count)]
        out.append([Slice(square, rows[row], columns[col], None, shape) for row, col in found])
    return out


def _side(count: int) -> int:
    return math.isqrt(count - 1) + 1 if count > 1 else 1


def _unknown(values: Sequence[int]) -> list[jax.Array]:
    """The values: the carries of a loop that swaps each with another, two times.

    A carry depends on its partner alone, so that XLA drops all that are not used at once; one after
    the other would send it through the whole program again and again.
    """

    def body(_, pairs):
        return [(b, a) for a, b in pairs]

    # no two pairs are the same, or they would be one
    pairs = [(jnp.uint32(value), jnp.uint32(i)) for i, value in enumerate(values)]
    return [a for a, _ in lax.fori_loop(0, 2, body, pairs)]
