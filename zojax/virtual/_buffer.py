"""Where XLA must not do what it does by itself: fuse, hoist, or batch a weight."""

import itertools
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import jax
import jax.extend.core as jex_core
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.custom_batching import custom_vmap
from jax.experimental.xla_metadata import set_xla_metadata

from zojax import _compat
from zojax.virtual._dependence import has_other_work

_MOST_MADE = 512


def outlined(fn: Callable, on_cpu: bool = False) -> Callable:
    """`fn` as a computation of its own, that XLA neither inlines nor fuses with what is around.

    What it returns is stored, not made again by each user. Calls of one `outlined(fn)` with
    arguments of equal shapes are calls of one computation, traced once: `fn` must depend on its
    arguments only.

    Args:
        fn: arrays in, arrays out.
        on_cpu: whether it is called on CPU alone, where an attribute of the call says it all.
    """
    made: dict[Hashable, tuple[Callable, list[bool]]] = {}

    def call(*args):
        leaves, tree = jax.tree.flatten(args)
        if not any(isinstance(x, Tracer) for x in leaves):
            return fn(*args)
        # scalars that are known need not be passed, nor what is not used
        known = [not isinstance(x, Tracer) and jnp.size(x) == 1 for x in leaves]
        passed = [x for x, k in zip(leaves, known, strict=True) if not k]
        constants = [x if k else None for x, k in zip(leaves, known, strict=True)]
        values = [np.asarray(x) for x in constants if x is not None]
        key = (
            tree,
            tuple(known),
            *map(jax.typeof, passed),
            *((v.dtype, v.tobytes()) for v in values),
        )
        if key not in made:
            if len(made) == _MOST_MADE:
                made.clear()
            made[key] = _apart(fn, tree, constants, passed)
        apart, used = made[key]
        with set_xla_metadata(inlineable="false"):
            out = apart(list(itertools.compress(passed, used)))
        # elsewhere the attribute is not known
        return out if on_cpu else barrier_but_on_cpu(out)

    return call


def barrier_but_on_cpu(values):
    """An optimization barrier, or nothing on CPU: one of them is one more pass over a program."""
    return lax.platform_dependent(values, cpu=lambda x: x, default=lax.optimization_barrier)


def _apart(fn, tree, constants, passed) -> tuple[Callable, list[bool]]:
    """A jitted function of those of `passed` that are used, and which these are."""

    def flat(values):
        rest = iter(values)
        filled = [next(rest) if x is None else x for x in constants]
        return fn(*jax.tree.unflatten(tree, filled))

    jaxpr = jax.make_jaxpr(flat)(passed).jaxpr
    found = {id(v) for eqn in jaxpr.eqns for v in eqn.invars} | {id(v) for v in jaxpr.outvars}
    used = [id(v) in found for v in jaxpr.invars]
    # asked for their shape at most, and no tracer, which would outlive its trace
    absent = [jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)) for x in passed]

    def body(values):
        rest = iter(values)
        with set_xla_metadata(inlineable=None):  # of the call, not of the calls inside
            return flat([next(rest) if u else x for x, u in zip(absent, used, strict=True)])

    return jax.jit(body), used


def called(fn: Callable) -> Callable:
    """`fn` as one call that XLA does not inline on CPU, so that a loop around it compiles faster.

    Where a large part of it is the same in all iterations XLA shall take that out of the loop, and
    nothing is changed.
    """

    def body(*args):
        # of the call, not of those inside: lowering would give it to all that it makes
        with set_xla_metadata(inlineable="true"):
            return fn(*args)

    def call(*args):
        leaves = jax.tree.leaves(args)
        closed, shapes = jax.make_jaxpr(jax.jit(body), return_shape=True)(*args)
        inlined = jex_core.jaxpr_as_fun(closed)
        if has_other_work(closed, [True] * len(leaves)):
            return jax.tree.unflatten(jax.tree.structure(shapes), inlined(*leaves))

        def apart(*leaves):
            with set_xla_metadata(inlineable="false"):
                return inlined(*leaves)

        out = lax.platform_dependent(*leaves, cpu=apart, default=inlined)
        return jax.tree.unflatten(jax.tree.structure(shapes), out)

    return call


def after(x: jax.Array, value: jax.Array, strictly: bool = False) -> jax.Array:
    """`value`, but not before `x` is there; perhaps NaN or 0 if the first element of `x` is NaN.

    XLA's schedulers make the perturbed weights of many layers before the first is used, as nothing
    tells them to wait. An optimization barrier does on a TPU, and nearly on a GPU, where it is gone
    before the program is scheduled. On CPU, and on a GPU where it must be strict, the value is made
    to depend on one element, in a way that no compiler may remove.
    """

    def barrier(x, value):
        return lax.optimization_barrier((x, value))[1]

    value, x = _compat.varying_like(value, x), lax.stop_gradient(x)
    if strictly:
        return lax.platform_dependent(x, value, tpu=barrier, default=depend)
    return lax.platform_dependent(x, value, cpu=depend, default=barrier)


def cut_after(x: jax.Array, stack: jax.Array, index: jax.Array) -> jax.Array:
    """`stack[index]`, on CPU not before `x` is there: not from the start of a layer on."""
    return _cut_after(lax.stop_gradient(x), stack, _compat.varying_like(index, x))


def _cut(x, stack, index):
    return lax.dynamic_index_in_dim(stack, index, 0, keepdims=False)


@outlined
def _cut_late(x, stack, index):
    # the first element is taken inside: a second use of `x` would change how XLA makes `x`
    return _cut(x, stack, depend(x, index))


@custom_vmap
def _cut_alone(x, stack, index):
    return lax.platform_dependent(x, stack, index, cpu=_cut_late, default=_cut)


@_cut_alone.def_vmap
def _(size, is_batched, x, stack, index):
    _, *batched = is_batched
    axes = [0 if b else None for b in batched]
    if not any(batched):
        return _cut(x, stack, index), False
    return jax.vmap(partial(_cut, None), axes)(stack, index), True


_cut_after: Any = jax.custom_jvp(_cut_alone)
_cut_after.defjvp(lambda primals, tangents: jax.jvp(_cut, primals, tangents))


def depend(x, value):
    """`value`, or NaN or 0 if the first element of `x` is NaN: so that it cannot be before `x`."""
    if not jnp.issubdtype(x.dtype, jnp.floating) or x.size == 0:
        return value
    first = lax.slice(x, (0,) * x.ndim, (1,) * x.ndim).reshape(())
    bad = jnp.nan if jnp.issubdtype(value.dtype, jnp.floating) else 0
    return jnp.where(jnp.isnan(first), jnp.asarray(bad, value.dtype), value)


def one_at_a_time(fn: Callable, one_of_many: Callable, shared: Callable, plain: Callable):
    """Under `vmap`, run `fn(x, weight)` query by query: one perturbed weight at a time.

    Args:
        fn: `(x, weight) -> array`; `weight` any tree.
        one_of_many: the same function, as it is run for each query.
        shared: `fn` of one weight and a batch of x, `(xs, weight) -> arrays`.
        plain: the same function as `fn`, to differentiate.

    Returns:
        The same function with that batching; differentiable as `plain` is.
    """
    batched = custom_vmap(fn)

    @batched.def_vmap
    def _(size, is_batched, x, weight):
        x_batched, weight_batched = is_batched
        if not any(jax.tree.leaves(weight_batched)):
            return shared(x, weight), True
        leaves, structure = jax.tree.flatten((x, weight))
        flags = jax.tree.leaves((x_batched, weight_batched))
        moving = [leaf for leaf, flag in zip(leaves, flags, strict=True) if flag]

        def one(values):
            rest = iter(values)
            filled = [next(rest) if flag else x for x, flag in zip(leaves, flags, strict=True)]
            return one_of_many(*jax.tree.unflatten(structure, filled))

        return lax.map(one, moving), True

    differentiable: Any = jax.custom_jvp(batched)
    differentiable.defjvp(lambda primals, tangents: jax.jvp(plain, primals, tangents))
    return differentiable
