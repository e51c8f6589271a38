"""The term that is zero or one: some entries of every few, addressed by element."""

import math
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np

from zojax import noise
from zojax.virtual._noise import Noise

_MOST_SUBSETS = 2**16


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["key", "scale", "coefficient", "row", "col", "row_keys", "drawn"],
    meta_fields=["distribution", "shape", "row_strides", "col_strides", "n", "m"],
)
@dataclass(frozen=True)
class Pattern(Noise):
    """`scale` at n random entries of every m consecutive ones of a row, zero elsewhere.

    The m-th group of a row is a pure function of (key, row, group): views and slices see the same
    pattern. Each subset of n is equally likely to within 2**-16. A last group that the row cuts
    short keeps what falls inside.

    Attributes:
        n, m: static, with at most 2**16 subsets of n out of m.
        others: as for `Noise`.
    """

    n: int
    m: int

    @classmethod
    def of_groups(cls, key, shape: tuple[int, ...], n: int, m: int) -> "Pattern":
        """The pattern of a leaf, ones and zeros."""
        leaf = Noise.of_leaf(key, 1.0, "rademacher", shape)
        return cls(
            leaf.key, leaf.scale, leaf.coefficient, leaf.row, leaf.col,
            "pattern", leaf.shape, leaf.row_strides, leaf.col_strides, n, m,
        )  # fmt: skip

    def _values(self, row, col):
        size = jnp.uint32(self.m)
        bits = noise.bits(self.key, row, col // size)
        # floor(bits * count / 2^32), whose parts fit into a word as count <= 2^16
        count, low, sixteen = jnp.uint32(math.comb(self.m, self.n)), jnp.uint32(0xFFFF), 16
        subset = ((bits >> sixteen) * count + (((bits & low) * count) >> sixteen)) >> sixteen
        chosen = jnp.asarray(_subsets(self.n, self.m)).at[subset].get(mode="promise_in_bounds")
        return self.scale * ((chosen >> (col % size)) & jnp.uint32(1)).astype(jnp.float32)


def _subsets(n: int, m: int) -> np.ndarray:
    """Every subset of n out of m as bits of a word."""
    return np.array([sum(1 << i for i in c) for c in combinations(range(m), n)], np.uint32)
