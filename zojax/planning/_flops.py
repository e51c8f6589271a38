"""Floating-point operations of a program, counted in its jaxpr."""

import math
from typing import Any

from zojax import _compat


def matmul_flops(jaxpr: Any) -> int:
    """Operations of the matrix products and convolutions of a program, a multiply-add being two.

    Counted in the jaxpr, as XLA's own cost analysis counts the body of a loop once on a CPU and
    gives nothing for a device that is only described. The body of a `scan` counts once an
    iteration, that of a `while_loop`, whose iterations nobody knows, once; of the branches of a
    `cond` the dearest counts.

    Args:
        jaxpr: of `jax.make_jaxpr(fn)(*args)` or `jax.jit(fn).trace(*args).jaxpr`.

    Returns:
        The number, exact for programs without `while_loop`.

    >>> import jax, jax.numpy as jnp
    >>> from zojax import planning
    >>> fn = lambda w, x: jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]
    >>> planning.matmul_flops(jax.make_jaxpr(fn)(jnp.ones((5, 4, 4)), jnp.ones((3, 4))))
    480
    """
    inner, _ = _compat.open_jaxpr(jaxpr)
    return sum(_of_equation(eqn) for eqn in inner.eqns)


def _of_equation(eqn: Any) -> int:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = eqn.invars[0].aval.shape
        return 2 * eqn.outvars[0].aval.size * math.prod(shape[i] for i in contracted)
    if name == "conv_general_dilated":
        kernel, numbers = eqn.invars[1].aval.shape, params["dimension_numbers"].rhs_spec
        # inputs of a group times window, for each output
        return 2 * eqn.outvars[0].aval.size * math.prod(kernel[i] for i in numbers[1:])
    if name == "cond":
        return max(map(matmul_flops, params["branches"]))
    repeats = params["length"] if name == "scan" else 1
    return repeats * sum(matmul_flops(j) for value in params.values() for j in _programs(value))


def _programs(value: Any) -> list:
    values = value if isinstance(value, (tuple, list)) else [value]
    return [v for v in values if hasattr(v, "eqns") or hasattr(v, "jaxpr")]
