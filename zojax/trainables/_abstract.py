"""Splits of shapes alone."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from zojax.trainables._sensitive import SensitiveFrozen, _merge
from zojax.trainables._split import Split
from zojax.virtual import is_virtual
from zojax.virtual._paths import path_name


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
    if not 0 < density <= 1:
        raise ValueError(f"density must be in (0, 1], found {density}")
    paths, tree = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_virtual)

    def entries(path: Any, leaf: Any) -> tuple[int, ...] | None:
        matrix = len(leaf.shape) > 1 and jnp.issubdtype(leaf.dtype, jnp.floating)
        if not matrix or (where is not None and not where(path_name(path))):
            return None
        return (*leaf.shape[:-2], max(1, round(density * math.prod(leaf.shape[-2:]))))

    shapes = [entries(path, leaf) for path, leaf in paths]
    if all(shape is None for shape in shapes):
        raise ValueError("no floating-point matrix is picked: nothing would be trained")

    def of(dtype) -> Any:
        leaves = [None if s is None else jax.ShapeDtypeStruct(s, dtype) for s in shapes]
        return jax.tree.unflatten(tree, leaves)

    return Split(of(jnp.float32), SensitiveFrozen(params, of(jnp.int32)), _merge)
