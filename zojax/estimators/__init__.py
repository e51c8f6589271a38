"""Estimators: direction x scheme x shaping."""

from zojax.estimators._estimate import (
    Estimate,
    Estimator,
    Joint,
    estimate,
    gradient,
    joint,
    num_queries,
    num_samples,
    value_and_grad,
)
from zojax.estimators._recipes import fzoo, mezo
from zojax.estimators._schemes import Losses, Scheme, one_sided, two_sided
from zojax.estimators._shaping import Shaping, difference, normalized

__all__ = [
    "Estimate",
    "Estimator",
    "Joint",
    "Losses",
    "Scheme",
    "Shaping",
    "difference",
    "estimate",
    "fzoo",
    "gradient",
    "joint",
    "mezo",
    "normalized",
    "num_queries",
    "num_samples",
    "one_sided",
    "two_sided",
    "value_and_grad",
]
