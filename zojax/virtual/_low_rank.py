"""The term that is a product of two thin factors."""

import operator
from dataclasses import dataclass, replace
from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import lax

from zojax.virtual._shapes import reshape_groups, slice_axis


def summed_ranks(parts: list[jax.Array]) -> jax.Array:
    """Their sum, without the zero that `sum` begins with: it would be compiled in every use."""
    return reduce(operator.add, parts)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["left", "right", "scale"],
    meta_fields=["shape"],
)
@dataclass(frozen=True)
class LowRank:
    """`scale * sum_r left[..., r] * right[..., r]`, the factors broadcast over absent axes.

    A matrix (m, n) has left (m, 1, r) and right (1, n, r); a stack (L, m, n) has left (L, m, 1, r)
    and right (L, 1, n, r). An axis of size one in a factor is one it does not depend on.
    """

    left: jax.Array
    right: jax.Array
    scale: jax.Array
    shape: tuple[int, ...]

    @classmethod
    def of_matrices(cls, a: jax.Array, b: jax.Array, scale=1.0) -> "LowRank":
        """`scale * a @ b.T` over the last two axes: a (..., m, r), b (..., n, r)."""
        shape = (*a.shape[:-1], b.shape[-2])
        scale = jnp.asarray(scale, jnp.float32)
        return cls(jnp.expand_dims(a, -2), jnp.expand_dims(b, -3), scale, shape)

    @property
    def rank(self) -> int:
        return self.left.shape[-1]

    @property
    def multiplier(self) -> jax.Array:
        """What the product of the factors is multiplied by."""
        return self.scale

    def scaled(self, factor):
        return replace(self, scale=self.scale * factor)

    def transpose(self, permutation):
        axes = (*permutation, len(permutation))
        return self._mapped([self.shape[i] for i in permutation], lambda f: f.transpose(axes))

    def reshape(self, shape):
        groups = reshape_groups(self.shape, shape)
        factors = []
        for factor in (self.left, self.right):
            new_shape = [1] * len(shape)
            for old, new in groups:
                present = {factor.shape[i] != 1 for i in old if self.shape[i] != 1}
                if len(present) > 1:
                    return None
                if True in present:
                    for j in new:
                        new_shape[j] = shape[j]
            factors.append(factor.reshape(*new_shape, self.rank))
        return replace(self, left=factors[0], right=factors[1], shape=tuple(shape))

    def broadcast(self, shape, dimensions):
        def spread(factor):
            sizes = [1] * len(shape)
            for old, new in enumerate(dimensions):
                sizes[new] = factor.shape[old]
            return factor.reshape(*sizes, self.rank)

        return self._mapped(shape, spread)

    def slice(self, starts, sizes, strides):
        def cut(factor):
            for axis, (start, size, stride) in enumerate(zip(starts, sizes, strides, strict=True)):
                if factor.shape[axis] != 1:
                    factor = slice_axis(factor, start, size, stride, axis)
            return factor

        return self._mapped(sizes, cut)

    def rows(self, index, axis):
        def pick(factor):
            if factor.shape[axis] != 1:
                return jnp.take(jnp.moveaxis(factor, axis, 0), index, axis=0, mode="clip")
            others = jnp.squeeze(factor, axis)
            return others.reshape((1,) * index.ndim + others.shape)

        rest = tuple(n for i, n in enumerate(self.shape) if i != axis)
        shape = index.shape + rest
        return replace(
            self, left=pick(self.left), right=pick(self.right), shape=shape
        ).materialize()

    def materialize(self):
        left, right = self.left * self.multiplier, self.right

        # each fuses into its consumer where it runs; the others would store the array there
        def unrolled(left, right):
            return summed_ranks([left[..., r] * right[..., r] for r in range(self.rank)])

        def summed(left, right):
            return jnp.sum(left * right, -1)

        def product(left, right):
            return jnp.einsum("...r,...r->...", left, right)

        if self.rank <= 4:
            total = unrolled(left, right)
        else:
            other = unrolled if self.rank <= 16 else product
            total = lax.platform_dependent(left, right, cpu=summed, default=other)
        return jnp.broadcast_to(total, self.shape)

    def _mapped(self, shape, fn):
        return replace(self, left=fn(self.left), right=fn(self.right), shape=tuple(shape))
