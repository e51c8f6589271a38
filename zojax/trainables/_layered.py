"""A stack of matrices, each of which is changed where it is used."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from zojax.virtual import VirtualArray, is_virtual
from zojax.virtual._base import view
from zojax.virtual._buffer import after


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["stack", "extra", "layer"],
    meta_fields=["make", "shape", "dtype", "views"],
)
@dataclass(frozen=True)
class Layered:
    """The stack of `make(extra, stack[i], i)`, the base of a virtual array.

    Attributes:
        stack: array or virtual array, layers first.
        extra: arrays.
        layer: int32, the layer that this is; None for all of them.
        make: `(extra, array, layer) -> array`, of the same shape and dtype.
        shape, dtype: after the views.
        views: what was done with it since, as (name, *arguments).
    """

    stack: Any
    extra: Any
    layer: jax.Array | None
    make: Callable[[Any, jax.Array, jax.Array], jax.Array]
    shape: tuple[int, ...]
    dtype: Any
    views: tuple[tuple, ...] = ()

    @classmethod
    def over(cls, stack: Any, make: Callable, extra: Any) -> "Layered":
        """All layers of a stack."""
        return cls(stack, extra, None, make, tuple(stack.shape), jnp.dtype(stack.dtype))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return self.stack.size if self.layer is None else self.stack.size // self.stack.shape[0]

    def materialize(self) -> jax.Array:
        if self.layer is None:
            stack = self.stack.materialize() if is_virtual(self.stack) else self.stack
            layers = jnp.arange(stack.shape[0], dtype=jnp.int32)
            out = jax.vmap(partial(self.make, self.extra))(stack, layers)
        else:
            out = self.make(self.extra, _layer(self.stack, self.layer), self.layer)
        for name, *args in self.views:
            out = view(out, name, *args)
        return out

    def rows(self, index: jax.Array, axis: int) -> jax.Array:
        found = jnp.take(self.materialize(), index, axis=axis)
        return jnp.moveaxis(found, range(axis, axis + index.ndim), range(index.ndim))

    def transpose(self, permutation):
        shape = tuple(self.shape[i] for i in permutation)
        return self._viewed("transpose", tuple(permutation), shape=shape)

    def reshape(self, shape):
        return self._viewed("reshape", tuple(shape), shape=tuple(shape))

    def broadcast(self, shape, dimensions):
        return self._viewed("broadcast", tuple(shape), tuple(dimensions), shape=tuple(shape))

    def slice(self, starts, sizes, strides):
        # a start that is not known, of the whole axis, can only be zero
        whole = [n == m for n, m in zip(sizes, self.shape, strict=True)]
        starts = tuple(0 if w else s for s, w in zip(starts, whole, strict=True))
        found = self
        if self.layer is None and not self.views and sizes[0] == 1 and all(whole[1:]):
            found = replace(self, layer=jnp.asarray(starts[0], jnp.int32), shape=self.shape[1:])
            return found.reshape(sizes)
        if not all(isinstance(s, int) for s in starts):
            return None
        return found._viewed("slice", starts, tuple(sizes), tuple(strides), shape=tuple(sizes))

    def astype(self, dtype):
        return replace(self._viewed("astype", jnp.dtype(dtype)), dtype=jnp.dtype(dtype))

    def after(self, x):
        return self if self.layer is None else replace(self, layer=after(x, self.layer))

    def _viewed(self, name, *args, shape=None):
        return replace(self, views=(*self.views, (name, *args)), shape=shape or self.shape)


def _layer(stack: jax.Array | VirtualArray, i: jax.Array) -> jax.Array:
    if not isinstance(stack, VirtualArray):
        return lax.dynamic_index_in_dim(stack, i, 0, keepdims=False)
    found = stack.index(i)
    if found is not None:
        return found.materialize()
    return lax.dynamic_index_in_dim(stack.materialize(), i, 0, keepdims=False)
