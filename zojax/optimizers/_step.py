"""One step as two pure functions: ask the loss, apply the answer."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zojax import noise
from zojax.estimators import AnyEstimator, Estimate, advance, estimate
from zojax.estimators import init as init_memory
from zojax.optimizers._apply_updates import apply_updates

_ROUNDING = 0xFFFF_FFFF  # folded into a step's key for stochastic rounding; no sample has it


class TrainState(NamedTuple):
    """Everything that changes from step to step."""

    step: jax.Array  # shape=(), dtype=jnp.int32
    trainable: Any
    opt_state: Any
    key: jax.Array  # shape=(), typed key; step t uses fold_in(key, t)
    memory: Any  # what an adaptive estimator learnt; empty otherwise


class StepFunctions(NamedTuple):
    """A step, not jitted. `ask` then `apply` is one step.

    Attributes:
        init: `(trainable, key) -> TrainState`; copies both.
        ask: `(state, *args) -> Estimate`; forward passes only, changes nothing.
        apply: `(state, keys, coefficients) -> TrainState`; needs no data and no model.
    """

    init: Callable[[Any, jax.Array], TrainState]
    ask: Callable[..., Estimate]
    apply: Callable[[TrainState, jax.Array, jax.Array], TrainState]


def step_functions(
    loss: Callable[..., jax.Array],
    estimator: AnyEstimator,
    optimizer: optax.GradientTransformation,
) -> StepFunctions:
    """The functions that training jits and `zojax.plan` measures.

    Args:
        loss: `(trainable, *args) -> scalar`.
        estimator: for example `zojax.mezo()`.
        optimizer: any optax transformation; it sees gradient estimates of the trainables.

    Returns:
        `StepFunctions`; `loss` is asked for `(state.trainable, *args)`.
    """

    def init(trainable, key):
        # copies, as `apply` donates its state and the caller may still hold tree and key
        own = jax.tree.map(jnp.array, trainable)
        memory = init_memory(estimator, own)
        return TrainState(jnp.zeros((), jnp.int32), own, optimizer.init(own), key.copy(), memory)

    def ask(state: TrainState, *args) -> Estimate:
        key = jax.random.fold_in(state.key, state.step)
        asked = estimate(loss, estimator)
        return asked(key, state.trainable, *args, step=state.step, state=state.memory)

    def apply(state: TrainState, keys, coefficients) -> TrainState:
        grads, memory = advance(
            estimator, keys, coefficients, state.trainable, state.step, state.memory
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        rounding = noise.fold_in(jax.random.fold_in(state.key, state.step), _ROUNDING)
        trainable = apply_updates(state.trainable, updates, key=rounding)
        return TrainState(state.step + 1, trainable, opt_state, state.key, memory)

    return StepFunctions(init, ask, apply)
