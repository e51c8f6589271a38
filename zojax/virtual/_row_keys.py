"""Keys of rows that are stored, and numbers that are drawn from them."""

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from zojax.virtual._slices import Slice


class Run(NamedTuple):
    """Consecutive keys of a segment from which the noise of several leaves is drawn at once.

    Attributes:
        first, count: which of the segment's keys.
        width: how many numbers each of them gives.
    """

    first: int
    count: int
    width: int


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["segment", "start"],
    meta_fields=["place", "rows", "blocks", "run"],
)
@dataclass(frozen=True)
class RowKeys:
    """The keys of all rows of a leaf, among those of other leaves.

    A row may have several: `blocks` of them, each for as many columns as the run's width. The first
    is the row's own.

    Attributes:
        segment: uint32[n, 2], the words of the keys of several leaves.
        start, place: where the leaf's begin, in its run if it has one: a number that XLA does not
            know, so that equal uses are one computation, or, where no other leaf of the segment is
            used alike, a static one.
        rows, blocks: static; the leaf has `rows * blocks` of them.
        run: static, what the leaf's noise can be drawn with, or None.
    """

    segment: Slice
    start: jax.Array | None
    place: int | None
    rows: int
    blocks: int = 1
    run: Run | None = None

    @property
    def count(self) -> int:
        return self.rows * self.blocks

    def get(self) -> jax.Array:
        """The words of the key of each row, uint32[rows, 2]."""
        first = self.run.first if self.run else 0
        start = self.start if self.place is None else self.place
        start = jnp.asarray(start, jnp.uint32) + jnp.uint32(first)
        return self.segment.part(start, self.count).get()[:: self.blocks]


@partial(jax.tree_util.register_dataclass, data_fields=["numbers", "keys"], meta_fields=[])
@dataclass(frozen=True)
class Drawn:
    """The values of a leaf's noise, among those that were drawn with it.

    Attributes:
        numbers: float32[n, width], of a run, times the coefficient.
        keys: of which the leaf's are made.
    """

    numbers: jax.Array
    keys: RowKeys

    def get(self, shape: tuple[int, ...], order: list[int]) -> jax.Array:
        """The values of a view of the whole leaf.

        Args:
            shape: of the view.
            order: its axes in the order in which they lie in the leaf.
        """
        start, place, count = self.keys.start, self.keys.place, self.keys.count
        part = (
            lax.slice_in_dim(self.numbers, place, place + count)
            if place is not None
            else lax.dynamic_slice_in_dim(self.numbers, jnp.asarray(start), count)
        )
        part = part.reshape([shape[i] for i in order])
        return lax.transpose(part, sorted(range(len(order)), key=lambda i: order[i]))


def order_of(
    shape: tuple[int, ...], row_strides: tuple[int, ...], col_strides: tuple[int, ...], rows: int
) -> list[int] | None:
    """The axes of a view in the order in which they lie in its leaf; None if it is not all of it.

    Args:
        shape, row_strides, col_strides: of the view, which begins where the leaf does.
        rows: of the leaf.
    """
    cols, rest = divmod(math.prod(shape), rows)
    strides = [r * cols + c for r, c in zip(row_strides, col_strides, strict=True)]
    order = sorted(range(len(shape)), key=lambda i: (-strides[i], shape[i] > 1))
    count = 1
    for i in reversed(order):
        if shape[i] > 1 and strides[i] != count:
            return None
        count *= shape[i]
    return None if rest else order
