"""A small training problem: linear classification of two blobs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import zojax
from zojax.training import Problem, training_functions


def batch_at(step: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(step)
    label = random.integers(0, 2, 16).astype(np.int32)
    x = random.normal(size=(16, 4)).astype(np.float32) + 2.0 * label[:, None]
    return {"x": x, "label": label}


def held_out():
    yield batch_at(10_000), np.ones(16, bool)


def logits(params, batch):
    return batch["x"] @ params["w"] + params["bias"]


def example_losses(scores, label):
    return optax.softmax_cross_entropy_with_integer_labels(scores, label)


def loss(params, batch):
    return example_losses(logits(params, batch), batch["label"]).mean()


PROBLEM = Problem(loss, logits, example_losses)


def params(dtype=jnp.float32):
    return {"w": jnp.full((4, 2), 0.1, dtype), "bias": jnp.zeros(2, dtype)}


def build(optimizer=None, num_samples: int = 2, dtype=jnp.float32, problem: Problem = PROBLEM):
    """(functions, split, estimator); functions of equal arguments are compiled once."""
    split = zojax.full(params(dtype))
    estimator = zojax.mezo(mu=1e-2, num_samples=num_samples)
    return _functions(optimizer, num_samples, dtype, problem), split, estimator


@functools.cache
def _functions(optimizer, num_samples, dtype, problem):
    merge = zojax.full(params(dtype)).merge
    estimator = zojax.mezo(mu=1e-2, num_samples=num_samples)
    optimizer = optax.adam(1e-2) if optimizer is None else optimizer
    return training_functions(problem, merge, estimator, optimizer)


def assert_same_state(a, b) -> None:
    """Bit for bit."""
    for x, y in zip(jax.tree.leaves(a.trainable), jax.tree.leaves(b.trainable), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
    for x, y in zip(jax.tree.leaves(a.opt_state), jax.tree.leaves(b.opt_state), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
    assert int(a.step) == int(b.step)
