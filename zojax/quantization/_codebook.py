"""Codebooks: 16 levels for each channel, by weighted k-means."""

import jax
import jax.numpy as jnp
from jax import lax

_LEVELS, _BINS, _ROUNDS, _CHANNELS = 16, 256, 4, 32


def fit_codebook(w: jax.Array, weight: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """Codes and levels that make `sum weight (w - level[code])^2` small, channel by channel.

    The best partition of a histogram of 256 bins, by dynamic programming, then Lloyd's iteration
    on the entries themselves.

    Args:
        w: float32, two axes, in [-1, 1].
        weight: like `w`, not negative.
        axis: along which a channel lies.

    Returns:
        Codes, uint8 like `w`, and the levels in ascending order, float32 with `axis` of length 16.
    """
    if axis % w.ndim == 1:
        codes, levels = fit_codebook(w.T, weight.T, 0)
        return codes.T, levels.T
    total = weight.sum(0)
    # a channel without any weight is fitted as if all of it counted
    weight = jnp.where(total > 0, weight / jnp.where(total > 0, total, 1.0), 1.0 / w.shape[0])
    levels = lax.map(_best_of_histogram, (w.T, weight.T), batch_size=_CHANNELS).T

    def improve(_, levels):
        codes = _nearest(w, levels)

        def moments(level):
            inside = jnp.where(codes == level, weight, 0.0)
            return inside.sum(0), (inside * w).sum(0)

        mass, moment = jax.vmap(moments)(jnp.arange(_LEVELS, dtype=jnp.uint8))
        return jnp.sort(jnp.where(mass > 0, moment / jnp.where(mass > 0, mass, 1.0), levels), 0)

    levels = lax.fori_loop(0, _ROUNDS, improve, levels)
    return _nearest(w, levels), levels


def _nearest(w: jax.Array, levels: jax.Array) -> jax.Array:
    """uint8 codes; `levels` ascend along the first axis."""
    edges = (levels[1:] + levels[:-1]) / 2
    return jnp.sum(w > edges[:, None], 0, dtype=jnp.uint8)


def _best_of_histogram(channel) -> jax.Array:
    """Means of the 16 runs of bins with the least sum of squares around them, ascending."""
    w, weight = channel
    place = jnp.clip(((w + 1) * (_BINS / 2)).astype(jnp.int32), 0, _BINS - 1)
    powers = weight * jnp.stack([jnp.ones_like(w), w, w * w])
    sums = jnp.zeros((3, _BINS + 1)).at[:, place + 1].add(powers)
    mass, moment, square = jnp.cumsum(sums, 1)
    # cost[i, j] is that of one level for bins i to j - 1
    m, s, q = (x[None, :] - x[:, None] for x in (mass, moment, square))
    cost = jnp.maximum(q - s * s / jnp.where(m > 0, m, 1.0), 0.0)
    later = jnp.arange(_BINS + 1)
    cost = jnp.where(later[:, None] <= later[None, :], cost, jnp.inf)

    def add_level(best, _):
        through = best[:, None] + cost
        return through.min(0), through.argmin(0)

    _, starts = lax.scan(add_level, cost[0], None, length=_LEVELS - 1)

    def step_back(end, start_of):
        start = start_of[end]
        return start, start

    _, cuts = lax.scan(step_back, _BINS, starts, reverse=True)
    cuts = jnp.concatenate([jnp.zeros(1, cuts.dtype), cuts, jnp.full(1, _BINS, cuts.dtype)])
    m, s = jnp.diff(mass[cuts]), jnp.diff(moment[cuts])
    # a run without mass gets the middle of its bins
    middle = (cuts[1:] + cuts[:-1]) / _BINS - 1.0
    return jnp.sort(jnp.where(m > 0, s / jnp.where(m > 0, m, 1.0), middle))
