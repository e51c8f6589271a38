"""Recipes: published methods as one line of the algebra."""

import jax
import optax

from zojax.directions import Direction, gaussian, low_rank, rademacher, subspace
from zojax.estimators._estimator import Estimator
from zojax.estimators._ranking import consensus, ranks
from zojax.estimators._schemes import (
    forward_gradient,
    one_sided,
    population,
    two_sided,
)
from zojax.estimators._shaping import clipped, difference, normalized, standardized


def mezo(
    mu: optax.ScalarOrSchedule = 1e-3,
    num_samples: int = 1,
    *,
    direction: Direction | None = None,
    batch_size: int = 1,
) -> Estimator:
    """MeZO / n-SPSA: Gaussian directions, both sides, difference quotient.

    `g = 1/n sum_k (L(x + mu z_k) - L(x - mu z_k)) / (2 mu) z_k`

    Args:
        mu: smoothing parameter.
        num_samples: directions an estimate, n; 2n forward passes.
        direction: another direction than `gaussian()`, for example `low_rank(1)`.
        batch_size: queries evaluated at once.

    Returns:
        An `Estimator`, unbiased for the gradient of the smoothed loss. Step sizes are the paper's.

    Reference: Malladi et al., Fine-tuning language models with just forward passes, 2023.
    """
    return Estimator(direction or gaussian(), two_sided(num_samples, batch_size), difference(), mu)


def fzoo(
    mu: optax.ScalarOrSchedule = 1e-3,
    num_samples: int = 8,
    *,
    direction: Direction | None = None,
    batch_size: int = 1,
) -> Estimator:
    """FZOO: Rademacher directions, one side, differences divided by their standard deviation.

    `g = 1/n sum_k (L(x + mu z_k) - L(x)) / std_k L(x + mu z_k) z_k`

    Args:
        mu: smoothing parameter.
        num_samples: directions an estimate, n >= 2; n + 1 forward passes.
        direction: another direction than `rademacher()`.
        batch_size: queries evaluated at once.

    Returns:
        An `Estimator`. Biased: a normalised step. The step sizes are the paper's.

    Reference: Dang et al., FZOO: fast zeroth-order optimizer, 2025.
    """
    scheme = one_sided(num_samples, batch_size)
    return Estimator(direction or rademacher(), scheme, normalized(), mu)


def eggroll(
    mu: optax.ScalarOrSchedule = 1e-3,
    num_samples: int = 16,
    rank: int = 1,
    *,
    batch_size: int = 1,
) -> Estimator:
    """EGGROLL: evolution strategies with low-rank, antithetic points and standard scores.

    `g = 1/n sum_k (s_(k+) - s_(k-)) / 2 A_k B_k^T / sqrt(r)`, s the standard scores of the losses
    among the 2n points; with `per_example=True` those of each example (prompt).

    Args:
        mu: distance of the points, the paper's sigma.
        num_samples: antithetic pairs, n; 2n forward passes.
        rank: r of the directions.
        batch_size: queries evaluated at once.

    Returns:
        An `Estimator`. Biased: a normalised step. The gradient has unit size in each coefficient
        and no sigma in it: a step size of the paper's convention, which divides by sigma, is this
        one times sigma. The noise is drawn from the key of each step, never again.

    Reference: Sarkar et al., Evolution strategies at the hyperscale (EGGROLL), 2025.
    """
    return Estimator(low_rank(rank), two_sided(num_samples, batch_size), standardized(), mu)


def lozo(
    mu: optax.ScalarOrSchedule = 1e-3,
    rank: int = 2,
    refresh: int = 50,
    num_samples: int = 1,
    *,
    key: jax.Array | int = 0,
    batch_size: int = 1,
) -> Estimator:
    """LOZO: low-rank directions `U V^T / sqrt(r)` whose V is kept for some steps.

    `g = 1/n sum_k (L(x + mu z_k) - L(x - mu z_k)) / (2 mu) z_k`

    Args:
        mu: smoothing parameter.
        rank: r.
        refresh: steps that V is kept.
        num_samples: directions an estimate, n; 2n forward passes.
        key: key or seed of V.
        batch_size: queries evaluated at once.

    Returns:
        An `Estimator`, unbiased over the refreshes. The paper's direction lacks `1/sqrt(r)`: its
        step size times r, and its mu times `sqrt(r)`, are the ones here.

    Reference: Chen et al., Enhancing zeroth-order fine-tuning with low-rank structures (LOZO),
    2024.
    """
    direction = low_rank(rank, refresh, key=key)
    return Estimator(direction, two_sided(num_samples, batch_size), difference(), mu)


def subzero(
    mu: optax.ScalarOrSchedule = 1e-3,
    rank: int = 16,
    refresh: int = 1000,
    num_samples: int = 1,
    *,
    key: jax.Array | int = 0,
    batch_size: int = 1,
) -> Estimator:
    """SubZero: directions `sqrt(mn)/r U X V^T` in random subspaces kept for many steps.

    `g = 1/n sum_k (L(x + mu z_k) - L(x - mu z_k)) / (2 mu) z_k`

    Args:
        mu: smoothing parameter.
        rank: r, of the subspaces of rows and of columns.
        refresh: steps that they are kept.
        num_samples: directions an estimate, n; 2n forward passes.
        key: key or seed of the subspaces.
        batch_size: queries evaluated at once.

    Returns:
        An `Estimator`, unbiased over the refreshes. The paper's direction lacks `sqrt(mn)/r`: scale
        its step size by `r^2/(mn)`.

    Reference: Yu et al., SubZero: Zeroth-order fine-tuning of LLMs in random subspaces, 2024.
    """
    direction = subspace(rank, refresh, key=key)
    return Estimator(direction, two_sided(num_samples, batch_size), difference(), mu)


def qzo(
    mu: optax.ScalarOrSchedule = 1e-3,
    num_samples: int = 1,
    *,
    limit: float = 100.0,
    direction: Direction | None = None,
    batch_size: int = 1,
) -> Estimator:
    """QZO: MeZO with clipped coefficients, for the scales of quantised weights.

    `g = 1/n sum_k clip((L(x + mu z_k) - L(x - mu z_k)) / (2 mu), -C, C) z_k`

    Args:
        mu: smoothing parameter, in units of the scales.
        num_samples: directions an estimate, n; 2n forward passes.
        limit: C. Without it the paper's run diverges at step 22.
        direction: another direction than `gaussian()`.
        batch_size: queries evaluated at once.

    Returns:
        An `Estimator`; biased where it clips. Step sizes are the paper's.

    Reference: Shang et al., Fine-tuning quantized neural networks with zeroth-order optimization
    (QZO), 2025.
    """
    scheme = two_sided(num_samples, batch_size)
    return Estimator(direction or gaussian(), scheme, clipped(difference(), limit), mu)


def rank_sgd(
    mu: optax.ScalarOrSchedule = 1e-3,
    num_samples: int = 10,
    top: int | None = None,
    *,
    direction: Direction | None = None,
    batch_size: int = 1,
) -> Estimator:
    """ZO-RankSGD: only the order of the points counts.

    `g = sum_k w_k z_k / (k (k - 1) / 2 + k (m - k))` with the weights of `ranks`.

    Args:
        mu: distance of the points.
        num_samples: points, m >= 2; m forward passes, or one order of m candidates.
        top: how many of the best are ranked, k; None ranks all.
        direction: another direction than `gaussian()`.
        batch_size: queries evaluated at once.

    Returns:
        An `Estimator`. Biased: a step of fixed size. With a person or another oracle that orders
        candidates, `candidates` and `tell`; the paper's line search is `scale_by_best`.

    Reference: Tang et al., Zeroth-order optimization meets human feedback (ZO-RankSGD), 2024.
    """
    scheme = population(num_samples, batch_size)
    return Estimator(direction or gaussian(), scheme, ranks(top), mu)


def consensus_hopping(
    mu: optax.ScalarOrSchedule = 1e-2,
    num_samples: int = 32,
    alpha: float | None = None,
    *,
    direction: Direction | None = None,
    batch_size: int = 1,
) -> Estimator:
    """Consensus hopping: step to the softmax-weighted mean of points around the parameters.

    `x' = sum_i w_i (x + mu z_i)`, `w = softmax(-alpha L)`; as a gradient,
    `(x - x') / (alpha mu^2)`.

    Args:
        mu: distance of the points, the paper's sigma.
        num_samples: points, at least 2.
        alpha: inverse temperature; None takes the one with half of the points effective.
        direction: another direction than `gaussian()`.
        batch_size: queries evaluated at once.

    Returns:
        An `Estimator`. Biased, see `consensus`. SGD with step size `alpha mu^2` is the hop itself.

    Reference: Riedl et al., Gradient is all you need? (consensus hopping), 2023.
    """
    scheme = population(num_samples, batch_size)
    return Estimator(direction or gaussian(), scheme, consensus(alpha), mu)


def fgd(
    num_samples: int = 1, *, direction: Direction | None = None, batch_size: int = 1
) -> Estimator:
    """Forward gradient descent: exact directional derivatives, no smoothing.

    `g = 1/n sum_k (z_k . grad L) z_k`

    Args:
        num_samples: directions an estimate, n; n forward passes with a tangent.
        direction: another direction than `gaussian()`.
        batch_size: queries evaluated at once.

    Returns:
        An `Estimator`, unbiased for the gradient itself, of total variance `(d + 1) |g|^2 / n`.

    Reference: Baydin et al., Gradients without backpropagation, 2022.
    """
    scheme = forward_gradient(num_samples, batch_size)
    return Estimator(direction or gaussian(), scheme, difference(), 1.0)
