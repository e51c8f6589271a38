"""Scores of entries from forward passes alone."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from zojax.directions import rademacher
from zojax.estimators import estimate, gradient, mezo
from zojax.trainables._fisher import scored_leaves
from zojax.trainables._tree import flatten
from zojax.virtual import is_virtual


def forward_sensitivity(
    key: jax.Array,
    loss: Callable,
    params: Any,
    batches: Iterable[Any],
    *,
    num_samples: int = 16,
    mu: float = 1e-3,
    where: Callable[[str], bool] | None = None,
    batch_size: int = 1,
) -> Any:
    """Diagonal of the empirical Fisher by forward passes, for machines that cannot run a backward.

    Of each batch, with coefficients `c_k = (L(w + mu z_k) - L(w - mu z_k)) / (2 mu)` along K
    Rademacher directions, the mean of all products of two different samples of a gradient:
    `((sum_k c_k z_k)^2 - sum_k c_k^2) / (K (K - 1))`, averaged over the batches.

    A weak score where K is much smaller than the number d of entries: of one batch its variance is
    `4 v g_i^2 / K + 2 v^2 / (K (K - 1))` with `v = |g|^2 - g_i^2`, so that its noise, about
    `1.4 |g|^2 / (K sqrt(B))` for B batches, hides every entry whose g_i^2 is less. It can be
    negative.

    Args:
        key: typed key; batch b uses `fold_in(key, b)`.
        loss: `loss(params, batch) -> scalar`.
        params: tree of arrays.
        batches: iterable of batches of one shape, of one sequence each.
        num_samples: directions a batch, K >= 2; 2K forward passes.
        mu: smoothing parameter.
        where: called with each path: the leaves to score; None for all floating-point ones.
        batch_size: queries evaluated at once.

    Returns:
        Tree like `params`, float32; None for leaves that are not scored. Unbiased for the squared
        gradient of the loss smoothed by mu.

    Raises:
        ValueError: if K is below 2, there is no batch or nothing to score, a leaf to score is
            virtual, or a loss is not finite.
    """
    if num_samples < 2:
        raise ValueError(f"num_samples must be at least 2, found {num_samples}")
    flat = flatten(params)
    chosen = scored_leaves(flat, where)
    for i in chosen:
        if is_virtual(flat.leaves[i]):
            raise ValueError(
                f"leaf {flat.names[i]} is quantised or otherwise virtual, and has no entries to "
                "perturb: score the dense model, or leave it out with where="
            )
    estimator = mezo(mu, num_samples, direction=rademacher(), batch_size=batch_size)
    shapes = [jax.ShapeDtypeStruct(flat.leaves[i].shape, jnp.float32) for i in chosen]

    def of_moving(moving, leaves, batch):
        filled = list(leaves)
        for i, leaf in zip(chosen, moving, strict=True):
            filled[i] = leaf
        return loss(jax.tree.unflatten(flat.structure, filled), batch)

    @jax.jit
    def ask(key, leaves, batch):
        moving = [leaves[i] for i in chosen]
        found = estimate(of_moving, estimator)(key, moving, leaves, batch)
        return found.keys, found.coefficients

    def add(totals, keys, coefficients):
        means = gradient(estimator, keys, coefficients, shapes)
        diagonal = jnp.sum(jnp.square(coefficients))
        pairs = num_samples * (num_samples - 1)
        return [
            t + (jnp.square(num_samples * g) - diagonal) / pairs
            for t, g in zip(totals, means, strict=True)
        ]

    add = jax.jit(add, donate_argnums=0)
    totals, count = [jnp.zeros(s.shape, jnp.float32) for s in shapes], 0
    for batch in batches:
        keys, coefficients = ask(jax.random.fold_in(key, count), flat.leaves, batch)
        if not bool(jnp.all(jnp.isfinite(coefficients))):
            raise ValueError(
                f"a loss of calibration batch {count} is not finite, or overflows over mu={mu}"
            )
        totals = add(totals, keys, coefficients)
        count += 1
    if count == 0:
        raise ValueError("no calibration batch: pass at least one to score sensitivity")
    scores: list[Any] = [None] * len(flat.leaves)
    for i, total in zip(chosen, totals, strict=True):
        scores[i] = total / count
    return jax.tree.unflatten(flat.structure, scores)
