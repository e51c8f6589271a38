"""Trainables that are single entries of the matrices, picked by scores."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from zojax.trainables._split import Split
from zojax.trainables._top import Per, check_density, rows_of, top_entries
from zojax.trainables._tree import Flat, as_dense, as_virtual, below_terms, flatten, is_matrix
from zojax.virtual import Entries, is_virtual


class SensitiveFrozen(NamedTuple):
    """The frozen part of `sensitive`.

    Attributes:
        params: all parameters; the values at `index` are replaced by the trainable ones.
        index: tree like `params`, int32 (*stack, k) flat positions in each matrix, None where a
            leaf has no sensitive entries; a position equal to the matrix's size is padding.
    """

    params: Any
    index: Any


def sensitive(params: Any, scores: Any, density: float = 1e-3, per: Per = "tensor") -> Split:
    """The entries with the highest scores; everything else is frozen.

    Args:
        params: tree of arrays. Leaves of three and more axes are stacks of matrices, each with
            entries of its own. Vectors and scalars stay frozen. Leaves may be quantised, before or
            after the split: their other entries stay so.
        scores: tree like `params`; None where a leaf must stay frozen. They may be negative.
        density: part of the entries that moves, in (0, 1].
        per: "tensor": that part of each matrix, at least one entry. "model": one threshold for all
            matrices, so a leaf with low scores has no entry and stays frozen; the matrices of a
            stack get the same number of values, the most that one needs. Those in excess have no
            effect on the loss and start at zero. They do get noise, so a clip by the global norm
            sees them.

    Returns:
        A `Split`: trainable float32 vectors (*stack, k), frozen `SensitiveFrozen`, and a merge
        that gives virtual arrays with the trainable values in place of the frozen ones.

    Raises:
        ValueError: if the density is out of range or gives no entry at all, a score has another
            shape than its leaf or is NaN, or no leaf is a matrix.

    Reference: Guo et al., Zeroth-order fine-tuning of LLMs with transferable static sparsity
    (SensZOQ), 2024.

    >>> import jax.numpy as jnp, zojax
    >>> params = {"w": jnp.arange(6.0).reshape(2, 3)}
    >>> trainable, frozen, merge = zojax.sensitive(params, params, density=0.2)
    >>> trainable["w"].tolist(), frozen.index["w"].tolist()
    ([5.0], [5])
    """
    check_density(density, per)
    flat = flatten(params)
    found = _scores_ofmatrices(flat, scores)
    return _split_at(params, flat, top_entries(flat.names, found, density, per))


def magnitude(
    params: Any,
    density: float = 1e-3,
    per: Per = "tensor",
    *,
    where: Callable[[str], bool] | None = None,
) -> Split:
    """The largest entries, `|w|`: a baseline for `sensitive` that needs no data.

    Args:
        params: as for `sensitive`.
        density: part of the entries that moves, in (0, 1].
        per: as for `sensitive`.
        where: called with each path: the matrices that have entries; None for all.

    Returns:
        A `Split` as that of `sensitive`.

    Raises:
        ValueError: if the density is out of range or gives no entry at all, an entry is NaN, or no
            matrix is picked.
    """
    check_density(density, per)
    flat = flatten(params)
    scores = [
        np.abs(np.asarray(as_dense(leaf), np.float32)) if picked else None
        for leaf, picked in zip(flat.leaves, matrices(flat, where), strict=True)
    ]
    return _split_at(params, flat, top_entries(flat.names, scores, density, per))


def random(
    key: jax.Array,
    params: Any,
    density: float = 1e-3,
    *,
    where: Callable[[str], bool] | None = None,
) -> Split:
    """Entries drawn uniformly, without replacement: a baseline for `sensitive`.

    Args:
        key: typed key.
        params: as for `sensitive`.
        density: part of each matrix that moves, in (0, 1]; at least one entry.
        where: called with each path: the matrices that have entries; None for all.

    Returns:
        A `Split` as that of `sensitive`. The draw is numpy's, on the host.

    Raises:
        ValueError: if the density is out of range, or no matrix is picked.
    """
    check_density(density)
    flat = flatten(params)
    draw = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    index: list[np.ndarray | None] = []
    for leaf, picked in zip(flat.leaves, matrices(flat, where), strict=True):
        if not picked:
            index.append(None)
            continue
        size = math.prod(leaf.shape[-2:])
        k = max(1, round(density * size))
        rows = [
            np.sort(draw.choice(size, k, replace=False)).astype(np.int32)
            for _ in range(math.prod(leaf.shape[:-2]))
        ]
        index.append(np.stack(rows).reshape(*leaf.shape[:-2], k))
    return _split_at(params, flat, index)


def n_m(params: Any, scores: Any, n: int, m: int) -> Split:
    """The n highest scores of every m consecutive entries along the second to last axis.

    That is the axis of `x @ w` that is summed over, as hardware for N:M sparsity wants it.

    Args:
        params: as for `sensitive`.
        scores: as for `sensitive`.
        n: entries that move of each group, 1 <= n <= m.
        m: size of a group; the last one of a column may be cut short.

    Returns:
        A `Split` as that of `sensitive`, of density n/m.

    Raises:
        ValueError: if n or m is out of range, a score has another shape than its leaf or is NaN,
            or no leaf is a matrix.
    """
    check_n_m(n, m)
    flat = flatten(params)
    index: list[np.ndarray | None] = []
    for name, score in zip(flat.names, _scores_ofmatrices(flat, scores), strict=True):
        if score is None:
            index.append(None)
            continue
        stack, (rows, columns) = score.shape[:-2], score.shape[-2:]
        groups = -(-rows // m)
        values = rows_of(score, name).reshape(-1, rows, columns)
        last = ((0, 0), (0, groups * m - rows), (0, 0))
        values = np.pad(values, last, constant_values=-np.inf).reshape(-1, groups, m, columns)
        place = np.argsort(-values, axis=2, kind="stable")[:, :, :n]
        row = place + np.arange(groups)[:, None, None] * m
        at = np.where(row < rows, row * columns + np.arange(columns), rows * columns)
        at = np.sort(at.reshape(*stack, -1), -1).astype(np.int32)
        # what is past the last row is the same in all matrices, and sorted to the end
        index.append(at[..., : int((at.reshape(-1, at.shape[-1])[0] < rows * columns).sum())])
    return _split_at(params, flat, index)


def check_n_m(n: int, m: int) -> None:
    """Raise `ValueError` unless n of every m is possible."""
    if not 1 <= n <= m:
        raise ValueError(f"n of every m needs 1 <= n <= m, found n={n}, m={m}")


def matrices(flat: Flat, where: Callable[[str], bool] | None) -> list[bool]:
    """Which leaves are matrices, or stacks of them, that a predicate picks."""
    return [
        is_matrix(leaf) and (where is None or bool(where(name)))
        for name, leaf in zip(flat.names, flat.leaves, strict=True)
    ]


def _scores_ofmatrices(flat: Flat, scores: Any) -> list:
    """The scores of leaves of two or more axes, None elsewhere."""
    found = []
    for name, leaf, score in zip(flat.names, flat.leaves, flat.like(scores, "scores"), strict=True):
        if score is None or not is_matrix(leaf):
            found.append(None)
            continue
        if tuple(score.shape) != tuple(leaf.shape):
            raise ValueError(
                f"leaf {name} has shape {leaf.shape}, its score has shape {score.shape}: these "
                "scores are of another model"
            )
        found.append(score)
    return found


def _split_at(params: Any, flat: Flat, index: list[np.ndarray | None]) -> Split:
    if all(i is None for i in index):
        raise ValueError("no leaf with two or more axes has a score: nothing would be trained")
    values = [
        None if at is None else _values(leaf, at)
        for leaf, at in zip(flat.leaves, index, strict=True)
    ]
    places = [None if at is None else jnp.asarray(at) for at in index]
    frozen = SensitiveFrozen(params, jax.tree.unflatten(flat.structure, places))
    return Split(jax.tree.unflatten(flat.structure, values), frozen, merge_entries)


def _values(leaf: Any, at: np.ndarray) -> jax.Array:
    """float32 values at the positions, 0 at padding."""
    stacked = below_terms(leaf).reshape(*at.shape[:-1], -1)
    size = stacked.shape[-1]
    found = jnp.take_along_axis(stacked, jnp.asarray(np.minimum(at, size - 1)), -1)
    return jnp.where(at < size, found, 0).astype(jnp.float32)


def merge_entries(trainable: Any, frozen: SensitiveFrozen) -> Any:
    """The parameters with the trainable values in place."""
    flat = flatten(frozen.params)
    values, index = flat.like(trainable, "trainables"), flat.like(frozen.index, "positions")
    # few enough to be stored with their noise, instead of a draw for each layer
    values = [None if v is None else lax.optimization_barrier(v) for v in values]
    leaves = [
        leaf if v is None else _with_entries(leaf, v, i, key)
        for key, leaf, v, i in zip(flat.keys, flat.leaves, values, index, strict=True)
    ]
    return jax.tree.unflatten(flat.structure, leaves)


def _with_entries(leaf: Any, values: jax.Array, index: jax.Array, key: str):
    if is_virtual(leaf) and leaf.entries is not None:
        raise ValueError(
            f"leaf {key} has entries of another split already; make one split of both: add their "
            "scores, or give one of them None for this leaf"
        )
    return replace(as_virtual(leaf, key), entries=Entries(values, index, tuple(leaf.shape)))
