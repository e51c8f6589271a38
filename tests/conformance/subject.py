"""An estimator under test: what it claims, and its functions, each compiled once."""

from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import zojax
from tests.conformance import problem
from tests.conformance.problem import PARAMS, Data
from zojax.estimators import Adaptive, AnyEstimator, Losses, advance, init

SEED = 7
STEP_SIZE = np.float32(2.0**-9)
STEPS = 8  # of a run
BATCH = 512  # estimates made at once
WARM_UP = 3  # steps before the mean and the variance are taken


class Claims(NamedTuple):
    """What an estimator says of itself; what it does not claim is not tested.

    Attributes:
        mean: `(data, x, state) -> float64[d]`, the expectation of its gradient at a flat point x of
            the quadratic `data`; `state` is its memory. None claims a descent direction only.
        variance: `(data, x, state) -> float`, total variance of its gradient on a linear loss.
        quotient: whether the coefficient of direction z is `z . g` on a linear loss, and the
            gradient the mean of coefficients times directions.
        scale: what the gradient of s times the loss is: s times as large ("equivariant"), the same
            ("invariant"), or None for neither.
        spans: whether coefficients move the gradient within the span of the directions asked.
        repeats: whether it asks the same directions at every step.
        per_example: whether it needs one loss an example.
        cosine: between the gradients of bfloat16 and of float32 parameters; None claims nothing.
        masked: `mask -> estimator`, the same with the leaves of a False left alone; None where an
            estimator has no such thing. An `Estimator` needs none: its direction is masked.
    """

    mean: Callable[[Data, np.ndarray, Any], np.ndarray] | None = None
    variance: Callable[[Data, np.ndarray, Any], float] | None = None
    quotient: bool = False
    scale: Literal["equivariant", "invariant"] | None = None
    spans: bool = True
    repeats: bool = False
    per_example: bool = False
    cosine: float | None = 0.99
    masked: Callable[[Any], AnyEstimator] | None = None


class Journal(NamedTuple):
    """What a run leaves: parameters and state before each step, and what the step said."""

    params: list
    states: list[zojax.ZerothOrderState]
    gradients: list
    coefficients: list[np.ndarray]


class Subject:
    """An estimator, its claims, and the programs that the checks share."""

    def __init__(self, estimator: AnyEstimator, claims: Claims) -> None:
        self.estimator, self.claims = estimator, claims
        self.loss = problem.example_losses if claims.per_example else problem.loss
        self.transformation = zojax.zeroth_order(estimator, SEED, per_example=claims.per_example)
        self.traces = 0

    def one(self, key, params, data, step, state):
        """An estimate, its gradient, and the memory after it."""
        ask = zojax.estimate(self.loss, self.estimator, per_example=self.claims.per_example)
        found = ask(key, params, data, step=step, state=state)
        learnt = advance(self.estimator, found.keys, found.coefficients, params, step, state)
        return found, *learnt

    @cached_property
    def start(self) -> tuple:
        """The memory that a run begins with."""
        return init(self.estimator, PARAMS)

    @cached_property
    def compiled(self):
        return jax.jit(self.one)

    @cached_property
    def _many(self):
        def one(words, *args):
            return self.one(jax.random.wrap_key_data(words), *args)

        return jax.jit(jax.vmap(one))

    def many(self, keys, steps, state, data, params=PARAMS):
        """`one` for each of up to `BATCH` keys and steps; all else may have a leading axis too.

        One program serves every check: what has no leading axis gets one, what is short is padded.
        """
        count = len(keys)

        def padded(a, like):
            a = np.asarray(a)
            a = a if a.ndim > np.ndim(like) else np.broadcast_to(a, (count, *a.shape))
            return np.concatenate([a, np.broadcast_to(a[:1], (BATCH - count, *a.shape[1:]))])

        args = (params, data, steps, state)
        like = (PARAMS, problem.QUADRATIC, 0, self.start)
        words = padded(jax.random.key_data(keys), np.zeros(2))
        found = self._many(words, *jax.tree.map(padded, args, like))
        return jax.tree.map(lambda a: np.asarray(a)[:count], found)

    @cached_property
    def apply(self):
        """The gradient and memory of a record, of which data and model are no part."""
        shapes = jax.eval_shape(lambda: PARAMS)
        return jax.jit(
            lambda keys, coefficients, step, state: advance(
                self.estimator, keys, coefficients, shapes, step, state
            )
        )

    @cached_property
    def step(self):
        """A step of gradient descent that donates parameters and state."""

        def step(params, state, data):
            self.traces += 1
            gradients, state = self.transformation.update(
                None, state, params, value_fn=self.loss, data=data
            )
            return descend(params, gradients), state, gradients

        return jax.jit(step, donate_argnums=(0, 1))

    def take_step(self, params, state, data=problem.QUADRATIC):
        """`step` on copies."""
        return self.step(*jax.tree.map(jnp.copy, (params, state)), data)

    @cached_property
    def journal(self) -> Journal:
        """Steps from the start."""
        params, state = PARAMS, self.transformation.init(PARAMS)
        out = Journal([params], [state], [], [])
        for _ in range(STEPS):
            params, state, gradients = self.take_step(params, state)
            out.params.append(params)
            out.states.append(state)
            out.gradients.append(gradients)
            out.coefficients.append(np.asarray(state.coefficients))
        return out

    @staticmethod
    def keys_of(steps) -> jax.Array:
        """The keys that `zeroth_order` says it uses at steps."""
        return _keys_of(jnp.asarray(steps))

    @cached_property
    def again(self):
        """What `one` finds at each step of the journal, for the parameters and memory of then."""
        steps = np.arange(STEPS)
        params = _stacked(self.journal.params[:-1])
        return self.many(self.keys_of(steps), steps, self._memories, problem.QUADRATIC, params)

    @cached_property
    def _memories(self):
        return _stacked([state.memory for state in self.journal.states[:-1]])

    @cached_property
    def directions(self) -> np.ndarray:
        """The directions that each step of the journal asked, float64[steps, n, d], as queries did.

        Read from losses alone: with a loss that is one entry of the parameters, and parameters of
        zero, a query's answer is that entry of its direction, times mu.
        """
        d = problem.SIZE
        steps = np.repeat(np.arange(STEPS), d)
        probes = problem.along(np.tile(np.eye(d), (STEPS, 1)))
        memories = jax.tree.map(lambda a: np.repeat(a, d, axis=0), self._memories)
        zero = jax.tree.map(np.zeros_like, PARAMS)
        found, _, _ = self.many(self.keys_of(steps), steps, memories, probes, zero)
        losses = (found.losses,) if isinstance(found.losses, Losses) else found.losses
        out = []
        for i, (part, answer) in enumerate(zip(self.parts, losses, strict=True)):
            seen = answer.plus if answer.slope is None else answer.slope
            seen = seen.astype(np.float64).reshape(STEPS, d, *seen.shape[1:])
            seen = seen.mean(-1) if self.claims.per_example else seen
            if answer.slope is None:
                seen = seen / np.reshape([self._mu(part, i, t) for t in range(STEPS)], (-1, 1, 1))
            out.append(seen)
        return np.concatenate(out, axis=2).transpose(0, 2, 1)

    def _mu(self, part, place: int, step: int) -> float:
        memory = self.journal.states[step].memory[place]
        return float((part.at(memory) if isinstance(part, Adaptive) else part).mu_at(step))

    @property
    def parts(self) -> tuple:
        many = isinstance(self.estimator, zojax.Joint)
        return self.estimator.parts if many else (self.estimator,)

    def samples(self, data: Data, state, count: int = 8192) -> np.ndarray:
        """Gradients at the parameters from many keys and steps, float64[count, d]."""
        rows = []
        for start in range(0, count, BATCH):
            index = start + np.arange(BATCH)
            # seven steps apart: what is kept for up to seven steps is drawn again in each
            _, gradients, _ = self.many(self.keys_of(index), 7 * index, state, data)
            rows.append(flat_rows(gradients))
        return np.concatenate(rows)


def _stacked(trees: list):
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(a) for a in leaves]), *trees)


@jax.jit
@jax.vmap
def _keys_of(step):
    return jax.random.fold_in(jax.random.key(SEED), step)


def flat_rows(tree) -> np.ndarray:
    """float64[count, d] of a tree of `count` trees."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


def descend(params, gradients):
    """`p - a g` with a a power of two, so that no fused multiply-add can differ."""
    return jax.tree.map(lambda p, g: p - STEP_SIZE.astype(p.dtype) * g, params, gradients)
