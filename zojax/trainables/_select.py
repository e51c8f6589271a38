"""Trainables that are whole leaves, picked by path."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from zojax.trainables._split import Split
from zojax.trainables._tree import as_dense, flatten, is_floating
from zojax.virtual import materialize
from zojax.virtual._paths import is_head


def full(params: Any) -> Split:
    """Every leaf moves.

    Args:
        params: tree of floating-point arrays; virtual ones, as quantised leaves are, become dense.

    Returns:
        A `Split` with `trainable = params`.
    """
    return Split(materialize(params), None, lambda trainable, frozen: trainable)


def select(params: Any, where: Callable[[str], bool]) -> Split:
    """The leaves whose path a predicate picks.

    Args:
        params: tree of arrays; a picked leaf that is virtual becomes dense.
        where: called with each leaf's path, such as "layers/attention/query/bias".

    Returns:
        A `Split`; picked leaves below float32 are trained in float32 over the frozen rest, so that
        small steps are not lost, and cast back by `merge`.

    Raises:
        ValueError: if nothing is picked.
        TypeError: if a picked leaf is not floating-point.

    >>> import jax.numpy as jnp, zojax
    >>> params = {"w": jnp.ones((2, 2)), "bias": jnp.zeros(2)}
    >>> trainable, frozen, merge = zojax.select(params, lambda path: path == "bias")
    >>> trainable
    {'bias': Array([0., 0.], dtype=float32), 'w': None}
    >>> sorted(merge(trainable, frozen))
    ['bias', 'w']
    """
    flat = flatten(params)
    picked = [bool(where(name)) for name in flat.names]
    if not any(picked):
        raise ValueError(
            f"no leaf is selected; the leaves are {', '.join(flat.names[:8])}"
            f"{', ...' if len(flat.names) > 8 else ''}"
        )
    trainable, frozen, dtypes = [], [], []
    for name, leaf, chosen in zip(flat.names, flat.leaves, picked, strict=True):
        dtype = jnp.result_type(leaf.dtype)
        if chosen and not is_floating(leaf):
            raise TypeError(f"leaf {name} is {dtype}; only floating-point leaves can be trained")
        wide = jnp.promote_types(dtype, jnp.float32)
        trainable.append(as_dense(leaf).astype(wide) if chosen else None)
        frozen.append(None if chosen else leaf)
        dtypes.append(dtype)

    def merge(trainable, frozen):
        moving = flat.structure.flatten_up_to(trainable)
        fixed = flat.structure.flatten_up_to(frozen)
        leaves = [
            f if m is None else m.astype(d) for m, f, d in zip(moving, fixed, dtypes, strict=True)
        ]
        return jax.tree.unflatten(flat.structure, leaves)

    unflatten = flat.structure.unflatten
    return Split(unflatten(trainable), unflatten(frozen), merge)


def bias_and_norm(params: Any) -> Split:
    """Biases and normalisation scales: leaves called "bias" or below a name with "norm" in it.

    Args:
        params: tree of arrays with named leaves.

    Returns:
        A `Split`; see `select`.

    Reference: Ben Zaken et al., BitFit, 2022.
    """
    return select(params, is_bias_or_norm)


def head(params: Any) -> Split:
    """The output layer: leaves below a name "head", "lm_head" or "classifier".

    Args:
        params: tree of arrays with named leaves.

    Returns:
        A `Split`; see `select`.
    """
    return select(params, is_head)


def is_bias_or_norm(path: str) -> bool:
    """Whether a path is of a bias or of a normalisation's parameter."""
    parts = path.lower().split("/")
    return parts[-1] == "bias" or any("norm" in part for part in parts)
