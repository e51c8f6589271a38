"""Schemes: where along each direction the loss is asked."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zojax import noise


class Losses(NamedTuple):
    """The answers of one estimate, in float32, each with a last axis of examples or without it.

    Attributes:
        base: loss at the parameters, [] or [B], or None if it was not asked.
        plus: loss at `params + mu z_k`, [n] or [n, B], or None.
        minus: loss at `params - mu z_k`, [n] or [n, B], or None.
        slope: derivative of the loss along z_k, [n] or [n, B], or None.
    """

    base: jax.Array | None = None
    plus: jax.Array | None = None
    minus: jax.Array | None = None
    slope: jax.Array | None = None

    @property
    def value(self) -> jax.Array:
        """The estimate's value of the loss: the base, or the mean over all queries."""
        if self.base is not None:
            return jnp.mean(self.base)
        asked = [jnp.mean(side) for side in (self.plus, self.minus) if side is not None]
        return jnp.mean(jnp.stack(asked))

    @property
    def num_samples(self) -> int:
        """Directions asked, n."""
        asked = self.slope if self.plus is None else self.plus
        assert asked is not None
        return asked.shape[0]


class Scheme(NamedTuple):
    """Where the loss is asked, and how many queries at once.

    Attributes:
        queries: `(keys uint32[n, 2], mu) -> (keys uint32[q, 2], scales float32[q])`: query i is
            the loss at `params + scale_i z(key_i)`.
        collect: `(losses float32[q, ...], slopes float32[q, ...] or None) -> Losses`.
        num_samples: directions an estimate, n.
        num_queries: forward passes an estimate, q.
        batch_size: queries evaluated at once.
        keys: `key -> uint32[n, 2]`, one a direction.
        differentiate: whether a query also gives the derivative of the loss in the scale.
    """

    queries: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
    collect: Callable[[jax.Array, jax.Array | None], Losses]
    num_samples: int
    num_queries: int
    batch_size: int
    keys: Callable[[jax.Array], jax.Array]
    differentiate: bool = False


def two_sided(num_samples: int = 1, batch_size: int = 1, *, base: bool = False) -> Scheme:
    """Both sides of each direction: `L(x + mu z_k)` and `L(x - mu z_k)`.

    Args:
        num_samples: directions an estimate, n; 2n forward passes.
        batch_size: queries evaluated at once. 1 needs the memory of one forward pass; 2n is one
            pass over the weights with 2n times the activations.
        base: whether to ask `L(x)` too, for curvature; one more forward pass.

    Returns:
        A `Scheme`. The bias of the difference quotient is O(mu^2).

    Raises:
        ValueError: if a count is below 1.
    """
    _at_least_one(num_samples=num_samples, batch_size=batch_size)

    def queries(keys, mu):
        signs = jnp.tile(jnp.array([1.0, -1.0], jnp.float32), num_samples)
        keys, scales = jnp.repeat(keys, 2, axis=0), signs * mu
        return _with_base(keys, scales) if base else (keys, scales)

    def collect(losses, slopes):
        del slopes
        at, losses = (losses[0], losses[1:]) if base else (None, losses)
        pairs = losses.reshape(num_samples, 2, *losses.shape[1:])
        return Losses(at, pairs[:, 0], pairs[:, 1])

    asked = 2 * num_samples + base
    return Scheme(queries, collect, num_samples, asked, batch_size, _drawn(num_samples))


def one_sided(num_samples: int = 1, batch_size: int = 1) -> Scheme:
    """One side of each direction and one base query that all share: `L(x + mu z_k)`, `L(x)`.

    Args:
        num_samples: directions an estimate, n; n + 1 forward passes.
        batch_size: queries evaluated at once.

    Returns:
        A `Scheme`. The bias of the difference quotient is O(mu).

    Raises:
        ValueError: if a count is below 1.
    """
    _at_least_one(num_samples=num_samples, batch_size=batch_size)
    return _one_side(num_samples, batch_size, _drawn(num_samples))


def population(num_samples: int, batch_size: int = 1) -> Scheme:
    """Points around the parameters and nothing else: `L(x + mu z_k)`, without `L(x)`.

    With antithetic pairs of points it is `two_sided`, which asks the same queries; only the shaping
    differs.

    Args:
        num_samples: points an estimate, n; n forward passes. One alone can only be compared with
            a `moving_baseline`.
        batch_size: queries evaluated at once.

    Returns:
        A `Scheme`, for shapings that compare the points: `ranks`, `consensus`, `standardized`, or
        `difference` with a baseline.

    Raises:
        ValueError: if a count is below 1.

    Reference: Salimans et al., Evolution strategies as a scalable alternative to reinforcement
    learning, 2017.
    """
    _at_least_one(num_samples=num_samples, batch_size=batch_size)

    def queries(keys, mu):
        return keys, jnp.broadcast_to(mu, (num_samples,))

    def collect(losses, slopes):
        del slopes
        return Losses(plus=losses)

    return Scheme(queries, collect, num_samples, num_samples, batch_size, _drawn(num_samples))


def coordinate_sweep(num_coordinates: int, batch_size: int = 1) -> Scheme:
    """Every coordinate once, beside one base query (CGE): direction k is coordinate k.

    Needs the direction `coordinate_basis`, which reads the number of a coordinate from the key.

    Args:
        num_coordinates: n, the positions of the basis; n + 1 forward passes.
        batch_size: queries evaluated at once; under one batch, what comes before the first layer
            that moves is computed once.

    Returns:
        A `Scheme`. Deterministic. With `difference` the estimate is the gradient on the
        coordinates, wrong by O(mu).

    Raises:
        ValueError: if a count is below 1.

    Reference: Chen et al., DeepZero: scaling up zeroth-order optimization for deep model training,
    2024.
    """
    _at_least_one(num_coordinates=num_coordinates, batch_size=batch_size)

    def numbered(key):
        del key
        index = jnp.arange(num_coordinates, dtype=jnp.uint32)
        return jnp.stack([index, jnp.zeros_like(index)], axis=1)

    return _one_side(num_coordinates, batch_size, numbered)


def forward_gradient(num_samples: int = 1, batch_size: int = 1) -> Scheme:
    """The exact derivative along each direction, in forward mode: `d/ds L(x + s z_k)` at s = 0.

    Args:
        num_samples: directions an estimate, n; n forward passes that carry a tangent each.
        batch_size: queries evaluated at once.

    Returns:
        A `Scheme`, for a loss that JAX can differentiate forwards. No bias and no rounding of a
        quotient: mu drops out. Directions are never stored here either.

    Raises:
        ValueError: if a count is below 1.

    Reference: Baydin et al., Gradients without backpropagation, 2022.
    """
    _at_least_one(num_samples=num_samples, batch_size=batch_size)

    def queries(keys, mu):
        del mu
        return keys, jnp.zeros(num_samples, jnp.float32)

    def collect(losses, slopes):
        return Losses(base=losses[0], slope=slopes)

    keys = _drawn(num_samples)
    return Scheme(queries, collect, num_samples, num_samples, batch_size, keys, differentiate=True)


def _one_side(num_samples: int, batch_size: int, keys: Callable) -> Scheme:
    def queries(keys, mu):
        return _with_base(keys, jnp.broadcast_to(mu, (num_samples,)))

    def collect(losses, slopes):
        del slopes
        return Losses(losses[0], losses[1:])

    return Scheme(queries, collect, num_samples, num_samples + 1, batch_size, keys)


def _with_base(keys, scales):
    """A first query of scale zero: the base, so that one compiled forward serves all."""
    scales = jnp.concatenate([jnp.zeros(1, jnp.float32), scales.astype(jnp.float32)])
    return jnp.concatenate([keys[:1], keys]), scales


def _drawn(num_samples: int) -> Callable[[jax.Array], jax.Array]:
    def keys(key):
        return noise.fold_in(key, jnp.arange(num_samples, dtype=jnp.uint32))

    return keys


def _at_least_one(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, found {count}")
