"""LOZO-M: low-rank directions with a momentum of their factors."""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zojax.directions import low_rank
from zojax.estimators._estimator import Adaptive, Estimator
from zojax.estimators._schemes import two_sided
from zojax.estimators._shaping import difference


class LozoMomentumState(NamedTuple):
    """Memory of `lozo_m`."""

    factors: Any  # per matrix float32[rows, rank], per vector its shape: momentum in factor space


def lozo_m(
    mu: optax.ScalarOrSchedule = 1e-3,
    rank: int = 2,
    refresh: int = 50,
    num_samples: int = 1,
    *,
    decay: float = 0.9,
    key: jax.Array | int = 0,
    batch_size: int = 1,
) -> Adaptive:
    """LOZO-M: LOZO with a momentum of factors instead of matrices.

    `N <- decay N + (1 - decay) mean_k c_k U_k`, `g = N V^T / sqrt(rank)`. While V is kept this is
    the momentum of the gradient; where V is drawn again, `N <- N (V^T V_new) / n` first, the part
    of it in the new span. Momentum of vectors is their own.

    Args:
        mu: smoothing parameter.
        rank: r, of the directions; the memory has r numbers for each row of a matrix.
        refresh: steps that V is kept.
        num_samples: directions an estimate, n; 2n forward passes.
        decay: of the momentum, in [0, 1).
        key: key or seed of V.
        batch_size: queries evaluated at once.

    Returns:
        An `Adaptive` estimator. Biased as every momentum is: an average over past steps. The
        paper's direction lacks `1/sqrt(rank)`: scale its step size by `rank`.

    Raises:
        ValueError: if a count is below 1 or the decay is not in [0, 1).

    Reference: Chen et al., Enhancing zeroth-order fine-tuning with low-rank structures (LOZO),
    2024.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"the decay must be in [0, 1), found {decay}")
    direction = low_rank(rank, refresh, key=key)
    inner = Estimator(direction, two_sided(num_samples, batch_size), difference(), mu)

    def factors(params, at_key, step):
        return jax.tree.unflatten(
            jax.tree.structure(params), list(direction.terms(at_key, params, step))
        )

    def is_term(x):
        return hasattr(x, "left")

    def start(params) -> LozoMomentumState:
        words = jax.ShapeDtypeStruct((2,), jnp.uint32)
        shapes = jax.eval_shape(lambda k: factors(params, k, 0), words)
        return LozoMomentumState(
            jax.tree.map(lambda t: jnp.zeros(t.left.shape, jnp.float32), shapes, is_leaf=is_term)
        )

    def advance(state: LozoMomentumState, keys, coefficients, params, step):
        step = jnp.asarray(step)
        now = [factors(params, k, step) for k in keys]
        before = factors(params, keys[0], jnp.maximum(step - 1, 0))
        fresh = (step % refresh == 0) & (step > 0)

        def learn(kept, old, *terms):
            v_old, v_new = (t.right.astype(jnp.float32) for t in (old, terms[0]))
            columns = v_new.size // v_new.shape[-1]
            turned = jnp.matmul(
                kept, v_old.reshape(columns, -1).T @ v_new.reshape(columns, -1) / columns
            )
            kept = jnp.where(fresh, turned, kept)
            found = sum(
                c * t.left.astype(jnp.float32) for c, t in zip(coefficients, terms, strict=True)
            )
            return decay * kept + (1 - decay) * found / len(terms)

        learnt = jax.tree.map(learn, state.factors, before, *now)
        grads = jax.tree.map(
            lambda p, n, t: replace(t, left=n).materialize().astype(jnp.result_type(p)),
            params,
            learnt,
            now[0],
        )
        return grads, LozoMomentumState(learnt)

    return Adaptive(start, lambda state: inner, advance, num_samples, 2 * num_samples, num_samples)
