"""A small tree of every kind of leaf, and directions in it as dense arrays."""

from functools import partial

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from zojax import noise

KEY = jax.random.key(0)

TREE = {
    "matrix": jnp.zeros((2, 3)),
    "scalar": jnp.zeros(()),
    "stack": jnp.zeros((2, 2, 2)),
    "vector": jnp.zeros(3),
}


@partial(jax.jit, static_argnums=0)
def dense(direction, key, params, step=0):
    """The direction as dense arrays, in float32; compiled once for all tests that ask for it."""
    flat, tree = jax.tree.flatten(params)
    terms = direction.terms(key, params, step)
    return jax.tree.unflatten(
        tree,
        [jnp.zeros(jnp.shape(p)) if t is None else t.materialize()
         for p, t in zip(flat, terms, strict=True)],
    )  # fmt: skip


def draws(direction, params, count=40_000):
    """Many directions, each at a step of its own period: float64 (count, entries)."""

    def flat(key, step):
        return jax.flatten_util.ravel_pytree(dense(direction, key, params, step))[0]

    keys, steps = noise.fold_in(KEY, jnp.arange(count)), 3 * jnp.arange(count)
    return np.asarray(jax.jit(jax.vmap(flat))(keys, steps), np.float64)


def assert_covariance(z, expected, rounding=1e-5):
    """Mean zero and second moments as expected, to five standard errors from the samples."""
    count = len(z)
    second = z.T @ z / count
    # the Monte-Carlo error of each entry, from the samples themselves
    spread = np.sqrt(np.maximum((z**2).T @ (z**2) / count - second**2, 0) / count)
    assert np.all(abs(z.mean(0)) <= 5 * z.std(0) / count**0.5)
    assert np.all(abs(second - expected) <= 5 * spread + rounding * np.sqrt(expected.max()))
