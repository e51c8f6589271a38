"""The term that is noise of a vector, stored."""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp

from zojax.virtual._low_rank import LowRank
from zojax.virtual._noise import ONE, ONES, scaled


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["left", "right", "scale", "coefficient"],
    meta_fields=["shape", "distribution"],
)
@dataclass(frozen=True)
class Stored(LowRank):
    """The numbers of `Noise` for a leaf so small that they are kept: a factor beside a one.

    Attributes:
        distribution: of the numbers, which tells by what they are multiplied.
        others: as for `LowRank`.
    """

    coefficient: jax.Array
    distribution: str

    @classmethod
    def of_numbers(cls, numbers: jax.Array, distribution: str) -> "Stored":
        """The term of a vector or a scalar, of its float32 numbers."""
        ones = jnp.ones((*(1,) * numbers.ndim, 1), jnp.float32)
        return cls(numbers[..., None], ones, ONE, numbers.shape, ONES[distribution], distribution)

    @property
    def multiplier(self) -> jax.Array:
        return self.coefficient

    def scaled(self, factor):
        scale, rounded = scaled(self.scale, factor, self.distribution)
        return replace(self, scale=scale, coefficient=rounded)
