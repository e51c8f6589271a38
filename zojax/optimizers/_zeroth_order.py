"""The estimator as an optax gradient transformation."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from zojax.estimators import Estimator, Joint, estimate, gradient, num_samples


class ZerothOrderState(NamedTuple):
    """State of `zeroth_order`: O(1) in the size of the model, and enough to replay the last step.

    Step t uses `jax.random.fold_in(key, t)`; no key is used twice.
    """

    count: jax.Array  # shape=(), dtype=jnp.int32
    key: jax.Array  # shape=(), typed key
    value: jax.Array  # shape=(), dtype=jnp.float32: loss of the last estimate
    coefficients: jax.Array  # shape=(num_samples,), dtype=jnp.float32: of the last estimate


def zeroth_order(
    estimator: Estimator | Joint, key: jax.Array | int
) -> optax.GradientTransformationExtraArgs:
    """Make gradient estimates inside an optax chain; goes first in it.

    Args:
        estimator: for example `zojax.mezo()`.
        key: typed key or integer seed.

    Returns:
        A transformation whose `update(updates, state, params, *, value_fn, **extra)` ignores
        `updates` (pass None), asks `value_fn(params, **extra)` and returns the gradient estimate.
        Extra arguments that `value_fn` must not see go to other members of the chain by name.

    Raises:
        ValueError: if `params` or `value_fn` is missing.

    >>> import jax.numpy as jnp, optax, zojax
    >>> loss = lambda w, target: jnp.sum((w - target) ** 2)
    >>> tx = optax.chain(zojax.zeroth_order(zojax.mezo(), key=0), optax.sgd(0.1))
    >>> w = jnp.zeros(2)
    >>> state = tx.init(w)
    >>> for _ in range(60):
    ...     updates, state = tx.update(None, state, w, value_fn=loss, target=jnp.ones(2))
    ...     w = optax.apply_updates(w, updates)
    >>> bool(loss(w, jnp.ones(2)) < 1e-3)
    True
    """
    n = num_samples(estimator)

    def init(params):
        del params
        typed = jax.random.key(key) if isinstance(key, int) else key
        return ZerothOrderState(
            count=jnp.zeros((), jnp.int32),
            key=typed,
            value=jnp.zeros((), jnp.float32),
            coefficients=jnp.zeros((n,), jnp.float32),
        )

    def update(updates, state, params=None, *, value_fn: Callable | None = None, **extra):
        del updates
        if params is None or value_fn is None:
            missing = "params" if params is None else "value_fn"
            raise ValueError(
                f"zeroth_order needs {missing}: call "
                "tx.update(None, state, params, value_fn=loss, batch=batch)"
            )
        step_key = jax.random.fold_in(state.key, state.count)
        found = estimate(value_fn, estimator)(step_key, params, step=state.count, **extra)
        grads = gradient(estimator, found.keys, found.coefficients, params, state.count)
        new_state = ZerothOrderState(
            count=jnp.asarray(optax.safe_increment(state.count)),
            key=state.key,
            value=found.value,
            coefficients=found.coefficients,
        )
        return grads, new_state

    return optax.GradientTransformationExtraArgs(init, update)
