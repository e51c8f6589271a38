"""What a direction is, and what all of them share: leaves, keys, drawn numbers."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from zojax import noise
from zojax.virtual import Term


class Direction(NamedTuple):
    """A distribution over directions z in a parameter tree, with `E[z] = 0`, `E[z z^T] = I`.

    Attributes:
        terms: `(key, params, step=0) -> tuple` with one unscaled term a leaf of `params`, in the
            order of `jax.tree.leaves`, or None where the leaf stays put. The same terms perturb the
            forward and make the update, so the two cannot differ. Only shapes and dtypes of
            `params` are read; `step`, an integer that may be traced, matters to directions that
            keep a part of themselves for several steps.
        name: for messages.
        combine: `(keys uint32[n, 2], weights float32[n], params, step=0) -> list` with
            `sum_k w_k z(key_k)` of each leaf in float32, for directions that know a shorter way
            than adding their terms up; None otherwise.
    """

    terms: Callable[..., tuple[Term | None, ...]]
    name: str
    combine: Callable[..., list] | None = None


def own_key(key: jax.Array | int, step, refresh: int) -> jax.Array:
    """The key of what a direction keeps for `refresh` steps, whatever is sampled in them."""
    words = noise.words(jax.random.key(key) if isinstance(key, int) else key)
    return noise.fold_in(words, (jnp.asarray(step) // refresh).astype(jnp.uint32))


def floating_leaves(params) -> list:
    """The leaves, each an array of a real floating-point dtype."""
    paths, _ = jax.tree_util.tree_flatten_with_path(params)
    if not paths:
        raise ValueError("the parameters have no leaves: there is nothing to perturb")
    for path, leaf in paths:
        name = f"leaf {jax.tree_util.keystr(path)}"
        if not isinstance(leaf, float) and not hasattr(leaf, "dtype"):
            raise TypeError(
                f"{name} is {leaf!r}, no array: keep it out of the parameters, as "
                "equinox.partition(model, equinox.is_inexact_array) or nnx.split do"
            )
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"{name} has dtype {dtype}; only real floating-point "
                "leaves can be perturbed: split it off as frozen (zojax.select) or mask it "
                "(zojax.masked)"
            )
        if isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer) and leaf.is_deleted():
            raise ValueError(
                f"{name} {dtype}{list(jnp.shape(leaf))} has been deleted: it was donated to an "
                "earlier call; go on with what that call returned"
            )
    return [leaf for _, leaf in paths]


def at_least_one(**counts: int) -> None:
    """Raise unless each is 1 or more."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, found {count}")


def below(words: tuple[jax.Array, jax.Array], size: int) -> jax.Array:
    """A number in [0, size) from two uint32 words: `floor((w0 2^32 + w1) size / 2^64)`.

    Uniform to within `size / 2^64`; `size` is at most 2^32 - 1.
    """
    high, low = _product(words[0], size)
    carry = (low + _product(words[1], size)[0] < low).astype(jnp.uint32)
    return high + carry


def choose(words: tuple[jax.Array, jax.Array], weights: list[int]) -> jax.Array:
    """An index with probability proportional to integer weights, each right to within 2^-64."""
    total, passed, index = sum(weights), 0, jnp.zeros_like(words[0])
    for weight in weights[:-1]:
        passed += weight
        high, low = divmod(passed * 2**64 // total, 2**32)
        if high >= 2**32:  # the weights that are left are zero
            break
        beyond = (words[0] > jnp.uint32(high)) | (
            (words[0] == jnp.uint32(high)) & (words[1] >= jnp.uint32(low))
        )
        index = index + beyond.astype(jnp.uint32)
    return index


def _product(a: jax.Array, b: int) -> tuple[jax.Array, jax.Array]:
    """The two words of a 64-bit product, from 16-bit halves."""
    low, sixteen = jnp.uint32(0xFFFF), jnp.uint32(16)
    a0, a1 = a & low, a >> sixteen
    b0, b1 = jnp.uint32(b & 0xFFFF), jnp.uint32(b >> 16)
    middle = a1 * b0 + ((a0 * b0) >> sixteen)
    other = a0 * b1 + (middle & low)
    return a1 * b1 + (middle >> sixteen) + (other >> sixteen), a * jnp.uint32(b)
