"""How each primitive uses a virtual array: views stay formulas, matmuls and lookups are fused.

A rule takes (equation, input values, report) and returns the output value, a list of them for an
equation of several outputs, or None where this use cannot be fused and the interpreter must make
the array dense.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from zojax import _compat
from zojax.virtual._array import is_virtual
from zojax.virtual._base import is_formula
from zojax.virtual._contraction import convolution, dot_general
from zojax.virtual._lookup import gather
from zojax.virtual._report import Report, is_vector

Rule = Callable[[list[Any], dict[str, Any], Callable[..., Any]], Any]


def _transpose(eqn, values, report):
    return values[0].transpose(eqn.params["permutation"])


def _reshape(eqn, values, report):
    if len(values) != 1 or eqn.params.get("dimensions") is not None:
        return None
    return values[0].reshape(eqn.params["new_sizes"])


def _to_output_shape(eqn, values, report):
    """squeeze and expand_dims."""
    return values[0].reshape(eqn.outvars[0].aval.shape)


def _broadcast(eqn, values, report):
    shape, dimensions = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    if len(values) != 1:
        return None
    if math.prod(shape) == values[0].size:
        return values[0].reshape(shape)
    # a vector spread over the tokens is used elementwise: dense once, instead of a formula each
    return None if is_vector(values[0]) else values[0].broadcast(shape, dimensions)


def _split(eqn, values, report):
    axis, start, parts = eqn.params["axis"], 0, []
    for size in map(int, eqn.params["sizes"]):
        starts = [start if i == axis else 0 for i in range(values[0].ndim)]
        sizes = [size if i == axis else n for i, n in enumerate(values[0].shape)]
        parts.append(values[0].slice(starts, sizes) if size else None)
        start += size
    return None if any(part is None for part in parts) else parts


def _on_base(eqn, values, report):
    """Layout hints: they concern the part that is stored."""
    (array,) = values
    if is_formula(array.base):
        return array
    (base,) = _compat.bind(eqn, [array.base])
    return replace(array, base=base, origin=None)


def _vary(eqn, values, report):
    (array,) = values
    base = jax.tree.map(lambda leaf: _compat.bind(eqn, [leaf])[0], array.base)
    return replace(array, base=base, origin=None)


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


RULES: dict[str, Callable] = {
    "transpose": _transpose,
    "reshape": _reshape,
    "squeeze": _to_output_shape,
    "expand_dims": _to_output_shape,
    "broadcast_in_dim": _broadcast,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "split": _split,
    "convert_element_type": _convert,
    "copy": _identity,
    "copy_p": _identity,
    "stop_gradient": _identity,
    "sharding_constraint": _on_base,
    "pvary": _vary,
    "dot_general": dot_general,
    "conv_general_dilated": convolution,
    "gather": gather,
}


def register_rule(primitive: str, rule: Rule) -> None:
    """Teach `virtualize` a primitive, your own or a `pallas_call`.

    Args:
        primitive: its name, as `explain` prints it; a rule that is there is replaced.
        rule: `(values, params, bind) -> output`, called at trace time where an input of the
            primitive is virtual. `values` are the inputs, `VirtualArray` or arrays; `params` the
            parameters of the primitive; `bind(*arrays)` evaluates the primitive itself, with a list
            of results if it can have several (`pallas_call` can). Returns the output (an array, a
            `VirtualArray`, or a list of them), or None where this use has no fused form: the inputs
            are then made dense.

    >>> import jax, jax.numpy as jnp, zojax
    >>> from zojax import virtual
    >>> def negate(values, params, bind):
    ...     (w,) = values
    ...     if w.entries is not None:
    ...         return None
    ...     return virtual.VirtualArray(bind(w.base)).plus(*(t.scaled(-1.0) for t in w.terms))
    >>> virtual.register_rule("neg", negate)
    >>> term = virtual.LowRank.of_matrices(jnp.ones((3, 1)), jnp.ones((3, 1)), scale=0.5)
    >>> w = virtual.VirtualArray(jnp.eye(3)).plus(term)
    >>> zojax.virtualize(lambda w, x: x @ -w)(w, jnp.ones((1, 3))).tolist()
    [[-2.5, -2.5, -2.5]]
    """

    def adapted(eqn, values, report: Report):
        def bind(*arrays):
            outs = _compat.bind(eqn, list(arrays))
            return outs if eqn.primitive.multiple_results else outs[0]

        out = rule(list(values), dict(eqn.params), bind)
        if out is not None:
            for position, value in enumerate(values):
                if is_virtual(value):
                    report.note(eqn, position, value, "fused")
        return out

    RULES[primitive] = adapted


def apply_rule(eqn, values: list, report: Report) -> Sequence[Any] | None:
    """The outputs of an equation, or None where no rule fits."""
    rule = RULES.get(eqn.primitive.name)
    out = None if rule is None else rule(eqn, values, report)
    return [out] if out is not None and not isinstance(out, (list, tuple)) else out
