"""Recipes: published methods as one line of the algebra."""

import optax

from zojax.directions import Direction, gaussian, rademacher
from zojax.estimators._estimate import Estimator
from zojax.estimators._schemes import one_sided, two_sided
from zojax.estimators._shaping import difference, normalized


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
