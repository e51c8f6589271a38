"""The diagonal of the Hessian from second differences, for optimisers that scale by it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from zojax.directions import combine_squares, gaussian
from zojax.estimators import Estimator, Losses, estimate, two_sided


class HessianDiagonalState(NamedTuple):
    """State of `hessian_diagonal`."""

    count: jax.Array  # shape=(), dtype=jnp.int32: estimates made
    key: jax.Array  # shape=(), typed key


def hessian_diagonal(
    mu: optax.ScalarOrSchedule = 1e-2,
    num_samples: int = 1,
    key: jax.Array | int = 0,
    *,
    batch_size: int = 1,
) -> optax.GradientTransformationExtraArgs:
    """Estimate the Hessian's diagonal from losses alone, for `optax.contrib.sophia`.

    `h = 1/n sum_k (c_k - c'_k) (z_k^2 - 1) / 2` with the second differences
    `c_k = (L(x + mu z_k) + L(x - mu z_k) - 2 L(x)) / mu^2`, an estimate of `z_k . H z_k`, and c'_k
    the mean of the others, 0 if there are none. z is Gaussian: `E (z . H z) (z_i^2 - 1) = 2 H_ii`.
    Without the -1 it would be `tr H + 2 H_ii`, and of signs, whose squares are 1, there is nothing
    to learn; directions of other kinds are therefore not offered.

    Args:
        mu: smoothing parameter. Rounding adds about `1e-7 |L| / mu^2` to each c_k.
        num_samples: directions an estimate, n; 2n + 1 forward passes. The variance of an entry is
            about `(tr H)^2 / 2` with one direction, and `2 |H|^2 / n` with several, as the mean of
            the others takes `tr H` away; `|H|` is the Frobenius norm.
        key: typed key or integer seed. Estimate t uses `fold_in(key, t)`: give another than the
            gradient has.
        batch_size: queries evaluated at once.

    Returns:
        A transformation to pass as `hessian_diagonal_fn`. Its `update(updates, state, params, *,
        value_fn, **extra)` ignores `updates`, asks `value_fn(params, **extra)`, or `obj_fn(params)`
        as optax calls it, and returns the diagonal like `params`. Unbiased for that of the smoothed
        loss; entries can be negative. A query that is not finite teaches nothing and counts zero.

    Raises:
        ValueError: if a count is below 1; when called, if `params` or the objective is missing.

    References: Ye et al., Hessian-aware zeroth-order optimization for black-box adversarial attack,
    2018; Liu et al., Sophia: a scalable stochastic second-order optimizer for language model
    pre-training, 2023.

    >>> import jax.numpy as jnp, optax, zojax
    >>> sophia = optax.contrib.sophia(0.1, hessian_diagonal_fn=zojax.hessian_diagonal(0.1, 4))
    >>> tx = optax.chain(zojax.zeroth_order(zojax.mezo(), key=1), sophia)
    >>> w = jnp.ones(3)
    >>> state = tx.init(w)
    >>> loss = lambda w: jnp.sum(jnp.square(w))
    >>> updates, state = tx.update(None, state, w, value_fn=loss)
    >>> updates.shape
    (3,)
    """
    direction = gaussian()

    def second_differences(losses: Losses, mu, key):
        del key
        assert losses.base is not None and losses.plus is not None and losses.minus is not None
        # each side's own difference first: they are of one size and lose no digits
        found = ((losses.plus - losses.base) + (losses.minus - losses.base)) / mu**2
        usable = jnp.isfinite(found)
        count = jnp.sum(usable)
        mean = jnp.sum(jnp.where(usable, found, 0.0)) / jnp.maximum(count, 1)
        if num_samples > 1:
            found = (found - mean) * count / jnp.maximum(count - 1, 1)
        return jnp.where(usable, found, 0.0) * num_samples / jnp.maximum(count, 1)

    scheme = two_sided(num_samples, batch_size, base=True)
    estimator = Estimator(direction, scheme, second_differences, mu)

    def init_fn(params):
        del params
        typed = jax.random.key(key) if isinstance(key, int) else key
        return HessianDiagonalState(jnp.zeros((), jnp.int32), typed)

    def update(
        updates,
        state,
        params=None,
        *,
        value_fn: Callable | None = None,
        obj_fn: Callable | None = None,
        **extra,
    ):
        del updates
        if params is None or (value_fn is None and obj_fn is None):
            missing = "params" if params is None else "value_fn or obj_fn"
            raise ValueError(
                f"hessian_diagonal needs {missing}: call "
                "tx.update(grads, state, params, value_fn=loss, batch=batch)"
            )
        fun, given = (value_fn, extra) if value_fn is not None else (obj_fn, {})
        assert fun is not None
        step_key = jax.random.fold_in(state.key, state.count)
        found = estimate(fun, estimator)(step_key, params, step=state.count, **given)
        squares = combine_squares(direction, found.keys, found.coefficients / 2, params)
        diagonal = jax.tree.map(lambda p, h: h.astype(jnp.result_type(p)), params, squares)
        count = jnp.asarray(optax.safe_increment(state.count))
        return diagonal, HessianDiagonalState(count, state.key)

    return optax.GradientTransformationExtraArgs(init_fn, update)
