"""The estimator as an optax gradient transformation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zojax.estimators import AnyEstimator, advance, estimate, init, num_coefficients
from zojax.virtual._report import Implementation


class ZerothOrderState(NamedTuple):
    """State of `zeroth_order`: O(1) in the size of the model unless the estimator is adaptive.

    Step t uses `jax.random.fold_in(key, t)`; no key is used twice. With the state before it, the
    coefficients replay a step.
    """

    count: jax.Array  # shape=(), dtype=jnp.int32
    key: jax.Array  # shape=(), typed key
    value: jax.Array  # shape=(), dtype=jnp.float32: loss of the last estimate
    coefficients: jax.Array  # shape=(num_coefficients,), dtype=jnp.float32: of the last estimate
    memory: Any  # what an adaptive estimator learnt; empty otherwise


def zeroth_order(
    estimator: AnyEstimator,
    key: jax.Array | int,
    *,
    per_example: bool = False,
    implementation: Implementation | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Make gradient estimates inside an optax chain; goes first in it.

    Args:
        estimator: for example `zojax.mezo()`.
        key: typed key or integer seed.
        per_example: whether `value_fn` returns one loss an example, as in `estimate`.
        implementation: of products with perturbed weights, as for `zojax.virtualize`.

    Returns:
        A transformation whose `update(updates, state, params, *, value_fn, **extra)` ignores
        `updates` (pass None), asks `value_fn(params, **extra)` and returns the gradient estimate.
        Extra arguments that `value_fn` must not see go to other members of the chain by name.

    Raises:
        ValueError: if `params` or `value_fn` is missing.

    >>> import jax, jax.numpy as jnp, optax, zojax
    >>> loss = lambda w, target: jnp.sum((w - target) ** 2)
    >>> tx = optax.chain(zojax.zeroth_order(zojax.mezo(), key=0), optax.sgd(0.1))
    >>> @jax.jit
    ... def step(w, state):
    ...     updates, state = tx.update(None, state, w, value_fn=loss, target=jnp.ones(2))
    ...     return optax.apply_updates(w, updates), state
    >>> w = jnp.zeros(2)
    >>> state = tx.init(w)
    >>> for _ in range(60):
    ...     w, state = step(w, state)
    >>> bool(loss(w, jnp.ones(2)) < 1e-3)
    True
    """
    n = num_coefficients(estimator)

    def init_fn(params):
        typed = jax.random.key(key) if isinstance(key, int) else key
        return ZerothOrderState(
            count=jnp.zeros((), jnp.int32),
            key=typed,
            value=jnp.zeros((), jnp.float32),
            coefficients=jnp.zeros((n,), jnp.float32),
            memory=init(estimator, params),
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
        asked = estimate(
            value_fn, estimator, per_example=per_example, implementation=implementation
        )
        found = asked(step_key, params, step=state.count, state=state.memory, **extra)
        grads, memory = advance(
            estimator, found.keys, found.coefficients, params, state.count, state.memory
        )
        new_state = ZerothOrderState(
            count=jnp.asarray(optax.safe_increment(state.count)),
            key=state.key,
            value=found.value,
            coefficients=found.coefficients,
            memory=memory,
        )
        return grads, new_state

    return optax.GradientTransformationExtraArgs(init_fn, update)
