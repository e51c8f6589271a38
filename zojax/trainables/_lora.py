"""Low-rank adapters beside frozen matrices."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from zojax.trainables._split import Split
from zojax.trainables._tree import as_virtual, flatten
from zojax.virtual import LowRank, is_virtual


def lora(
    params: Any,
    key: jax.Array,
    rank: int = 8,
    *,
    alpha: float | None = None,
    where: Callable[[str], bool] = lambda path: "attention" in path and path.endswith("kernel"),
) -> Split:
    """Adapters `W + alpha / rank * A B^T` on the matrices a predicate picks.

    Args:
        params: tree of arrays, quantised ones included; leaves of three and more axes are stacks of
            matrices.
        key: typed key for A, normal with variance 1/m; B starts at zero, so merge is the identity.
        rank: r.
        alpha: scale; `rank` if None.
        where: called with each leaf's path; the default takes attention kernels.

    Returns:
        A `Split`: trainable `{"a": (..., m, r), "b": (..., n, r)}` float32 for each picked leaf.

    Raises:
        ValueError: if the rank is below 1, nothing is picked, or a picked leaf is no matrix.

    Reference: Hu et al., LoRA: low-rank adaptation of large language models, 2021.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, found {rank}")
    scale = (rank if alpha is None else alpha) / rank
    flat = flatten(params)
    adapters = []
    for i, (name, leaf) in enumerate(zip(flat.names, flat.leaves, strict=True)):
        if not where(name):
            adapters.append(None)
            continue
        if leaf.ndim < 2:
            raise ValueError(f"leaf {name} of shape {leaf.shape} is no matrix; LoRA needs one")
        stack, (m, n) = leaf.shape[:-2], leaf.shape[-2:]
        a = jax.random.normal(jax.random.fold_in(key, i), (*stack, m, rank)) / m**0.5
        adapters.append({"a": a, "b": jnp.zeros((*stack, n, rank), jnp.float32)})
    if all(a is None for a in adapters):
        raise ValueError("no leaf is selected for LoRA; pass where=")

    def merge(trainable, frozen):
        flat = flatten(frozen)
        leaves = []
        for key, leaf, pair in zip(
            flat.keys, flat.leaves, flat.like(trainable, "trainables"), strict=True
        ):
            if pair is None:
                leaves.append(leaf)
                continue
            a, b = (pair[k].astype(leaf.dtype) for k in "ab")
            leaves.append(as_virtual(leaf, key).plus(LowRank.of_matrices(a, b, scale)))
        return jax.tree.unflatten(flat.structure, leaves)

    return Split(jax.tree.unflatten(flat.structure, adapters), params, merge)


def factors(params: Any) -> Split:
    """The factors of low-rank terms that leaves have already, as of `quantization.compensate`.

    Args:
        params: tree with virtual leaves over which there are low-rank terms.

    Returns:
        A `Split`: trainable `{"left", "right"}` float32 for the first low-rank term of each such
        leaf, None elsewhere; frozen `params`.

    Raises:
        ValueError: if no leaf has a low-rank term.
    """
    flat = flatten(params)
    terms = [_low_rank(leaf) for leaf in flat.leaves]
    if all(term is None for term in terms):
        raise ValueError("no leaf has a low-rank term; add them with zojax.quantization.compensate")
    trainable = [
        None
        if term is None
        else {"left": jnp.array(term.left, jnp.float32), "right": jnp.array(term.right)}
        for term in terms
    ]

    def merge(trainable, frozen):
        flat = flatten(frozen)
        leaves = []
        for leaf, pair in zip(flat.leaves, flat.like(trainable, "trainables"), strict=True):
            if pair is None:
                leaves.append(leaf)
                continue
            old = _low_rank(leaf)
            new = tuple(replace(t, **pair) if t is old else t for t in leaf.terms)
            leaves.append(replace(leaf, terms=new))
        return jax.tree.unflatten(flat.structure, leaves)

    return Split(jax.tree.unflatten(flat.structure, trainable), params, merge)


def _low_rank(leaf: Any) -> LowRank | None:
    terms = leaf.terms if is_virtual(leaf) else ()
    return next((term for term in terms if isinstance(term, LowRank)), None)
