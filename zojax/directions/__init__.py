"""Distributions of directions in a parameter tree, `E[z z^T] = I`."""

from zojax.directions._combine import combine, perturb
from zojax.directions._direction import Direction
from zojax.directions._elementary import gaussian, integer_normal, rademacher, sphere
from zojax.directions._low_rank import low_rank, subspace
from zojax.directions._preconditioned import preconditioned
from zojax.directions._restricted import blocks, coordinates, masked, n_m

__all__ = [
    "Direction",
    "blocks",
    "combine",
    "coordinates",
    "gaussian",
    "integer_normal",
    "low_rank",
    "masked",
    "n_m",
    "perturb",
    "preconditioned",
    "rademacher",
    "sphere",
    "subspace",
]
