"""Everything that differs between the supported jax versions, and nothing else."""

import os
import sysconfig

import jax
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


def shard_map_again(eqn: jex_core.JaxprEqn, body, in_specs):
    """A shard_map like that of an equation, of another body."""
    p = eqn.params
    return jax.shard_map(
        body,
        mesh=p["mesh"],
        in_specs=in_specs,
        out_specs=list(p["out_specs"]),
        check_vma=p["check_vma"],
        axis_names=p["newly_manual_axes"],
    )


def varying_like(value: jax.Array, like: jax.Array) -> jax.Array:
    """The value, varying over the manual mesh axes that `like` varies over."""
    has, wanted = (
        getattr(getattr(jax.typeof(a), "mat", None), "varying", frozenset()) for a in (value, like)
    )
    missing = tuple(sorted(wanted - has))
    return jax.lax.pcast(value, missing, to="varying") if missing else value


def source_line(eqn: jex_core.JaxprEqn) -> str:
    """'file:line (function)' of the user's code that made the equation, '' if unknown."""
    traceback = eqn.source_info.traceback
    for frame in traceback.frames if traceback is not None else ():
        name = frame.file_name
        if not name.startswith((*_PACKAGES, _HERE, "<")):
            return f"{os.path.basename(name)}:{frame.line_num} ({frame.function_name})"
    return ""
