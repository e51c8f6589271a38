"""Directions that move a part of the parameters: leaves, blocks, coordinates, n of every m."""

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zojax import noise
from zojax.directions._direction import (
    Direction,
    at_least_one,
    below,
    choose,
    floating_leaves,
    leaf_keys,
)
from zojax.virtual import LowRank, Term
from zojax.virtual._pattern import Pattern
from zojax.virtual._product import Gated, Product

_BLOCK, _PATTERN = 0x626C6F63, 0x6E6D


def masked(direction: Direction, mask: Any | Callable[[Any], Any]) -> Direction:
    """A direction that moves only the leaves a mask picks.

    Args:
        direction: any direction.
        mask: tree of booleans, a prefix of the parameter tree, or a function from parameters to
            such a tree, as in `optax.masked`.

    Returns:
        A `Direction` with zeros in the leaves whose mask is False.

    Raises:
        ValueError: if the mask is not a prefix of the tree or picks no leaf.
    """

    def terms(key, params, step=0):
        flags = [bool(m) for m in spread(mask, params, "mask")]
        if not any(flags):
            raise ValueError("the mask picks no leaf: every direction would be zero")
        leaves, structure = jax.tree.flatten(params)
        # a leaf that stays may be of any dtype, an integer one for example; it has no entries
        seen = [
            leaf if flag else jax.ShapeDtypeStruct((0,), jnp.float32)
            for leaf, flag in zip(leaves, flags, strict=True)
        ]
        kept = direction.terms(key, jax.tree.unflatten(structure, seen), step)
        return tuple(t if flag else None for t, flag in zip(kept, flags, strict=True))

    return Direction(terms, f"masked({direction.name})")


def blocks(
    direction: Direction,
    partition: Any | Callable[[Any], Any] = None,
    probabilities: Mapping[Any, float] | None = None,
) -> Direction:
    """One block of leaves at a time, drawn at random: `z = z' / sqrt(p_block)` in it, 0 elsewhere.

    The total variance of the two-sided estimate with Gaussian z' is
    `(sum_b (d_b + 2) |g_b|^2 / p_b - |g|^2) / n_samples`, with blocks of d_b entries: draw those
    with larger gradients more often.

    Args:
        direction: any direction.
        partition: tree of labels, a prefix of the parameter tree, or a function from parameters
            to such a tree; leaves of one label are a block. None makes each leaf a block.
        probabilities: positive weight of each label, normalised here; None makes all equal.

    Returns:
        A `Direction`. The noise of the other blocks is not made (unless queries are batched with
        `vmap`, where it is made and dropped); low-rank terms are scaled by zero.

    Raises:
        ValueError: if the partition is not a prefix of the tree, or the weights are not positive
            or not those of its labels.

    Reference: Zhang et al., Revisiting zeroth-order optimization for memory-efficient LLM
    fine-tuning: a benchmark, 2024.
    """

    def terms(key, params, step=0):
        count = len(jax.tree.leaves(params))
        labels = list(range(count)) if partition is None else spread(partition, params, "partition")
        sizes = [math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(params)]
        # in order of first appearance, and none without entries: it could not move
        drawn = list(dict.fromkeys(b for b, n in zip(labels, sizes, strict=True) if n))
        if not drawn:
            raise ValueError("the parameters have no entries: there is no block to draw")
        weights = _weights(drawn, set(labels), probabilities)
        words = noise.bits(key, _BLOCK, jnp.arange(2))
        # integers, so that the draw is exact
        scale = math.lcm(*(w.denominator for w in weights))
        index = choose((words[0], words[1]), [int(w * scale) for w in weights])
        out: list[Term | None] = []
        for label, term in zip(labels, direction.terms(key, params, step), strict=True):
            if term is None or label not in drawn:
                out.append(term)
                continue
            place = drawn.index(label)
            active, root = index == place, float(sum(weights) / weights[place]) ** 0.5
            if isinstance(term, LowRank):
                out.append(term.scaled(jnp.where(active, root, 0.0).astype(jnp.float32)))
            else:
                out.append(Gated(term.scaled(root), active))
        return tuple(out)

    return Direction(terms, f"blocks({direction.name})")


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


def n_m(direction: Direction, n: int, m: int) -> Direction:
    """n random entries of every m consecutive ones of the last axis move: `z = sqrt(m/n) P z'`.

    The pattern P is drawn anew in every sample, as identity covariance asks. The total variance
    of the two-sided estimate, with independent z' of kurtosis k (3 for `gaussian`, 1 for
    `rademacher`) and whole groups, is `(d - 1 + (k - 1) m/n) |g|^2 / n_samples`.

    Args:
        direction: any direction.
        n: entries that move of each group, 1 <= n <= m.
        m: size of a group; the last group of a row may be cut short.

    Returns:
        A `Direction`, dense at use: the pattern is made by address, as noise is.

    Raises:
        ValueError: if n or m is out of range, or there are more than 2**16 subsets of n out of m.
    """
    if not 1 <= n <= m:
        raise ValueError(f"n of every m needs 1 <= n <= m, found n={n}, m={m}")
    if m > 32 or math.comb(m, n) > 2**16:
        raise ValueError(
            f"{n} of every {m} entries can be chosen in {math.comb(m, n)} ways; at most 65536 and "
            "m <= 32 are supported: choose a smaller m"
        )

    def terms(key, params, step=0):
        found = direction.terms(key, params, step)
        keys = leaf_keys(noise.fold_in(key, _PATTERN), len(found))
        return tuple(
            None
            if term is None
            else Product(term.scaled((m / n) ** 0.5), Pattern.of_groups(k, term.shape, n, m))
            for k, term in zip(keys, found, strict=True)
        )

    return Direction(terms, f"n_m({direction.name}, {n}, {m})")


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


def spread(tree: Any, params: Any, what: str) -> list:
    """One value for each leaf of the parameters, from a prefix or a function."""
    tree = tree(params) if callable(tree) else tree
    try:
        spread = jax.tree.map(lambda x, sub: [x for _ in jax.tree.leaves(sub)], tree, params)
    except ValueError as error:
        raise ValueError(
            f"the {what} {jax.tree.structure(tree)} is not a prefix of the parameter tree "
            f"{jax.tree.structure(params)}"
        ) from error
    return jax.tree.leaves(spread)


def _weights(drawn: list, labels: set, probabilities) -> list[Fraction]:
    if probabilities is None:
        return [Fraction(1)] * len(drawn)
    if set(probabilities) != labels:
        raise ValueError(
            f"the probabilities are of the blocks {sorted(map(repr, probabilities))}, the "
            f"partition has {sorted(map(repr, labels))}: give one weight for each"
        )
    for label, p in probabilities.items():
        if not 0 < p < math.inf:
            raise ValueError(f"the probability of block {label!r} must be positive, found {p}")
    return [Fraction(probabilities[label]) for label in drawn]


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
