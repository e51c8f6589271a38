"""How each primitive uses a virtual array: views stay formulas, matmuls and lookups are fused.

A rule takes (equation, input values, report) and returns the output value, or None where this use
cannot be fused and the interpreter must make the array dense.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from zojax import _compat
from zojax.virtual._array import VirtualArray, is_virtual
from zojax.virtual._low_rank import LowRank
from zojax.virtual._report import Report

_UNROLLED_RANK = 8


def _transpose(eqn, values, report):
    return values[0].transpose(eqn.params["permutation"])


def _reshape(eqn, values, report):
    if len(values) != 1 or eqn.params.get("dimensions") is not None:
        return None
    return values[0].reshape(eqn.params["new_sizes"])


def _to_output_shape(eqn, values, report):
    """squeeze, expand_dims and a broadcast that adds only axes of size one."""
    shape = eqn.outvars[0].aval.shape
    if len(values) != 1 or math.prod(shape) != values[0].size:
        return None
    return values[0].reshape(shape)


def _slice(eqn, values, report):
    p = eqn.params
    strides = p["strides"] or (1,) * values[0].ndim
    sizes = [
        max(0, -(-(stop - start) // stride))
        for start, stop, stride in zip(p["start_indices"], p["limit_indices"], strides, strict=True)
    ]
    return values[0].slice(p["start_indices"], sizes, strides) if all(sizes) else None


def _dynamic_slice(eqn, values, report):
    array, *starts = values
    sizes = eqn.params["slice_sizes"]
    if any(is_virtual(s) for s in starts):
        return None
    clamped = [
        0 if size == n else lax.clamp(jnp.zeros_like(s), s, jnp.asarray(n - size, s.dtype))
        for s, size, n in zip(map(jnp.asarray, starts), sizes, array.shape, strict=True)
    ]
    return array.slice(clamped, sizes)


def _convert(eqn, values, report):
    dtype = eqn.params["new_dtype"]
    return values[0].astype(dtype) if jnp.issubdtype(dtype, jnp.floating) else None


def _identity(eqn, values, report):
    return values[0]


def _dot_general(eqn, values, report: Report):
    """x @ (base + terms): one product with the base, thin products for low-rank terms.

    Noise and entries are put into the base for this one product; nothing dense outlives it.
    """
    if all(map(is_virtual, values)):
        report.note(eqn, 0, values[0], "at use")
        values = [values[0].materialize(), values[1]]
    side = 1 if is_virtual(values[1]) else 0
    weight, x = values[side], values[1 - side]
    thin, dense = [], []
    for term in weight.terms:
        plan = _factor_plan(eqn, term, side) if isinstance(term, LowRank) else None
        (dense if plan is None else thin).append((term, plan))
    rest = VirtualArray(weight.base, weight.entries, tuple(t for t, _ in dense), weight.name)
    is_dense = bool(dense) or weight.entries is not None
    report.note(eqn, side, weight, "at use" if is_dense else "fused")
    base = rest.materialize()
    (out,) = _compat.bind(eqn, [base, x] if side == 0 else [x, base])
    if not thin:
        return out
    total = out.astype(jnp.promote_types(out.dtype, jnp.float32))
    for term, plan in thin:
        total = total + _thin_product(x, term, plan)
    return total.astype(out.dtype)


def _factor_plan(eqn, term: LowRank, side: int):
    """Einsum letters for x . first . second, or None where no factor holds all contracted axes."""
    contract, batch = eqn.params["dimension_numbers"]
    axes, batch_axes = contract[side], batch[side]
    real = [i for i in axes if term.shape[i] != 1]
    for first, second in ((term.left, term.right), (term.right, term.left)):
        if all(first.shape[i] != 1 for i in real) and all(second.shape[i] == 1 for i in real):
            break
    else:
        return None
    letters = iter("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    w = [next(letters) for _ in term.shape]
    x_ndim = eqn.invars[1 - side].aval.ndim
    x = [""] * x_ndim
    for w_axis, x_axis in zip(axes, contract[1 - side], strict=True):
        x[x_axis] = w[w_axis]
    for w_axis, x_axis in zip(batch_axes, batch[1 - side], strict=True):
        x[x_axis] = w[w_axis]
    x = [letter or next(letters) for letter in x]
    used = (*contract[1 - side], *batch[1 - side])
    x_free = [x[i] for i in range(x_ndim) if i not in used]
    w_free = [w[i] for i in range(len(w)) if i not in (*axes, *batch_axes)]
    shared = [w[i] for i in batch_axes]
    out = shared + (w_free + x_free if side == 0 else x_free + w_free)
    return first, second, "".join(w), "".join(x), "".join(out), next(letters)


def _thin_product(x, term: LowRank, plan):
    first, second, w, x_letters, out, r = plan
    x_dtype = jnp.promote_types(x.dtype, jnp.float32)

    def present(factor):
        return "".join(
            c for c, n, full in zip(w, factor.shape, term.shape, strict=False) if n == full != 1
        )

    def drop_ones(factor):
        absent = [i for i, n in enumerate(factor.shape[:-1]) if n == 1]
        return lax.squeeze(factor, absent)

    w_kept = "".join(c for c, n in zip(w, term.shape, strict=True) if n != 1)
    x_kept = "".join(c for c in x_letters if c not in w or c in w_kept)
    x = lax.squeeze(x, [i for i, c in enumerate(x_letters) if c not in x_kept])
    first_letters, second_letters = present(first), present(second)
    middle = "".join(c for c in x_kept if c not in first_letters or c in out) + "".join(
        c for c in first_letters if c in out and c not in x_kept
    )
    thin = jnp.einsum(
        f"{x_kept},{first_letters}{r}->{middle}{r}",
        x.astype(x_dtype),
        drop_ones(first).astype(x_dtype),
    )
    thin = thin * term.scale.astype(x_dtype)
    second = drop_ones(second).astype(x_dtype)
    out_kept = "".join(c for c in out if c not in w or c in w_kept)
    if term.rank <= _UNROLLED_RANK and set(middle) | set(second_letters) == set(out_kept):
        # elementwise, so that XLA adds it into the base product without another buffer
        spread = [
            jnp.einsum(f"{letters}{r}->{_ordered(letters, out_kept)}{r}", factor)
            for letters, factor in ((middle, thin), (second_letters, second))
        ]
        left, right = (
            f.reshape(*_padded_shape(letters, out_kept, f.shape), term.rank)
            for letters, f in zip((middle, second_letters), spread, strict=True)
        )
        product = sum(left[..., i] * right[..., i] for i in range(term.rank))
    else:
        product = jnp.einsum(f"{middle}{r},{second_letters}{r}->{out_kept}", thin, second)
    ones = [i for i, c in enumerate(out) if c not in out_kept]
    return jnp.expand_dims(product, ones)


def _ordered(letters: str, order: str) -> str:
    return "".join(c for c in order if c in letters)


def _padded_shape(letters: str, order: str, shape) -> list[int]:
    sizes = dict(zip(_ordered(letters, order), shape, strict=False))
    return [sizes.get(c, 1) for c in order]


def _gather(eqn, values, report: Report):
    """Row lookup: whole rows along one axis, as `jnp.take(w, ids, axis)` and `w[ids]` lower."""
    weight, index = values
    if not is_virtual(weight) or is_virtual(index):
        return None
    d, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    if len(d.start_index_map) != 1 or d.collapsed_slice_dims != d.start_index_map:
        return None
    if d.operand_batching_dims or d.start_indices_batching_dims:
        return None
    (axis,) = d.start_index_map
    if sizes[axis] != 1 or any(
        n != s for i, (n, s) in enumerate(zip(weight.shape, sizes, strict=True)) if i != axis
    ):
        return None
    (picked,) = _compat.bind(eqn, [weight.base, index])
    # put the index axes first, as VirtualArray.rows expects, and back afterwards
    front = [i for i in range(picked.ndim) if i not in d.offset_dims]
    permutation = (*front, *d.offset_dims)
    rows = index[..., 0]
    safe = jnp.clip(rows, 0, weight.shape[axis] - 1)
    report.note(eqn, 0, weight, "rows")
    out = weight.rows(safe, axis, lax.transpose(picked, permutation))
    inverse = sorted(range(len(permutation)), key=permutation.__getitem__)
    out = lax.transpose(out, inverse)
    if "CLIP" in str(eqn.params["mode"]) or "PROMISE" in str(eqn.params["mode"]):
        return out
    inside = (rows >= 0) & (rows < weight.shape[axis])
    inside = jnp.expand_dims(inside, [i for i in range(out.ndim) if i in d.offset_dims])
    return jnp.where(inside, out, picked)


RULES = {
    "transpose": _transpose,
    "reshape": _reshape,
    "squeeze": _to_output_shape,
    "expand_dims": _to_output_shape,
    "broadcast_in_dim": _to_output_shape,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "convert_element_type": _convert,
    "copy": _identity,
    "copy_p": _identity,
    "dot_general": _dot_general,
    "gather": _gather,
}


def apply_rule(eqn, values: list, report: Report) -> jax.Array | VirtualArray | None:
    """The output of an equation with one output, or None where no rule fits."""
    rule = RULES.get(eqn.primitive.name)
    return None if rule is None else rule(eqn, values, report)
