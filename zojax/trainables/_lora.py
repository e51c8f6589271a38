"""Low-rank adapters beside frozen matrices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from zojax.trainables._split import Split
from zojax.trainables._tree import as_virtual, flatten
from zojax.virtual import LowRank


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
