"""How the matrices of a folder are quantised while it is read."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zojax.models._read import Quantize, get
from zojax.quantization import Quantized, is_weight, quantize

Observe = Callable[[str, jax.Array, Quantized], None]


def quantizer(
    format: str | None,
    group_size: int,
    where: Callable[[str], bool] | None,
    exclude: Any,
    weights: Any,
    observe: Observe | None,
) -> Callable[[str, tuple[int, ...]], Quantize | None]:
    """What `read_entry` asks, for `zojax.quantize` of each layer on its own."""
    picked = where or is_weight

    def one(path: str, layer: int, matrix: jax.Array) -> Quantized:
        def of_layer(tree: Any) -> dict[str, Any] | None:
            leaf = get(tree, tuple(path.split("/")))
            if leaf is None:
                return None
            # an unstacked leaf is its only layer; positions have one axis less than scores
            own = leaf.ndim == matrix.ndim if tree is weights else leaf.ndim == 1
            return {path: jnp.asarray(leaf if own else leaf[layer])}

        found = quantize(
            {path: matrix},
            format or "",
            group_size=group_size,
            where=lambda _: True,
            exclude=of_layer(exclude),
            weights=of_layer(weights),
        )[path].base
        if observe is not None:
            observe(path, matrix, found)
        return found

    def choose(path: str, shape: tuple[int, ...]) -> Quantize | None:
        is_picked = format is not None and len(shape) > 1 and picked(path)
        return one if is_picked else None

    return choose


def same_shapes(name: str, tree: Any, params: Any, ndim_less: int) -> None:
    """Raise ``ValueError`` unless a tree's leaves fit the stacks of the parameters they are of."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        keys = tuple(str(getattr(k, "key", k)) for k in path)
        here = get(params, keys)
        found = None if here is None else tuple(here.shape[: here.ndim - 2])
        shape = np.shape(leaf)
        if found is None or shape[: len(shape) - ndim_less] != found:
            raise ValueError(
                f"{name} has leaf {'/'.join(keys)} of shape {shape}, the model "
                f"{'none' if here is None else tuple(here.shape)}: it is of another model"
            )
