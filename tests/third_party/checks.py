"""What every model that nobody here wrote is put through."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import zojax
from tests.slow import slow_but
from zojax.directions import perturb
from zojax.virtual import Explanation, materialize

DIRECTIONS = {
    "rademacher": zojax.rademacher(),
    "gaussian": zojax.gaussian(),
    "low_rank": zojax.low_rank(1),
}
DENSE = ["rademacher", "gaussian"]
EPS = float(np.finfo(np.float32).eps)
KEY = 11


def covering(models: dict) -> list:
    """(model, direction): low rank for each, and one of the two dense kinds in turn.

    The two differ in the numbers alone: each use of a weight takes the same way with both. Dense
    ones but for the first are left to `make test-slow`.
    """
    kinds = dict(zip(models, itertools.cycle(DENSE)))
    cases = {f"{m}-{kind}": (m, kind) for m in models for kind in ("low_rank", kinds[m])}
    first = next(iter(models))
    return slow_but([*(f"{m}-low_rank" for m in models), f"{first}-{kinds[first]}"], cases)


@functools.cache
def compiled(fn: Callable) -> Callable:
    """`jax.jit(fn)`, one for all tests of a model."""
    return jax.jit(fn)


def assert_virtual_is_materialized(
    fn: Callable, direction: str, params: Any, *args, depth: int, scale: float
) -> None:
    """`fn` of virtual weights, against `fn` of the same weights made dense, both under jit.

    The two are one function in real numbers. Dense noise goes through the same products, so that
    only the compiler's fusions can differ. A low-rank product rounds elsewhere: not `W + Z` but the
    sum of two products, one rounding error of the size of the layer's output for each of the
    `depth` weights on the longest path. Their sum bounds the difference, as no layer here amplifies
    its input: random weights of unit gain, with norms between them.

    A perturbation of this scale moves the output a thousand times further than that, so that a
    wrong sign, key, leaf or axis cannot hide in the tolerance.
    """
    key = jax.random.key(KEY)

    def moved(params):
        return perturb(DIRECTIONS[direction], key, params, scale)

    found = jax.jit(lambda p, *a: zojax.virtualize(fn)(moved(p), *a))(params, *args)
    plain = compiled(fn)
    expected = plain(jax.jit(lambda p: materialize(moved(p)))(params), *args)
    tolerance = depth * EPS * float(jnp.max(jnp.abs(expected)))
    assert found.dtype == expected.dtype == jnp.float32
    assert float(jnp.max(jnp.abs(found - expected))) <= tolerance
    assert float(jnp.max(jnp.abs(plain(params, *args) - expected))) > 1000 * tolerance


def explained(fn: Callable, direction: str, params: Any, *args) -> Explanation:
    """What `explain` says, having checked that it speaks of every leaf."""
    moved = jax.eval_shape(
        lambda p: perturb(DIRECTIONS[direction], jax.random.key(KEY), p, 0.1), params
    )
    found = zojax.explain(fn)(moved, *args)
    paths, _ = jax.tree_util.tree_flatten_with_path(params)
    assert {use.leaf for use in found.uses} == {jax.tree_util.keystr(path) for path, _ in paths}
    return found


def fallbacks(found: Explanation) -> set[tuple[str, str]]:
    """(leaf, primitive) of every weight that was made dense for want of a rule."""
    return {(use.leaf, use.primitive) for use in found.fallbacks}


def assert_steps_do_not_retrace(loss: Callable, params: Any, *args) -> None:
    """Two steps of gradient descent: one trace, and weights that keep their tree and types."""
    traces = []
    vg = zojax.value_and_grad(loss, zojax.mezo(direction=zojax.low_rank(1)))

    @jax.jit
    def step(params, key):
        traces.append(key)
        value, grads = vg(key, params, *args)
        return jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads), value

    first, value = step(params, jax.random.key(0))
    second, _ = step(first, jax.random.key(1))
    assert len(traces) == 1
    assert jax.tree.structure(second) == jax.tree.structure(params)
    # the mean of the two sides is off by the curvature, mu^2 z.Hz / 2, alone
    np.testing.assert_allclose(value, jax.jit(loss)(params, *args), rtol=1e-3)
    assert all(
        jnp.any(a != b) for a, b in zip(*map(jax.tree.leaves, (params, second)), strict=True)
    )
