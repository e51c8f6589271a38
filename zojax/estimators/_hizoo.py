"""HiZOO: directions scaled by a running diagonal of the Hessian."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zojax.directions import Direction, combine, combine_squares, gaussian, preconditioned
from zojax.directions._elementary import squared_norm
from zojax.estimators._estimator import Adaptive, Estimator
from zojax.estimators._schemes import Losses, two_sided
from zojax.estimators._shaping import difference, examples_mean


class HizooState(NamedTuple):
    """Memory of `hizoo`."""

    diagonal: Any  # like the parameters, float32: D
    residual: jax.Array  # shape=(), dtype=jnp.float32: running mean of (h - |u|^2)^2
    count: jax.Array  # shape=(), dtype=jnp.int32: estimates that taught something


def hizoo(
    mu: optax.ScalarOrSchedule = 1e-3,
    num_samples: int = 1,
    *,
    decay: float = 0.99,
    spread: float = 10.0,
    batch_size: int = 1,
) -> Adaptive:
    """HiZOO: Gaussian directions scaled by a running diagonal of the Hessian.

    `z = D^(-1/2) u`, u standard normal, `g = 1/n sum_k c_k z_k` with the difference quotients c_k,
    an estimate of `D^-1 grad L`. The same queries and the base's give second differences
    `h_k = (L(x + mu z_k) + L(x - mu z_k) - 2 L(x)) / mu^2`, and those the diagonal:
    `q = mean_k (h_k - |u_k|^2) (u_k^2 - 1) / 2`, `D <- D (1 + a q)`, and all of D by
    `1 + (1 - decay) (r - 1)` with `r = mean_k h_k / mean_k |u_k|^2`. The step is
    `a = (1 - decay) / max(1, rms)`, rms the running size of `h_k - |u_k|^2`.

    The expectation of q is `diag(H) / D - 1`, so that D tends to the diagonal of the Hessian. The
    paper's rule has neither the -1, without which its D is `1 + d/2` times that for d parameters,
    nor `|u_k|^2`, what D foresees of `h_k`, without which q is as noisy as the trace is large. The
    first estimate makes all of D the mean curvature it met.

    Args:
        mu: smoothing parameter, for D at 1: a query moves by `mu / sqrt(D)`.
        num_samples: directions an estimate, n; 2n + 1 forward passes.
        decay: memory of D.
        spread: largest factor between an entry of D and the mean of D. Entries of negative
            curvature end at the lower end.
        batch_size: queries evaluated at once.

    Returns:
        An `Adaptive` estimator; its memory is one float32 for each parameter. The gradient is
        preconditioned: a step size of 1 over the number of parameters is about a Newton step.

    Raises:
        ValueError: if the decay is not in [0, 1) or the spread below 1.

    Reference: Zhao et al., Second-order fine-tuning without pain for LLMs (HiZOO), 2024.
    """
    if not 0 <= decay < 1 or not spread >= 1:
        raise ValueError(f"hizoo needs 0 <= decay < 1 and spread >= 1, found {decay}, {spread}")
    scheme, n = two_sided(num_samples, batch_size, base=True), num_samples

    def scaled(state: HizooState) -> Direction:
        return preconditioned(gaussian(), jax.tree.map(lambda d: 1 / d, state.diagonal))

    def shape(losses: Losses, mu, key):
        assert losses.base is not None and losses.plus is not None and losses.minus is not None
        second = (losses.plus - losses.base) + (losses.minus - losses.base)
        return jnp.concatenate([difference()(losses, mu, key), examples_mean(second) / mu**2])

    def start(params) -> HizooState:
        ones = jax.tree.map(lambda p: jnp.ones(jnp.shape(p), jnp.float32), params)
        return HizooState(ones, jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))

    def at(state: HizooState) -> Estimator:
        return Estimator(scaled(state), scheme, shape, mu)

    def advance(state: HizooState, keys, coefficients, params, step):
        grads = combine(scaled(state), keys[:n], coefficients[:n], params, step)
        norms = jnp.stack([_norm(key, params) for key in keys[n:]])
        second = coefficients[n:]
        squares = combine_squares(gaussian(), keys[n:], second - norms, params, step)
        met, begins = jnp.mean(second) / jnp.mean(norms), state.count == 0
        # of the steps before this one, so that it changes no expectation
        rms = jnp.sqrt(state.residual)
        rate = (1 - decay) / jnp.maximum(1.0, rms)
        whole = jnp.clip(1 + (1 - decay) * (met - 1), 0.5, 2.0)

        def move(d, squares):
            factor = jnp.clip(1 + rate * squares / 2, 0.5, 2.0)
            return jnp.where(begins, jnp.abs(met), d * whole * factor)

        moved = jax.tree.map(move, state.diagonal, squares)
        size = sum(leaf.size for leaf in jax.tree.leaves(moved))
        mean = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(moved)) / size
        bounded = jax.tree.map(lambda d: jnp.clip(d, mean / spread, mean * spread), moved)
        # D was not yet of the right size when the first one was made
        residual = jnp.mean(jnp.square(second - jnp.where(begins, met, 1.0) * norms))
        residual = state.residual + (1 - decay) * (residual - state.residual)
        # an estimate that failed, or saw no curvature at all, teaches nothing
        usable = jnp.all(jnp.isfinite(second)) & (mean > 0)
        learnt = HizooState(bounded, residual, state.count + 1)
        return grads, jax.tree.map(lambda new, old: jnp.where(usable, new, old), learnt, state)

    return Adaptive(start, at, advance, n, 2 * n + 1, 2 * n)


def _norm(key, params) -> jax.Array:
    """`|u|^2` of the standard normals of a key."""
    return sum(
        (squared_norm(term) for term in gaussian().terms(key, params) if term is not None),
        jnp.float32(0),
    )
