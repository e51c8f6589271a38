"""The sensitive parameters: the few entries with the largest empirical Fisher information."""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from zojax.trainables._select import path_name
from zojax.trainables._split import Split
from zojax.virtual import Entries, VirtualArray, is_virtual


class SensitiveFrozen(NamedTuple):
    """The frozen part of `sensitive`.

    Attributes:
        params: all parameters; the values at `index` are replaced by the trainable ones.
        index: tree like `params`, int32 (*stack, k) flat positions in each matrix, None where a
            leaf has no sensitive entries.
    """

    params: Any
    index: Any


def sensitivity(loss: Callable, params: Any, batches: Iterable[Any]) -> Any:
    """Diagonal of the empirical Fisher, `1/B sum_b (dL_b/dw)^2`.

    One backward pass a batch, once; give batches of one sequence, as squares do not add up within
    a batch.

    Args:
        loss: `loss(params, batch) -> scalar`.
        params: tree of floating-point arrays.
        batches: iterable of batches of one shape.

    Returns:
        Tree like `params`, float32.

    Raises:
        ValueError: if there is no batch, or a score is not finite (names the leaf).

    Reference: Guo et al., Zeroth-order fine-tuning of LLMs with transferable static sparsity
    (SensZOQ), 2024.
    """

    def accumulate(total, params, batch):
        grads = jax.grad(loss)(params, batch)
        return jax.tree.map(lambda t, g: t + jnp.square(g.astype(jnp.float32)), total, grads)

    step = jax.jit(accumulate, donate_argnums=0)
    total = jax.tree.map(lambda p: jnp.zeros(jnp.shape(p), jnp.float32), params)
    count = 0
    for batch in batches:
        total = step(total, params, batch)
        count += 1
    if count == 0:
        raise ValueError("no calibration batch: pass at least one to score sensitivity")
    scores = jax.tree.map(lambda t: t / count, total)
    for path, leaf in jax.tree_util.tree_flatten_with_path(scores)[0]:
        if not bool(jnp.all(jnp.isfinite(leaf))):
            raise ValueError(
                f"the sensitivity of leaf {path_name(path)} is not finite: the loss or its "
                "gradient overflowed on a calibration batch"
            )
    return scores


def sensitive(params: Any, scores: Any, density: float = 1e-3) -> Split:
    """The entries with the highest scores in each matrix; everything else is frozen.

    Args:
        params: tree of arrays. Leaves of three and more axes are stacks of matrices, each with
            entries of its own. Vectors and scalars stay frozen.
        scores: tree like `params`; None where a leaf must stay frozen.
        density: part of each matrix that moves, in (0, 1]; at least one entry a matrix.

    Returns:
        A `Split`: trainable float32 vectors (*stack, k), frozen `SensitiveFrozen`, and a merge
        that gives virtual arrays with the trainable values in place of the frozen ones.

    Raises:
        ValueError: if the density is out of range, a score has another shape than its leaf or is
            NaN, or no leaf is a matrix.

    >>> import jax.numpy as jnp, zojax
    >>> params = {"w": jnp.arange(6.0).reshape(2, 3)}
    >>> trainable, frozen, merge = zojax.sensitive(params, params, density=0.2)
    >>> trainable["w"].tolist(), frozen.index["w"].tolist()
    ([5.0], [5])
    """
    if not 0 < density <= 1:
        raise ValueError(f"density must be in (0, 1], found {density}")
    paths, tree = jax.tree_util.tree_flatten_with_path(params)
    flat_scores = tree.flatten_up_to(scores)
    values, index = [], []
    for (path, leaf), score in zip(paths, flat_scores, strict=True):
        name = path_name(path)
        if score is None or leaf.ndim < 2:
            values.append(None)
            index.append(None)
            continue
        if score.shape != leaf.shape:
            raise ValueError(
                f"leaf {name} has shape {leaf.shape}, its score has shape {score.shape}: these "
                "scores are of another model"
            )
        top = _top(np.asarray(score), density, name)
        flat = leaf.reshape(*top.shape[:-1], -1)
        values.append(jnp.take_along_axis(flat, jnp.asarray(top), -1).astype(jnp.float32))
        index.append(jnp.asarray(top))
    if all(v is None for v in values):
        raise ValueError("no leaf with two or more axes has a score: nothing would be trained")
    frozen = SensitiveFrozen(params, jax.tree.unflatten(tree, index))
    return Split(jax.tree.unflatten(tree, values), frozen, _merge)


def _top(score: np.ndarray, density: float, name: str) -> np.ndarray:
    """int32 (*stack, k): positions of the k highest scores of each matrix, ascending."""
    size = math.prod(score.shape[-2:])
    if np.isnan(score).any():
        raise ValueError(f"the score of leaf {name} has NaN")
    k = max(1, round(density * size))
    flat = score.reshape(*score.shape[:-2], size)
    top = np.argpartition(-flat, k - 1, axis=-1)[..., :k]
    return np.sort(top, axis=-1).astype(np.int32)


def _merge(trainable: Any, frozen: SensitiveFrozen) -> Any:
    paths, tree = jax.tree_util.tree_flatten_with_path(frozen.params, is_leaf=is_virtual)
    values, index = tree.flatten_up_to(trainable), tree.flatten_up_to(frozen.index)
    # few enough to be stored with their noise, instead of a draw for each layer
    values = [None if v is None else lax.optimization_barrier(v) for v in values]
    leaves = [
        leaf
        if v is None
        else replace(leaf, entries=Entries(v, i, leaf.shape))
        if is_virtual(leaf)
        else VirtualArray(leaf, Entries(v, i, leaf.shape), name=jax.tree_util.keystr(path))
        for (path, leaf), v, i in zip(paths, values, index, strict=True)
    ]
    return jax.tree.unflatten(tree, leaves)
