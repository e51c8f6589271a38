"""Directions whose entries are drawn one by one: iid, and uniform on the sphere."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from zojax.directions._direction import Direction
from zojax.directions._draw import independent
from zojax.virtual import Term

_PART = 2**18  # entries of a leaf whose noise is stored at a time for the norm


def gaussian() -> Direction:
    """Independent standard normals, `z_i ~ N(0, 1)`.

    Variance of the two-sided estimate with n samples: `(d + 1) |g|^2 / n` in total.

    Returns:
        A `Direction`. Dense: each matmul makes one perturbed matrix, used once.

    Reference: Nesterov and Spokoiny, Random gradient-free minimization of convex functions, 2017.
    """
    return _independent("gaussian", "gaussian()")


def rademacher() -> Direction:
    """Independent signs, `z_i = -1 or +1`; the least variance of all iid directions.

    Variance of the two-sided estimate with n samples: `(d - 1) |g|^2 / n` in total. A perturbed
    or updated weight is the same bits on every device (`zojax.noise.round_coefficient`).

    Returns:
        A `Direction`. Dense, as `gaussian`, at a third of its cost.

    Reference: Spall, Multivariate stochastic approximation (SPSA), 1992.
    """
    return _independent("rademacher", "rademacher()")


def integer_normal() -> Direction:
    """Nearly normal and exact: sums of eight nibbles over `sqrt(170)`, `|z_i| <= 4.6`.

    Variance of the two-sided estimate with n samples: `(d + 0.849) |g|^2 / n` in total, the
    kurtosis being 2.849. A perturbed or updated weight is the same bits on every device, which
    `gaussian` cannot promise. The scale is rounded to 13 mantissa bits, in the forward and in the
    update: each is wrong by a factor of at most `1 + 2^-14`, the direction is the same.

    Returns:
        A `Direction`. Dense, as `gaussian`, at two thirds of its cost.
    """
    return _independent("nibble_sum", "integer_normal()")


def sphere() -> Direction:
    """Uniform on the sphere of radius `sqrt(d)`: `z = sqrt(d) g / |g|` with g standard normal.

    The norm is that of the whole tree (of the leaves that a mask leaves in), d its size.
    Variance of the two-sided estimate with n samples: `(d - 1) |g|^2 / n` in total.

    Returns:
        A `Direction`. Dense, as `gaussian`; the norm takes one more pass over the noise, a part
        at a time, of which few are stored: each 1/64 of a leaf, or a megabyte.

    Reference: Flaxman et al., Online convex optimization in the bandit setting, 2005.
    """

    def terms(key, params, step=0):
        del step
        normals = independent(key, params, "gaussian")
        squares = [squared_norm(term) for term in normals]
        size = sum(math.prod(term.shape) for term in normals)
        factor = jnp.sqrt(size / jnp.maximum(sum(squares), jnp.finfo(jnp.float32).tiny))
        return tuple(term.scaled(factor) for term in normals)

    return Direction(terms, "sphere()")


def squared_norm(term: Term) -> jax.Array:
    """The sum of squares of a term, float32, with little of it stored at a time."""
    size = math.prod(term.shape)
    parts = -(-size // max(_PART, size // 64))
    if parts <= 1:
        return jnp.sum(jnp.square(term.materialize()))
    rows = math.prod(term.shape[:-1])
    axis, count = (0, rows) if rows >= term.shape[-1] else (1, term.shape[-1])
    matrix, length = term.reshape((rows, term.shape[-1])), -(-count // parts)
    assert matrix is not None  # the rows of a leaf always merge
    sizes = (length, term.shape[-1]) if axis == 0 else (rows, length)

    def add(i, total):
        first = i * length
        cut = matrix.slice((first, 0) if axis == 0 else (0, first), sizes, (1, 1))
        assert cut is not None
        part = cut.materialize()
        # the barrier keeps XLA from making the noise with unfused operations inside the sum
        squares = jnp.sum(jnp.square(lax.optimization_barrier(part)), axis=1 - axis)
        return total + jnp.sum(jnp.where(first + jnp.arange(length) < count, squares, 0.0))

    return lax.fori_loop(0, parts, add, jnp.float32(0))


def _independent(distribution: str, name: str) -> Direction:
    def terms(key, params, step=0):
        del step
        return tuple(independent(key, params, distribution))

    return Direction(terms, name)
