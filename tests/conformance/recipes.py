"""Every recipe of zojax, and what it claims."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import optax

import zojax
from tests.conformance.problem import PARAMS, SIZE, flat
from tests.conformance.subject import Claims
from zojax.estimators import AnyEstimator

MU = 0.5  # a power of two, large against rounding: on a quadratic two sides have no bias


class Recipe(NamedTuple):
    """How to make an estimator, and its claims."""

    make: Callable[[], AnyEstimator]
    claims: Claims


def _square(g) -> float:
    return float(g @ g)


def unbiased(data, x, state) -> np.ndarray:
    """The gradient."""
    return data.gradient(x)


def gaussian_variance(n: int):
    """`(d + 1) |g|^2 / n`."""
    return lambda data, x, state: (SIZE + 1) * _square(data.gradient(x)) / n


def _signs_variance(n: int):
    return lambda data, x, state: (SIZE - 1) * _square(data.gradient(x)) / n


def _leaves(x) -> list[np.ndarray]:
    sizes = np.cumsum([leaf.size for leaf in jax.tree.leaves(PARAMS)])[:-1]
    return np.split(x, sizes)


def _low_rank_variance(rank: int):
    """Each matrix adds 2 (rows + columns + 1) / rank times its own part of |g|^2."""

    def variance(data, x, state) -> float:
        g = data.gradient(x)
        excess = [0, 2 * (6 + 4 + 1) / rank]  # the stack is one tall matrix
        own = [e * _square(part) for e, part in zip(excess, _leaves(g), strict=True)]
        return (SIZE + 1) * _square(g) + sum(own)

    return variance


def _population_variance(n: int):
    """Of leave-one-out: a Wishart matrix over n - 1."""
    return gaussian_variance(n - 1)


def _baseline_variance(n: int):
    """Gaussian directions, and the distance of the loss from its running mean."""

    def variance(data, x, state) -> float:
        away = (data.value(x) - float(state[0].baseline)) / MU
        return ((SIZE + 1) * _square(data.gradient(x)) + SIZE * away**2) / n

    return variance


def _blocks_variance(data, x, state) -> float:
    """Of one direction, drawn with the probabilities that its memory gives."""
    size = np.sqrt(np.asarray(state[0].squares, np.float64))
    size = np.where(np.asarray(state[0].count) == 0, size.max(), size)
    p = 0.2 / 2 + 0.8 * size / size.sum()
    parts = _leaves(data.gradient(x))
    each = [(g.size + 2) * _square(g) / q for g, q in zip(parts, p, strict=True)]
    return sum(each) - _square(data.gradient(x))


def _diagonal(state) -> np.ndarray:
    return 1 / np.asarray(flat(state[0].diagonal), np.float64)


def _preconditioned_variance(n: int):
    def variance(data, x, state) -> float:
        g, d = data.gradient(x), _diagonal(state)
        return (d.sum() * (g @ (d * g)) + _square(d * g)) / n

    return variance


def _swept(data, x, state) -> np.ndarray:
    return data.gradient(x) + MU / 2 * np.diag(np.asarray(data.hessian, np.float64))


def _deepzero(mask=None) -> AnyEstimator:
    return zojax.deepzero(zojax.coordinate_positions(PARAMS, mask), MU)


def _deepzero_by_layer(mask=None) -> AnyEstimator:
    return zojax.deepzero_by_layer(zojax.coordinate_positions(PARAMS, mask), MU)


def _joint() -> AnyEstimator:
    """A block of one leaf, with two directions, beside the others with one of signs."""
    head = zojax.masked(zojax.gaussian(), {"b": True, "w": False})
    rest = zojax.masked(zojax.rademacher(), {"b": False, "w": True})
    return zojax.joint(
        zojax.mezo(MU, 2, direction=head, batch_size=4), zojax.mezo(MU, direction=rest)
    )


def _scheduled() -> AnyEstimator:
    """mu falls, and of three directions one more is asked at every step."""
    falling = optax.exponential_decay(MU, 1, 0.5, end_value=MU / 4)
    estimator = zojax.mezo(falling, 3)
    return estimator._replace(active=lambda step: jax.numpy.clip(1 + step, 1, 3))


def _with(scheme, shaping, direction=None) -> AnyEstimator:
    return zojax.Estimator(direction or zojax.gaussian(), scheme, shaping, MU)


EAGER = ("mezo", "hizoo", "deepzero")
"""Those that the suite also runs without jit, where each operation is compiled on its own; the
others are made of the same parts."""

SLOW = (
    "mezo, schedules",
    "moving_baseline",
    "mezo, signs in one batch",
    "one_sided",
    "leave_one_out",
    "eggroll",
    "lozo",
    "subzero",
    "qzo",
    "deepzero_by_layer",
    "consensus_hopping",
    "fgd",
    "private",
    "hizoo",
    "lozo_m",
    "rank_sgd",
    "block_sampling",
    "fzoo",
    "deepzero",
)
"""Those that `make test-slow` runs: their parts are those of the others, or have theory tests in
`tests/estimators`."""

_QUOTIENT = Claims(mean=unbiased, quotient=True, scale="equivariant")
_NORMALIZED = Claims(scale="invariant")

RECIPES: dict[str, Recipe] = {
    "mezo": Recipe(lambda: zojax.mezo(MU, 2), _QUOTIENT._replace(variance=gaussian_variance(2))),
    "mezo, signs in one batch": Recipe(
        lambda: zojax.mezo(MU, 2, direction=zojax.rademacher(), batch_size=4),
        _QUOTIENT._replace(variance=_signs_variance(2)),
    ),
    "mezo, schedules": Recipe(_scheduled, Claims(mean=unbiased, scale="equivariant")),
    "one_sided": Recipe(
        lambda: _with(zojax.one_sided(2), zojax.difference()),
        _QUOTIENT._replace(variance=gaussian_variance(2)),
    ),
    "leave_one_out": Recipe(
        lambda: _with(zojax.population(3), zojax.difference("leave_one_out")),
        Claims(mean=unbiased, variance=_population_variance(3), scale="equivariant"),
    ),
    "moving_baseline": Recipe(
        lambda: zojax.moving_baseline(_with(zojax.population(2), zojax.difference())),
        Claims(mean=unbiased, variance=_baseline_variance(2), scale="equivariant"),
    ),
    "fzoo": Recipe(lambda: zojax.fzoo(MU, 4), _NORMALIZED),
    "eggroll": Recipe(lambda: zojax.eggroll(MU, 2), _NORMALIZED),
    "lozo": Recipe(
        lambda: zojax.lozo(MU, rank=2, refresh=2),
        _QUOTIENT._replace(variance=_low_rank_variance(2)),
    ),
    "lozo_m": Recipe(lambda: zojax.lozo_m(MU, rank=2, refresh=2), Claims(scale="equivariant")),
    "subzero": Recipe(lambda: zojax.subzero(MU, rank=2, refresh=2), _QUOTIENT),
    "hizoo": Recipe(
        lambda: zojax.hizoo(MU, 2),
        Claims(
            mean=lambda data, x, state: _diagonal(state) * data.gradient(x),
            variance=_preconditioned_variance(2),
        ),
    ),
    "qzo": Recipe(
        lambda: zojax.qzo(MU),
        _QUOTIENT._replace(variance=gaussian_variance(1), scale=None),
    ),
    "deepzero": Recipe(
        _deepzero,
        Claims(
            mean=_swept,
            variance=lambda *a: 0.0,
            quotient=True,
            scale="equivariant",
            repeats=True,
            masked=_deepzero,
        ),
    ),
    "deepzero_by_layer": Recipe(
        _deepzero_by_layer,
        Claims(
            mean=_swept,
            variance=lambda *a: 0.0,
            scale="equivariant",
            repeats=True,
            masked=_deepzero_by_layer,
        ),
    ),
    "rank_sgd": Recipe(lambda: zojax.rank_sgd(MU, 3, top=2), _NORMALIZED),
    "consensus_hopping": Recipe(
        lambda: zojax.consensus_hopping(MU, 3), Claims(scale="equivariant")
    ),
    "fgd": Recipe(lambda: zojax.fgd(2), _QUOTIENT._replace(variance=gaussian_variance(2))),
    "block_sampling": Recipe(
        lambda: zojax.block_sampling(zojax.mezo(MU)),
        Claims(mean=unbiased, variance=_blocks_variance, quotient=True, scale="equivariant"),
    ),
    "private": Recipe(
        lambda: _with(zojax.two_sided(2), zojax.private(64.0, 0.01)),
        Claims(
            mean=unbiased,
            # s^2 C^2 n / B^2 in each coefficient, times d / n
            variance=lambda *a: gaussian_variance(2)(*a) + 0.64**2 * 2 / 3**2 * SIZE / 2,
            per_example=True,
        ),
    ),
    "joint": Recipe(_joint, Claims(mean=unbiased, scale="equivariant")),
}
"""By name."""
