"""Row lookup in a virtual array."""

from functools import partial

import jax.numpy as jnp
from jax import lax

from zojax import _compat
from zojax.virtual._array import is_virtual
from zojax.virtual._base import is_formula
from zojax.virtual._buffer import after
from zojax.virtual._report import Report


def gather(eqn, values, report: Report):
    """Whole rows along one axis, as `jnp.take(w, ids, axis)` and `w[ids]` lower.

    `w[i]` under vmap is a lookup too: its indices name the start on every axis, of which a slice as
    long as the axis has none but zero, and the looked-up axis stays in the output with size one.
    """
    weight, index = values
    if not is_virtual(weight) or is_virtual(index):
        return None
    d, sizes, mode = (eqn.params[k] for k in ("dimension_numbers", "slice_sizes", "mode"))
    axis = _axis(weight.shape, d, sizes, mode)
    if axis is None:
        return None
    starts, clipped = tuple(d.start_index_map), _is_clipped(mode)
    offsets = list(d.offset_dims)
    kept = [] if d.collapsed_slice_dims else [offsets.pop(axis)]
    offsets = [i - sum(i > k for k in kept) for i in offsets]
    # put the index axes first, as VirtualArray.rows expects, and back afterwards
    front = [i for i in range(eqn.outvars[0].aval.ndim - len(kept)) if i not in offsets]
    permutation = (*front, *offsets)
    rows = index[..., starts.index(axis)]
    nearest = jnp.clip(rows, 0, weight.shape[axis] - 1)
    # or XLA hoists the base's rows out of the loop over queries and keeps them in one more buffer
    late = (lambda i: i) if weight.moving is None else partial(after, weight.moving)
    if is_formula(weight.base):
        picked = weight.base.rows(late(nearest), axis)
    else:
        # a row outside must not be read as one at the edge, whose entries `rows` sets for its users
        safe = index if len(starts) > 1 else jnp.clip(index, 0, weight.shape[axis] - 1)
        (picked,) = _compat.bind(eqn, [weight.base, late(safe)])
        picked = lax.transpose(lax.squeeze(picked, kept), permutation)
    report.note(eqn, 0, weight, "rows")
    out = weight.rows(nearest, axis, picked)
    inverse = sorted(range(len(permutation)), key=permutation.__getitem__)
    out = lax.transpose(out, inverse)
    if not clipped:
        inside = (rows >= 0) & (rows < weight.shape[axis])
        fill = eqn.params["fill_value"]
        fill = jnp.asarray(jnp.nan if fill is None else fill, out.dtype)
        out = jnp.where(lax.expand_dims(inside, offsets), out, fill)
    return lax.expand_dims(out, kept)


def _is_clipped(mode) -> bool:
    return "CLIP" in str(mode) or "PROMISE" in str(mode)


def _axis(shape, d, sizes, mode) -> int | None:
    """The looked-up axis, or None where this is no lookup of whole rows."""
    starts = tuple(d.start_index_map)
    picking = [a for a in starts if sizes[a] != shape[a]] or list(starts[:1])
    if len(picking) != 1 or sizes[picking[0]] != 1:
        return None
    (axis,) = picking
    if len(starts) > 1 and not _is_clipped(mode):
        return None
    if tuple(d.collapsed_slice_dims) not in ((), (axis,)):
        return None
    if any(sizes[a] != n for a, n in enumerate(shape) if a != axis):
        return None
    if d.operand_batching_dims or d.start_indices_batching_dims:
        return None
    return axis
