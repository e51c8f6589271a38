"""The transform: a function of arrays becomes a function of virtual arrays."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import jax
import numpy as np

from zojax.virtual._array import VirtualArray, is_virtual, materialize
from zojax.virtual._base import is_formula
from zojax.virtual._dense import most_at_once
from zojax.virtual._dependence import depends
from zojax.virtual._interpret import abstract, evaluate
from zojax.virtual._report import Explanation, Implementation, OnFallback, Report


def virtualize(
    fn: Callable,
    *,
    on_fallback: OnFallback = "allow",
    on_unused: Literal["allow", "error"] = "allow",
    implementation: Implementation | None = None,
) -> Callable:
    """Let a function take virtual arrays wherever it takes arrays.

    The function is traced once with ordinary abstract arrays, then its jaxpr is evaluated with the
    virtual ones: a matmul becomes `x @ base + (x @ a) @ b.T`, a lookup makes only its rows, views
    and loops stay formulas, and anything else makes one leaf dense at one use.

    Args:
        fn: any JAX-traceable function. Arguments that are not arrays are static.
        on_fallback: "allow", "warn" or "error" where a matrix has to be made dense because no rule
            knows its use. `explain` lists them.
        on_unused: "error" to refuse a function whose outputs depend on no virtual argument, as one
            that closes over its weights.
        implementation: of products with dense weights under noise: "tpu" or "gpu" for the Pallas
            kernel, wherever it can do the product (on a CPU in Pallas' interpreter, slowly), "xla"
            for none; by default what was measured to be the fastest on this kind of device, see
            `pallas_kernels.perturbed_matmul.select`.

    Returns:
        A function of the same signature. With no virtual argument it is `fn` itself. Composes with
        `jit`, `vmap`, `lax.map` and differentiation with respect to arrays outside and inside; an
        inner `custom_jvp` or `custom_vjp` that is applied to a virtual array itself loses its rule.

    >>> import jax, jax.numpy as jnp, zojax
    >>> from zojax import virtual
    >>> w, x = jnp.eye(3), jnp.ones((2, 3))
    >>> term = virtual.LowRank.of_matrices(jnp.ones((3, 1)), jnp.ones((3, 1)), scale=0.5)
    >>> zojax.virtualize(jnp.dot)(x, virtual.VirtualArray(w).plus(term)).tolist()
    [[2.5, 2.5, 2.5], [2.5, 2.5, 2.5]]
    """

    @functools.wraps(fn)
    def virtual_fn(*args, **kwargs):
        return _call(fn, args, kwargs, Report(on_fallback, implementation), on_unused)

    return virtual_fn


def explain(
    fn: Callable, *, implementation: Implementation | None = None
) -> Callable[..., Explanation]:
    """A function that tells how `virtualize(fn)` would use each virtual leaf, without running it.

    Args:
        fn: as for `virtualize`.
        implementation: as for `virtualize`.

    Returns:
        `explain(fn)(*args)` traces abstractly and gives an `Explanation`; print it.
    """

    def explained(*args, **kwargs) -> Explanation:
        report = Report(implementation=implementation)
        leaves, tree = jax.tree.flatten((args, kwargs), is_leaf=is_virtual)
        dynamic = [i for i, x in enumerate(leaves) if is_virtual(x) or _is_array(x)]

        def run(values):
            filled = list(leaves)
            for i, v in zip(dynamic, values, strict=True):
                filled[i] = v
            a, k = jax.tree.unflatten(tree, filled)
            return _call(fn, a, k, report)

        jax.eval_shape(run, [leaves[i] for i in dynamic])
        return Explanation(tuple(report.uses.values()))

    return explained


def _is_array(x: Any) -> bool:
    return isinstance(x, (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct))


def _whole(arrays: Sequence[VirtualArray]) -> frozenset[str]:
    """Names of leaves that need not be made in panels.

    Not of stacks, as a loop is compiled once, nor of what is quantised to need little memory.
    """
    stored = [array for array in arrays if not is_formula(array.base)]
    most = most_at_once(sum(array.size for array in stored))
    others = {array.name for array in arrays if is_formula(array.base) or array.size > most}
    return frozenset(array.name for array in stored if array.name) - others


def _call(fn, args, kwargs, report: Report, on_unused="allow"):
    leaves, tree = jax.tree.flatten((args, kwargs), is_leaf=is_virtual)
    if not any(map(is_virtual, leaves)):
        return fn(*args, **kwargs)
    dynamic = [i for i, x in enumerate(leaves) if is_virtual(x) or _is_array(x)]
    out_tree = None

    def flat(*values):
        nonlocal out_tree
        filled = list(leaves)
        for i, v in zip(dynamic, values, strict=True):
            filled[i] = v
        a, k = jax.tree.unflatten(tree, filled)
        outs, out_tree = jax.tree.flatten(fn(*a, **k))
        return outs

    values = [leaves[i] for i in dynamic]
    closed = jax.make_jaxpr(flat)(*map(abstract, values))
    if on_unused == "error" and not any(depends(closed, list(map(is_virtual, values)))):
        names = ", ".join(v.name or "(unnamed)" for v in values if is_virtual(v))
        raise ValueError(
            f"the function does not depend on {names}: its value is the same wherever they are; "
            "use the parameters that it is given instead of closing over others"
        )
    report = replace(report, whole=_whole([v for v in values if is_virtual(v)]))
    outs = evaluate(closed, values, report, [not is_virtual(v) for v in values])
    assert out_tree is not None
    return jax.tree.unflatten(out_tree, [materialize(o) for o in outs])
