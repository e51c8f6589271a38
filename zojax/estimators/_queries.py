"""Ask what a scheme wants to know, so many queries at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from zojax.estimators._estimator import Estimator
from zojax.estimators._schemes import Losses

Ask = Callable[[jax.Array, jax.Array], tuple[jax.Array, Any]]


def answers(
    estimator: Estimator, ask: Ask, keys: jax.Array, mu: jax.Array, step: Any
) -> tuple[Losses, Any]:
    """All queries, `batch_size` at a time, and the first one's aux.

    Args:
        estimator: whose scheme and number of active directions count.
        ask: `(key of a direction, scale) -> (loss, aux)`.
        keys: uint32[n, 2].
        mu: float32 scalar.
        step: integer.

    Returns:
        Losses, and aux of the first query.
    """
    scheme = estimator.scheme
    asked_keys, scales = scheme.queries(keys, mu)

    def query_one(query):
        key, scale = query[:2]
        if not scheme.differentiate:
            return ask(key, scale)
        loss, slope, aux = jax.jvp(
            lambda s: ask(key, s), (scale,), (jnp.ones_like(scale),), has_aux=True
        )
        return (loss, slope), aux

    one: Callable = query_one
    queries = (asked_keys, scales)
    if estimator.active is not None:
        # a query belongs to the direction whose key it has; the base is always asked
        active = jnp.asarray(estimator.active(step), jnp.int32)
        per_direction = scheme.num_queries // scheme.num_samples
        extra = scheme.num_queries - per_direction * scheme.num_samples
        number = jnp.arange(scheme.num_queries) - extra
        unasked = jax.eval_shape(query_one, (asked_keys[0], scales[0]))

        def query_if_active(query):
            return lax.cond(
                query[2],
                query_one,
                lambda _: jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), unasked),
                query[:2],
            )

        one = query_if_active
        queries = (*queries, number < active * per_direction)
    # a vmapped batch of one would keep a batch axis through the forward for nothing
    size = None if scheme.batch_size == 1 else scheme.batch_size
    found, aux = lax.map(one, queries, batch_size=size)
    aux = jax.tree.map(lambda a: a[0], aux)
    losses = scheme.collect(*found) if scheme.differentiate else scheme.collect(found, None)
    return losses, aux
