"""The term that is pure noise, addressed by element."""

import math
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from zojax import noise
from zojax.virtual._shapes import reshape_groups, row_major_strides

# integers and the factor that gives them variance one
_INTEGERS = {"rademacher": (noise.rademacher, 1.0), "nibble_sum": (noise.nibble_sum, 170**-0.5)}


def _u32(address: int) -> jax.Array:
    return jnp.uint32(address % 2**32)  # of a stride that no element uses, the bits that matter


def _settled(scale: jax.Array) -> jax.Array:
    # an identity that keeps XLA from reassociating the constants among the factors of a scale
    return lax.reduce_precision(scale, exponent_bits=8, mantissa_bits=23)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["key", "scale", "row", "col"],
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
        row, col: uint32 scalars, address of the view's first element.
        distribution: "rademacher", "nibble_sum" or "gaussian", each of variance one.
        shape, row_strides, col_strides: static, one entry an axis.
    """

    key: jax.Array
    scale: jax.Array
    row: jax.Array
    col: jax.Array
    distribution: str
    shape: tuple[int, ...]
    row_strides: tuple[int, ...]
    col_strides: tuple[int, ...]

    @classmethod
    def of_leaf(cls, key, scale, distribution: str, shape: tuple[int, ...]) -> "Noise":
        if distribution != "gaussian" and distribution not in _INTEGERS:
            raise ValueError(
                f"unknown distribution {distribution!r}; choose one of gaussian, "
                f"{', '.join(_INTEGERS)}"
            )
        rows, cols = (math.prod(shape[:-1]), shape[-1]) if shape else (1, 1)
        if max(rows, cols) >= 2**32:
            raise ValueError(
                f"a leaf of shape {shape} has {rows} rows of {cols}; noise addresses at most "
                "2**32 - 1 of each: reshape the leaf so that both fit"
            )
        zero = jnp.uint32(0)
        row_strides = (*row_major_strides(shape[:-1]), 0)[: len(shape)]
        col_strides = (0,) * (len(shape) - 1) + (1,) * bool(shape)
        return cls(
            noise.words(key), _settled(jnp.asarray(scale, jnp.float32)), zero, zero,
            distribution, tuple(shape), row_strides, col_strides,
        )  # fmt: skip

    def scaled(self, factor):
        return replace(self, scale=_settled(self.scale * factor))

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
            start = _u32(start) if isinstance(start, int) else jnp.asarray(start).astype(jnp.uint32)
            row, col = row + start * _u32(r), col + start * _u32(c)
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
        return jnp.broadcast_to(self._values(row, col), shape)

    def materialize(self):
        # axes that neither row nor column depend on are computed once and broadcast
        strides = zip(self.shape, self.row_strides, self.col_strides, strict=True)
        sizes = [n if r or c else 1 for n, r, c in strides]
        row = self._address(self.row, self.row_strides, sizes)
        col = self._address(self.col, self.col_strides, sizes)
        return jnp.broadcast_to(self._values(row, col), self.shape)

    def _values(self, row, col):
        bits = noise.bits(self.key, row, col)
        if self.distribution == "gaussian":
            return self.scale * noise.gaussian(bits)
        integers, unit = _INTEGERS[self.distribution]
        return noise.round_coefficient(self.scale * jnp.float32(unit)) * integers(bits)

    def _viewed(self, shape, row_strides, col_strides):
        return replace(
            self, shape=tuple(shape), row_strides=tuple(row_strides), col_strides=tuple(col_strides)
        )

    @staticmethod
    def _address(origin, strides, sizes):
        address = jnp.full((1,) * len(sizes), origin, jnp.uint32)
        for axis, (stride, size) in enumerate(zip(strides, sizes, strict=True)):
            if stride and size > 1:
                shape = [size if i == axis else 1 for i in range(len(sizes))]
                address = address + lax.broadcasted_iota(jnp.uint32, shape, axis) * _u32(stride)
        return address
