"""Everything that differs between the supported jax versions, and nothing else."""

import os
import sysconfig

import jax.extend.core as jex_core

_PACKAGES = tuple(
    os.path.join(sysconfig.get_paths()[scheme], "") for scheme in ("purelib", "platlib", "stdlib")
)
_HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "")


def bind(eqn: jex_core.JaxprEqn, args: list) -> list:
    """Evaluate one equation on concrete or traced values."""
    params = eqn.primitive.get_bind_params(eqn.params)
    with eqn.ctx.manager:
        out = eqn.primitive.bind(*args, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def open_jaxpr(jaxpr) -> tuple[jex_core.Jaxpr, list]:
    """(jaxpr, consts) of a jaxpr that may or may not be closed."""
    consts = list(getattr(jaxpr, "consts", ()) or ())
    return getattr(jaxpr, "jaxpr", jaxpr), consts


def scan_counts(params: dict) -> tuple[int, int]:
    """(number of constants, number of carries) of a scan equation."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return len(consts), len(carry)


def source_line(eqn: jex_core.JaxprEqn) -> str:
    """'file:line (function)' of the user's code that made the equation, '' if unknown."""
    traceback = eqn.source_info.traceback
    for frame in traceback.frames if traceback is not None else ():
        name = frame.file_name
        if not name.startswith((*_PACKAGES, _HERE, "<")):
            return f"{os.path.basename(name)}:{frame.line_num} ({frame.function_name})"
    return ""
