"""Trees of parameters whose leaves may be virtual."""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zojax.virtual import VirtualArray, is_virtual
from zojax.virtual._paths import path_name


class Flat(NamedTuple):
    """A tree of parameters, its virtual arrays taken whole.

    Attributes:
        names: path of each leaf, "a/b/0".
        keys: the same as jax writes it, the name of a virtual array.
        leaves: arrays and virtual arrays.
        structure: of the tree.
    """

    names: list[str]
    keys: list[str]
    leaves: list[Any]
    structure: Any

    def like(self, tree: Any, what: str) -> list:
        """The leaves of a tree like the parameters; None is a leaf."""
        try:
            return self.structure.flatten_up_to(tree)
        except ValueError as error:
            raise ValueError(f"the {what} are no tree like the parameters: {error}") from error


def flatten(params: Any) -> Flat:
    """Names, leaves and structure."""
    paths, structure = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_virtual)
    names, keys = ([f(path) for path, _ in paths] for f in (path_name, jax.tree_util.keystr))
    return Flat(names, keys, [leaf for _, leaf in paths], structure)


def as_virtual(leaf: Any, key: str) -> VirtualArray:
    """The leaf as a virtual array, which it may be already."""
    return leaf if is_virtual(leaf) else VirtualArray(leaf, name=key)


def as_dense(leaf: Any) -> jax.Array:
    """The leaf as an array."""
    return leaf.materialize() if is_virtual(leaf) else jnp.asarray(leaf)


def below_terms(leaf: Any) -> jax.Array:
    """The dense array that the leaf's additive terms are added to."""
    return replace(leaf, terms=()).materialize() if is_virtual(leaf) else jnp.asarray(leaf)


def is_floating(leaf: Any) -> bool:
    """Whether a leaf can move."""
    return jnp.issubdtype(jnp.result_type(leaf.dtype), jnp.floating)


def is_matrix(leaf: Any) -> bool:
    """Whether a leaf is a floating-point matrix or a stack of them."""
    return len(leaf.shape) > 1 and is_floating(leaf)
