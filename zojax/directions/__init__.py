"""Distributions of directions in a parameter tree, `E[z z^T] = I`."""

from zojax.directions._combine import combine, perturb
from zojax.directions._direction import Direction, gaussian, low_rank, masked, rademacher

__all__ = ["Direction", "combine", "gaussian", "low_rank", "masked", "perturb", "rademacher"]
