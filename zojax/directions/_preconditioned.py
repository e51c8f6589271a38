"""Directions with another covariance than the identity: a diagonal one."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from zojax.directions._direction import Direction
from zojax.directions._restricted import spread
from zojax.virtual import LowRank, Term
from zojax.virtual._product import Product


def preconditioned(direction: Direction, diagonal: Any) -> Direction:
    """A direction stretched leaf by leaf, `z = D^(1/2) z'`: covariance `D`, not the identity.

    The estimate `c z` is then the preconditioned gradient: its mean is `D g`, as `D^(1/2)` enters
    both the perturbation and the update (HiZOO: D the inverse of a diagonal Hessian). Its total
    variance with Gaussian z' and n samples is
    `(tr(D) g^T D g + |D g|^2) / n`.

    Args:
        direction: any direction.
        diagonal: D, a tree of non-negative arrays or floats, a prefix of the parameter tree; each
            broadcastable to its leaves. Values may be traced.

    Returns:
        A `Direction`. Low-rank terms stay so where D is a scalar or varies along axes of one
        factor only: shape (m, 1) or (1, n) for a matrix, or (..., 1) and (n,) for more axes.
        Nest two for an outer product of both. With any other D they are dense at use.

    Raises:
        ValueError: if the diagonal is not a prefix of the tree, not broadcastable to its leaf, or
            has a negative or NaN entry (concrete values only).

    Reference: Zhao et al., Second-order fine-tuning without pain for LLMs (HiZOO), 2024.
    """

    def terms(key, params, step=0):
        found = direction.terms(key, params, step)
        paths, _ = jax.tree_util.tree_flatten_with_path(params)
        values = spread(diagonal, params, "diagonal")
        return tuple(
            None if term is None else _stretched(term, _root(d, term.shape, path))
            for term, d, (path, _) in zip(found, values, paths, strict=True)
        )

    return Direction(terms, f"preconditioned({direction.name})")


def _root(d, shape: tuple[int, ...], path) -> jax.Array:
    """`sqrt(D)` with as many axes as the leaf, those of size one being constant."""
    name = jax.tree_util.keystr(path) or "the parameters"
    found = jnp.shape(d)
    if shape == (0,) and found != (0,):  # left out by a mask
        return jnp.ones(1)
    padded = (1,) * (len(shape) - len(found)) + found
    if len(padded) != len(shape) or any(
        p not in (1, n) for p, n in zip(padded, shape, strict=True)
    ):
        raise ValueError(
            f"the diagonal of leaf {name} has shape {list(found)}, which does not broadcast to the "
            f"leaf's shape {list(shape)}"
        )
    if not isinstance(d, Tracer) and not np.all(np.asarray(d) >= 0):
        raise ValueError(
            f"the diagonal of leaf {name} has an entry that is negative or NaN; a covariance has "
            "none: clip it first"
        )
    return jnp.sqrt(jnp.asarray(d, jnp.float32)).reshape(padded)


def _stretched(term: Term, root: jax.Array) -> Term:
    if root.size == 1:
        return term.scaled(root.reshape(()))
    varies = [i for i, n in enumerate(root.shape) if n != 1]
    if isinstance(term, LowRank):
        for name in ("left", "right"):
            factor = getattr(term, name)
            if all(factor.shape[i] != 1 for i in varies):
                return replace(term, **{name: factor * root[..., None]})
    ones = jnp.ones((1,) * (root.ndim + 1), jnp.float32)
    return Product(term, LowRank(root[..., None], ones, jnp.float32(1), term.shape))
