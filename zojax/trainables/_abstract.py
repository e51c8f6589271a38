"""Splits of shapes alone."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from zojax.trainables._sensitive import SensitiveFrozen, check_n_m, matrices, merge_entries
from zojax.trainables._split import Split
from zojax.trainables._top import check_density
from zojax.trainables._tree import flatten


def abstract_sensitive(
    params: Any, density: float = 1e-3, *, where: Callable[[str], bool] | None = None
) -> Split:
    """The shapes of `sensitive`, for `zojax.plan`: how many entries move needs no scores.

    Args:
        params: tree of arrays or of `jax.ShapeDtypeStruct`; quantised leaves stay so.
        density: as for `sensitive`.
        where: called with each path: the matrices that have entries; None for all.

    Returns:
        A `Split` of `jax.ShapeDtypeStruct`: trainable float32 (*stack, k), frozen
        `SensitiveFrozen` with int32 (*stack, k) positions.

    Raises:
        ValueError: if the density is out of range or no matrix is picked.

    >>> import jax, jax.numpy as jnp
    >>> from zojax import trainables
    >>> params = {"w": jax.ShapeDtypeStruct((3, 100, 20), jnp.bfloat16)}
    >>> trainables.abstract_sensitive(params, 1e-2).trainable["w"].shape
    (3, 20)
    """
    check_density(density)
    return _entries(params, where, lambda r, c: max(1, round(density * r * c)))


def abstract_n_m(
    params: Any, n: int, m: int, *, where: Callable[[str], bool] | None = None
) -> Split:
    """The shapes of `n_m`, for `zojax.plan`.

    Args:
        params: as for `abstract_sensitive`.
        n: as for `n_m`.
        m: as for `n_m`.
        where: as for `abstract_sensitive`.

    Returns:
        As `abstract_sensitive`.

    Raises:
        ValueError: if n or m is out of range or no matrix is picked.
    """
    check_n_m(n, m)
    return _entries(params, where, lambda r, c: (r // m * n + min(n, r % m)) * c)


def _entries(
    params: Any, where: Callable[[str], bool] | None, count: Callable[[int, int], int]
) -> Split:
    """The shapes of a split into entries, their number by rows and columns of a matrix."""
    flat = flatten(params)
    picked = matrices(flat, where)
    if not any(picked):
        raise ValueError("no floating-point matrix is picked: nothing would be trained")

    def of(dtype) -> Any:
        leaves = [
            jax.ShapeDtypeStruct((*leaf.shape[:-2], count(*leaf.shape[-2:])), dtype) if p else None
            for leaf, p in zip(flat.leaves, picked, strict=True)
        ]
        return jax.tree.unflatten(flat.structure, leaves)

    return Split(of(jnp.float32), SensitiveFrozen(params, of(jnp.int32)), merge_entries)
