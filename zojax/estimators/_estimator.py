"""What an estimator is: direction, scheme and shaping, with a memory or without, or several."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zojax.directions import Direction
from zojax.estimators._schemes import Scheme
from zojax.estimators._shaping import Shaping


class Estimator(NamedTuple):
    """A zeroth-order gradient estimator: where to look, where to ask, what to make of the answers.

    Attributes:
        direction: distribution of directions.
        scheme: where along each direction the loss is asked.
        shaping: losses to coefficients.
        mu: smoothing parameter, a positive float or a schedule of the step.
        active: how many of the scheme's directions are asked at a step, a schedule of integers;
            None asks all, and at least one is asked. The others count nothing, and cost nothing but
            for those that share a batch with one that is asked. For shapings that treat each
            direction on its own, as `difference` does.
    """

    direction: Direction
    scheme: Scheme
    shaping: Shaping
    mu: optax.ScalarOrSchedule
    active: Callable[[Any], Any] | None = None

    def mu_at(self, step) -> jax.Array:
        """mu at a step, float32 scalar."""
        return jnp.asarray(self.mu(step) if callable(self.mu) else self.mu, jnp.float32)

    def active_at(self, step) -> jax.Array:
        """Directions that are asked at a step, int32 scalar."""
        n = self.scheme.num_samples
        asked = n if self.active is None else self.active(step)
        return jnp.clip(jnp.asarray(asked, jnp.int32), 1, n)


class Adaptive(NamedTuple):
    """An estimator with a memory: what it asks next depends on what it was told.

    Attributes:
        init: `params -> state`, a tree of arrays; of shapes alone too.
        at: `state -> Estimator`, what to ask with. Its shaping may return more numbers than there
            are directions, where `advance` needs more than the coefficients.
        advance: `(state, keys, coefficients, params, step) -> (gradient, state)`. All that is kept
            of the answers are these keys and coefficients, so that a journal of them replays a run.
        num_samples: directions an estimate.
        num_queries: forward passes an estimate.
        num_coefficients: numbers an estimate.
    """

    init: Callable[[Any], Any]
    at: Callable[[Any], Estimator]
    advance: Callable[..., tuple[Any, Any]]
    num_samples: int
    num_queries: int
    num_coefficients: int


class Joint(NamedTuple):
    """Several estimators whose gradients add up; make one with `joint`."""

    parts: tuple[Estimator | Adaptive, ...]


AnyEstimator = Estimator | Adaptive | Joint


def joint(*estimators: Estimator | Adaptive) -> Joint:
    """Estimate each block of parameters in its own way: `g = sum_i g_i`.

    Give each estimator a `masked` direction over leaves that no other one moves. Where a block sits
    late in the model (a head), ask many of its directions at once: under `vmap` everything before
    the first perturbed leaf is computed once and shared by all of them.

    Args:
        *estimators: at least one.

    Returns:
        A `Joint`, accepted wherever an `Estimator` is.

    Raises:
        ValueError: if none is given.
    """
    if not estimators:
        raise ValueError("joint() needs at least one estimator")
    return Joint(estimators)


def num_samples(estimator: AnyEstimator) -> int:
    """Directions an estimate."""
    return sum(_count(part, "num_samples") for part in parts(estimator))


def num_queries(estimator: AnyEstimator) -> int:
    """Losses asked an estimate."""
    return sum(_count(part, "num_queries") for part in parts(estimator))


def num_coefficients(estimator: AnyEstimator) -> int:
    """Numbers an estimate keeps, each with a key: one a direction, more where it is adaptive."""
    return sum(
        part.num_coefficients if isinstance(part, Adaptive) else part.scheme.num_samples
        for part in parts(estimator)
    )


def init(estimator: AnyEstimator, params: Any) -> tuple:
    """What an estimator remembers before its first step.

    Args:
        estimator: any.
        params: tree of arrays or `ShapeDtypeStruct`.

    Returns:
        The `state` of `estimate` and `advance`: a tuple with a tree for each part of a joint
        estimator, or for the one; empty where it is not `Adaptive`.
    """
    return tuple(
        part.init(params) if isinstance(part, Adaptive) else () for part in parts(estimator)
    )


def parts(estimator: AnyEstimator) -> tuple[Estimator | Adaptive, ...]:
    """The estimators that are added up: those of a joint one, or the one."""
    return estimator.parts if isinstance(estimator, Joint) else (estimator,)


def _count(part: Estimator | Adaptive, name: str) -> int:
    return getattr(part if isinstance(part, Adaptive) else part.scheme, name)
