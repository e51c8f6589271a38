"""Parameters that are no ordinary parameters: an error that names the leaf, or a right answer."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zojax
from zojax import training
from zojax.directions import perturb
from zojax.virtual import materialize

KEY = jax.random.key(3)
EPS = float(np.finfo(np.float32).eps)
DIRECTIONS = [zojax.rademacher(), zojax.gaussian(), zojax.low_rank(1)]
each_direction = pytest.mark.parametrize("direction", DIRECTIONS, ids=lambda d: d.name)


def _sum_of_squares(params):
    return sum(jnp.sum(jnp.abs(leaf) ** 2) for leaf in jax.tree.leaves(params))


def _assert_coefficient_is_slope(params, slopes, direction):
    """On a linear loss the coefficient is g.z, with z as the gradient has it, leaf by leaf.

    The bound: the losses are sums of `n` products of size one, each loss rounds by at most
    `n eps / 2` of the sum of their sizes, and their difference is divided by 2 mu.
    """
    mu = 0.5
    estimator = zojax.mezo(mu=mu, direction=direction)

    def loss(params):
        products = jax.tree.map(lambda a, p: jnp.sum(a * p), slopes, params)
        return sum(jax.tree.leaves(products))

    @jax.jit
    def both(params):
        found = zojax.estimate(loss, estimator)(KEY, params)
        return found.coefficients, zojax.gradient(estimator, found.keys, jnp.ones(1), params)

    coefficients, z = both(params)
    leaves = [[np.asarray(a) for a in same] for same in _leaves(slopes, params, z)]
    sizes = [np.abs(a) * (np.abs(p) + mu * np.abs(d)) for a, p, d in leaves]
    size, count = sum(float(np.sum(s)) for s in sizes), sum(s.size for s in sizes)
    slope = sum(float(np.sum(a * d)) for a, _, d in leaves)
    assert abs(float(coefficients[0]) - slope) <= count * EPS * size / (2 * mu)
    assert abs(slope) > 10 * count * EPS * size  # so that a coefficient of zero would fail
    return z


def _leaves(*trees):
    return list(zip(*map(jax.tree.leaves, trees), strict=True))


# Leaves that have no direction.

NOT_REAL = {
    "int32": jnp.arange(3),
    "uint8": jnp.zeros(3, jnp.uint8),
    "bool": jnp.array([True, False]),
    "complex64": jnp.ones(3, jnp.complex64),
    "key<fry>": jax.random.key(1),
}


@each_direction
@pytest.mark.parametrize("dtype", NOT_REAL)
def test_a_leaf_that_is_not_real_is_named(dtype, direction):
    params = {"w": jnp.ones((2, 2)), "layers": [NOT_REAL[dtype]]}
    vg = zojax.value_and_grad(lambda p: jnp.sum(p["w"]), zojax.mezo(direction=direction))
    expected = rf"leaf \['layers'\]\[0\] has dtype {dtype}; .*\(zojax.select\) or mask it"
    with pytest.raises(TypeError, match=expected):
        vg(KEY, params)
    with pytest.raises(TypeError, match=expected):
        jax.jit(vg)(KEY, params)


@pytest.mark.parametrize("leaf", [jnp.tanh, "relu"], ids=["function", "string"])
def test_a_leaf_that_is_no_array_is_named(leaf):
    params = {"w": jnp.ones(2), "activation": leaf}
    vg = zojax.value_and_grad(lambda p: jnp.sum(p["w"]), zojax.mezo())
    with pytest.raises(TypeError, match=r"leaf \['activation'\] is "):
        vg(KEY, params)


def test_a_masked_leaf_may_be_of_any_dtype_and_stays():
    params = {"w": jnp.ones((2, 2)), "step": jnp.int32(4), "flags": jnp.array([True])}
    mask = {"w": True, "step": False, "flags": False}
    estimator = zojax.mezo(direction=zojax.masked(zojax.gaussian(), mask))
    _, grads = zojax.value_and_grad(lambda p: jnp.sum(p["w"]) * p["step"], estimator)(KEY, params)
    assert jnp.all(grads["w"] != 0)
    assert grads["step"].dtype == jnp.int32 and grads["step"] == 0
    assert grads["flags"].dtype == bool and not grads["flags"].any()


def test_a_tree_without_leaves_is_refused():
    with pytest.raises(ValueError, match="no leaves"):
        zojax.value_and_grad(lambda p: jnp.float32(1.0), zojax.mezo())(KEY, {})


# Zero-size leaves are parameters of which there are none.

EMPTY = [(0,), (0, 3), (3, 0), (0, 2, 3), (2, 0, 3)]


@each_direction
@pytest.mark.parametrize("shape", EMPTY, ids=str)
def test_an_empty_leaf_changes_nothing(shape, direction):
    slopes = {"a": jnp.array([[1.0, -2.0], [3.0, 0.5]]), "empty": jnp.ones(shape)}
    params = {"a": jnp.ones((2, 2)), "empty": jnp.ones(shape)}
    z = _assert_coefficient_is_slope(params, slopes, direction)
    assert z["empty"].shape == shape and z["empty"].dtype == jnp.float32


@each_direction
def test_an_empty_leaf_can_be_multiplied_and_looked_up(direction):
    params = {"rows": jnp.ones((0, 3)), "columns": jnp.ones((4, 0))}
    x = jnp.arange(8.0).reshape(2, 4)

    def fn(p, x):
        no_ids = jnp.zeros(0, jnp.int32)
        return x @ p["columns"] @ p["rows"], p["rows"][:, 1:], p["columns"][no_ids]

    moved = perturb(direction, KEY, params, 0.1)
    found, expected = zojax.virtualize(fn)(moved, x), fn(materialize(moved), x)
    assert [a.shape for a in found] == [(2, 3), (0, 2), (0, 0)]
    assert all(jnp.array_equal(a, b) for a, b in _leaves(found, expected))


@each_direction
def test_a_scan_over_no_layers_gives_its_input(direction):
    moved = perturb(direction, KEY, jnp.ones((0, 4, 4)), 0.1)
    x = jnp.arange(8.0).reshape(2, 4)
    fn = zojax.virtualize(lambda p, x: jax.lax.scan(lambda c, w: (c @ w, None), x, p)[0])
    assert jnp.array_equal(fn(moved, x), x)


# A weight that is not a number.


@pytest.mark.parametrize("bad", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize("recipe", [zojax.mezo, zojax.fzoo], ids=lambda r: r.__name__)
def test_a_weight_that_is_no_number_gives_no_number_anywhere(recipe, bad):
    params = {"a": jnp.ones((2, 3)).at[1, 2].set(bad), "b": jnp.ones(3)}
    loss = lambda p: jnp.mean((p["a"] @ p["b"]) ** 2)  # noqa: E731
    value, grads = zojax.value_and_grad(loss, recipe())(KEY, params)
    assert not jnp.isfinite(value)
    assert all(jnp.all(jnp.isnan(leaf)) for leaf in jax.tree.leaves(grads))


def test_optax_skips_the_step_of_a_loss_that_is_no_number():
    # it looks at what comes in: the estimator goes before it, not into it
    guarded = optax.apply_if_finite(optax.sgd(0.1), max_consecutive_errors=3)
    tx = optax.chain(zojax.zeroth_order(zojax.mezo(), key=0), guarded)
    params = {"w": jnp.ones(3)}
    updates, _ = tx.update(
        None, tx.init(params), params, value_fn=lambda p: jnp.log(-jnp.sum(p["w"]))
    )
    assert not updates["w"].any()
    updates, _ = tx.update(None, tx.init(params), params, value_fn=_sum_of_squares)
    assert updates["w"].all()


# One array under two keys is two parameters, as it is to jax.grad.


@each_direction
def test_an_array_under_two_keys_is_two_parameters(direction):
    shared = jnp.ones((3, 2))
    draw = np.random.default_rng(0)
    slopes = {k: jnp.asarray(draw.standard_normal((3, 2)), jnp.float32) for k in "ab"}
    z = _assert_coefficient_is_slope({"a": shared, "b": shared}, slopes, direction)
    assert jnp.any(z["a"] != z["b"])


# Python numbers and weakly typed arrays.


@pytest.mark.parametrize("leaf", [2.0, jnp.asarray(2.0)], ids=["Python float", "weak array"])
def test_a_weak_leaf_takes_the_dtype_of_what_it_meets(leaf):
    fn = lambda p: p["scale"] * jnp.ones(2, jnp.bfloat16)  # noqa: E731
    moved = perturb(zojax.rademacher(), KEY, {"scale": leaf}, 0.5)
    assert fn({"scale": leaf}).dtype == jnp.bfloat16
    assert zojax.virtualize(fn)(moved).dtype == jnp.bfloat16


def test_a_python_float_is_a_parameter_and_its_gradient_a_float32():
    slopes = {"scale": jnp.float32(1.5), "w": jnp.array([2.0, -1.0])}
    z = _assert_coefficient_is_slope({"scale": 2.0, "w": np.ones(2)}, slopes, zojax.gaussian())
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), z) == {
        "scale": ((), jnp.float32),
        "w": ((2,), jnp.float32),
    }


def test_weak_leaves_cost_one_more_trace_and_no_third():
    traces = []
    tx = optax.chain(zojax.zeroth_order(zojax.mezo(), key=0), optax.sgd(1e-3))

    @jax.jit
    def step(params, state):
        traces.append(1)
        updates, state = tx.update(None, state, params, value_fn=_sum_of_squares)
        return optax.apply_updates(params, updates), state

    params = {"scale": 2.0, "w": jnp.ones(3)}
    state = tx.init(params)
    for _ in range(4):
        params, state = step(params, state)
    assert len(traces) == 2  # optax makes a Python float a float32 array in the first step


# Buffers that are gone.


def test_a_deleted_leaf_is_named():
    params = {"w": jnp.ones(3), "gone": jnp.ones(3)}
    jax.jit(lambda x: x + 1, donate_argnums=0)(params["gone"])
    with pytest.raises(ValueError, match=r"leaf \['gone'\] float32\[3\] has been deleted.*donated"):
        zojax.value_and_grad(_sum_of_squares, zojax.mezo())(KEY, params)


def _training_functions():
    problem = training.Problem(
        loss=lambda params, batch: jnp.mean((batch["x"] @ (params["a"] + params["b"])) ** 2),
        logits=lambda params, batch: batch["x"] @ params["a"],
        example_losses=optax.softmax_cross_entropy_with_integer_labels,
    )
    shared = jnp.ones((3, 2))
    split = zojax.full({"a": shared, "b": shared})
    functions = training.training_functions(problem, split.merge, zojax.mezo(), optax.sgd(0.1))
    state = functions.init(split.trainable, KEY)
    found = functions.ask(state, split.frozen, {"x": jnp.eye(3)})
    return functions, state, found, shared


def test_training_donates_no_buffer_twice_and_none_of_the_callers():
    functions, state, found, shared = _training_functions()
    after = functions.apply(state, found.keys, found.coefficients)
    assert not shared.is_deleted() and jnp.all(shared == 1)
    assert jnp.any(after.trainable["a"] != after.trainable["b"])


def test_a_state_that_was_given_away_is_refused():
    functions, state, found, _ = _training_functions()
    functions.apply(state, found.keys, found.coefficients)
    with pytest.raises((ValueError, RuntimeError), match="deleted or donated|has been deleted"):
        functions.apply(state, found.keys, found.coefficients)


# A loss that does not look at the parameters it is given.

WEIGHTS = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
FORGETFUL = {
    "closes over the weights": lambda params, x: jnp.sum((x @ WEIGHTS["w"] + WEIGHTS["b"]) ** 2),
    "closes over them inside jit": jax.jit(lambda params, x: jnp.sum((x @ WEIGHTS["w"]) ** 2)),
    "looks at shapes only": lambda params, x: jnp.sum(x) * params["w"].size,
    "stops where nothing follows": lambda params, x: (params["w"] + 1, jnp.sum(x))[1],
}


@pytest.mark.parametrize("how", FORGETFUL)
def test_a_loss_that_does_not_depend_on_its_parameters_is_refused(how):
    ask = zojax.estimate(FORGETFUL[how], zojax.mezo())
    expected = r"does not depend on .*\['b'\], \['w'\].*instead of closing over"
    for fn in (ask, jax.jit(ask)):
        with pytest.raises(ValueError, match=expected):
            fn(KEY, WEIGHTS, jnp.ones((4, 3)))


def test_a_loss_that_depends_on_some_parameters_is_not_refused():
    loss = lambda params, x: jnp.sum((x @ params["w"] + WEIGHTS["b"]) ** 2)  # noqa: E731
    found = zojax.estimate(loss, zojax.mezo())(KEY, WEIGHTS, jnp.ones((4, 3)))
    assert found.coefficients[0] != 0


def test_explain_shows_no_use_of_weights_that_are_closed_over():
    moved = perturb(zojax.gaussian(), KEY, WEIGHTS, 0.1)
    assert zojax.explain(FORGETFUL["closes over the weights"])(moved, jnp.ones((4, 3))).uses == ()
