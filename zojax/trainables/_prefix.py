"""Trainable virtual tokens before the text."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zojax.trainables._split import Split


class Prefixed(NamedTuple):
    """Parameters of a model and the inputs that come before its tokens.

    Attributes:
        params: of the model.
        prefix: (length, width), inputs of the first layer.
    """

    params: Any
    prefix: Any


def prefix(params: Any, init: jax.Array) -> Split:
    """Prompt tuning: virtual tokens before the text move, the model is frozen.

    Args:
        params: of the model; they may be virtual.
        init: (length, width of the model), the first values: embeddings of real tokens, or small
            noise such as `0.02 * jax.random.normal(key, (8, width))`.

    Returns:
        A `Split`: trainable `Prefixed` with None for all parameters and `init` in float32; merge
        gives a `Prefixed`, which `zojax.models.with_prefix` understands. In `compose` it comes
        last, as the tree that it gives is another one.

    Raises:
        ValueError: if `init` has not two axes, or no rows.

    Reference: Lester et al., The power of scale for parameter-efficient prompt tuning, 2021.
    Virtual tokens enter at the embeddings; those of Li and Liang, Prefix-tuning, 2021, enter the
    keys and values of every layer, which this is not.
    """
    if init.ndim != 2 or init.shape[0] == 0:
        raise ValueError(f"init must be (length, width) with length >= 1, found {init.shape}")
    still = jax.tree.map(lambda _: None, params)

    def merge(trainable, frozen):
        return Prefixed(frozen, trainable.prefix)

    return Split(Prefixed(still, jnp.array(init, jnp.float32)), params, merge)
