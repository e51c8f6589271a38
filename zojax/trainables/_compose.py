"""Several trainables at once, and what of the parameters moves."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zojax.trainables._sensitive import SensitiveFrozen
from zojax.trainables._split import Split
from zojax.trainables._tree import flatten
from zojax.virtual import Entries


class ComposedFrozen(NamedTuple):
    """The frozen part of `compose`.

    Attributes:
        first: the frozen part of the first split, which holds the parameters.
        rest: those of the others, without parameters.
    """

    first: Any
    rest: tuple


def compose(first: Split, *others: Split) -> Split:
    """Several splits of the same parameters as one; their merges are applied in order.

    For example `compose(sensitive(params, scores), scales(params))` of quantised parameters, or
    `compose(lora(params, key), sensitive(params, scores))`.

    Args:
        first: its frozen part holds the parameters, which are stored once.
        others: their frozen parts are trees like the parameters, or NamedTuples with such a tree as
            `params`, as those of all trainables here are; each gets what the ones before it give.

    Returns:
        A `Split`: trainable a tuple of theirs, frozen a `ComposedFrozen`.

    Raises:
        ValueError: if there is one split only, or a later one has no frozen parameters, as `full`.
            When merged: if two replace entries of the same leaf.
    """
    if not others:
        raise ValueError("compose needs two splits or more, found one")
    splits = (first, *others)
    for i, split in enumerate(others, 1):
        if split.frozen is None:
            raise ValueError(
                f"split {i} has nothing frozen, so it would undo the ones before it: put it first"
            )
    named = [_is_named(split.frozen) for split in others]
    rest = tuple(
        split.frozen._replace(params=None) if is_named else None
        for split, is_named in zip(others, named, strict=True)
    )

    def merge(trainable, frozen: ComposedFrozen):
        params = splits[0].merge(trainable[0], frozen.first)
        for split, moving, own in zip(others, trainable[1:], frozen.rest, strict=True):
            params = split.merge(moving, params if own is None else own._replace(params=params))
        return params

    trainable = tuple(split.trainable for split in splits)
    return Split(trainable, ComposedFrozen(first.frozen, rest), merge)


def leaf_mask(split: Split) -> Any:
    """Which leaves of the parameters move, in part or as a whole.

    Args:
        split: any.

    Returns:
        Tree like the merged parameters of booleans, for `optax.masked`, `optax.partition` or
        `zojax.masked`: to train the same leaves of all parameters by another method.
    """
    flat = flatten(jax.eval_shape(split.merge, split.trainable, split.frozen))
    is_composed = isinstance(split.frozen, ComposedFrozen)
    moving = split.trainable if is_composed else (split.trainable,)
    each = [flat.like(tree, "trainables") for tree in moving]
    return jax.tree.unflatten(
        flat.structure, [any(jax.tree.leaves(parts)) for parts in _present(each)]
    )


def entry_mask(frozen: SensitiveFrozen) -> Any:
    """Which entries of the parameters move, by a split of `sensitive` and its like.

    Args:
        frozen: of the split.

    Returns:
        Tree like the parameters of boolean arrays; all False where a leaf has no entries. For
        `zojax.coordinates(mask=...)`, or to compare with other masks.
    """
    flat = flatten(frozen.params)

    def mask(leaf, index):
        shape = tuple(leaf.shape)
        if index is None:
            return jnp.zeros(shape, bool)
        return Entries(jnp.ones(index.shape, bool), index, shape).set_in(jnp.zeros(shape, bool))

    places = flat.like(frozen.index, "positions")
    return jax.tree.unflatten(
        flat.structure, [mask(x, i) for x, i in zip(flat.leaves, places, strict=True)]
    )


def _is_named(frozen: Any) -> bool:
    return hasattr(frozen, "params") and hasattr(frozen, "_replace")


def _present(each: list[list]) -> list[list[bool]]:
    """For each leaf, whether each tree has something there."""
    return [[bool(jax.tree.leaves(x)) for x in parts] for parts in zip(*each, strict=True)]
