"""Shaping: pure functions from losses to coefficients."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from zojax.estimators._schemes import Losses

Shaping = Callable[[Losses, jax.Array], jax.Array]
"""`(losses, mu) -> coefficients`, float32[n]."""


def difference() -> Shaping:
    """Difference quotient, the projected gradient `z_k . g`.

    `c_k = (L(x + mu z_k) - L(x - mu z_k)) / (2 mu)`, or `(L(x + mu z_k) - L(x)) / mu`.

    Returns:
        A shaping. Unbiased for the gradient of the smoothed loss.
    """

    def shape(losses: Losses, mu):
        if losses.minus is not None:
            return (losses.plus - losses.minus) / (2 * mu)
        if losses.base is None:
            raise ValueError("difference() needs a two-sided scheme or one with a base query")
        return (losses.plus - losses.base) / mu

    return shape


def normalized(epsilon: float = 1e-8) -> Shaping:
    """Loss differences in units of their own spread (FZOO).

    `c_k = (L(x + mu z_k) - L(x)) / (std_k L(x + mu z_k) + epsilon)`; with a two-sided scheme half
    the difference of the sides, over the standard deviation of all 2n losses. The size of the
    loss and mu drop out, so the step is about `lr sqrt(d/n)` whatever the slope: a descent
    direction, not an unbiased gradient.

    Args:
        epsilon: added to the standard deviation, in units of the loss. Equal losses give zero.

    Returns:
        A shaping; needs at least two queries other than the base.

    Reference: Dang et al., FZOO: fast zeroth-order optimizer, 2025.
    """

    def shape(losses: Losses, mu):
        if losses.minus is not None:
            contrast = (losses.plus - losses.minus) / 2
            spread = jnp.std(jnp.concatenate([losses.plus, losses.minus]))
        elif losses.base is not None and losses.plus.shape[0] > 1:
            contrast, spread = losses.plus - losses.base, jnp.std(losses.plus)
        else:
            raise ValueError(
                "normalized() needs a base query and at least two directions, or a two-sided "
                f"scheme; found {losses.plus.shape[0]} one-sided direction(s)"
            )
        return contrast / (spread + epsilon)

    return shape
