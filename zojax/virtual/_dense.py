"""Products with a virtual weight that is dense for this one use."""

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from zojax import _compat
from zojax.virtual._array import VirtualArray
from zojax.virtual._buffer import after, one_at_a_time, outlined

_MOST_PANELS = 16


class Cut(NamedTuple):
    """Weights of more than `most` entries are dense in panels of up to `panel` entries.

    A panel has `width` columns or a multiple, and there are no more than `_MOST_PANELS`.
    """

    most: int
    panel: int
    width: int


# 4 MB in float32: with panels of a quarter of it a step takes a tenth longer
ON_CPU = Cut(2**20, 2**20, 1)
_SHARE = 24  # so that with its largest matrix a layer of 32 is within it
_MOST_AT_ONCE = 2**24
# panels are slow on a GPU, and worth it only where a head that is quantised or has entries would
# outweigh a layer's activations
ELSEWHERE = Cut(3 * 2**25, 2**25, 256)


def most_at_once(entries: int) -> int:
    """How many entries may be dense at once on a CPU, of a function of so many that move.

    A panel's, and of large functions a 24th, up to 64 MB in float32: loops over panels, and noise
    that each use draws, take long to compile where there are many layers.
    """
    return max(ON_CPU.most, min(entries // _SHARE, _MOST_AT_ONCE))


@dataclass(frozen=True, eq=False)
class Product:
    """`(x, weight) -> x @ weight` as an equation has it; equal for equal equations."""

    eqn: Any
    side: int  # of the weight

    def __call__(self, x, weight: jax.Array) -> jax.Array:
        (out,) = _compat.bind(self.eqn, [weight, x] if self.side == 0 else [x, weight])
        return out

    def _key(self):
        return self.eqn.primitive, *sorted(self.eqn.params.items()), self.eqn.ctx, self.side

    def __eq__(self, other):
        return isinstance(other, Product) and self._key() == other._key()

    def __hash__(self):
        return hash(self._key())


@dataclass(frozen=True)
class _AsStored:
    """The product with a virtual weight, dense as a whole."""

    product: Product
    flat: bool

    def __call__(self, x, weight: VirtualArray) -> jax.Array:
        return self.product(x, weight.materialize_as_stored(self.flat))


@dataclass(frozen=True)
class Panels:
    """The product with a virtual weight, `width` columns of which are dense at a time."""

    product: Product
    axis: int  # of the weight, as all sizes
    size: int
    width: int
    out: jax.ShapeDtypeStruct
    out_axis: int

    def __call__(self, x, weight: VirtualArray) -> jax.Array:
        axis, size, width = self.axis, self.size, self.width
        if weight.part(axis, jnp.uint32(0), width) is None:
            return self.product(x, weight.materialize_as_stored())

        def panel(k, out):
            # the last panel may begin earlier, and writes some columns again
            start = jnp.minimum(k * width, size - width)
            part = weight.part(axis, start, width)
            assert part is not None
            values = self.product(x, part.materialize_as_stored())
            return lax.dynamic_update_slice_in_dim(out, values, start, self.out_axis)

        # zeros of its own: XLA would share those of all products, and keep them from the start
        zero = jnp.zeros((), self.out.dtype)
        zero = _compat.varying_like(zero, jax.tree.leaves(weight.base)[0])
        empty = jnp.broadcast_to(after(x, zero), self.out.shape)
        return lax.fori_loop(0, -(-size // width), panel, empty)


# equal uses are calls of one computation
_outlined = lru_cache(maxsize=512)(partial(outlined, on_cpu=True))


@lru_cache(maxsize=512)
def dense_use(
    product: Product,
    panels: Panels | None = None,
    large: Panels | None = None,
    alone: bool = True,
    flat: bool = False,
):
    """`product(x, weight array)` as a function of a virtual weight that is dense for this one use.

    Equal arguments give one function, which is traced once for weights of one structure.

    Args:
        product: `(x, array) -> array`.
        panels: the same of the virtual weight, for CPU, with little of it dense at a time.
        large: likewise for other devices.
        alone: whether it is a computation of its own on CPU, whose equal uses are compiled once.
        flat: how entries are set then, as for `Entries.set_in`.
    """

    def whole(x, weight: VirtualArray):
        return product(x, weight.materialize())

    def late(x, weight: VirtualArray):
        # XLA makes the perturbed weights of many layers before the first is used
        return whole(x, weight.undrawn().after(x))

    def late_panels(x, weight: VirtualArray):
        return (large or whole)(x, weight.undrawn().after(x))

    def use(x, weight: VirtualArray):
        if not alone:
            return late(x, weight)
        apart = _outlined(panels or _AsStored(product, flat))
        return lax.platform_dependent(x, weight, cpu=apart, default=late_panels)

    def one_of_many(x, weight: VirtualArray):
        return use(x, weight.undrawn())

    def shared(xs, weight: VirtualArray):
        dense = weight.undrawn().materialize()
        return jax.vmap(lambda x: product(x, dense))(xs)

    # a derivative makes the weight again: of all layers' they would fill the memory that they save
    plain = jax.checkpoint(late, prevent_cse=False)
    return jax.jit(one_at_a_time(use, one_of_many, shared, plain), inline=True)


def panels_of(product: Product, cut: Cut) -> Panels | None:
    """A matmul, a panel of the weight's longest free axis at a time; None if that is small.

    Only one panel is dense at once: a dense direction needs a fraction of one matrix.
    """
    eqn, side = product.eqn, product.side
    weight, out = eqn.invars[side].aval, eqn.outvars[0].aval
    contract, batch = eqn.params["dimension_numbers"]
    free = [i for i in range(weight.ndim) if i not in (*contract[side], *batch[side])]
    if weight.size <= cut.most or not free:
        return None
    axis = max(free, key=lambda i: weight.shape[i])
    size = weight.shape[axis]
    width = -(-size // min(_MOST_PANELS, -(-weight.size // cut.panel), size))
    width = min(size, -(-width // cut.width) * cut.width)
    out_axis = (out.ndim - len(free) if side else len(batch[side])) + free.index(axis)
    shape = jax.ShapeDtypeStruct(out.shape, out.dtype)
    return Panels(product, axis, size, width, shape, out_axis)
