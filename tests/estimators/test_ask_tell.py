"""Objectives that JAX cannot see: asked outside, ranked by someone, or called back from `jit`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import f1_score

import zojax
from zojax.estimators import init

KEY = jax.random.key(3)
DRAW = np.random.default_rng(0)
PARAMS = {
    "b": jnp.asarray(DRAW.standard_normal(4), jnp.float32),
    "w": jnp.asarray(DRAW.standard_normal((3, 4)), jnp.float32),
}
X = jnp.asarray(DRAW.standard_normal((5, 3)), jnp.float32)


def _each(params, x):
    return jnp.sum(jnp.tanh(x @ params["w"] + params["b"]), axis=1)


def _loss(params, x):
    return jnp.mean(_each(params, x))


def _moving_scale(mu):
    """An estimator whose mu is its memory and halves every step."""
    inner = zojax.mezo(mu, 2)
    return zojax.Adaptive(
        init=lambda params: jnp.float32(mu),
        at=lambda state: inner._replace(mu=state),
        advance=lambda state, keys, coefficients, params, step: (params, state / 2),
        num_samples=2,
        num_queries=4,
        num_coefficients=2,
    )


HEAD = zojax.masked(zojax.rademacher(), {"b": True, "w": False})
BODY = zojax.masked(zojax.low_rank(1), {"b": False, "w": True})
ESTIMATORS = {
    "two_sided": zojax.mezo(0.25, 3),
    "one_sided": zojax.fzoo(0.25, 3),
    "with_base": zojax.Estimator(
        zojax.gaussian(), zojax.two_sided(2, base=True), zojax.difference(), 0.25
    ),
    "population": zojax.Estimator(zojax.gaussian(), zojax.population(5), zojax.ranks(), 0.25),
    "refreshed": zojax.mezo(0.25, 2, direction=zojax.low_rank(1, refresh=5)),
    "scheduled": zojax.mezo(lambda step: 1.0 / (1 + step), 2),
    "active": zojax.mezo(0.25, 4)._replace(active=lambda step: step - 5),
    "joint": zojax.joint(zojax.mezo(0.25, 2, direction=HEAD), zojax.fzoo(0.125, 3, direction=BODY)),
    "adaptive": _moving_scale(0.25),
}
each_estimator = pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)


@each_estimator
def test_candidates_and_tell_are_the_estimate(estimator):
    """The same keys; coefficients but for the rounding of losses around one, times 1 / 2 mu."""
    step = 7
    memory = jax.tree.map(lambda m: m / 2, init(estimator, PARAMS))
    points = zojax.candidates(estimator, KEY, PARAMS, step, memory)
    losses = [float(_loss(p, X)) for p in points]
    told = zojax.tell(estimator, KEY, losses, PARAMS, step, memory)
    asked = zojax.estimate(_loss, estimator)(KEY, PARAMS, X, step=step, state=memory)
    np.testing.assert_array_equal(told.keys, asked.keys)
    assert jax.tree.structure(told) == jax.tree.structure(asked)
    # losses of size 2 from sums of 15 numbers; fzoo divides by a spread of some tenths instead
    np.testing.assert_allclose(told.coefficients, asked.coefficients, rtol=0, atol=1e-4)
    np.testing.assert_allclose(told.value, asked.value, rtol=0, atol=4e-6)


def test_losses_of_each_example_are_told_too():
    estimator = zojax.mezo(0.25, 2)
    losses = np.stack([_each(p, X) for p in zojax.candidates(estimator, KEY, PARAMS)])
    told = zojax.tell(estimator, KEY, losses, PARAMS)
    asked = zojax.estimate(_each, estimator, per_example=True)(KEY, PARAMS, X)
    assert told.losses.plus.shape == asked.losses.plus.shape == (2, 5)
    np.testing.assert_allclose(told.coefficients, asked.coefficients, rtol=0, atol=1e-4)


def test_only_active_directions_are_candidates():
    estimator = ESTIMATORS["active"]
    assert len(zojax.candidates(estimator, KEY, PARAMS, step=7)) == 4
    assert len(zojax.candidates(estimator, KEY, PARAMS, step=20)) == 8


def test_the_base_is_the_parameters():
    base, *others = zojax.candidates(ESTIMATORS["one_sided"], KEY, PARAMS)
    assert all(jnp.array_equal(base[k], PARAMS[k]) for k in PARAMS) and len(others) == 3


def test_what_cannot_be_told_is_an_error():
    forward = zojax.mezo()._replace(scheme=zojax.forward_gradient())
    with pytest.raises(ValueError, match="asks for derivatives along directions"):
        zojax.candidates(forward, KEY, PARAMS)
    with pytest.raises(ValueError, match="asks for derivatives along directions"):
        zojax.tell(forward, KEY, [1.0], PARAMS)
    with pytest.raises(ValueError, match=r"float\[2\] or float\[2, examples\].*found float\[3\]"):
        zojax.tell(zojax.mezo(), KEY, [1.0, 2.0, 3.0], PARAMS)
    with pytest.raises(ValueError, match="mu must be positive"):
        zojax.candidates(zojax.mezo(-1.0), KEY, PARAMS)


SCHEMES = {"ranks": zojax.population(4), "standardized": zojax.population(4)}
SHAPINGS = {
    "difference": zojax.difference(),
    "clipped": zojax.clipped(zojax.difference(), 2.0),
    "ranks": zojax.ranks(),
    "normalized": zojax.normalized(),
    "standardized": zojax.standardized(),
    "consensus": zojax.consensus(),
}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", SHAPINGS)
def test_losses_that_are_not_finite(name, bad):
    """`ranks` takes them as worst and `clipped` bounds infinity; nobody else hides them."""
    scheme = zojax.one_sided(4) if name in ("difference", "clipped", "normalized") else None
    estimator = zojax.Estimator(
        zojax.gaussian(), scheme or zojax.population(4), SHAPINGS[name], 1.0
    )
    losses = [0.0, 1.0, 2.0, 3.0, bad] if scheme else [1.0, 2.0, 3.0, bad]
    found = zojax.tell(estimator, KEY, losses, PARAMS).coefficients
    if name == "ranks":
        worst = zojax.tell(estimator, KEY, [1.0, 2.0, 3.0, 4.0], PARAMS).coefficients
        np.testing.assert_array_equal(found, worst)
    elif name == "clipped" and bad == np.inf:
        np.testing.assert_array_equal(found, [1.0, 2.0, 2.0, 2.0])
    elif name in ("difference", "clipped"):
        assert np.isfinite(found).tolist() == [True, True, True, False]
    else:
        assert not np.isfinite(found).any()


def test_a_private_estimate_bounds_infinity():
    """The other four examples of the batch are clipped at one too."""
    estimator = zojax.mezo(0.5, 1)._replace(shaping=zojax.private(1.0, 0.0))
    losses = np.array([[3.0, 3.0, -3.0, 3.0, np.inf], np.zeros(5)])
    assert zojax.tell(estimator, KEY, losses, PARAMS).coefficients == 3 / 5
    losses[0, 4] = np.nan
    assert jnp.isnan(zojax.tell(estimator, KEY, losses, PARAMS).coefficients)


def test_an_order_is_as_good_as_its_losses():
    estimator = zojax.Estimator(zojax.gaussian(), zojax.two_sided(3), zojax.ranks(), 0.25)
    losses = [float(_loss(p, X)) for p in zojax.candidates(estimator, KEY, PARAMS)]
    order = np.argsort(losses)
    told = zojax.tell(estimator, KEY, zojax.losses_of_order(order, 6), PARAMS)
    expected = zojax.tell(estimator, KEY, losses, PARAMS)
    np.testing.assert_array_equal(told.coefficients, expected.coefficients)
    # only the best two are named
    best = estimator._replace(shaping=zojax.ranks(top=2))
    told = zojax.tell(best, KEY, zojax.losses_of_order(order[:2], 6), PARAMS)
    expected = zojax.tell(best, KEY, losses, PARAMS)
    np.testing.assert_array_equal(told.coefficients, expected.coefficients)


def test_an_order_finds_the_least_of_a_sphere():
    """Nothing but the best two of eight is ever said, as a person would."""
    estimator = zojax.Estimator(zojax.gaussian(), zojax.population(8), zojax.ranks(top=2), 0.1)
    x = jnp.ones(4)
    move = jax.jit(lambda x, f: x - 0.05 * zojax.gradient(estimator, f.keys, f.coefficients, x))
    for step in range(150):
        key = jax.random.fold_in(KEY, step)
        points = zojax.candidates(estimator, key, x)
        best = sorted(range(8), key=lambda i: float(jnp.sum(points[i] ** 2)))[:2]
        found = zojax.tell(estimator, key, zojax.losses_of_order(best, 8), x)
        x = move(x, found)
    # the length of a step does not shrink: the least is found to within a few steps of it
    assert jnp.linalg.norm(x) < 0.3


@pytest.mark.parametrize("order", [[0, 4], [0, 0], [-1]])
def test_an_order_of_other_things_is_an_error(order):
    with pytest.raises(ValueError, match="must name candidates 0 to 3, each at most once"):
        zojax.losses_of_order(order, 4)
    with pytest.raises(TypeError):
        zojax.losses_of_order([0.5], 4)


def test_f1_of_a_classifier_inside_a_jitted_step():
    """Nothing here has a derivative: scikit-learn's F1 of arg max, called back from `jit`."""
    truth = np.asarray(X @ DRAW.standard_normal((3, 4))).argmax(1)

    def loss(params, x, average):
        assert all(isinstance(leaf, np.ndarray) for leaf in (*params.values(), x))
        found = (x @ params["w"] + params["b"]).argmax(1)
        return 1 - f1_score(truth, found, average=average, zero_division=0.0)

    wrapped = zojax.numpy_function(loss)
    estimator = zojax.mezo(1.0, 4, batch_size=3)
    ask = jax.jit(lambda key, p: zojax.estimate(wrapped, estimator)(key, p, X, "macro"))
    found = ask(KEY, PARAMS)
    points = zojax.candidates(estimator, KEY, PARAMS)
    expected = [loss(jax.tree.map(np.asarray, p), np.asarray(X), average="macro") for p in points]
    np.testing.assert_allclose(
        np.stack([found.losses.plus, found.losses.minus], 1).ravel(), expected, rtol=0, atol=1e-7
    )
    assert len(set(expected)) > 2


def test_what_a_numpy_function_raises_surfaces():
    def broken(w):
        raise KeyError("the simulator is down")

    vg = zojax.value_and_grad(zojax.numpy_function(broken), zojax.mezo())
    with pytest.raises(jax.errors.JaxRuntimeError, match="KeyError: 'the simulator is down'"):
        jax.block_until_ready(jax.jit(vg)(KEY, X))


def test_a_numpy_function_of_another_shape_is_an_error():
    def rows(w):
        return w.sum(1)

    with pytest.raises(jax.errors.JaxRuntimeError, match=r"rows returned float\[5\], expected"):
        jax.block_until_ready(zojax.numpy_function(rows)(X))


def test_a_numpy_function_gives_a_loss_of_each_example():
    each = lambda p, x: np.tanh(x @ p["w"] + p["b"]).sum(1)  # noqa: E731
    wrapped = zojax.numpy_function(each, shape=(5,))
    estimator = zojax.mezo(0.25, 2)
    ask = lambda fun: zojax.estimate(fun, estimator, per_example=True)(KEY, PARAMS, X)  # noqa: E731
    np.testing.assert_allclose(
        ask(wrapped).coefficients, ask(_each).coefficients, rtol=0, atol=1e-4
    )


def test_an_integer_network_learns():
    """int8 weights and activations, arg max inside; only the float scales of its rows move."""
    draw = np.random.default_rng(1)
    x = jnp.asarray(draw.integers(-100, 100, (200, 8)), jnp.int8)
    hidden = jnp.asarray(draw.integers(-127, 128, (8, 16)), jnp.int8)
    out = jnp.asarray(draw.integers(-127, 128, (16, 3)), jnp.int8)
    weights = {"hidden": hidden, "out": out}

    def predict(scales, weights, x):
        def layer(x, name):
            total = jnp.matmul(x, weights[name], preferred_element_type=jnp.int32)
            return total * scales[name]

        inner = jnp.clip(jnp.round(layer(x, "hidden")), 0, 127).astype(jnp.int8)
        return jnp.argmax(layer(inner, "out"), axis=1)

    right = {"hidden": jnp.full(16, 2e-3), "out": jnp.asarray([1.0, 0.5, 2.0])}
    truth = jax.jit(predict)(right, weights, x)

    @jax.jit
    def error_rate(log, *args):
        return jnp.mean(predict(jax.tree.map(jnp.exp, log), *args) != truth)

    start = jax.tree.map(jnp.log, {"hidden": jnp.full(16, 2e-3), "out": jnp.ones(3)})
    slope = jax.jit(jax.grad(error_rate))(start, weights, x)
    assert not any(np.any(g) for g in jax.tree.leaves(slope))
    estimator = zojax.Estimator(zojax.gaussian(), zojax.population(16), zojax.standardized(), 0.1)
    vg = zojax.value_and_grad(error_rate, estimator)
    log = start

    @jax.jit
    def move(log, key):
        _, grads = vg(key, log, weights, x)
        return jax.tree.map(lambda p, g: p - 0.1 * g, log, grads)

    for step in range(60):
        log = move(log, jax.random.fold_in(KEY, step))
    before, after = error_rate(start, weights, x), error_rate(log, weights, x)
    assert before > 0.2 and after < before / 2, (before, after)
