"""A step on a GPU needs the temporaries of the forward pass that it contains."""

import functools
import math

import jax
import pytest

import zojax
from tests.benchmarks import gpt
from tests.benchmarks.steps import abstract, initialize, sensitive, sparse_step, step

pytestmark = pytest.mark.device

# no search for the fastest algorithms; the suite's lack of effort would make assembly slow
_OPTIONS = {"xla_gpu_autotune_level": 0, "xla_backend_optimization_level": 3}


def _temporaries(fn, *args) -> int:
    compiled = jax.jit(fn, donate_argnums=0).lower(*args).compile(compiler_options=_OPTIONS)
    return compiled.memory_analysis().temp_size_in_bytes


@functools.cache
def _forward(scanned):
    # layers that are not scanned take long to compile; three show what more would
    shape = gpt.Shape() if scanned else gpt.Shape(layers=3)
    params, tokens = gpt.parameters(shape, scanned), gpt.batch(shape)
    loss = functools.partial(gpt.loss, heads=shape.heads)
    compiled = jax.jit(loss).lower(params, tokens).compile(compiler_options=_OPTIONS)
    return loss, params, tokens, compiled.memory_analysis().temp_size_in_bytes


def _largest(params) -> int:
    """Bytes of the largest matrix of one layer."""
    shapes = [(leaf.shape[-2:], leaf.dtype.itemsize) for leaf in jax.tree.leaves(params)]
    return max(math.prod(shape) * size for shape, size in shapes)


@pytest.mark.parametrize("scanned", [True, False], ids=["scanned", "unrolled"])
@pytest.mark.parametrize(
    "direction",
    [zojax.low_rank(1), zojax.rademacher(), zojax.integer_normal(), zojax.gaussian()],
    ids=lambda direction: direction.name,
)
def test_a_step_needs_no_more_than_a_forward(scanned, direction, gpu):
    del gpu
    loss, params, tokens, forward = _forward(scanned)
    key = jax.eval_shape(lambda: jax.random.key(0))
    found = _temporaries(step(loss, direction), params, key, tokens)
    # a dense direction makes one matrix at a time, whole
    more = 0 if direction.name.startswith("low_rank") else _largest(params)
    assert found <= 1.1 * forward + more, (found, forward)


@pytest.mark.parametrize("scanned", [True, False], ids=["scanned", "unrolled"])
def test_sparse_entries_need_no_more_than_a_forward(scanned, gpu):
    del gpu
    loss, params, tokens, forward = _forward(scanned)
    theta, frozen, merge = sensitive(initialize(0, params))
    key = jax.eval_shape(lambda: jax.random.key(0))
    found = _temporaries(sparse_step(loss, merge), abstract(theta), key, abstract(frozen), tokens)
    assert found <= 1.1 * forward + _largest(params), (found, forward)
