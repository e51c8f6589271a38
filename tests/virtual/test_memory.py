"""No copy: an estimate needs the temporaries of one forward pass, dense directions too."""

import functools

import jax
import jax.numpy as jnp
import pytest

import zojax
from tests.benchmarks import encoder, gpt
from tests.benchmarks.steps import abstract, initialize, sensitive, sparse_step


def _temporaries(fn, *args) -> int:
    return jax.jit(fn).lower(*args).compile().memory_analysis().temp_size_in_bytes


@functools.cache
def _forward(scanned, vocabulary=8192, width=512, layers=None):
    layers = layers or (4 if scanned else 3)
    shape = gpt.Shape(layers=layers, width=width, vocabulary=vocabulary)
    params = gpt.parameters(shape, scanned)
    tokens = jax.ShapeDtypeStruct((shape.batch, shape.length), jnp.int32)
    loss = functools.partial(gpt.loss, heads=shape.heads)
    return loss, params, tokens, _temporaries(loss, params, tokens)


@pytest.mark.parametrize("scanned", [True, False], ids=["scanned", "unrolled"])
@pytest.mark.parametrize(
    "direction",
    [zojax.low_rank(1), zojax.rademacher(), zojax.gaussian()],
    ids=lambda direction: direction.name,
)
def test_an_estimate_needs_no_more_than_a_forward(scanned, direction):
    loss, params, tokens, forward = _forward(scanned)
    ask = zojax.estimate(loss, zojax.mezo(direction=direction))
    key = jax.eval_shape(lambda: jax.random.key(0))
    fn = lambda key, params, tokens: ask(key, params, tokens).coefficients  # noqa: E731
    found = _temporaries(fn, key, params, tokens)
    assert found <= 1.1 * forward, (found, forward)


def test_beside_a_small_forward_a_dense_use_needs_a_panel():
    # activations of 5 MB, layers of 12
    loss, params, tokens, forward = _forward(False, vocabulary=1024)
    ask = zojax.estimate(loss, zojax.mezo(direction=zojax.rademacher()))
    key = jax.eval_shape(lambda: jax.random.key(0))
    dense = _temporaries(lambda k, p, t: ask(k, p, t).coefficients, key, params, tokens)
    theta, frozen, merge = sensitive(initialize(0, params))
    step = sparse_step(loss, merge)
    sparse = _temporaries(step, abstract(theta), key, abstract(frozen), tokens)
    panel = 4 * 2**20
    assert max(dense, sparse) <= forward + panel, (dense, sparse, forward)


def test_what_is_drawn_at_once_and_a_weight_are_a_panel():
    # a forward of 5 MB; the noise of a layer is 3 MB, its largest weights 1 MB
    loss, params, tokens, forward = _forward(False, vocabulary=1024, width=256)
    ask = zojax.estimate(loss, zojax.mezo(direction=zojax.gaussian()))
    key = jax.eval_shape(lambda: jax.random.key(0))
    found = _temporaries(lambda k, p, t: ask(k, p, t).coefficients, key, params, tokens)
    assert found <= forward + 4 * 2**20, (found, forward)


@pytest.mark.slow
@pytest.mark.parametrize("direction", [zojax.rademacher(), zojax.gaussian()], ids=lambda d: d.name)
def test_of_many_unrolled_layers_a_24th_of_the_parameters_is_dense(direction):
    # a layer's noise is 4.9 MB, a 32nd but for the embeddings, its largest weights are 1.6 MB
    loss, params, tokens, forward = _forward(False, vocabulary=512, width=320, layers=32)
    ask = zojax.estimate(loss, zojax.mezo(direction=direction))
    key = jax.eval_shape(lambda: jax.random.key(0))
    found = _temporaries(lambda k, p, t: ask(k, p, t).coefficients, key, params, tokens)
    total = sum(leaf.size * 4 for leaf in jax.tree.leaves(params))
    assert found <= forward + total / 24, (found, forward, total)


@pytest.mark.parametrize("scanned", [True, False], ids=["scanned", "unrolled"])
def test_sparse_entries_need_no_more_than_a_forward(scanned):
    loss, params, tokens, forward = _forward(scanned)
    theta, frozen, merge = sensitive(initialize(0, params))
    key = jax.eval_shape(lambda: jax.random.key(0))
    step = sparse_step(loss, merge)
    found = _temporaries(step, abstract(theta), key, abstract(frozen), tokens)
    assert found <= 1.1 * forward, (found, forward)


def test_an_encoder_needs_no_more_than_a_forward():
    # scanned layers of many weights each, all of which a forward pass cuts at its start
    shape = encoder.Shape(2, 128, 4, 1024, length=64)
    params, batch = encoder.parameters(shape, scanned=True), encoder.batch(shape)
    ask = zojax.estimate(encoder.loss, zojax.mezo(direction=zojax.low_rank(1)))
    key = jax.eval_shape(lambda: jax.random.key(0))
    found = _temporaries(lambda k, p, b: ask(k, p, b).coefficients, key, params, batch)
    assert found <= 1.1 * (forward := _temporaries(encoder.loss, params, batch)), (found, forward)


@pytest.mark.parametrize("rank", [2, 8, 32])
def test_an_update_of_any_rank_stores_no_matrix(rank):
    def update(key, coefficients, params):
        grads = zojax.gradient(estimator, key[None], coefficients, params)
        return params - grads

    estimator = zojax.mezo(direction=zojax.low_rank(rank))
    abstract_args = [((2,), jnp.uint32), ((1,), jnp.float32), ((512, 1024), jnp.float32)]
    key, coefficients, params = (jax.ShapeDtypeStruct(*a) for a in abstract_args)
    compiled = jax.jit(update, donate_argnums=2).lower(key, coefficients, params).compile()
    factors = rank * (512 + 1024) * 4
    # as drawn, and scaled
    assert compiled.memory_analysis().temp_size_in_bytes <= 2 * factors + 2**12


def test_what_an_update_draws_is_not_kept_while_the_loss_is_asked():
    # the keys of all rows are half a megabyte, a perturbed matrix is two
    def loss(params, x):
        for w in params:
            x = jnp.tanh(x @ w.T @ w)
        return jnp.sum(x)

    params = [jax.ShapeDtypeStruct((8192, 64), jnp.float32)] * 8
    key, x = jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((8, 64), jnp.float32)
    estimator = zojax.mezo(direction=zojax.rademacher())
    grad, ask = zojax.value_and_grad(loss, estimator), zojax.estimate(loss, estimator)

    def step(params, key, x):
        return jax.tree.map(jnp.subtract, params, grad(key, params, x)[1])

    compiled = jax.jit(step, donate_argnums=0).lower(params, key, x).compile()
    asked = _temporaries(lambda k, p, x: ask(k, p, x).coefficients, key, params, x)
    found = compiled.memory_analysis().temp_size_in_bytes
    assert found <= asked + 2**16, (found, asked)
