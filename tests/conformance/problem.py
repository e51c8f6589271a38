"""The function that every estimator is asked about: a quadratic of a small tree."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

_DRAW = np.random.default_rng(0)
PARAMS = {
    "b": jnp.asarray(_DRAW.standard_normal(3), jnp.float32),
    "w": jnp.asarray(_DRAW.standard_normal((2, 3, 4)), jnp.float32),
}
"""A vector and a stack of matrices, as models have them."""

FLAT, UNRAVEL = ravel_pytree(PARAMS)
SIZE = FLAT.size
EXAMPLES = 3


class Data(NamedTuple):
    """`1/2 x.Hx + b.x + c`; losses of single examples differ by multiples of `r.x`, zero in mean.

    Attributes:
        hessian: float32[d, d], symmetric.
        slope: float32[d].
        constant: float32 scalar.
        spread: float32[d], r.
    """

    hessian: Any
    slope: Any
    constant: Any
    spread: Any

    def scaled(self, factor: float) -> "Data":
        """Of the loss times a factor."""
        return jax.tree.map(lambda a: a * factor, self)

    def value(self, x) -> float:
        """The loss at a flat point, in float64."""
        h, b, c = (np.asarray(a, np.float64) for a in self[:3])
        x = np.asarray(x, np.float64)
        return float(0.5 * x @ h @ x + b @ x + c)

    def gradient(self, x) -> np.ndarray:
        """The gradient at a flat point, in float64."""
        h, b = (np.asarray(a, np.float64) for a in self[:2])
        return h @ np.asarray(x, np.float64) + b


_ROOT = _DRAW.standard_normal((SIZE, SIZE))
QUADRATIC = Data(
    jnp.asarray(_ROOT @ _ROOT.T / SIZE, jnp.float32),
    jnp.asarray(_DRAW.standard_normal(SIZE), jnp.float32),
    jnp.float32(0.5),
    jnp.asarray(_DRAW.standard_normal(SIZE), jnp.float32),
)
LINEAR = QUADRATIC._replace(hessian=jnp.zeros((SIZE, SIZE), jnp.float32))


def along(directions) -> Data:
    """The loss `e.x`, which reads one combination of the entries; of many, one after another."""
    directions = np.asarray(directions, np.float32)
    zero = np.zeros_like(directions)
    hessian = np.zeros((*directions.shape, SIZE), np.float32)
    return Data(hessian, directions, np.zeros(directions.shape[:-1], np.float32), zero)


def flat(params) -> jax.Array:
    """The entries in one float32 vector."""
    return jnp.concatenate([leaf.astype(jnp.float32).ravel() for leaf in jax.tree.leaves(params)])


def loss(params, data: Data) -> jax.Array:
    """float32 scalar."""
    x = flat(params)
    return 0.5 * x @ (data.hessian @ x) + data.slope @ x + data.constant


def example_losses(params, data: Data) -> jax.Array:
    """float32[EXAMPLES], whose mean is `loss`."""
    offsets = jnp.arange(EXAMPLES, dtype=jnp.float32) - (EXAMPLES - 1) / 2
    return loss(params, data) + offsets * (data.spread @ flat(params))
