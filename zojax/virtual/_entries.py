"""Sparse entries that replace values of the base."""

import math
from dataclasses import dataclass, field, replace
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from zojax.virtual._shapes import ravel, slice_axis, unravel


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["values", "index"],
    meta_fields=["shape", "order"],
)
@dataclass(frozen=True)
class Entries:
    """Values that replace single entries of the base.

    The leading axes of `values` are stack axes, with the same number of entries in every slice, so
    that a scan over the stack slices the entries too.

    Attributes:
        values: float array (*stack, k).
        index: int32 (*stack, k), distinct flat positions within the remaining axes; a position
            equal to their size is padding and is dropped.
        shape: static shape of the whole array, stack axes first.
        order: static, the axes of that array as the base has them; None for as they are.
    """

    values: jax.Array
    index: jax.Array
    shape: tuple[int, ...]
    order: tuple[int, ...] | None = field(default=None, kw_only=True)

    @property
    def stack(self) -> int:
        return self.values.ndim - 1

    @property
    def core(self) -> tuple[int, ...]:
        return self.shape[self.stack :]

    def transpose(self, permutation):
        order = tuple(self.axes[i] for i in permutation)
        return replace(self, order=None if list(order) == sorted(order) else order)

    def reshape(self, shape):
        flat = self.settled()._unstacked()
        return replace(flat, shape=tuple(shape))

    def broadcast(self, shape, dimensions):
        return None  # the same entry would be in many places

    def slice(self, starts, sizes, strides):
        here = self.settled()
        s, values, index = here.stack, here.values, here.index
        for axis in range(s):
            cut = (starts[axis], sizes[axis], strides[axis], axis)
            values, index = slice_axis(values, *cut), slice_axis(index, *cut)
        sliced = replace(here, values=values, index=index, shape=(*sizes[:s], *here.core))
        if tuple(sizes[s:]) == here.core:
            return sliced
        return sliced._with_coordinates(
            tuple(sizes),
            lambda c: [
                jnp.where((x - a) % d == 0, (x - a) // d, -1)
                for x, a, d in zip(c, starts[s:], strides[s:], strict=True)
            ],
        )

    def set_in(self, base: jax.Array, flat: bool = False) -> jax.Array:
        """The base with the entries in place.

        Args:
            base: array whose axes are in the order that `order` says.
            flat: whether positions are used as they are, so that less has to be compiled. Worth it
                for a base that is stored as it is: one that is cut out of another is cut slower.
        """
        # the flat view of one that is sharded would be gathered
        set_in = _set_flat if flat and jax.device_count() == 1 else _set_by_coordinates
        return set_in(base, self)

    def set_in_rows(self, picked: jax.Array, index: jax.Array, axis: int) -> jax.Array:
        """Rows already gathered from the base, at an `index` in range, with the entries in place.

        One representative row of `picked` is set for every distinct row, and then read by all its
        duplicates: memory of the gathered rows, never of the whole array.
        """
        rest = [i for i in range(len(self.shape)) if i != axis]
        moved = self.transpose((axis, *rest)).settled()._unstacked()
        size, width = moved.shape[0], math.prod(moved.shape[1:])
        wanted = index.reshape(-1)
        count = wanted.shape[0]
        # of each row, and of none for padding; rows that nobody wants go past all others
        slot = jnp.full((size + 1,), count, jnp.uint32)
        slot = slot.at[wanted].set(jnp.arange(count, dtype=jnp.uint32))
        place = moved.index.astype(jnp.uint32)
        at = slot.at[place // width].get(mode="promise_in_bounds"), place % width
        values = moved.values.astype(picked.dtype)
        filled = picked.reshape(count, width).at[at].set(values, mode="drop")
        first = slot.at[wanted].get(mode="promise_in_bounds")
        return filled.at[first].get(mode="promise_in_bounds").reshape(picked.shape)

    def settled(self) -> "Entries":
        """The same entries, at positions in an array whose axes are in the order of the base."""
        if self.order is None:
            return self
        order, plain = self.order, replace(self, order=None)
        if order[: self.stack] != tuple(range(self.stack)):
            plain = plain._unstacked()
        s = plain.stack
        return plain._with_coordinates(
            tuple(self.shape[i] for i in order), lambda c: [c[i - s] for i in order[s:]]
        )

    @property
    def axes(self) -> tuple[int, ...]:
        """`order`, also where that is None."""
        return tuple(range(len(self.shape))) if self.order is None else self.order

    def _unstacked(self):
        if not self.stack:
            return self
        stack = self.shape[: self.stack]
        size = math.prod(self.core)
        total, dtype = math.prod(self.shape), self.index.dtype
        if total > jnp.iinfo(dtype).max:
            raise ValueError(
                f"entries of a stack {self.shape}, in a view that mixes the stack with its "
                f"matrices, need positions up to {total:,}, but positions are {dtype}; transpose "
                "or reshape each matrix inside the loop over the stack"
            )
        offset = jnp.arange(math.prod(stack), dtype=self.index.dtype).reshape(*stack, 1) * size
        index = jnp.where(self.index < size, self.index + offset, total)
        return replace(self, values=self.values.reshape(-1), index=index.reshape(-1))

    def _with_coordinates(self, shape, change):
        """Move entries to new core coordinates; those that leave the new core are dropped."""
        old_size = math.prod(self.core)
        core = shape[self.stack :]
        moved = change(unravel(self.index, self.core))
        valid = self.index < old_size
        for c, n in zip(moved, core, strict=True):
            valid = valid & (c >= 0) & (c < n)
        index = jnp.where(valid, ravel(moved, core, self.index), math.prod(core))
        return replace(self, index=index.astype(self.index.dtype), shape=tuple(shape))


def _set_by_coordinates(base: jax.Array, entries: Entries) -> jax.Array:
    stack, core, order = entries.shape[: entries.stack], entries.core or (1,), entries.axes
    grid = jnp.meshgrid(*(jnp.arange(n) for n in stack), indexing="ij", sparse=True)
    # unsigned, as XLA would compile what negative ones mean; padding is outside
    at = unravel(entries.index.astype(jnp.uint32), core)
    at = (*(g[..., None] for g in grid), *at)
    order = (*order, *range(len(order), len(at)))
    shaped = base.reshape([(*stack, *core)[i] for i in order])
    values = entries.values.astype(base.dtype)
    places = tuple(at[i] for i in order)
    out = shaped.at[places].set(values, mode="drop", unique_indices=True)
    return out.reshape(base.shape)


def _set_flat(base: jax.Array, entries: Entries) -> jax.Array:
    back = sorted(range(base.ndim), key=lambda i: entries.axes[i])
    stack = tuple(range(entries.stack))
    flat = lax.transpose(base, back).reshape(*entries.shape[: entries.stack], -1)
    last = (len(stack),)
    out = lax.scatter(
        flat, entries.index[..., None], entries.values.astype(base.dtype),
        lax.ScatterDimensionNumbers((), last, last, stack, stack),
        unique_indices=True, mode=lax.GatherScatterMode.FILL_OR_DROP,
    )  # fmt: skip
    return lax.transpose(out.reshape(entries.shape), entries.axes)
