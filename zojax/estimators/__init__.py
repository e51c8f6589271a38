"""Estimators: direction x scheme x shaping."""

from zojax.estimators._estimate import Estimate, advance, estimate, gradient, value_and_grad
from zojax.estimators._estimator import (
    Adaptive,
    AnyEstimator,
    Estimator,
    Joint,
    init,
    joint,
    num_coefficients,
    num_queries,
    num_samples,
)
from zojax.estimators._private import privacy_spent, private
from zojax.estimators._ranking import consensus, ranks
from zojax.estimators._recipes import fzoo, mezo
from zojax.estimators._schemes import (
    Losses,
    Scheme,
    coordinate_sweep,
    forward_gradient,
    one_sided,
    population,
    two_sided,
)
from zojax.estimators._shaping import Shaping, clipped, difference, normalized, standardized

__all__ = [
    "Adaptive",
    "AnyEstimator",
    "Estimate",
    "Estimator",
    "Joint",
    "Losses",
    "Scheme",
    "Shaping",
    "advance",
    "clipped",
    "consensus",
    "coordinate_sweep",
    "difference",
    "estimate",
    "forward_gradient",
    "fzoo",
    "gradient",
    "init",
    "joint",
    "mezo",
    "normalized",
    "num_coefficients",
    "num_queries",
    "num_samples",
    "one_sided",
    "population",
    "privacy_spent",
    "private",
    "ranks",
    "standardized",
    "two_sided",
    "value_and_grad",
]
