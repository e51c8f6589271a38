"""The virtual array: a base and the formulas on top of it."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from zojax.virtual._entries import Entries
from zojax.virtual._shapes import slice_axis
from zojax.virtual._term import Term


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["base", "entries", "terms"],
    meta_fields=["name"],
)
@dataclass(frozen=True)
class VirtualArray:
    """An array that is a formula: `set(base, entries) + sum(terms)`, never stored.

    Attributes:
        base: dense floating-point array.
        entries: values that replace single entries of the base, or None.
        terms: additive terms (`Noise`, `LowRank`), each of the base's shape.
        name: path of the leaf in its tree, for `explain` and error messages.

    Views (transpose, reshape, slices, casts) give another virtual array, or None where
    a term cannot follow.
    """

    base: jax.Array
    entries: Entries | None = None
    terms: tuple[Term, ...] = ()
    name: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def dtype(self):
        return self.base.dtype

    @property
    def ndim(self) -> int:
        return self.base.ndim

    @property
    def size(self) -> int:
        return self.base.size

    def plus(self, *terms: Term) -> "VirtualArray":
        """The same array with more additive terms."""
        return VirtualArray(self.base, self.entries, self.terms + terms, self.name)

    def materialize(self) -> jax.Array:
        """The dense array, terms summed in float32 (or wider) and rounded once."""
        base = self.base if self.entries is None else self.entries.set_in(self.base)
        if not self.terms:
            return base
        total = base.astype(jnp.promote_types(base.dtype, jnp.float32))
        for term in self.terms:
            total = total + term.materialize()
        return total.astype(base.dtype)

    def rows(self, index: jax.Array, axis: int, picked: jax.Array) -> jax.Array:
        """Rows at `index` along `axis`, given the base's own rows `picked` (index axes first)."""
        if self.entries is not None:
            picked = self.entries.set_in_rows(picked, index, axis)
        total = picked.astype(jnp.promote_types(picked.dtype, jnp.float32))
        for term in self.terms:
            total = total + term.rows(index, axis)
        return total.astype(picked.dtype)

    def transpose(self, permutation) -> "VirtualArray | None":
        return self._view(
            lambda b: lax.transpose(b, permutation), lambda t: t.transpose(permutation)
        )

    def reshape(self, shape) -> "VirtualArray | None":
        shape = tuple(shape)
        return self._view(lambda b: lax.reshape(b, shape), lambda t: t.reshape(shape))

    def slice(self, starts, sizes, strides=None) -> "VirtualArray | None":
        """A rectangular part; starts that are not Python integers are dynamic."""
        strides = (1,) * self.ndim if strides is None else tuple(strides)
        starts = tuple(starts)

        def cut(base):
            if not all(isinstance(s, int) for s in starts):
                return lax.dynamic_slice(base, starts, sizes)
            for axis in range(base.ndim):
                base = slice_axis(base, starts[axis], sizes[axis], strides[axis], axis)
            return base

        return self._view(cut, lambda t: t.slice(starts, tuple(sizes), strides))

    def index(self, i) -> "VirtualArray | None":
        """Element `i` of the leading (stacked) axis; `i` may be traced."""
        starts = (i, *(0,) * (self.ndim - 1))
        cut = self.slice(starts, (1, *self.shape[1:]))
        return None if cut is None else cut.reshape(self.shape[1:])

    def astype(self, dtype) -> "VirtualArray":
        return VirtualArray(self.base.astype(dtype), self.entries, self.terms, self.name)

    def _view(self, on_base, on_term) -> "VirtualArray | None":
        entries = None if self.entries is None else on_term(self.entries)
        terms = tuple(on_term(t) for t in self.terms)
        if any(t is None for t in terms) or (entries is None) != (self.entries is None):
            return None
        return VirtualArray(on_base(self.base), entries, terms, self.name)


def is_virtual(x) -> bool:
    """Whether a value is a `VirtualArray`; for `is_leaf`."""
    return isinstance(x, VirtualArray)


def materialize(tree):
    """The tree with every virtual array made dense."""
    return jax.tree.map(lambda x: x.materialize() if is_virtual(x) else x, tree, is_leaf=is_virtual)
