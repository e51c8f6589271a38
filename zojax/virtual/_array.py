"""The virtual array: a base and the formulas on top of it."""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from zojax.virtual._base import dense, is_formula, view
from zojax.virtual._buffer import after, cut_after
from zojax.virtual._entries import Entries
from zojax.virtual._noise import Noise
from zojax.virtual._term import Term


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["array", "layer"],
    meta_fields=["permutation"],
)
@dataclass(frozen=True)
class Origin:
    """A base that is `transpose(array[layer], permutation)`.

    Attributes:
        array: dense array.
        layer: index on its leading axis, or None where there is no such axis.
        permutation: static.
    """

    array: jax.Array
    layer: jax.Array | None
    permutation: tuple[int, ...]

    def stored(self) -> jax.Array:
        """The base before the transpose."""
        if self.layer is None:
            return self.array
        return lax.dynamic_index_in_dim(self.array, self.layer, 0, keepdims=False)

    def part(self, axis: int, start, size: int) -> "Origin":
        """Of the base's slice of `size` from `start` along `axis`."""
        part = lax.dynamic_slice_in_dim(self.stored(), start, size, self.permutation[axis])
        return Origin(part, None, self.permutation)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["base", "entries", "terms", "origin"],
    meta_fields=["name"],
)
@dataclass(frozen=True)
class VirtualArray:
    """An array that is a formula: `set(base, entries) + sum(terms)`, never stored.

    Attributes:
        base: dense floating-point array, or a `Base` such as quantised weights.
        entries: values that replace single entries of the base, or None.
        terms: additive terms (`Noise`, `LowRank`), each of the base's shape.
        name: path of the leaf in its tree, for `explain` and error messages.
        origin: what a dense base was cut out of or transposed from, if it was nothing else: a part
            of the base is then made from there, and the whole is never stored.

    Views (transpose, reshape, slices, casts) give another virtual array, or None where
    a term cannot follow.
    """

    base: Any  # jax.Array or Base
    entries: Entries | None = None
    terms: tuple[Term, ...] = ()
    name: str = ""
    origin: "Origin | None" = None

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
        return replace(self, terms=self.terms + terms)

    def materialize(self, flat: bool = False) -> jax.Array:
        """The dense array, terms summed in float32 (or wider) and rounded once.

        Args:
            flat: how entries are set, as for `Entries.set_in`.
        """
        base = dense(self.base)
        base = base if self.entries is None else self.entries.set_in(base, flat)
        if not self.terms:
            return base
        total = base.astype(jnp.promote_types(base.dtype, jnp.float32))
        for term in self.terms:
            total = total + term.materialize()
        return total.astype(base.dtype)

    def materialize_as_stored(self, flat: bool = False) -> jax.Array:
        """The dense array, made from where its base lies and in the order in which it lies there.

        A transpose is left for the product that uses it, and no layer is cut out of a stack before.

        Args:
            flat: as for `materialize`.
        """
        here = self.origin
        if here is None:
            return self.materialize(flat)
        back = tuple(sorted(range(self.ndim), key=lambda i: here.permutation[i]))
        stored = self.with_base(here.stored, lambda t: t.transpose(back))
        if stored is None:
            return self.materialize(flat)
        return lax.transpose(stored.materialize(flat), here.permutation)

    @property
    def moving(self) -> jax.Array | None:
        """Something of the formula that each query has of its own, or None for a bare base."""
        if self.terms:
            return self.terms[0].scale
        return None if self.entries is None else self.entries.values

    def undrawn(self) -> "VirtualArray":
        """The same array, whose noise is made from its keys alone."""
        terms = (replace(t, drawn=None) if isinstance(t, Noise) else t for t in self.terms)
        return replace(self, terms=tuple(terms))

    def after(self, x: jax.Array) -> "VirtualArray":
        """The same array, whose dense form cannot be made before `x` is there."""
        if is_formula(self.base):
            return replace(self, base=self.base.after(x))
        if self.entries is not None:
            # the copy that the entries are set in must wait, not only the entries
            return replace(self, base=after(x, self.base), origin=None)
        if not self.terms:
            return self
        first, *rest = self.terms
        if isinstance(first, Noise):
            first = replace(first, coefficient=after(x, first.coefficient))
        else:
            first = first.scaled(after(x, jnp.ones((), jnp.float32)))
        return replace(self, terms=(first, *rest))

    def base_after(self, x: jax.Array) -> jax.Array:
        """The dense base; one cut out of a stack is not cut before `x` is there."""
        here = self.origin
        if here is None or here.layer is None:
            return self.base
        return lax.transpose(cut_after(x, here.array, here.layer), here.permutation)

    def rows(self, index: jax.Array, axis: int, picked: jax.Array) -> jax.Array:
        """Rows at `index` along `axis`, given the base's own rows `picked` (index axes first)."""
        if self.entries is not None:
            picked = self.entries.set_in_rows(picked, index, axis)
        total = picked.astype(jnp.promote_types(picked.dtype, jnp.float32))
        for term in self.terms:
            total = total + term.rows(index, axis)
        return total.astype(picked.dtype)

    def transpose(self, permutation) -> "VirtualArray | None":
        permutation = tuple(permutation)
        found = self._view("transpose", permutation)
        if found is None or is_formula(self.base):
            return found
        here = self.origin or Origin(self.base, None, tuple(range(self.ndim)))
        order = tuple(here.permutation[i] for i in permutation)
        return replace(found, origin=replace(here, permutation=order))

    def reshape(self, shape) -> "VirtualArray | None":
        return self._view("reshape", tuple(shape))

    def broadcast(self, shape, dimensions) -> "VirtualArray | None":
        """As `lax.broadcast_in_dim`."""
        return self._view("broadcast", tuple(shape), tuple(dimensions))

    def slice(self, starts, sizes, strides=None) -> "VirtualArray | None":
        """A rectangular part; starts that are not Python integers are dynamic."""
        strides = (1,) * self.ndim if strides is None else tuple(strides)
        return self._view("slice", tuple(starts), tuple(sizes), strides)

    def index(self, i) -> "VirtualArray | None":
        """Element `i` of the leading (stacked) axis; `i` may be traced."""
        starts = (i, *(0,) * (self.ndim - 1))
        cut = self.slice(starts, (1, *self.shape[1:]))
        found = None if cut is None else cut.reshape(self.shape[1:])
        if found is None or self.origin is not None or is_formula(self.base):
            return found
        return replace(found, origin=Origin(self.base, jnp.asarray(i), tuple(range(found.ndim))))

    def astype(self, dtype) -> "VirtualArray":
        return replace(self, base=view(self.base, "astype", dtype), origin=None)

    def part(self, axis: int, start, size: int) -> "VirtualArray | None":
        """The slice of `size` from `start`, which may be traced, along one axis."""
        starts = tuple(start if i == axis else 0 for i in range(self.ndim))
        sizes = tuple(size if i == axis else n for i, n in enumerate(self.shape))
        cut = (starts, sizes, (1,) * self.ndim)
        if is_formula(self.base):
            return self._view("slice", *cut)
        here = self.origin or Origin(self.base, None, tuple(range(self.ndim)))
        origin = here.part(axis, start, size)
        part = lax.transpose(origin.array, origin.permutation)
        found = self.with_base(lambda: part, lambda t: t.slice(*cut))
        return None if found is None else replace(found, origin=origin)

    def _view(self, name: str, *args) -> "VirtualArray | None":
        return self.with_base(
            lambda: view(self.base, name, *args), lambda t: getattr(t, name)(*args)
        )

    def with_base(self, make_base, on_term) -> "VirtualArray | None":
        """Another base and the same view of the formulas; None where one cannot follow."""
        entries = None if self.entries is None else on_term(self.entries)
        terms = tuple(on_term(t) for t in self.terms)
        if any(t is None for t in terms) or (entries is None) != (self.entries is None):
            return None
        base = make_base()
        if base is None:
            return None
        return replace(self, base=base, entries=entries, terms=terms, origin=None)


def local_view(array: VirtualArray, base, spec, mesh_shape, index_of) -> "VirtualArray | None":
    """A device's part of an array, whose part of the base is `base`.

    Args:
        array: the whole.
        base: the part of its base.
        spec: its `PartitionSpec`.
        mesh_shape: size of each mesh axis.
        index_of: names of mesh axes to this device's place along them.
    """
    if not jax.tree.leaves(tuple(spec)):
        return replace(array, base=base, origin=None)
    starts, sizes = [], []
    for axis, size in enumerate(array.shape):
        names = spec[axis] if axis < len(spec) else None
        names = () if names is None else names if isinstance(names, tuple) else (names,)
        parts = math.prod(mesh_shape[name] for name in names)
        sizes.append(size // parts)
        starts.append(index_of(names) * sizes[-1] if parts > 1 else 0)
    cut = (tuple(starts), tuple(sizes), (1,) * array.ndim)
    return array.with_base(lambda: base, lambda t: t.slice(*cut))


def is_virtual(x) -> bool:
    """Whether a value is a `VirtualArray`; for `is_leaf`."""
    return isinstance(x, VirtualArray)


def materialize(tree):
    """The tree with every virtual array made dense."""
    return jax.tree.map(lambda x: x.materialize() if is_virtual(x) else x, tree, is_leaf=is_virtual)
