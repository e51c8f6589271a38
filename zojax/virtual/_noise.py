"""The term that is pure noise, addressed by element."""

import math
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from zojax import noise
from zojax.noise._bits import top_bits_of_row_keys
from zojax.virtual._row_keys import Drawn, RowKeys, order_of
from zojax.virtual._shapes import reshape_groups, row_major_strides

# those of integers, with the factor that gives them variance one
_UNITS = {"rademacher": 1.0, "nibble_sum": 170**-0.5}
# what `scaled` gives for a scale of one: the same objects in all terms, for `scaled_together`
ONE: Any = np.float32(1)
ONES: dict[str, Any] = {
    "gaussian": ONE,
    "rademacher": ONE,
    "nibble_sum": np.float32(float.fromhex("0x1.3a28p-4")),
}
# made in less time than it takes to store and to read them
CHEAP = ("rademacher",)
DISTRIBUTIONS = {
    "gaussian": noise.gaussian,
    "nibble_sum": noise.nibble_sum,
    "rademacher": noise.rademacher,
}


def _u32(address: int) -> jax.Array:
    return jnp.uint32(address % 2**32)  # of a stride that no element uses, the bits that matter


def _moved(origin: jax.Array | None, start, stride: int) -> jax.Array | None:
    """`origin + start * stride`, None where that is known to be zero."""
    if not stride or (isinstance(start, int) and start == 0):
        return origin
    start = _u32(start) if isinstance(start, int) else jnp.asarray(start).astype(jnp.uint32)
    step = start * _u32(stride) if stride != 1 else start
    return step if origin is None else origin + step


def scaled(scale: jax.Array, factor, distribution: str) -> tuple[jax.Array, jax.Array]:
    """`scale * factor`, and what the numbers are multiplied by: short where they are integers."""
    # an identity that keeps XLA from reassociating the constants among the factors of a scale
    scale = lax.reduce_precision(jnp.asarray(scale) * factor, exponent_bits=8, mantissa_bits=23)
    unit = _UNITS.get(distribution)
    return scale, scale if unit is None else noise.round_coefficient(scale * jnp.float32(unit))


def numbers_of(distribution: str, row_keys: tuple[jax.Array, jax.Array], cols) -> jax.Array:
    """The numbers at columns of rows whose keys are known; without a coefficient, float32."""
    return DISTRIBUTIONS[distribution](noise.bits_of_row_keys(*row_keys, cols))


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["key", "scale", "coefficient", "row", "col", "row_keys", "drawn"],
    meta_fields=["distribution", "shape", "row_strides", "col_strides"],
)
@dataclass(frozen=True)
class Noise:
    """`scale * Z`, with Z addressed by element: never stored, regenerated wherever it is used.

    Element i of the view sits at row `row + i . row_strides` and column `col + i . col_strides`
    of the leaf. A leaf of shape (..., n) has its last axis as columns, all others as rows.

    "rademacher" and "nibble_sum" are integers times one coefficient, `scale` over their standard
    deviation, rounded to 13 mantissa bits (`noise.round_coefficient`). Every value is exact, and
    `w + scale * Z` has one rounding: the same bits on every device and in every layout. The
    rounding makes the effective scale wrong by at most 2**-14, not the direction. "gaussian" has
    `scale` as it is, and agrees between devices to about 1e-6.

    Attributes:
        key: uint32[2] words.
        scale: float32 scalar.
        coefficient: float32 scalar, what the drawn numbers are multiplied by.
        row, col: uint32 scalars, address of the view's first element; None is zero.
        distribution: "rademacher", "nibble_sum" or "gaussian", each of variance one.
        shape, row_strides, col_strides: static, one entry an axis.
        row_keys: the keys of all rows of the leaf, or None where each use hashes those that it
            needs. They save many operations to compile.
        drawn: the values of the whole leaf, for one use on a CPU, or None.
    """

    key: jax.Array
    scale: jax.Array
    coefficient: jax.Array
    row: jax.Array | None
    col: jax.Array | None
    distribution: str
    shape: tuple[int, ...]
    row_strides: tuple[int, ...]
    col_strides: tuple[int, ...]
    row_keys: RowKeys | None = field(default=None, kw_only=True)
    drawn: Drawn | None = field(default=None, kw_only=True)

    @classmethod
    def of_leaf(
        cls, key, scale, distribution: str, shape: tuple[int, ...], row_keys=None
    ) -> "Noise":
        if distribution not in DISTRIBUTIONS:
            raise ValueError(
                f"unknown distribution {distribution!r}; choose one of {', '.join(DISTRIBUTIONS)}"
            )
        rows, cols = (math.prod(shape[:-1]), shape[-1]) if shape else (1, 1)
        if max(rows, cols) >= 2**32:
            raise ValueError(
                f"a leaf of shape {shape} has {rows} rows of {cols}; noise addresses at most "
                "2**32 - 1 of each: reshape the leaf so that both fit"
            )
        row_strides = (*row_major_strides(shape[:-1]), 0)[: len(shape)]
        col_strides = (0,) * (len(shape) - 1) + (1,) * bool(shape)
        if isinstance(scale, float) and scale == 1:
            scale, rounded = ONE, ONES[distribution]
        else:
            scale, rounded = scaled(jnp.asarray(scale, jnp.float32), ONE, distribution)
        return cls(
            noise.words(key), scale, rounded, None, None,
            distribution, tuple(shape), row_strides, col_strides, row_keys=row_keys,
        )  # fmt: skip

    def scaled(self, factor):
        scale, rounded = scaled(self.scale, factor, self.distribution)
        return replace(self, scale=scale, coefficient=rounded)

    def transpose(self, permutation):
        return self._viewed(
            [self.shape[i] for i in permutation],
            [self.row_strides[i] for i in permutation],
            [self.col_strides[i] for i in permutation],
        )

    def reshape(self, shape):
        rows, cols = [0] * len(shape), [0] * len(shape)
        for old, new in reshape_groups(self.shape, shape):
            kept = [i for i in old if self.shape[i] != 1]
            for strides, out in ((self.row_strides, rows), (self.col_strides, cols)):
                for a, b in zip(kept[:-1], kept[1:], strict=True):
                    if strides[a] != strides[b] * self.shape[b]:
                        return None
                step = strides[kept[-1]] if kept else 0
                for j in reversed(new):
                    out[j] = step
                    step *= shape[j]
        return self._viewed(shape, rows, cols)

    def broadcast(self, shape, dimensions):
        rows, cols = [0] * len(shape), [0] * len(shape)
        for old, new in enumerate(dimensions):
            if self.shape[old] == shape[new]:
                rows[new], cols[new] = self.row_strides[old], self.col_strides[old]
        return self._viewed(shape, rows, cols)

    def slice(self, starts, sizes, strides):
        row, col = self.row, self.col
        for start, r, c in zip(starts, self.row_strides, self.col_strides, strict=True):
            row, col = _moved(row, start, r), _moved(col, start, c)
        return replace(
            self._viewed(
                sizes,
                [r * s for r, s in zip(self.row_strides, strides, strict=True)],
                [c * s for c, s in zip(self.col_strides, strides, strict=True)],
            ),
            row=row,
            col=col,
        )

    def rows(self, index, axis):
        """Values at `index` along `axis`: shape index.shape + the other axes."""
        others = [i for i in range(len(self.shape)) if i != axis]
        index = index.astype(jnp.uint32).reshape(index.shape + (1,) * len(others))
        sizes = [self.shape[i] for i in others]
        row = index * _u32(self.row_strides[axis])
        col = index * _u32(self.col_strides[axis])
        row = row + self._address(self.row, [self.row_strides[i] for i in others], sizes)
        col = col + self._address(self.col, [self.col_strides[i] for i in others], sizes)
        shape = index.shape[: index.ndim - len(others)] + tuple(sizes)
        if self.row_keys is None:
            return jnp.broadcast_to(self._values(row, col), shape)
        words = self.row_keys.get().at[row].get(mode="promise_in_bounds")
        return jnp.broadcast_to(self._hashed((words[..., 0], words[..., 1]), col), shape)

    def materialize(self):
        if self.drawn is not None and (order := self.order) is not None:
            return self.drawn.get(self.shape, order)
        # axes that neither row nor column depend on are computed once and broadcast
        strides = zip(self.shape, self.row_strides, self.col_strides, strict=True)
        sizes = [n if r or c else 1 for n, r, c in strides]
        col = self._address(self.col, self.col_strides, sizes)
        words = self._words(sizes)
        if words is None:
            row = self._address(self.row, self.row_strides, sizes)
            values = self._values(row, col)
        else:
            values = self._hashed(words, col)
        return jnp.broadcast_to(values, self.shape)

    @property
    def order(self) -> list[int] | None:
        """The axes as they lie in the leaf, if its noise can be drawn with others' and this is all
        of it, else None."""
        keys = self.row_keys
        if keys is None or keys.run is None or self.row is not None or self.col is not None:
            return None
        if math.prod(self.shape) != keys.count * keys.run.width:
            return None
        return order_of(self.shape, self.row_strides, self.col_strides, keys.rows)

    def _words(self, sizes) -> list[jax.Array] | None:
        """The keys of the view's rows, along its axes; None if unknown or not in their order."""
        if self.row_keys is None:
            return None
        shape, count = [1] * len(sizes), 1
        for axis in reversed(range(len(sizes))):
            if self.row_strides[axis] and sizes[axis] > 1:
                if self.row_strides[axis] != count:
                    return None
                shape[axis], count = sizes[axis], count * sizes[axis]
        part = self.row_keys.get()
        if count != part.shape[0]:
            part = lax.dynamic_slice_in_dim(part, 0 if self.row is None else self.row, count)
        return [part[:, i].reshape(shape) for i in range(2)]

    def _hashed(self, words, col):
        if self.distribution == "rademacher":
            return self._numbers(top_bits_of_row_keys(words[0], words[1], col))
        return self._numbers(noise.bits_of_row_keys(words[0], words[1], col))

    def _values(self, row, col):
        return self._numbers(noise.bits(self.key, row, col))

    def _numbers(self, bits):
        if self.distribution == "rademacher":
            # the product, in fewer operations, and differentiable
            plus, minus = (
                lax.broadcast(c, bits.shape) for c in (self.coefficient, -self.coefficient)
            )
            return lax.select(bits >= jnp.uint32(2**31), minus, plus)
        return self.coefficient * DISTRIBUTIONS[self.distribution](bits)

    def _viewed(self, shape, row_strides, col_strides):
        return replace(
            self, shape=tuple(shape), row_strides=tuple(row_strides), col_strides=tuple(col_strides)
        )

    @staticmethod
    def _address(origin, strides, sizes):
        parts = [] if origin is None else [jnp.asarray(origin).reshape((1,) * len(sizes))]
        for axis, (stride, size) in enumerate(zip(strides, sizes, strict=True)):
            if stride and size > 1:
                along = lax.broadcasted_iota(jnp.uint32, sizes, axis)
                parts.append(along if stride == 1 else along * _u32(stride))
        return reduce(jnp.add, parts) if parts else jnp.zeros((1,) * len(sizes), jnp.uint32)
