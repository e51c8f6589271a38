"""Directions that move single coordinates: drawn at random, or each in its turn."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from zojax import noise
from zojax.directions._direction import Direction, at_least_one, below, choose, floating_leaves
from zojax.directions._restricted import spread
from zojax.virtual import LowRank, Term


def coordinates(count: int = 1, mask: Any | Callable[[Any], Any] = None) -> Direction:
    """A few coordinates drawn uniformly: `z = sqrt(d / count) sum_j s_j e_(i_j)`, signs s_j.

    The coordinates are drawn independently, with replacement, from the whole tree. The total
    variance of the two-sided estimate with n samples is `(d + 1 - 2 / count) |g|^2 / n`.

    Args:
        count: coordinates a direction, at least 1.
        mask: tree of booleans or boolean arrays of the leaves' shapes, a prefix of the parameter
            tree, or a function from parameters to such a tree: the coordinates to draw from, d of
            them. Concrete values; None means all.

    Returns:
        A `Direction`. Nothing dense is made in a matmul: the term is a product of factors with
        one 1 a column, of `rows x count` and `columns x count` numbers a leaf. For thousands of
        coordinates that stay the same, `zojax.sensitive` is cheaper.

    Raises:
        ValueError: if `count` is below 1, the mask picks no coordinate or fits not the tree.

    Reference: Lian et al., A comprehensive linear speedup analysis for asynchronous stochastic
    parallel optimization from zeroth-order to first-order, 2016.
    """
    at_least_one(count=count)

    def terms(key, params, step=0):
        del step
        leaves = floating_leaves(params)
        open_to = [None] * len(leaves) if mask is None else _positions(mask, params)
        sizes = [
            math.prod(jnp.shape(leaf)) if at is None else len(at)
            for leaf, at in zip(leaves, open_to, strict=True)
        ]
        total = sum(sizes)
        if not total:
            raise ValueError("there is no coordinate to draw: every direction would be zero")
        words = noise.bits(key, jnp.arange(count)[:, None], jnp.arange(7)).T
        leaf_index = choose((words[0], words[1]), sizes)
        signs = noise.rademacher(words[6])
        out: list[Term | None] = []
        for i, (leaf, at, size) in enumerate(zip(leaves, open_to, sizes, strict=True)):
            if not size:
                out.append(None)
                continue
            shape = jnp.shape(leaf)
            rows, cols = math.prod(shape[:-1]), shape[-1] if shape else 1
            if at is None:
                row, col = below((words[2], words[3]), rows), below((words[4], words[5]), cols)
            else:
                position = jnp.asarray(at)[below((words[2], words[3]), size)]
                row, col = position // jnp.uint32(cols), position % jnp.uint32(cols)
            weight = jnp.where(leaf_index == i, signs, 0.0)
            out.append(_added(leaf, row, col, weight, (total / count) ** 0.5))
        return tuple(out)

    return Direction(terms, f"coordinates({count})")


def coordinate_basis(positions: Any) -> Direction:
    """The coordinates one after another: `z_k = sqrt(n) e_(i_k)`, k the first word of the key.

    For `coordinate_sweep`, whose keys are the numbers 0 to n - 1. Over them `mean_k z_k z_k^T` is
    the identity on the n positions, so the mean of `c_k z_k` is the gradient there.

    Args:
        positions: tree like the parameters, with the flat positions int[n_i] of each leaf that
            move (`coordinate_positions`), None or empty for a leaf that stays. They may be traced:
            other positions of the same number do not compile again. A position twice counts twice.

    Returns:
        A `Direction`. A query perturbs one entry: no leaf is made, and the gradient is scattered.

    Raises:
        ValueError: if the positions are not of the parameters' tree, or, where they are concrete,
            outside of their leaf.
    """

    def placed(params) -> list[tuple[Any, Any, int]]:
        """(leaf, positions or None, number of the first) of each leaf."""
        leaves, structure = jax.tree.flatten(params)
        try:
            found = structure.flatten_up_to(positions)
        except ValueError as error:
            raise ValueError(
                f"the positions {jax.tree.structure(positions)} are not a tree like the parameters "
                f"{structure}"
            ) from error
        paths, start, out = jax.tree_util.tree_flatten_with_path(params)[0], 0, []
        for (path, leaf), at in zip(paths, found, strict=True):
            count = 0 if at is None else jnp.size(at)
            if count:
                _check_positions(at, leaf, path)
            out.append((leaf, jnp.asarray(at, jnp.uint32) if count else None, start))
            start += count
        if not start:
            raise ValueError("there is no position: every direction would be zero")
        return out

    def terms(key, params, step=0):
        del step
        leaves = placed(params)
        moving = [leaf for leaf, at, _ in leaves if at is not None]
        floating_leaves(moving)
        number = noise.words(key)[0]
        total = sum(at.size for _, at, _ in leaves if at is not None)
        out: list[Term | None] = []
        for leaf, at, start in leaves:
            if at is None:
                out.append(None)
                continue
            local = number - jnp.uint32(start)  # wraps around below the start
            here = local < at.size
            position = at[jnp.where(here, local, 0)]
            cols = jnp.uint32(jnp.shape(leaf)[-1] if jnp.ndim(leaf) else 1)
            weight = here.astype(jnp.float32)[None]
            row, col = (position // cols)[None], (position % cols)[None]
            out.append(_added(leaf, row, col, weight, total**0.5))
        return tuple(out)

    def combine(keys, weights, params, step=0):
        del step
        leaves = placed(params)
        total = sum(at.size for _, at, _ in leaves if at is not None)
        sums = []
        for leaf, at, start in leaves:
            flat = jnp.zeros(math.prod(jnp.shape(leaf)), jnp.float32)
            if at is not None:
                local = keys[:, 0] - jnp.uint32(start)
                here = local < at.size
                place = at[jnp.where(here, local, 0)]
                flat = flat.at[place].add(jnp.where(here, weights * total**0.5, 0.0))
            sums.append(flat.reshape(jnp.shape(leaf)))
        return sums

    return Direction(terms, "coordinate_basis()", combine)


def coordinate_positions(params: Any, mask: Any | Callable[[Any], Any] = None) -> Any:
    """The flat positions that a mask opens in each leaf.

    Args:
        params: tree of arrays or `ShapeDtypeStruct`.
        mask: as of `coordinates`; None opens all.

    Returns:
        Tree like `params` of uint32[n_i].

    Raises:
        ValueError: if the mask picks no coordinate or fits not the tree.

    >>> import jax.numpy as jnp
    >>> coordinate_positions({"w": jnp.ones((2, 3))}, {"w": jnp.ones((2, 3)) > jnp.eye(2, 3)})
    {'w': array([1, 2, 3, 5], dtype=uint32)}
    """
    leaves, structure = jax.tree.flatten(params)
    open_to = [None] * len(leaves) if mask is None else _positions(mask, params)
    found = [
        np.arange(math.prod(jnp.shape(leaf)), dtype=np.uint32) if at is None else at
        for leaf, at in zip(leaves, open_to, strict=True)
    ]
    if not sum(at.size for at in found):
        raise ValueError("the mask picks no coordinate")
    return jax.tree.unflatten(structure, found)


def _check_positions(at, leaf, path) -> None:
    name, size = jax.tree_util.keystr(path) or "the parameters", math.prod(jnp.shape(leaf))
    if jnp.ndim(at) != 1 or not jnp.issubdtype(jnp.result_type(at), jnp.integer):
        raise ValueError(
            f"the positions of leaf {name} are {jnp.result_type(at)}{list(jnp.shape(at))}; "
            "expected a vector of integers, as of coordinate_positions"
        )
    if not isinstance(at, Tracer):
        values = np.asarray(at)
        if values.min() < 0 or values.max() >= size:
            raise ValueError(
                f"the positions of leaf {name} go from {values.min()} to {values.max()}; it has "
                f"{size} entries"
            )


def _added(leaf, row: jax.Array, col: jax.Array, weight: jax.Array, scale: float) -> LowRank:
    """`scale * sum_j weight_j e_(row_j, col_j)`: one entry a column of two factors."""
    shape, dtype = jnp.shape(leaf), jnp.result_type(leaf)
    rows, cols = math.prod(shape[:-1]), shape[-1] if shape else 1
    left = jnp.where(jnp.arange(rows, dtype=jnp.uint32)[:, None] == row, weight, 0.0)
    right = jnp.arange(cols, dtype=jnp.uint32)[:, None] == col
    # the left factor has all axes but the last, the right one the last
    left = left.reshape(*shape[:-1], *(1,) * min(len(shape), 1), row.size)
    right = right.reshape(*(1,) * (len(shape) - 1), *shape[-1:], row.size)
    return LowRank(left.astype(dtype), right.astype(dtype), jnp.float32(scale), shape)


def _positions(mask: Any, params: Any) -> list[np.ndarray | None]:
    """Flat positions that a mask opens in each leaf, None for all."""
    paths, _ = jax.tree_util.tree_flatten_with_path(params)
    found: list[np.ndarray | None] = []
    for (path, leaf), flags in zip(paths, spread(mask, params, "mask"), strict=True):
        flags, shape = np.asarray(flags), jnp.shape(leaf)
        name = jax.tree_util.keystr(path) or "the parameters"
        if flags.dtype != bool or flags.shape not in ((), shape):
            raise ValueError(
                f"the mask of leaf {name} is {flags.dtype}{list(flags.shape)}; expected a boolean "
                f"or booleans of the leaf's shape {list(shape)}"
            )
        if flags.shape == () or shape == ():
            found.append(None if flags else np.zeros(0, np.uint32))
            continue
        if flags.size >= 2**32:
            raise ValueError(
                f"leaf {name} has {flags.size} entries; a mask opens at most 2**32 - 1"
            )
        found.append(np.flatnonzero(flags).astype(np.uint32))
    return found
