"""Differential privacy: clip each example's coefficient, noise the sum, account for the loss."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from zojax.estimators._schemes import Losses
from zojax.estimators._shaping import Shaping

_ORDERS = (*range(2, 65), *range(72, 257, 8), 320, 384, 512, 768, 1024)


def private(clip: float, noise_multiplier: float) -> Shaping:
    """Differentially private difference quotients (DP-ZO); needs a loss of each example.

    `c_k = (sum_b clip(z_k . g_b, -C, C) + s C sqrt(n) N(0, 1)) / B`: one example changes the n sums
    by at most `C sqrt(n)` in Euclidean norm, whatever its gradient. Only these scalars see the
    data; directions are public.

    Args:
        clip: C, largest size of an example's coefficient, positive.
        noise_multiplier: s, standard deviation of the noise over that norm; 0 only clips.

    Returns:
        A shaping for schemes with a difference or a slope. `privacy_spent` says what a run with it
        costs. Biased where it clips; the noise adds `s^2 C^2 n / B^2` to each coefficient's
        variance. It is drawn from the key of the estimate: who knows that key knows the noise.
        The batch must be a Poisson sample, each example drawn independently, for the account to
        hold; B is the expected size then, and the arrays' size here, so pad with examples whose
        loss is constant.

    Raises:
        ValueError: if `clip` is not positive or the multiplier negative; when asked, if the loss is
            a mean already.

    Reference: Tang et al., Private fine-tuning of large language models with zeroth-order
    optimization (DP-ZO), 2024.
    """
    if not clip > 0 or noise_multiplier < 0:
        raise ValueError(
            f"private() needs clip > 0 and noise_multiplier >= 0, found {clip}, {noise_multiplier}"
        )

    def shape(losses: Losses, mu, key):
        each = _each(losses, mu)
        n, examples = each.shape
        noise = jax.random.normal(key, (n,)) * (noise_multiplier * clip * math.sqrt(n))
        return (jnp.sum(jnp.clip(each, -clip, clip), axis=1) + noise) / examples

    return shape


def privacy_spent(noise_multiplier: float, sampling_rate: float, steps: int, delta: float) -> float:
    """The epsilon of (epsilon, delta) that a run of `private` steps has spent.

    Rényi accounting of the Poisson-subsampled Gaussian mechanism over orders 2 to 1024, converted
    to (epsilon, delta); neighbouring data sets differ by one example added or removed.

    Args:
        noise_multiplier: as of `private`, positive.
        sampling_rate: probability that an example is in a step's batch, in (0, 1].
        steps: estimates made.
        delta: probability with which epsilon may fail, in (0, 1).

    Returns:
        epsilon, an upper bound.

    Raises:
        ValueError: if an argument is out of range.

    References: Mironov et al., Rényi differential privacy of the sampled Gaussian mechanism, 2019;
    Canonne et al., The discrete Gaussian for differential privacy, 2020 (conversion).

    >>> round(privacy_spent(1.1, 256 / 60_000, steps=14_063, delta=1e-5), 1)
    2.6
    """
    if not (noise_multiplier > 0 and 0 < sampling_rate <= 1 and steps >= 0 and 0 < delta < 1):
        raise ValueError(
            "privacy_spent needs noise_multiplier > 0, 0 < sampling_rate <= 1, steps >= 0 and "
            f"0 < delta < 1, found {noise_multiplier}, {sampling_rate}, {steps}, {delta}"
        )
    if steps == 0:
        return 0.0
    found = [
        steps * _renyi(order, noise_multiplier, sampling_rate)
        + math.log1p(-1 / order)
        - (math.log(delta) + math.log(order)) / (order - 1)
        for order in _ORDERS
    ]
    return max(0.0, min(found))


def _renyi(order: int, noise_multiplier: float, rate: float) -> float:
    """Rényi divergence of an integer order, of one step."""
    if rate == 1:
        return order / (2 * noise_multiplier**2)
    k = np.arange(order + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, order + 1)))])
    log_terms = (
        log_factorial[order]
        - log_factorial[k]
        - log_factorial[order - k]
        + k * math.log(rate)
        + (order - k) * math.log1p(-rate)
        + k * (k - 1) / (2 * noise_multiplier**2)
    )
    return float(np.logaddexp.reduce(log_terms)) / (order - 1)


def _each(losses: Losses, mu) -> jax.Array:
    """The coefficient of each direction and example, float32[n, B]."""
    if losses.slope is not None:
        each = losses.slope
    elif losses.plus is not None and losses.minus is not None:
        each = (losses.plus - losses.minus) / (2 * mu)
    elif losses.plus is not None and losses.base is not None:
        each = (losses.plus - losses.base) / mu
    else:
        raise ValueError("private() needs a two-sided scheme, one with a base query, or slopes")
    if each.ndim != 2:
        raise ValueError(
            "private() clips each example: let the loss return float[B], one an example, and pass "
            "per_example=True"
        )
    return each
