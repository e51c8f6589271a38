"""What in a jaxpr depends on which inputs."""

import math
from collections.abc import Sequence

from zojax import _compat

_CALLS = (
    "jit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "custom_vmap_call",
    "checkpoint", "remat", "remat2",
)  # fmt: skip
_MULTIPLICATIONS = 2**20
_DECOMPOSITIONS = (
    "cholesky", "eig", "eigh", "geqrf", "householder_product", "lu", "qr", "svd", "schur",
    "triangular_solve", "tridiagonal",
)  # fmt: skip


def depends(jaxpr, flags: Sequence[bool]) -> list[bool]:
    """For each output, whether it depends on an input that is flagged.

    Looks into calls; a loop or a branch whose input is flagged counts as depending on it.
    """
    jaxpr, marked, _ = _walk(jaxpr, flags)
    return [not hasattr(v, "val") and v in marked for v in jaxpr.outvars]


def has_other_work(jaxpr, flags: Sequence[bool]) -> bool:
    """Whether a large product or a decomposition depends on no input that is flagged."""
    return _walk(jaxpr, flags)[2]


def _walk(jaxpr, flags):
    """The open jaxpr, its variables that depend on flagged inputs, and whether others do work."""
    jaxpr, _ = _compat.open_jaxpr(jaxpr)
    marked = {v for v, flag in zip(jaxpr.invars, flags, strict=True) if flag}
    work = False
    for eqn in jaxpr.eqns:
        inputs = [not hasattr(v, "val") and v in marked for v in eqn.invars]
        if not any(inputs):
            work = work or _is_work(eqn)
            continue
        outputs = [True] * len(eqn.outvars)
        if eqn.primitive.name in _CALLS:
            inner = _inner(eqn)[0]
            inner, inner_marked, inner_work = _walk(inner, inputs)
            outputs = [not hasattr(v, "val") and v in inner_marked for v in inner.outvars]
            work = work or inner_work
        marked.update(v for v, flag in zip(eqn.outvars, outputs, strict=True) if flag)
    return jaxpr, marked, work


def _inner(eqn) -> list:
    """The jaxprs in its parameters, that of a call first."""
    found = []
    for value in eqn.params.values():
        for x in value if isinstance(value, tuple | list) else (value,):
            if hasattr(_compat.open_jaxpr(x)[0], "eqns"):
                found.append(x)
    return found


def _is_work(eqn) -> bool:
    name = eqn.primitive.name
    if name in ("dot_general", "conv_general_dilated"):
        a, b, out = (math.prod(v.aval.shape) for v in (*eqn.invars[:2], eqn.outvars[0]))
        # of a product exactly that many without batch dimensions, fewer with them
        return math.isqrt(a * b * out) >= _MULTIPLICATIONS
    return name in _DECOMPOSITIONS or any(
        _is_work(e) for inner in _inner(eqn) for e in _compat.open_jaxpr(inner)[0].eqns
    )
