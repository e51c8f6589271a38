"""The training steps that the benchmarks compare: two forward passes, then an SGD update."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import zojax

MU, RATE = 1e-3, 1e-4
DENSITY = 1e-3

DIRECTIONS: dict[str, Callable[[], zojax.Direction]] = {
    "low_rank": lambda: zojax.low_rank(1),
    "rademacher": zojax.rademacher,
    "gaussian": zojax.gaussian,
}


def step(loss: Callable, direction: zojax.Direction) -> Callable:
    """MeZO through the public API: `(params, key, batch) -> (params, loss)`."""
    grad = zojax.value_and_grad(loss, zojax.mezo(mu=MU, direction=direction))

    def run(params, key, batch):
        value, grads = grad(key, params, batch)
        updates = jax.tree.map(lambda g: -RATE * g, grads)
        # below float32 the sum is rounded stochastically, with a key of its own
        return zojax.apply_updates(params, updates, key=jax.random.fold_in(key, 0)), value

    return run


def sparse_step(loss: Callable, merge: Callable) -> Callable:
    """MeZO on `zojax.sensitive` entries: `(theta, key, frozen, batch) -> (theta, loss)`."""

    def of_theta(theta, frozen, batch):
        return zojax.virtualize(loss)(merge(theta, frozen), batch)

    grad = zojax.value_and_grad(of_theta, zojax.mezo(mu=MU))

    def run(theta, key, frozen, batch):
        value, grads = grad(key, theta, frozen, batch)
        return jax.tree.map(lambda p, g: p - RATE * g, theta, grads), value

    return run


def plain_step(loss: Callable) -> Callable:
    """The same step as a JAX user writes it today: `(params, key, batch) -> (params, loss)`."""

    def run(params, key, batch):
        leaves, tree = jax.tree.flatten(params)
        keys = jax.random.split(key, len(leaves))
        z = jax.tree.unflatten(
            tree,
            [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)],
        )
        plus = loss(jax.tree.map(lambda p, z: p + MU * z, params, z), batch)
        minus = loss(jax.tree.map(lambda p, z: p - MU * z, params, z), batch)
        step_size = RATE * (plus - minus) / (2 * MU)
        params = jax.tree.map(lambda p, z: p - step_size.astype(p.dtype) * z, params, z)
        return params, (plus + minus) / 2

    return run


def initialize(seed: int, abstract: Any, scale: float = 0.02) -> Any:
    """Normal values for abstract parameters."""
    draw = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(scale * draw.standard_normal(x.shape, np.float32), x.dtype), abstract
    )


def sensitive(params: Any) -> zojax.Split:
    """A thousandth of every matrix, picked by random scores."""
    scores = initialize(1, params)
    return zojax.sensitive(params, scores, DENSITY)


def abstract(tree: Any) -> Any:
    """Shapes and dtypes of a tree."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.result_type(x)), tree)
