"""Training loops that others wrote: Flax's train state and nnx.Optimizer, Equinox, orbax.

Each makes the steps of a plain optax loop, on a linear model: a step at a time, no retrace.
"""

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import zojax

DRAW = np.random.default_rng(0)
X = jnp.asarray(DRAW.standard_normal((8, 3)), jnp.float32)
Y = jnp.asarray(DRAW.standard_normal((8, 2)), jnp.float32)
KERNEL = jnp.asarray(DRAW.standard_normal((3, 2)), jnp.float32)
STEPS = 3


def _optimizer():
    first = zojax.zeroth_order(zojax.mezo(0.5, direction=zojax.rademacher()), key=3)
    return optax.chain(first, optax.adam(1e-2))


def _loss(params, x, y):
    return jnp.mean((x @ params["kernel"] - y) ** 2)


def _plain_loop(params, loss):
    optimizer = _optimizer()
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(None, state, params, value_fn=loss, x=X, y=Y)
        return optax.apply_updates(params, updates), state

    for _ in range(STEPS):
        params, state = step(params, state)
    return params


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    """The kernel after the steps of a plain loop."""
    kernel = np.asarray(_plain_loop({"kernel": KERNEL}, _loss)["kernel"])
    assert np.linalg.norm(kernel - KERNEL) > 1e-2
    return kernel


def _assert_same(found, expected) -> None:
    # one program against another: Adam divides by a root, a few rounding errors a step
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_a_train_state_whose_method_passes_the_loss_on(expected):
    class State(TrainState):
        def ask(self, value_fn, **extra):
            updates, opt_state = self.tx.update(
                None, self.opt_state, self.params, value_fn=value_fn, **extra
            )
            params = optax.apply_updates(self.params, updates)
            return self.replace(step=self.step + 1, params=params, opt_state=opt_state)

    traces = []

    @jax.jit
    def step(state):
        traces.append(state)
        return state.ask(lambda p, x, y: jnp.mean((state.apply_fn(p, x) - y) ** 2), x=X, y=Y)

    state = State.create(
        apply_fn=lambda params, x: x @ params["kernel"], params={"kernel": KERNEL}, tx=_optimizer()
    )
    for _ in range(STEPS):
        state = step(state)
    _assert_same(state.params["kernel"], expected)
    assert state.step == STEPS and len(traces) == 1


def test_a_train_state_that_is_given_gradients(expected):
    """`apply_gradients` takes none but gradients: `value_and_grad` makes them."""
    estimator = zojax.mezo(0.5, direction=zojax.rademacher())
    vg = zojax.value_and_grad(_loss, estimator)

    @jax.jit
    def step(state):
        key = jax.random.fold_in(jax.random.key(3), state.step)
        _, gradients = vg(key, state.params, X, Y, step=state.step)
        return state.apply_gradients(grads=gradients)

    state = TrainState.create(apply_fn=_loss, params={"kernel": KERNEL}, tx=optax.adam(1e-2))
    for _ in range(STEPS):
        state = step(state)
    _assert_same(state.params["kernel"], expected)


def test_an_nnx_optimizer(expected):
    model = nnx.Linear(3, 2, use_bias=False, rngs=nnx.Rngs(0))
    model.kernel[...] = KERNEL
    optimizer = nnx.Optimizer(model, _optimizer(), wrt=nnx.Param)
    traces = []

    @nnx.jit
    def step(model, optimizer, x, y):
        traces.append(None)
        graph, params, rest = nnx.split(model, nnx.Param, ...)

        def loss(params, x, y):
            return jnp.mean((nnx.merge(graph, params, rest)(x) - y) ** 2)

        # the gradients given are not read; nnx only wants their structure
        optimizer.update(model, params, value_fn=loss, x=x, y=y)

    for _ in range(STEPS):
        step(model, optimizer, X, Y)
    _assert_same(model.kernel[...], expected)
    assert optimizer.step[...] == STEPS and len(traces) == 1


def test_an_equinox_model():
    model = equinox.nn.Linear(3, 2, use_bias=False, key=jax.random.key(0))
    model = equinox.tree_at(lambda m: m.weight, model, KERNEL.T)
    params, static = equinox.partition(model, equinox.is_inexact_array)
    optimizer, traces = _optimizer(), []
    state = optimizer.init(params)

    @equinox.filter_jit
    def step(params, state):
        traces.append(None)

        def loss(params, x, y):
            model = equinox.combine(params, static)
            return jnp.mean((jax.vmap(model)(x) - y) ** 2)

        updates, state = optimizer.update(None, state, params, value_fn=loss, x=X, y=Y)
        return equinox.apply_updates(params, updates), state

    for _ in range(STEPS):
        params, state = step(params, state)
    # its weight is the kernel transposed, and so is its noise
    expected = _plain_loop(KERNEL.T, lambda w, x, y: jnp.mean((x @ w.T - y) ** 2))
    _assert_same(params.weight, expected)
    assert len(traces) == 1


@pytest.mark.parametrize("make", [zojax.mezo, zojax.lozo_m], ids=lambda m: m.__name__)
def test_orbax_stores_the_state(make, tmp_path):
    """Its arrays as they are; a typed key by its data, as orbax has none."""
    optimizer = optax.chain(zojax.zeroth_order(make(0.5), key=3), optax.adam(1e-2))
    params = {"kernel": KERNEL}

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(None, state, params, value_fn=_loss, x=X, y=Y)
        return optax.apply_updates(params, updates), state

    begun = step(params, optimizer.init(params))

    def plain(state):
        own = state[0]._replace(key=jax.random.key_data(state[0].key))
        return (own, *state[1:])

    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", plain(begun[1]))
        checkpointer.wait_until_finished()
        shapes = jax.eval_shape(lambda: plain(optimizer.init(params)))
        read = checkpointer.restore(tmp_path / "state", shapes)
    own = read[0]._replace(key=jax.random.wrap_key_data(read[0].key))
    again = step(begun[0], (own, *read[1:]))
    for a, b in zip(*map(jax.tree.leaves, (again[0], step(*begun)[0])), strict=True):
        np.testing.assert_array_equal(a, b)
