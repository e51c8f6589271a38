"""Schemes: where along each direction the loss is asked."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Losses(NamedTuple):
    """The answers of one estimate, in float32.

    Attributes:
        base: loss at the parameters, scalar, or None if it was not asked.
        plus: float32[n], loss at `params + mu z_k`.
        minus: float32[n], loss at `params - mu z_k`, or None.
    """

    base: jax.Array | None
    plus: jax.Array
    minus: jax.Array | None

    @property
    def value(self) -> jax.Array:
        """The estimate's value of the loss: the base, or the mean over all queries."""
        if self.base is not None:
            return self.base
        if self.minus is None:
            return jnp.mean(self.plus)
        return jnp.mean((self.plus + self.minus) / 2)


Ask = Callable[[jax.Array, jax.Array], tuple[jax.Array, Any]]


class Scheme(NamedTuple):
    """Where the loss is asked, and how the queries are batched.

    Attributes:
        evaluate: `(ask, keys, mu) -> (Losses, aux of the first query)` with
            `ask(key, scale) -> (loss, aux)`.
        num_samples: directions an estimate, n.
        num_queries: forward passes an estimate.
    """

    evaluate: Callable[[Ask, jax.Array, jax.Array], tuple[Losses, Any]]
    num_samples: int
    num_queries: int


def two_sided(num_samples: int = 1, batch_size: int = 1) -> Scheme:
    """Both sides of each direction: `L(x + mu z_k)` and `L(x - mu z_k)`.

    Args:
        num_samples: directions an estimate, n; 2n forward passes.
        batch_size: queries evaluated at once. 1 needs the memory of one forward pass; 2n is one
            pass over the weights with 2n times the activations.

    Returns:
        A `Scheme`. The bias of the difference quotient is O(mu^2).

    Raises:
        ValueError: if an argument is below 1.
    """
    _at_least_one(num_samples=num_samples, batch_size=batch_size)

    def evaluate(ask, keys, mu):
        signs = jnp.tile(jnp.array([1.0, -1.0], jnp.float32), num_samples)
        losses, aux = _map(ask, jnp.repeat(keys, 2, axis=0), signs * mu, batch_size)
        pairs = losses.reshape(num_samples, 2)
        return Losses(None, pairs[:, 0], pairs[:, 1]), aux

    return Scheme(evaluate, num_samples, 2 * num_samples)


def one_sided(num_samples: int = 1, batch_size: int = 1) -> Scheme:
    """One side of each direction and one base query that all share: `L(x + mu z_k)`, `L(x)`.

    Args:
        num_samples: directions an estimate, n; n + 1 forward passes.
        batch_size: queries evaluated at once.

    Returns:
        A `Scheme`. The bias of the difference quotient is O(mu).

    Raises:
        ValueError: if an argument is below 1.
    """
    _at_least_one(num_samples=num_samples, batch_size=batch_size)

    def evaluate(ask, keys, mu):
        # the base is a query of scale zero, so that one compiled forward serves all
        keys = jnp.concatenate([keys[:1], keys])
        scales = jnp.concatenate([jnp.zeros(1), jnp.ones(num_samples)]).astype(jnp.float32) * mu
        losses, aux = _map(ask, keys, scales, batch_size)
        return Losses(losses[0], losses[1:], None), aux

    return Scheme(evaluate, num_samples, num_samples + 1)


def _map(ask: Ask, keys, scales, batch_size: int):
    """All queries, `batch_size` at a time: losses [q] and the first query's aux."""

    def one(query):
        return ask(*query)

    # a vmapped batch of one would keep a batch axis through the forward for nothing
    losses, aux = lax.map(one, (keys, scales), batch_size=None if batch_size == 1 else batch_size)
    return losses, jax.tree.map(lambda a: a[0], aux)


def _at_least_one(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, found {count}")
