"""Unrolled layers: what a layer adds to the program, counted and not timed."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest

import zojax
from tests.benchmarks import gpt
from tests.benchmarks.steps import abstract, initialize, sensitive
from tests.slow import slow_but
from zojax.virtual import Noise, VirtualArray, _contraction

# operations of an estimate over those of the forward pass, for a layer more
LIMITS = {"low_rank": 1.81, "rademacher": 2.02, "gaussian": 1.77, "sparse": 1.59}
DIRECTIONS = {
    "low_rank": zojax.low_rank(1),
    "rademacher": zojax.rademacher(),
    "gaussian": zojax.gaussian(),
    "sparse": zojax.gaussian(),
}


def _lowered(layers: int, name: str, width: int = 128):
    shape = gpt.Shape(layers=layers, width=width, vocabulary=512, length=64)
    params, tokens = gpt.parameters(shape, scanned=False), gpt.batch(shape)
    loss = functools.partial(gpt.loss, heads=shape.heads)
    key = jax.eval_shape(lambda: jax.random.key(0))
    if name == "forward":
        return jax.jit(loss).lower(params, tokens)
    moving, batch = params, (tokens,)
    if name == "sparse":
        theta, frozen, merge = sensitive(initialize(0, params))
        moving, batch, whole = abstract(theta), (abstract(frozen), tokens), loss

        def loss(theta, frozen, tokens):
            return zojax.virtualize(whole)(merge(theta, frozen), tokens)

    ask = zojax.estimate(loss, zojax.mezo(direction=DIRECTIONS[name]))
    return jax.jit(lambda k, *args: ask(k, *args).coefficients).lower(key, moving, *batch)


def _program(layers: int, name: str) -> tuple[int, set[str]]:
    """(number of HLO instructions, distinct kernels) of an optimised program."""
    text = _lowered(layers, name).compile().as_text()
    text = re.sub(r", (metadata|frontend_attributes)=\{[^}]*\}", "", text)
    fused = "%fused_computation", "%wrapped_scatter"
    bodies = [b for b in text.split("\n\n") if b.startswith(fused)]
    # names and numbers apart, equal computations are equal text
    kernels = {re.sub(r"%[\w.\-]+|param_[\d.]+", "%", b) for b in bodies}
    return text.count(" = "), kernels


@functools.cache
def _added(name: str) -> tuple[int, int]:
    """What two layers more add: instructions, and distinct kernels."""
    (few, few_kernels), (many, many_kernels) = _program(5, name), _program(7, name)
    return many - few, len(many_kernels) - len(few_kernels)


@pytest.fixture
def one_device(monkeypatch):
    """The suite has eight; entries are set in another way where a weight may be sharded."""
    jax.clear_caches()
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    yield
    jax.clear_caches()


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize(
    "name", slow_but(["low_rank", "gaussian", "sparse"], {name: name for name in DIRECTIONS})
)
def test_a_layer_more_adds_few_operations_and_no_kernels(name):
    operations, kernels = _added(name)
    forward, _ = _added("forward")
    assert operations <= LIMITS[name] * forward, (operations, forward)
    assert kernels <= 0


def test_keys_that_are_hashed_in_turn_are_one_kernel():
    """Of leaves, of factors and of columns; that of the query is another."""
    _, kernels = _program(5, "low_rank")
    assert sum(kernel.count(" shift-left(") > 9 for kernel in kernels) == 2


@pytest.mark.parametrize("name", DIRECTIONS)
def test_uses_of_equal_shapes_are_calls_of_one_function(name):
    few, many = (_lowered(layers, name).as_text().count("func.func") for layers in (5, 7))
    assert few == many


def test_an_update_of_equal_leaves_is_traced_once(monkeypatch):
    original, calls = Noise.materialize, []

    def counted(term):
        calls.append(term)
        return original(term)

    monkeypatch.setattr(Noise, "materialize", counted)

    def count(layers: int, width: int) -> int:
        before = len(calls)
        params = gpt.parameters(gpt.Shape(layers=layers, width=width, vocabulary=512), False)
        key, coefficients = jnp.zeros((1, 2), jnp.uint32), jnp.ones(1)
        update = functools.partial(zojax.gradient, zojax.mezo())
        jax.jit(update).lower(key, coefficients, params)
        return len(calls) - before

    # widths that no other test has traced
    assert 0 < count(5, 168) == count(7, 184)


@pytest.mark.parametrize("name", ["rademacher", "low_rank"])
def test_products_of_equal_shapes_are_traced_once(name, monkeypatch):
    made = {"rademacher": VirtualArray, "low_rank": _contraction}[name]
    function = {"rademacher": "materialize_as_stored", "low_rank": "_thin_product"}[name]
    original, calls = getattr(made, function), []

    def counted(*args):
        calls.append(args)
        return original(*args)

    monkeypatch.setattr(made, function, counted)

    def count(layers: int, width: int) -> int:
        before = len(calls)
        _lowered(layers, name, width)
        return len(calls) - before

    # widths that no other test has traced
    assert 0 < count(3, 136) == count(5, 152)
