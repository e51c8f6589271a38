"""Distributions of directions in a parameter tree, `E[z z^T] = I`."""

from zojax.directions._combine import combine, combine_squares, perturb
from zojax.directions._coordinates import (
    coordinate_basis,
    coordinate_positions,
    coordinates,
)
from zojax.directions._direction import Direction
from zojax.directions._elementary import gaussian, integer_normal, rademacher, sphere
from zojax.directions._low_rank import low_rank, subspace
from zojax.directions._preconditioned import preconditioned
from zojax.directions._restricted import blocks, masked, n_m

__all__ = [
    "Direction",
    "blocks",
    "combine",
    "combine_squares",
    "coordinate_basis",
    "coordinate_positions",
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
