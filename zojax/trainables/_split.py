"""The result that every trainable gives."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Split(NamedTuple):
    """Parameters in two parts, and the way back.

    Attributes:
        trainable: tree of floating-point arrays; None where a leaf has nothing that moves. Small
            enough that any optax optimiser is free.
        frozen: everything else.
        merge: `(trainable, frozen) -> params`; leaves may be virtual arrays, so wrap the loss in
            `zojax.virtualize`.
    """

    trainable: Any
    frozen: Any
    merge: Callable[[Any, Any], Any]


def size(tree: Any) -> int:
    """Number of elements in a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
