"""Estimators that remember scalars: a moving baseline, the blocks that mattered."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zojax.directions import Direction, blocks, combine
from zojax.directions._restricted import drawn_block, spread
from zojax.estimators._estimator import Adaptive, Estimator
from zojax.estimators._schemes import Losses


class BaselineState(NamedTuple):
    """Memory of `moving_baseline`."""

    baseline: jax.Array  # shape=(), dtype=jnp.float32: running mean of the loss
    count: jax.Array  # shape=(), dtype=jnp.int32: estimates so far


def moving_baseline(estimator: Estimator, decay: float = 0.9) -> Adaptive:
    """Compare points with a running mean of past losses: one query an estimate is enough.

    `c_k = (L(x + mu z_k) - b) / mu` and then `b <- decay b + (1 - decay) mean_k L(x + mu z_k)`;
    in the first estimate b is its own mean.

    Args:
        estimator: with `population(n)` and a shaping that takes a base, such as `difference()`.
        decay: of the running mean, in [0, 1).

    Returns:
        An `Adaptive` estimator, unbiased after the first estimate, as b does not depend on the
        directions of the step. Its variance is that of the loss itself over `mu^2` as far as the
        baseline does not foresee it, d times; with two points or more "leave_one_out" is better on
        a batch that changes from step to step.

    Raises:
        ValueError: if the decay is not in [0, 1), or when asked, if the scheme has a base.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"the decay must be in [0, 1), found {decay}")
    n, queries = estimator.scheme.num_samples, estimator.scheme.num_queries

    def start(params) -> BaselineState:
        del params
        return BaselineState(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))

    def at(state: BaselineState) -> Estimator:
        def shape(losses: Losses, mu, key):
            if losses.plus is None or losses.base is not None or losses.minus is not None:
                raise ValueError("moving_baseline() needs a population: it is the base itself")
            mean = losses.value
            base = jnp.where(state.count == 0, mean, state.baseline)
            found = estimator.shaping(losses._replace(base=base), mu, key)
            return jnp.concatenate([found, jnp.broadcast_to(mean, (n,))])

        return estimator._replace(shaping=shape)

    def advance(state: BaselineState, keys, coefficients, params, step):
        grads = combine(estimator.direction, keys[:n], coefficients[:n], params, step)
        mean = coefficients[n]
        weight = jnp.where(state.count == 0, 1.0, 1 - decay)
        moved = state.baseline + weight * (mean - state.baseline)
        baseline = jnp.where(jnp.isfinite(mean), moved, state.baseline)
        return grads, BaselineState(baseline, state.count + jnp.isfinite(mean))

    return Adaptive(start, at, advance, n, queries, 2 * n)


class BlockState(NamedTuple):
    """Memory of `block_sampling`."""

    squares: jax.Array  # shape=(blocks,), dtype=jnp.float32: running |g_b|^2, zero before the first
    count: jax.Array  # shape=(blocks,), dtype=jnp.int32: draws of each


def block_sampling(
    estimator: Estimator,
    partition: Any | Callable[[Any], Any] = None,
    *,
    decay: float = 0.9,
    floor: float = 0.2,
) -> Adaptive:
    """One block of leaves at a time, drawn in proportion to what its coefficients were.

    A coefficient of block b, drawn with probability p, is `z_b . g_b / sqrt(p)`, so that `p c^2`
    is `|g_b|^2` in expectation. Its running mean S_b gives the next probabilities,
    `p_b = floor / B + (1 - floor) sqrt(S_b) / sum sqrt(S)`; blocks that were never drawn count as
    the largest.

    Args:
        estimator: whose direction moves all leaves; coefficients that are projected gradients.
        partition: tree of labels or a function, as of `blocks`; None makes each leaf a block.
        decay: of the running means, in [0, 1).
        floor: part of the draws that is uniform, in (0, 1]: no block is forgotten.

    Returns:
        An `Adaptive` estimator, unbiased where the estimator is: the probabilities of a step come
        from the steps before it.

    Raises:
        ValueError: if an argument is out of range, or as `blocks` does.

    Reference: Nesterov, Efficiency of coordinate descent methods on huge-scale optimization
    problems, 2012.
    """
    if not 0 <= decay < 1 or not 0 < floor <= 1:
        raise ValueError(
            f"block_sampling needs 0 <= decay < 1 and 0 < floor <= 1, found {decay}, {floor}"
        )
    n, queries = estimator.scheme.num_samples, estimator.scheme.num_queries

    def labels(params) -> list:
        leaves = jax.tree.leaves(params)
        found = range(len(leaves)) if partition is None else spread(partition, params, "partition")
        filled = [b for b, leaf in zip(found, leaves, strict=True) if 0 not in jnp.shape(leaf)]
        return list(dict.fromkeys(filled))

    def start(params) -> BlockState:
        count = len(labels(params))
        return BlockState(jnp.zeros(count, jnp.float32), jnp.zeros(count, jnp.int32))

    def probabilities(state: BlockState) -> jax.Array:
        size = jnp.sqrt(state.squares)
        size = jnp.where(state.count == 0, jnp.maximum(jnp.max(size), 1e-30), size)
        return floor / size.size + (1 - floor) * size / jnp.maximum(jnp.sum(size), 1e-30)

    def direction(state: BlockState) -> Direction:
        return blocks(estimator.direction, partition, probabilities(state))

    def at(state: BlockState) -> Estimator:
        return estimator._replace(direction=direction(state))

    def advance(state: BlockState, keys, coefficients, params, step):
        grads = combine(direction(state), keys, coefficients, params, step)
        p = probabilities(state)
        p = p / jnp.sum(p)
        for key, c in zip(keys, coefficients, strict=True):
            block = drawn_block(key, p)
            found = p[block] * jnp.square(c)
            weight = jnp.where(state.count[block] == 0, 1.0, 1 - decay)
            moved = state.squares[block] + weight * (found - state.squares[block])
            usable = jnp.isfinite(found)
            state = BlockState(
                state.squares.at[block].set(jnp.where(usable, moved, state.squares[block])),
                state.count.at[block].add(usable.astype(jnp.int32)),
            )
        return grads, state

    return Adaptive(start, at, advance, n, queries, n)
