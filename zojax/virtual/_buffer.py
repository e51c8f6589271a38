"""Where XLA must not do what it does by itself: fuse, hoist, or batch a weight."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from zojax import _compat

_CHUNK = 16


def separate(stack: jax.Array) -> list[jax.Array]:
    """The slices of a stack of small arrays, each computed once, in a buffer of its own.

    XLA fuses an elementwise formula into every use of its result. For the noise of a vector that
    every token adds, or the factors of a low-rank term, that is a hash an activation; and because
    each slice has another offset, each use becomes a kernel of its own to compile. An optimization
    barrier stops this, except on CPU, where it is gone before fusion. There a loop whose carries
    move up by one place an iteration does it: equal uses then share one compiled kernel.

    Args:
        stack: (count, ...), count at least 1.

    Returns:
        `[stack[0], ..., stack[count - 1]]`.
    """
    count = stack.shape[0]

    def barrier(x):
        return list(lax.optimization_barrier([x[i] for i in range(count)]))

    def rotate(x):
        out = []
        for start in range(0, count, _CHUNK):
            stop = min(start + _CHUNK, count)
            empty = [jnp.zeros_like(x[0])] * (stop - start)

            def body(i, held):
                return [*held[1:], lax.dynamic_index_in_dim(x, i, 0, keepdims=False)]

            # two iterations at least, as XLA removes a loop of one
            out += lax.fori_loop(min(start, stop - 2), stop, body, empty)
        return out

    return lax.platform_dependent(stack, cpu=rotate, default=barrier)


def after(x: jax.Array, value: jax.Array) -> jax.Array:
    """`value`, but not before `x` is there; on CPU NaN or 0 if the first element of `x` is NaN.

    XLA's schedulers make the perturbed weights of many layers before the first is used, as nothing
    tells them to wait. An optimization barrier does, except on CPU: there the value is made to
    depend on one element, in a way that no compiler may remove.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating) or x.size == 0:
        return value

    def depend(x, value):
        first = lax.slice(x, (0,) * x.ndim, (1,) * x.ndim).reshape(())
        bad = jnp.nan if jnp.issubdtype(value.dtype, jnp.floating) else 0
        return jnp.where(jnp.isnan(first), jnp.asarray(bad, value.dtype), value)

    def barrier(x, value):
        return lax.optimization_barrier((x, value))[1]

    value = _compat.varying_like(value, x)
    return lax.platform_dependent(lax.stop_gradient(x), value, cpu=depend, default=barrier)


def one_at_a_time(fn: Callable, shared: Callable, plain: Callable) -> Callable:
    """Under `vmap`, run `fn(x, weight)` query by query: one perturbed weight at a time.

    Args:
        fn: `(x, weight) -> array`; `weight` any tree.
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
            return fn(*jax.tree.unflatten(structure, filled))

        return lax.map(one, moving), True

    differentiable: Any = jax.custom_jvp(batched)
    differentiable.defjvp(lambda primals, tangents: jax.jvp(plain, primals, tangents))
    return differentiable
