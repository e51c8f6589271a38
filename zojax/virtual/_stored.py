"""The term that is noise of a vector, stored."""

import math
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from zojax.virtual._low_rank import LowRank
from zojax.virtual._noise import ONE, ONES, scaled
from zojax.virtual._slices import Slice


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["left", "right", "scale", "coefficient", "part"],
    meta_fields=["shape", "distribution"],
)
@dataclass(frozen=True)
class Stored(LowRank):
    """The numbers of `Noise` for a leaf so small that they are kept: a factor beside a one.

    Attributes:
        coefficient: what the numbers are multiplied by; None where they are already.
        distribution: of the numbers, which tells what that is.
        part: where the numbers are stored, and the factor that was cut out of there, or None.
        others: as for `LowRank`.
    """

    coefficient: jax.Array | None
    distribution: str
    part: tuple[Slice, jax.Array] | None = None

    @classmethod
    def of_part(cls, part: Slice, distribution: str, shape: tuple[int, ...]) -> "Stored":
        """The term of a vector or a scalar, of its float32 numbers, which are the first ones."""
        left = _numbers(part, (*shape, 1))
        ones = jnp.ones((*(1,) * len(shape), 1), jnp.float32)
        return cls(left, ones, ONE, shape, ONES[distribution], distribution, (part, left))

    @property
    def multiplier(self) -> jax.Array:
        return ONE if self.coefficient is None else self.coefficient

    def scaled(self, factor):
        if self.coefficient is None:
            return replace(self, left=self.left * factor, scale=self.scale * factor)
        scale, rounded = scaled(self.scale, factor, self.distribution)
        return replace(self, scale=scale, coefficient=rounded)

    @property
    def whole_part(self) -> Slice | None:
        """Where all that the term is made of is stored: None for a view, or another factor."""
        return self.part[0] if self.part is not None and self.part[1] is self.left else None

    def multiplied(self, part: Slice, scale: jax.Array) -> "Stored":
        """The scaled term, of its numbers times their coefficient."""
        left = _numbers(part, self.left.shape)
        return replace(self, left=left, scale=scale, coefficient=None, part=None)

    def materialize(self):
        if self.right.size != 1:
            return LowRank.materialize(self)
        values = self.left[..., 0]
        values = values if self.coefficient is None else values * self.coefficient
        return jnp.broadcast_to(values, self.shape)


def _numbers(part: Slice, shape: tuple[int, ...]) -> jax.Array:
    """The first numbers of a part, in that shape."""
    found = part.get().reshape(-1)
    return lax.slice_in_dim(found, 0, math.prod(shape)).reshape(shape)
