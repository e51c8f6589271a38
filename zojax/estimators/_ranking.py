"""Shapings that read an order, or weights among points: RankSGD's and consensus hopping's."""

import jax
import jax.numpy as jnp

from zojax.estimators._schemes import Losses
from zojax.estimators._shaping import Shaping, examples_mean, fold_points, points_of

_BISECTIONS = 60


def ranks(top: int | None = None) -> Shaping:
    """Only the order of the losses counts: no number of theirs is used (ZO-RankSGD).

    `g = sum_i w_i z_i / (k (k - 1) / 2 + k (m - k))` over m points with the order known among the
    best k: a point weighs one for each that is known to beat it, minus one for each that it is
    known to beat. With all ranked (`k = m`) the point of rank r, 0 the best, weighs
    `2 r - (m - 1)`. The weights sum to zero, equal losses share theirs, NaN ranks last.

    Args:
        top: k, how many of the best are ranked; None ranks all.

    Returns:
        A shaping for `population` and `two_sided`. A descent direction whose length does not
        depend on the loss or on mu; with all ranked it keeps 95 to 97 % of the cosine of an
        estimate that uses the values.

    Raises:
        ValueError: if `top` is below 1 or, when asked, more than there are points.

    Reference: Tang et al., Zeroth-order optimization meets human feedback (ZO-RankSGD), 2024,
    whose code weighs by `2 r - m`, which does not sum to zero.
    """
    if top is not None and top < 1:
        raise ValueError(f"top must be at least 1, found {top}")

    def shape(losses: Losses, mu, key):
        del mu, key
        points, signs = points_of(losses, "ranks()")
        points = examples_mean(points)
        points = jnp.where(jnp.isnan(points), jnp.inf, points)
        m = points.shape[0]
        k = m if top is None else top
        if k > m:
            raise ValueError(f"ranks(top={k}) of {m} points: at most all of them can be ranked")
        beaten = points[:, None] > points[None, :]
        known = jnp.argsort(jnp.argsort(points)) < k
        known = known[:, None] | known[None, :]
        weights = jnp.sum(known * (beaten.astype(jnp.float32) - beaten.T), axis=1)
        pairs = k * (k - 1) / 2 + k * (m - k)
        # fold_points halves the sum of a direction's two points and there are m / signs directions
        return fold_points(weights, signs) * (m / pairs)

    return shape


def consensus(alpha: float | None = None, effective: float = 0.5) -> Shaping:
    """Step to the softmax-weighted mean of the points (consensus hopping).

    `x' = sum_i w_i (x + mu z_i)` with `w = softmax(-alpha L)`, which for small mu is
    `x - alpha mu^2 grad L`. As a gradient, `(x - x') / (alpha mu^2)`, so that the step size stays
    what it is elsewhere; one of `alpha mu^2` with SGD is the hop itself. The weights are centred,
    which changes nothing in expectation and takes the noise of the mean of z_i away.

    Args:
        alpha: inverse temperature, in units of 1/loss. None finds, in every estimate, the one
            whose effective sample size `1 / sum w_i^2` is the fraction `effective` of the points.
        effective: that fraction, between 0 and 1.

    Returns:
        A shaping for `population` and `two_sided`. As alpha goes to 0 it is `difference("mean")`,
        with larger alpha bad points count less: a bias towards the better half-space.

    Raises:
        ValueError: if alpha is not positive or the fraction not between 0 and 1.

    Reference: Riedl et al., Gradient is all you need? (consensus hopping), 2023.
    """
    if alpha is not None and not alpha > 0:
        raise ValueError(f"alpha must be positive, found {alpha}")
    if not 0 < effective < 1:
        raise ValueError(f"the effective fraction must be between 0 and 1, found {effective}")

    def shape(losses: Losses, mu, key):
        del key
        points, signs = points_of(losses, "consensus()")
        points = examples_mean(points)
        m = points.shape[0]
        centred = points - jnp.mean(points)
        a = _alpha(centred, effective) if alpha is None else jnp.float32(alpha)
        weights = jax.nn.softmax(-a * centred)
        return fold_points((1 - m * weights) / (a * mu), signs)

    return shape


def _alpha(centred: jax.Array, effective: float) -> jax.Array:
    """The alpha of an effective sample size, by bisection of its logarithm."""
    spread = jnp.maximum(jnp.std(centred), jnp.finfo(jnp.float32).tiny * 1e6)
    unit = centred / spread
    wanted = effective * centred.shape[0]

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        weights = jax.nn.softmax(-jnp.exp(middle) * unit)
        enough = 1 / jnp.sum(jnp.square(weights)) > wanted
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    ends = (jnp.log(jnp.float32(1e-3)), jnp.log(jnp.float32(1e4)))
    low, _ = jax.lax.fori_loop(0, _BISECTIONS, halve, ends)
    return jnp.exp(low) / spread
