"""Consensus-based optimisation with particles, which consensus hopping is compared with."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def weights(values: jax.Array, effective: float = 0.5) -> jax.Array:
    """`softmax(-alpha f)` with the alpha that leaves this fraction of the particles effective."""
    unit = (values - jnp.mean(values)) / jnp.maximum(jnp.std(values), 1e-30)

    def halve(_, ends):
        low, high = ends
        middle = jnp.sqrt(low * high)
        size = 1 / jnp.sum(jnp.square(jax.nn.softmax(-middle * unit)))
        enough = size > effective * values.size
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low, _ = jax.lax.fori_loop(0, 40, halve, (jnp.float32(1e-3), jnp.float32(1e4)))
    return jax.nn.softmax(-low * unit)


def cbo(
    fun: Callable[[jax.Array, jax.Array], jax.Array],
    key: jax.Array,
    start: jax.Array,
    steps: int,
    sigma: jax.Array | float,
    resample: bool,
    dt: float = 0.1,
) -> jax.Array:
    """The last consensus of `x_i <- x_i - dt (x_i - c) + sigma sqrt(dt) (x_i - c) * xi`.

    Args:
        fun: `(point, key of the step) -> value`.
        key: typed key.
        start: particles, float32[n, d].
        steps: n values of `fun` each.
        sigma: strength of the noise, entry by entry in proportion to the distance from c.
        resample: whether the particles are drawn again by their weights in every step.
        dt: length of a step.

    Reference: Carrillo et al., A consensus-based global optimization method for high dimensional
    machine learning problems, 2021.
    """

    def step(carried, key):
        points, _ = carried
        of_batch, of_draw, of_noise = jax.random.split(key, 3)
        found = jax.vmap(lambda x: fun(x, of_batch))(points)
        w = weights(found)
        centre = w @ points
        if resample:
            drawn = jax.random.categorical(of_draw, jnp.log(w), shape=found.shape)
            points = points[drawn]
        away = points - centre
        spread = sigma * dt**0.5 * jax.random.normal(of_noise, points.shape)
        return (points - dt * away + spread * away, centre), None

    keys = jax.random.split(key, steps)
    return jax.lax.scan(step, (start, jnp.mean(start, axis=0)), keys)[0][1]
