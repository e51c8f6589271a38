"""Low-rank adapters beside frozen matrices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from zojax.trainables._select import path_name
from zojax.trainables._split import Split
from zojax.virtual import LowRank, VirtualArray


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
        params: tree of arrays; leaves of three and more axes are stacks of matrices.
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
    paths, tree = jax.tree_util.tree_flatten_with_path(params)
    adapters = []
    for i, (path, leaf) in enumerate(paths):
        name = path_name(path)
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
        leaves, structure = jax.tree_util.tree_flatten_with_path(frozen)
        pairs = structure.flatten_up_to(trainable)
        merged = [
            leaf
            if pair is None
            else VirtualArray(leaf, name=jax.tree_util.keystr(path)).plus(
                LowRank.of_matrices(
                    pair["a"].astype(leaf.dtype), pair["b"].astype(leaf.dtype), scale
                )
            )
            for (path, leaf), pair in zip(leaves, pairs, strict=True)
        ]
        return jax.tree.unflatten(structure, merged)

    return Split(jax.tree.unflatten(tree, adapters), params, merge)
