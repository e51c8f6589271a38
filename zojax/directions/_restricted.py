"""Directions that move a part of the parameters: leaves, blocks, n of every m."""

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp

from zojax import noise
from zojax.directions._direction import Direction, choose
from zojax.directions._draw import leaf_keys
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
    probabilities: Mapping[Any, float] | jax.Array | None = None,
) -> Direction:
    """One block of leaves at a time, drawn at random: `z = z' / sqrt(p_block)` in it, 0 elsewhere.

    The total variance of the two-sided estimate with Gaussian z' is
    `(sum_b (d_b + 2) |g_b|^2 / p_b - |g|^2) / n_samples`, with blocks of d_b entries: draw those
    with larger gradients more often.

    Args:
        direction: any direction.
        partition: tree of labels, a prefix of the parameter tree, or a function from parameters
            to such a tree; leaves of one label are a block. None makes each leaf a block.
        probabilities: positive weight of each label, normalised here; None makes all equal. Or an
            array of them, in the order in which the labels first appear, which may be traced.

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
        if probabilities is None or isinstance(probabilities, Mapping):
            weights = _weights(drawn, set(labels), probabilities)
            roots = [float(sum(weights) / w) ** 0.5 for w in weights]
            words = noise.bits(key, _BLOCK, jnp.arange(2))
            # integers, so that the draw is exact
            scale = math.lcm(*(w.denominator for w in weights))
            index = choose((words[0], words[1]), [int(w * scale) for w in weights])
        else:
            weights = _traced_weights(drawn, probabilities)
            roots, index = list(jax.lax.rsqrt(weights)), drawn_block(key, weights)
        out: list[Term | None] = []
        for label, term in zip(labels, direction.terms(key, params, step), strict=True):
            if term is None or label not in drawn:
                out.append(term)
                continue
            place = drawn.index(label)
            active, root = index == place, roots[place]
            if isinstance(term, LowRank):
                out.append(term.scaled(jnp.where(active, root, 0.0).astype(jnp.float32)))
            else:
                out.append(Gated(term.scaled(root), active))
        return tuple(out)

    return Direction(terms, f"blocks({direction.name})")


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


def drawn_block(key: jax.Array, probabilities: jax.Array) -> jax.Array:
    """The place of the block that `blocks` draws for a key; right to within 2^-24."""
    word = noise.bits(key, _BLOCK, jnp.arange(1))[0]
    uniform = (word >> jnp.uint32(8)).astype(jnp.float32) * 2.0**-24
    return jnp.sum(uniform >= jnp.cumsum(probabilities)[:-1])


def _traced_weights(drawn: list, probabilities) -> jax.Array:
    found = jnp.asarray(probabilities, jnp.float32)
    if found.shape != (len(drawn),):
        raise ValueError(
            f"the probabilities have shape {list(found.shape)}; the partition has {len(drawn)} "
            "blocks with entries: give one weight for each"
        )
    return found / jnp.sum(found)


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
