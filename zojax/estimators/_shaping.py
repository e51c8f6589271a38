"""Shaping: pure functions from losses to coefficients."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from zojax.estimators._schemes import Losses

Shaping = Callable[[Losses, jax.Array, jax.Array], jax.Array]
"""`(losses, mu, key) -> coefficients`, float32[n]; the key is for shapings that draw."""


def difference(baseline: Literal["mean", "leave_one_out"] | None = None) -> Shaping:
    """Difference quotient, the projected gradient `z_k . g`.

    `c_k = (L(x + mu z_k) - L(x - mu z_k)) / (2 mu)`, or `(L(x + mu z_k) - b) / mu` with b the base
    `L(x)`; of a population, which has none, the baseline. With a loss of each example the
    differences are taken of each before they are averaged, which keeps their digits.

    Args:
        baseline: of a population: "mean", the mean of all its losses, which shrinks the estimate by
            `1 - 1/n`; "leave_one_out", the mean of the others, which does not.

    Returns:
        A shaping. Unbiased for the gradient of the smoothed loss (but for "mean").

    Raises:
        ValueError: when asked, if there is nothing to subtract; if a baseline is not known.
    """
    if baseline not in (None, "mean", "leave_one_out"):
        raise ValueError(f'baseline must be None, "mean" or "leave_one_out", found {baseline!r}')

    def shape(losses: Losses, mu, key):
        del key
        if losses.slope is not None:
            return examples_mean(losses.slope)
        if losses.plus is not None and losses.minus is not None:
            return examples_mean(losses.plus - losses.minus) / (2 * mu)
        if losses.plus is not None and losses.base is not None:
            return examples_mean(losses.plus - losses.base) / mu
        if losses.plus is None or baseline is None:
            raise ValueError(
                "difference() needs a two-sided scheme, one with a base query, or a baseline"
            )
        n = losses.plus.shape[0]
        if n < 2:
            raise ValueError(f'baseline "{baseline}" needs at least two points, found 1')
        centred = losses.plus - jnp.mean(losses.plus, axis=0)
        factor = n / (n - 1) if baseline == "leave_one_out" else 1.0
        return examples_mean(centred) * factor / mu

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

    def shape(losses: Losses, mu, key):
        del mu, key
        base = None if losses.base is None else jnp.mean(losses.base)
        plus, minus = (None if x is None else examples_mean(x) for x in losses[1:3])
        if plus is not None and minus is not None:
            contrast = (plus - minus) / 2
            spread = jnp.std(jnp.concatenate([plus, minus]))
        elif plus is not None and base is not None and plus.shape[0] > 1:
            contrast, spread = plus - base, jnp.std(plus)
        else:
            raise ValueError(
                "normalized() needs a base query and at least two directions, or a two-sided "
                f"scheme; found {losses.num_samples} direction(s) without"
            )
        return contrast / (spread + epsilon)

    return shape


def standardized(epsilon: float = 1e-8) -> Shaping:
    """Losses as standard scores within the population (EGGROLL); no base query.

    `s = (L - mean L) / (std L + epsilon)` over all points of an estimate, `c_k = s_k`, or
    `(s_(k+) - s_(k-)) / 2` of antithetic pairs. With a loss of each example (a prompt, say) the
    scores are those of each example among the points, and then averaged, so that hard and easy
    examples count alike.

    Args:
        epsilon: added to the standard deviation, in units of the loss. Equal losses give zero.

    Returns:
        A shaping for `population` and `two_sided`. A descent direction of a size that depends on
        neither loss nor mu, not an unbiased gradient; of one loss and antithetic pairs it is
        `normalized`.

    Reference: Sarkar et al., Evolution strategies at the hyperscale (EGGROLL), 2025.
    """

    def shape(losses: Losses, mu, key):
        del mu, key
        points, signs = points_of(losses, "standardized()")
        scores = (points - jnp.mean(points, axis=0)) / (jnp.std(points, axis=0) + epsilon)
        return fold_points(examples_mean(scores), signs)

    return shape


def clipped(shaping: Shaping, limit: float) -> Shaping:
    """Another shaping's coefficients, within `[-limit, limit]` (QZO).

    Args:
        shaping: for example `difference()`.
        limit: largest size of a coefficient, positive.

    Returns:
        A shaping. Biased where it clips.

    Raises:
        ValueError: if the limit is not positive.

    Reference: Shang et al., Fine-tuning quantized neural networks with zeroth-order optimization
    (QZO), 2025, clips to 100.
    """
    if not limit > 0:
        raise ValueError(f"the limit of coefficients must be positive, found {limit}")

    def shape(losses: Losses, mu, key):
        return jnp.clip(shaping(losses, mu, key), -limit, limit)

    return shape


def examples_mean(x: jax.Array) -> jax.Array:
    """[n] of [n] or [n, B]."""
    return x if x.ndim == 1 else jnp.mean(x, axis=1)


def points_of(losses: Losses, what: str) -> tuple[jax.Array, int]:
    """All points of an estimate, [n or 2n, ...], and how many there are of a direction."""
    if losses.plus is None:
        raise ValueError(f"{what} compares losses around the parameters; found slopes only")
    if losses.minus is not None:
        return jnp.concatenate([losses.plus, losses.minus]), 2
    if losses.plus.shape[0] < 2:
        raise ValueError(f"{what} needs at least two points to compare, found 1")
    return losses.plus, 1


def fold_points(values: jax.Array, signs: int) -> jax.Array:
    """A number for each direction of one for each point: `(v_+ - v_-) / 2`, or v."""
    if signs == 1:
        return values
    n = values.shape[0] // 2
    return (values[:n] - values[n:]) / 2
