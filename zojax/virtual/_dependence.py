"""Which outputs of a jaxpr depend on which inputs."""

from collections.abc import Sequence

from zojax import _compat

_CALLS = ("jit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "checkpoint")


def depends(jaxpr, flags: Sequence[bool]) -> list[bool]:
    """For each output, whether it depends on an input that is flagged.

    Looks into calls; a loop or a branch whose input is flagged counts as depending on it.
    """
    jaxpr, _ = _compat.open_jaxpr(jaxpr)
    marked = {v for v, flag in zip(jaxpr.invars, flags, strict=True) if flag}

    def is_marked(atom) -> bool:
        return not hasattr(atom, "val") and atom in marked

    for eqn in jaxpr.eqns:
        inputs = [is_marked(v) for v in eqn.invars]
        if not any(inputs):
            continue
        if eqn.primitive.name in _CALLS:
            inner = eqn.params["jaxpr" if "jaxpr" in eqn.params else "call_jaxpr"]
            outputs = depends(inner, inputs)
        else:
            outputs = [True] * len(eqn.outvars)
        marked.update(v for v, flag in zip(eqn.outvars, outputs, strict=True) if flag)
    return [is_marked(v) for v in jaxpr.outvars]
