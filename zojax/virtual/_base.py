"""Bases: what a virtual array stands on, a dense array or a formula of its own."""

from typing import Any, Protocol, Self

import jax
from jax import lax

from zojax.virtual._shapes import slice_axis


class Base(Protocol):
    """What a virtual array asks of a base that is no dense array, such as quantised weights.

    It is a pytree of arrays. A view returns None where the base cannot follow it; the virtual array
    then becomes dense. A base may also have `operands()`, which gives what
    `pallas_kernels.quantized_matmul` takes of it, or None.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> Any: ...
    @property
    def ndim(self) -> int: ...
    @property
    def size(self) -> int: ...
    def transpose(self, permutation: tuple[int, ...]) -> Self | None: ...
    def reshape(self, shape: tuple[int, ...]) -> Self | None: ...
    def broadcast(self, shape: tuple[int, ...], dimensions: tuple[int, ...]) -> Self | None: ...
    def slice(self, starts, sizes: tuple[int, ...], strides: tuple[int, ...]) -> Self | None: ...
    def astype(self, dtype: Any) -> Self: ...
    def after(self, x: jax.Array) -> Self: ...
    def rows(self, index: jax.Array, axis: int) -> jax.Array: ...
    def materialize(self) -> jax.Array: ...


def is_formula(base) -> bool:
    """Whether a base is made dense by `materialize`, as no dense array is."""
    return hasattr(base, "materialize")


def dense(base) -> jax.Array:
    """The base as a dense array."""
    return base.materialize() if is_formula(base) else base


def view(base, name: str, *args):
    """A view of a base, by the name of its method in `Base`."""
    return getattr(base, name)(*args) if is_formula(base) else _DENSE[name](base, *args)


def _slice(base, starts, sizes, strides):
    if not all(isinstance(s, int) for s in starts):
        return lax.dynamic_slice(base, starts, sizes)
    for axis in range(base.ndim):
        base = slice_axis(base, starts[axis], sizes[axis], strides[axis], axis)
    return base


_DENSE = {
    "astype": lax.convert_element_type,
    "transpose": lax.transpose,
    "reshape": lax.reshape,
    "broadcast": lax.broadcast_in_dim,
    "slice": _slice,
}
