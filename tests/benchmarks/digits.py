"""Real data for the benchmarks of methods: scikit-learn's digits, networks, whole training runs.

A run is a `lax.scan`, so that `vmap` trains all seeds and step sizes of a method at once.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats
from sklearn.datasets import load_digits


class Examples(NamedTuple):
    """Images float32[n, 64] in [0, 1] and labels int32[n]."""

    images: Any
    labels: Any


@functools.cache
def data() -> tuple[Examples, Examples]:
    """(1,437 examples to train on, 360 to test on), always the same, in NumPy."""
    bunch: Any = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    images = (bunch.data[order] / 16).astype(np.float32)
    labels = bunch.target[order].astype(np.int32)
    return Examples(images[:1437], labels[:1437]), Examples(images[1437:], labels[1437:])


def network(*hidden: int) -> Callable[[jax.Array], list]:
    """Initialiser of a network with these hidden widths; none is softmax regression, from zero.

    Weights are normal of variance 2 / inputs in hidden layers and 1 / inputs in the last.
    """
    widths = (64, *hidden, 10)

    def init(key: jax.Array) -> list:
        layers = []
        for i, (rows, columns) in enumerate(zip(widths, widths[1:], strict=False)):
            gain = 0 if not hidden else 2 if i < len(hidden) else 1
            draw = jax.random.normal(jax.random.fold_in(key, i), (rows, columns))
            layers.append({"weight": (gain / rows) ** 0.5 * draw, "bias": jnp.zeros(columns)})
        return layers

    return init


def scores(params: list, images: jax.Array) -> jax.Array:
    """Logits of a network with ReLU."""
    for layer in params[:-1]:
        images = jax.nn.relu(images @ layer["weight"] + layer["bias"])
    return images @ params[-1]["weight"] + params[-1]["bias"]


def losses(params: list, batch: Examples) -> jax.Array:
    """Cross-entropy of each example."""
    return optax.softmax_cross_entropy_with_integer_labels(
        scores(params, batch.images), batch.labels
    )


def loss(params: list, batch: Examples) -> jax.Array:
    """Mean cross-entropy."""
    return jnp.mean(losses(params, batch))


def accuracy(params: list, batch: Examples) -> jax.Array:
    return jnp.mean(jnp.argmax(scores(params, batch.images), axis=-1) == batch.labels)


def draw(key: jax.Array, examples: Examples, size: int) -> Examples:
    """A batch, drawn with replacement."""
    at = jax.random.randint(key, (size,), 0, examples.labels.shape[0])
    return Examples(jnp.asarray(examples.images)[at], jnp.asarray(examples.labels)[at])


class Run(NamedTuple):
    """What a training run leaves."""

    curve: jax.Array  # float32[points]: loss on all training examples, equally far apart
    train: jax.Array  # float32: its last value, infinite where the run diverged
    test: jax.Array  # float32: accuracy


def train(
    optimizer: Callable[[jax.Array], optax.GradientTransformationExtraArgs],
    init: Callable[[jax.Array], Any],
    steps: int,
    batch_size: int,
    points: int = 1,
) -> Callable[[jax.Array], Run]:
    """A run: `steps` updates of the optimizer made for the run's key, rounded up to `points`."""
    chunk = -(-steps // points)

    def run(key: jax.Array) -> Run:
        examples, tests = (jax.tree.map(jnp.asarray, part) for part in data())
        at_start, batches, own = jax.random.split(key, 3)
        tx = optimizer(own)
        params = init(at_start)

        def step(i, carried):
            params, state = carried
            batch = draw(jax.random.fold_in(batches, i), examples, batch_size)
            updates, state = tx.update(None, state, params, value_fn=loss, batch=batch)
            return optax.apply_updates(params, updates), state

        def point(carried, i):
            carried = jax.lax.fori_loop(i * chunk, (i + 1) * chunk, step, carried)
            return carried, loss(carried[0], examples)

        carried, curve = jax.lax.scan(point, (params, tx.init(params)), jnp.arange(points))
        curve = jnp.where(jnp.isfinite(curve), curve, jnp.inf)
        return Run(curve, curve[-1], accuracy(carried[0], tests))

    return run


def decayed(rate, steps: int) -> Callable[[Any], Any]:
    """From the rate to zero, linearly: the schedule of every run that is compared with others."""
    return lambda count: rate * jnp.maximum(1 - count / steps, 0)


class Interval(NamedTuple):
    """A mean over seeds and half the width of its 95 % confidence interval (Student's t)."""

    mean: float
    half: float

    def __str__(self) -> str:
        digits = 3 if abs(self.mean) < 100 else 0
        return f"{self.mean:.{digits}f} ± {self.half:.{digits}f}"


def interval(values: Sequence[float] | np.ndarray | jax.Array) -> Interval:
    """Of one value a seed."""
    found = np.asarray(values, np.float64)
    if found.size < 2 or not np.isfinite(found).all():
        return Interval(float(np.mean(found)), float("inf"))
    error = float(np.std(found, ddof=1)) / found.size**0.5
    return Interval(float(np.mean(found)), float(stats.t.ppf(0.975, found.size - 1)) * error)
