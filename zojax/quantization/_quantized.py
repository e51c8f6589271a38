"""Quantised weights: codes and scales, as the base of a virtual array."""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from zojax.quantization._formats import FORMATS, choose
from zojax.quantization._packing import unpack, unpack_rows
from zojax.virtual._base import view
from zojax.virtual._buffer import after
from zojax.virtual._shapes import slice_axis


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["codes", "scales", "zeros", "table"],
    meta_fields=["format", "length", "axis", "decoded", "views"],
)
@dataclass(frozen=True)
class Quantized:
    """Weights of a few bits: `value[k, n] = decode(codes[k, n]) * scales[k // group, n]`.

    `decode(c)` is c (int8), c - 8 or c - zero (int4), a level of NF4, or an entry of the channel's
    own table (codebook). The scales are continuous in every format.

    Attributes:
        codes: int8 of the weights' shape, or uint8 with two codes a byte along `axis`.
        scales: floating, the weights' shape with K replaced by the number of groups along `axis`.
        zeros: int8 like `scales`, or None: the code that stands for zero (int4).
        table: float32, the weights' shape with K replaced by 16, or None: levels (codebook).
        format: name of the format.
        length: K, the weights' length along `axis`.
        axis: negative; along which the codes are packed and grouped.
        decoded: dtype of the weights, before the views.
        views: transposes, reshapes, casts and so on that are applied to the decoded weights.
    """

    codes: jax.Array
    scales: jax.Array
    zeros: jax.Array | None
    table: jax.Array | None
    format: str
    length: int
    axis: int
    decoded: Any
    views: tuple[tuple, ...] = ()

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of the weights before the views."""
        axis = self._at
        return (*self.codes.shape[:axis], self.length, *self.codes.shape[axis + 1 :])

    @property
    def shape(self) -> tuple[int, ...]:
        shape = self.stored_shape
        for name, *args in self.views:
            shape = _SHAPES[name](shape, *args)
        return shape

    @property
    def dtype(self):
        casts = [args[0] for name, *args in self.views if name == "astype"]
        return jnp.dtype(casts[-1] if casts else self.decoded)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales, zeros and table."""
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(self))

    @property
    def group_size(self) -> int:
        return self.length // self.scales.shape[self.axis]

    @property
    def _at(self) -> int:
        return self.axis % self.codes.ndim

    def with_scales(self, scales: jax.Array) -> "Quantized":
        """The same codes under other scales, of the same shape and of any floating dtype."""
        return replace(self, scales=_same_shape("scales", self.scales, scales))

    def with_table(self, table: jax.Array) -> "Quantized":
        """The same codes under another table, of the same shape (format codebook)."""
        if self.table is None:
            raise ValueError(f"format {self.format} has no table; codebook has")
        return replace(self, table=_same_shape("table", self.table, table))

    def materialize(self) -> jax.Array:
        """The dense weights: product in float32, rounded once to `decoded`."""
        codes = self.codes
        if FORMATS[self.format].bits == 4:
            codes = unpack(codes, self.axis, self.length)
        dense = self._scaled(self._levels(codes, self.zeros))
        for name, *args in self.views:
            dense = view(dense, name, *args)
        return dense

    def operands(self) -> dict[str, Any] | None:
        """What `pallas_kernels.quantized_matmul` takes of a matrix; None if this is none for it."""
        if self.views or self.codes.ndim != 2 or self.axis != -2:
            return None
        levels = FORMATS[self.format].levels if FORMATS[self.format].bits == 4 else ()
        given = self.zeros is not None or self.table is not None
        return {
            "codes": self.codes,
            "scales": self.scales,
            "levels": levels if levels and not given else None,
            "zeros": self.zeros,
            "table": self.table,
        }

    def rows(self, index: jax.Array, axis: int) -> jax.Array:
        """The decoded rows at `index` along `axis`, index axes first; no other row is decoded."""
        order = self._order()
        if order is None:
            return jnp.moveaxis(jnp.take(self.materialize(), index, axis), *_front(index, axis))
        at, flat = order[axis], index.reshape(-1)
        if at != self._at:
            found = self._mapped(lambda x: jnp.take(x, flat, axis=at))
            rows = replace(found, views=()).materialize()
        else:
            rows = self._rows_of_groups(flat)
        rows = lax.transpose(rows, (at, *(a for a in order if a != at))).astype(self.dtype)
        return rows.reshape(*index.shape, *rows.shape[1:])

    def transpose(self, permutation):
        return self._viewed("transpose", tuple(permutation))

    def reshape(self, shape):
        kept = self.codes.ndim - self._at  # trailing axes from that of the groups on
        lead = tuple(shape)[: len(shape) - kept]
        if self.views or tuple(shape) != (*lead, *self.stored_shape[self._at :]):
            return self._viewed("reshape", tuple(shape))
        # another shape of the stack
        return self._mapped(lambda x: x.reshape(*lead, *x.shape[self._at :]))

    def broadcast(self, shape, dimensions):
        return self._viewed("broadcast", tuple(shape), tuple(dimensions))

    def slice(self, starts, sizes, strides):
        order = self._order()
        found = self
        if order is not None:  # cut the codes, except within groups
            left = []
            for i, at in enumerate(order):
                cut = (starts[i], sizes[i], strides[i])
                if sizes[i] == self.shape[i]:  # a dynamic start of all of it can only be zero
                    cut = (0, *cut[1:])
                elif at != self._at:
                    found = found._mapped(partial(_cut, cut=cut, axis=at))
                    cut = (0, sizes[i], 1)
                left.append(cut)
            starts, sizes, strides = zip(*left, strict=True)
        if not all(isinstance(s, int) for s in starts):
            return None
        if tuple(sizes) == found.shape and all(s == 1 for s in strides):
            return found
        return found._viewed("slice", tuple(starts), tuple(sizes), tuple(strides))

    def astype(self, dtype):
        return self if dtype == self.dtype else self._viewed("astype", jnp.dtype(dtype))

    def after(self, x):
        return replace(self, scales=after(x, self.scales, strictly=True))

    def _viewed(self, name, *args):
        return replace(self, views=(*self.views, (name, *args)))

    def _order(self) -> list[int] | None:
        """The stored axis of each axis, or None behind a view that moves entries otherwise."""
        order = list(range(self.codes.ndim))
        for name, *args in self.views:
            if name == "transpose":
                order = [order[i] for i in args[0]]
            elif name != "astype":
                return None
        return order

    def _mapped(self, fn) -> "Quantized":
        """`fn` of all parts, which it must change alike, along another axis than the groups'."""
        parts = (self.codes, self.scales, self.zeros, self.table)
        codes, scales, zeros, table = (None if x is None else fn(x) for x in parts)
        return replace(self, codes=codes, scales=scales, zeros=zeros, table=table)

    def _levels(self, codes: jax.Array, zeros: jax.Array | None) -> jax.Array:
        """Decoded codes, float32, not yet multiplied by the scales."""
        if self.format == "nf4":
            return choose(codes, [jnp.float32(x) for x in FORMATS["nf4"].levels])
        if self.table is not None:
            table = self.table.astype(jnp.float32)
            return choose(codes, jnp.split(table, 16, self.axis))
        if self.format == "int8":
            return codes.astype(jnp.float32)
        if zeros is None:
            return codes.astype(jnp.float32) - 8.0
        groups = self._grouped(codes.astype(jnp.float32), zeros.shape[self.axis])
        return (groups - jnp.expand_dims(zeros.astype(jnp.float32), self._at + 1)).reshape(
            codes.shape
        )

    def _scaled(self, levels: jax.Array) -> jax.Array:
        scales = jnp.expand_dims(self.scales.astype(jnp.float32), self._at + 1)
        grouped = self._grouped(levels, self.scales.shape[self.axis])
        return (grouped * scales).reshape(levels.shape).astype(self.decoded)

    def _grouped(self, x: jax.Array, groups: int) -> jax.Array:
        at = self._at
        return x.reshape(*x.shape[:at], groups, -1, *x.shape[at + 1 :])

    def _rows_of_groups(self, index: jax.Array) -> jax.Array:
        """Decoded rows along the axis that is packed and grouped."""
        if FORMATS[self.format].bits == 4:
            codes = unpack_rows(self.codes, self.axis, self.length, index)
        else:
            codes = jnp.take(self.codes, index, axis=self._at)
        group = index // self.group_size
        # each row is a group of its own
        scales = jnp.take(self.scales, group, axis=self._at)
        zeros = None if self.zeros is None else jnp.take(self.zeros, group, axis=self._at)
        levels = self._levels(codes, zeros)
        return (levels * scales.astype(jnp.float32)).astype(self.decoded)


def _same_shape(name, old, new):
    if jnp.shape(old) != jnp.shape(new):
        raise ValueError(f"the {name} have shape {jnp.shape(old)}, found {jnp.shape(new)}")
    return new


def _cut(x, cut, axis):
    start, size, stride = cut
    return slice_axis(x, start, size, stride, axis)


def _front(index, axis):
    return tuple(range(axis, axis + index.ndim)), tuple(range(index.ndim))


_SHAPES = {
    "transpose": lambda shape, permutation: tuple(shape[i] for i in permutation),
    "reshape": lambda shape, new: new,
    "broadcast": lambda shape, new, dimensions: new,
    "slice": lambda shape, starts, sizes, strides: sizes,
    "astype": lambda shape, dtype: shape,
}
