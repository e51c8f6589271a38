"""Walk a jaxpr whose inputs may be virtual; higher-order primitives are emitted again."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from zojax import _compat
from zojax.virtual._array import VirtualArray, is_virtual, local_view
from zojax.virtual._base import is_formula
from zojax.virtual._buffer import after, outlined
from zojax.virtual._low_rank import LowRank
from zojax.virtual._report import Report, is_vector
from zojax.virtual._rules import apply_rule
from zojax.virtual._together import drawn_together


def evaluate(jaxpr, args: list, report: Report, fixed: Sequence[bool] = ()) -> list:
    """Outputs of a jaxpr; an output that is a bare view of a virtual input stays virtual.

    Args:
        jaxpr: closed or not.
        args: arrays and virtual arrays.
        report: what became of them.
        fixed: for each argument, whether it is the same for all queries; empty for none.
    """
    jaxpr, consts = _compat.open_jaxpr(jaxpr)
    env = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))
    same = {v for v, flag in zip(jaxpr.invars, fixed, strict=False) if flag}.union(jaxpr.constvars)

    def read(atom):
        return atom.val if hasattr(atom, "val") else env[atom]

    together = drawn_together(jaxpr, env)
    for eqn in jaxpr.eqns:
        values = [read(v) for v in eqn.invars]
        if id(eqn) in together:
            values = together[id(eqn)].with_numbers(values)
        flags = [hasattr(v, "val") or v in same for v in eqn.invars]
        if any(map(is_virtual, values)):
            outs = _evaluate_virtual(eqn, values, report, flags)
        else:
            outs = _compat.bind(eqn, values)
            if all(flags):
                same.update(eqn.outvars)
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _evaluate_virtual(eqn, values, report, fixed) -> list:
    name = eqn.primitive.name
    if name in _CALLS:
        return _CALLS[name](eqn, values, report, fixed)
    if name in _LOOPS:
        return _LOOPS[name](eqn, values, report)
    if name in _PRODUCTS:
        values = _late(values, fixed)
    outs = apply_rule(eqn, values, report)
    if outs is not None:
        return list(outs)
    return _compat.bind(eqn, [_dense(eqn, i, v, report) for i, v in enumerate(values)])


def _late(values, fixed):
    """Inputs of a product that are the same for all queries, made to wait for the query.

    Else XLA takes the product with the base out of the loop over queries, and keeps one more
    activation in memory through all of them.
    """
    moving = next((v.moving for v in values if is_virtual(v)), None)
    if moving is None:
        return values
    return [
        after(moving, jnp.asarray(v)) if flag and not is_virtual(v) else v
        for v, flag in zip(values, fixed, strict=True)
    ]


def _dense(eqn, position, value, report):
    if not is_virtual(value):
        return value
    report.note(eqn, position, value, "fallback")
    # a vector is used by every token: make it once, or XLA recomputes its noise for each of them
    if is_vector(value) and not _has_numbers(value):
        return _stored(_unnamed(value))
    return _whole(_unnamed(value), report.sets_flat(value))


def _has_numbers(value: VirtualArray) -> bool:
    """Whether nothing has to be drawn to make it dense."""
    return all(isinstance(term, LowRank) for term in value.terms)


def _unnamed(value: VirtualArray) -> VirtualArray:
    """The array without what would make it another than an equal one."""
    return replace(value, name="", origin=None)


def _dense_all(eqn, values, report, offset=0):
    return [_dense(eqn, offset + i, v, report) for i, v in enumerate(values)]


def _jit(eqn, values, report, fixed):
    def call(*args):
        return evaluate(eqn.params["jaxpr"], list(args), report, fixed)

    call.__name__ = eqn.params["name"]
    return jax.jit(call)(*values)


def _inline(eqn, values, report, fixed):
    return evaluate(eqn.params["call_jaxpr"], values, report, fixed)


def _remat(eqn, values, report, fixed):
    def call(*args):
        return evaluate(eqn.params["jaxpr"], list(args), report, fixed)

    prevent_cse, policy = eqn.params["prevent_cse"], eqn.params["policy"]
    return jax.checkpoint(call, prevent_cse=prevent_cse, policy=policy)(*values)


def _scan(eqn, values, report):
    p = eqn.params
    if p["length"] == 0:
        return _compat.bind(eqn, _dense_all(eqn, values, report))
    num_consts, num_carry = _compat.scan_counts(p)
    consts = values[:num_consts]
    carry = _dense_all(eqn, values[num_consts : num_consts + num_carry], report, num_consts)
    stacked = [
        v if not is_virtual(v) or v.index(jnp.int32(0)) is not None else _dense(eqn, i, v, report)
        for i, v in enumerate(values[num_consts + num_carry :], num_consts + num_carry)
    ]
    dense_stacked = [None if is_virtual(v) else v for v in stacked]

    def body(carry, step):
        i, sliced = step
        xs = [v.index(i) if is_virtual(v) else s for v, s in zip(stacked, sliced, strict=True)]
        outs = _dense_all(eqn, evaluate(p["jaxpr"], [*consts, *carry, *xs], report), report)
        return outs[:num_carry], outs[num_carry:]

    xs = (jnp.arange(p["length"], dtype=jnp.int32), dense_stacked)
    carry, ys = lax.scan(
        body, carry, xs, length=p["length"], reverse=p["reverse"], unroll=p["unroll"]
    )
    return [*carry, *ys]


def _while(eqn, values, report):
    p = eqn.params
    n_cond, n_body = p["cond_nconsts"], p["body_nconsts"]
    cond_consts, body_consts = values[:n_cond], values[n_cond : n_cond + n_body]
    carry = _dense_all(eqn, values[n_cond + n_body :], report, n_cond + n_body)

    def condition(carry):
        return evaluate(p["cond_jaxpr"], [*cond_consts, *carry], report)[0]

    def body(carry):
        return _dense_all(eqn, evaluate(p["body_jaxpr"], [*body_consts, *carry], report), report)

    return lax.while_loop(condition, body, carry)


def _cond(eqn, values, report):
    which, *operands = values

    def branch(jaxpr):
        def call(*plain):
            rest = iter(plain)
            args = [v if is_virtual(v) else next(rest) for v in operands]
            return _dense_all(eqn, evaluate(jaxpr, args, report), report)

        return call

    branches = [branch(jaxpr) for jaxpr in eqn.params["branches"]]
    return lax.switch(which, branches, *(v for v in operands if not is_virtual(v)))


def _shard_map(eqn, inputs, report):
    """Each device takes its part of the base, and its part of the formula."""
    specs, mesh = eqn.params["in_specs"], eqn.params["mesh"]

    def local(array, base, spec, index_of):
        return local_view(array, base, spec, dict(mesh.shape), index_of)

    def is_whole(array, spec):
        return is_formula(array.base) or local(array, array.base, spec, lambda names: 0) is None

    values: list[Any] = [
        _dense(eqn, i, v, report) if is_virtual(v) and is_whole(v, spec) else v
        for i, (v, spec) in enumerate(zip(inputs, specs, strict=True))
    ]
    # the formulas go in whole: their factors, keys and entries are small beside the base
    formulas = [(v.entries, v.terms) if is_virtual(v) else None for v in values]
    bases = [v.base if is_virtual(v) else v for v in values]

    def body(bases, formulas):
        args = [
            base
            if formula is None
            else local(replace(v, entries=formula[0], terms=formula[1]), base, spec, lax.axis_index)
            for v, base, formula, spec in zip(values, bases, formulas, specs, strict=True)
        ]
        return _dense_all(eqn, evaluate(eqn.params["jaxpr"], args, report), report)

    whole = jax.tree.map(lambda _: PartitionSpec(), formulas)
    return _compat.shard_map_again(eqn, body, (list(specs), whole))(bases, formulas)


def _barrier(eqn, values, report, fixed):
    """What passes an optimization barrier is stored."""
    del fixed
    for i, v in enumerate(values):
        if is_virtual(v):
            report.note(eqn, i, v, "at use")

    def stored(value):
        make = _whole if is_vector(value) and _has_numbers(value) else _stored
        return make(_unnamed(value))

    return _compat.bind(eqn, [stored(v) if is_virtual(v) else v for v in values])


_stored = outlined(VirtualArray.materialize)


@partial(jax.jit, static_argnums=1)  # traced once for equal leaves; XLA inlines the calls
def _whole(value: VirtualArray, flat: bool = False) -> jax.Array:
    if not flat:
        return value.materialize()
    as_stored = partial(VirtualArray.materialize, flat=True)
    return lax.platform_dependent(value, cpu=as_stored, default=VirtualArray.materialize)


_PRODUCTS = ("dot_general", "conv_general_dilated")

_CALLS = {
    "jit": _jit,
    "closed_call": _inline,
    "core_call": _inline,
    "custom_jvp_call": _inline,
    "custom_vjp_call": _inline,
    "optimization_barrier": _barrier,
    "remat2": _remat,
    "checkpoint": _remat,
}

_LOOPS = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "shard_map": _shard_map,
}


def abstract(value: VirtualArray | jax.Array):
    """What tracing needs to know of an argument."""
    if isinstance(value, VirtualArray):
        weak = getattr(value.base, "weak_type", False)
        return jax.ShapeDtypeStruct(value.shape, value.dtype, weak_type=weak)
    return value
