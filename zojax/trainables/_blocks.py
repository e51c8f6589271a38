"""Trainables that are whole layers of a stacked model."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from zojax.trainables._layered import Layered
from zojax.trainables._split import Split
from zojax.trainables._tree import as_dense, flatten, is_floating
from zojax.virtual import VirtualArray, is_virtual


def blocks(
    params: Any,
    layers: Sequence[int],
    *,
    where: Callable[[str], bool] = lambda path: path.split("/")[0] == "layers",
) -> Split:
    """Some layers of a stacked model move as a whole; everything else is frozen.

    Args:
        params: tree of arrays; the stacked leaves have the layer as their first axis.
        layers: numbers of the layers that move; negative ones count from the end.
        where: called with each path, whether the leaf is stacked; the default takes those under
            "layers", as `zojax.models` has them.

    Returns:
        A `Split`: trainable float32 (len(layers), ...) for each stacked leaf of a floating dtype,
        frozen `params`, and a merge that takes the trained layers where the model uses them: in
        a scan over the layers no stack is copied.

    Raises:
        ValueError: if no layer is given, one twice, one that is not there, or no leaf is stacked.
    """
    flat = flatten(params)
    stacked = [
        is_floating(leaf) and len(leaf.shape) > 0 and bool(where(name))
        for name, leaf in zip(flat.names, flat.leaves, strict=True)
    ]
    if not any(stacked):
        raise ValueError(
            f"no leaf is a stack of layers; the leaves are {', '.join(flat.names[:8])}: pass where="
        )
    trainable, numbers = [], tuple(int(i) for i in layers)
    for name, leaf, moves in zip(flat.names, flat.leaves, stacked, strict=True):
        count = leaf.shape[0] if moves else 0
        if moves and (not numbers or any(not -count <= i < count for i in numbers)):
            raise ValueError(f"leaf {name} has {count} layers, layers={list(numbers)} were asked")
        places = [i % count for i in numbers] if moves else []
        if len(set(places)) != len(places):
            raise ValueError(f"layers={list(numbers)} has a layer twice")
        trainable.append(_layers(leaf, places) if moves else None)

    def merge(trainable, frozen):
        flat = flatten(frozen)
        leaves = []
        for key, leaf, values in zip(
            flat.keys, flat.leaves, flat.like(trainable, "trainables"), strict=True
        ):
            if values is None:
                leaves.append(leaf)
                continue
            places = jnp.asarray([i % leaf.shape[0] for i in numbers], jnp.int32)
            leaves.append(VirtualArray(Layered.over(leaf, _replaced, (values, places)), name=key))
        return jax.tree.unflatten(flat.structure, leaves)

    return Split(jax.tree.unflatten(flat.structure, trainable), params, merge)


def _layers(leaf: Any, places: list[int]) -> jax.Array:
    parts = [leaf.index(i) if is_virtual(leaf) else leaf[i] for i in places]
    dense = [
        as_dense(leaf)[i] if p is None else as_dense(p) for i, p in zip(places, parts, strict=True)
    ]
    return jnp.stack(dense).astype(jnp.float32)


def _replaced(extra, matrix: jax.Array, layer: jax.Array) -> jax.Array:
    values, places = extra
    is_here = places == layer
    new = jax.lax.dynamic_index_in_dim(values, jnp.argmax(is_here), 0, keepdims=False)
    return jnp.where(jnp.any(is_here), new.astype(matrix.dtype), matrix)
