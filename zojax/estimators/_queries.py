"""Ask what a scheme wants to know, so many queries at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from zojax.estimators._estimator import Estimator
from zojax.estimators._schemes import Losses
from zojax.virtual._buffer import called

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

    queries = (asked_keys, scales)
    # a vmapped batch of one would keep a batch axis through the forward for nothing
    size = None if scheme.batch_size == 1 else scheme.batch_size
    if estimator.active is None:
        found, aux = lax.map(called(query_one), queries, batch_size=size)
    else:
        # a query belongs to the direction whose key it has; the base is always asked
        per_direction = scheme.num_queries // scheme.num_samples
        extra = scheme.num_queries - per_direction * scheme.num_samples
        number = jnp.arange(scheme.num_queries) - extra
        is_asked = number < estimator.active_at(step) * per_direction
        found, aux = _some(query_one, queries, is_asked, scheme.batch_size)
    aux = jax.tree.map(lambda a: a[0], aux)
    losses = scheme.collect(*found) if scheme.differentiate else scheme.collect(found, None)
    return losses, aux


def _some(query_one: Callable, queries: Any, is_asked: jax.Array, size: int) -> Any:
    """Answers to the queries that are asked, zeros for the others; batches of none are left out."""

    def unless_none(fn):
        def answer(given):
            query, asked = given
            shapes = jax.eval_shape(fn, query)
            found = lax.cond(
                jnp.any(asked), fn,
                lambda _: jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes), query,
            )  # fmt: skip
            wide = lambda a: jnp.expand_dims(asked, range(asked.ndim, a.ndim))  # noqa: E731
            return jax.tree.map(lambda a: jnp.where(wide(a), a, jnp.zeros_like(a)), found)

        return answer

    given, count = (queries, is_asked), is_asked.shape[0]
    if size == 1:
        return lax.map(unless_none(query_one), given)
    batch, whole = unless_none(jax.vmap(query_one)), count // size * size
    found = []
    if whole:
        batches = jax.tree.map(lambda a: a[:whole].reshape(-1, size, *a.shape[1:]), given)
        answers = lax.map(batch, batches)
        found.append(jax.tree.map(lambda a: a.reshape(whole, *a.shape[2:]), answers))
    if whole < count:
        found.append(batch(jax.tree.map(lambda a: a[whole:], given)))
    return jax.tree.map(lambda *a: jnp.concatenate(a), *found)
