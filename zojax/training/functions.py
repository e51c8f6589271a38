"""The step as functions: ask the loss, apply the answer, predict."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zojax.estimators import AnyEstimator, Estimate
from zojax.optimizers import TrainState, step_functions
from zojax.virtual import virtualize


class Problem(NamedTuple):
    """What is minimised and what is measured.

    Attributes:
        loss: `(params, batch) -> scalar`.
        logits: `(params, batch) -> float32[B, C]`; the highest is the prediction.
        example_losses: `(logits, label int32[B]) -> float32[B]`.
    """

    loss: Callable[[Any, Any], jax.Array]
    logits: Callable[[Any, Any], jax.Array]
    example_losses: Callable[[jax.Array, jax.Array], jax.Array]


class Functions(NamedTuple):
    """The jitted functions of a run. `ask` then `apply` is one step.

    Attributes:
        init: `(trainable, key) -> TrainState`.
        ask: `(state, frozen, batch) -> Estimate`; forward passes only, changes nothing.
        apply: `(state, keys, coefficients) -> TrainState`; needs no data and no model, so a journal
            of keys and coefficients replays a run with this very program, bit for bit. Donates the
            state.
        predict: `(trainable, frozen, batch) -> logits`.
    """

    init: Callable[[Any, jax.Array], TrainState]
    ask: Callable[[TrainState, Any, Any], Estimate]
    apply: Callable[[TrainState, jax.Array, jax.Array], TrainState]
    predict: Callable[[Any, Any, Any], jax.Array]


class Metrics(NamedTuple):
    """Means over a data set."""

    loss: float
    accuracy: float
    count: int


def training_functions(
    problem: Problem,
    merge: Callable[[Any, Any], Any],
    estimator: AnyEstimator,
    optimizer: optax.GradientTransformation,
) -> Functions:
    """Build the functions of a run.

    Args:
        problem: loss and predictions over whole parameters.
        merge: `(trainable, frozen) -> params`, of a `zojax.Split`.
        estimator: for example `zojax.mezo()`.
        optimizer: any optax transformation; it sees gradient estimates of the trainables.

    Returns:
        `Functions`, each traced once a batch shape.
    """
    virtual_loss = virtualize(problem.loss)
    virtual_logits = virtualize(problem.logits)

    def loss_of(trainable, frozen, batch):
        return virtual_loss(merge(trainable, frozen), batch)

    def predict(trainable, frozen, batch):
        return virtual_logits(merge(trainable, frozen), batch)

    init, ask, apply = step_functions(loss_of, estimator, optimizer)
    return Functions(init, jax.jit(ask), jax.jit(apply, donate_argnums=0), jax.jit(predict))


def step(
    functions: Functions, state: TrainState, frozen: Any, batch: Any
) -> tuple[TrainState, Estimate]:
    """One training step: ask, then apply.

    Args:
        functions: of `training_functions`.
        state: donated.
        frozen: parameters that do not move.
        batch: of any shape; each new shape compiles once.

    Returns:
        The new state, and what was asked.
    """
    found = functions.ask(state, frozen, batch)
    return functions.apply(state, found.keys, found.coefficients), found


def evaluate(
    predict: Callable[[Any], jax.Array],
    example_losses: Callable[[jax.Array, jax.Array], jax.Array],
    batches: Iterable[tuple[Any, np.ndarray]],
) -> Metrics:
    """Loss and accuracy over batches.

    Args:
        predict: `batch -> logits float32[B, C]`.
        example_losses: of the problem.
        batches: pairs of a batch with int32[B] "label" and bool[B], which of its examples count.

    Returns:
        `Metrics`.

    Raises:
        ValueError: if no example counts.
    """
    loss, hits, count = 0.0, 0, 0
    for batch, valid in batches:
        logits = predict(batch)
        losses = np.asarray(example_losses(logits, jnp.asarray(batch["label"])))
        loss += float(losses[valid].sum())
        hits += int((np.argmax(np.asarray(logits), -1) == batch["label"])[valid].sum())
        count += int(valid.sum())
    if count == 0:
        raise ValueError("no example to evaluate: the data set is empty")
    return Metrics(loss / count, hits / count, count)
