"""The interface of `estimate` and `value_and_grad`: what goes in, what comes out, what raises."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax
from zojax.directions import combine

KEY = jax.random.key(0)
W = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4)), jnp.float32)
X = jnp.asarray(np.random.default_rng(1).standard_normal((5, 3)), jnp.float32)


def _loss(w, x):
    return jnp.tanh(x @ w).sum()


def test_value_and_grad_is_the_estimate_combined():
    estimator = zojax.mezo(0.1, 3)
    found = zojax.estimate(_loss, estimator)(KEY, W, X)
    value, grads = zojax.value_and_grad(_loss, estimator)(KEY, W, X)
    np.testing.assert_array_equal(value, found.value)
    expected = combine(estimator.direction, found.keys, found.coefficients, W)
    np.testing.assert_array_equal(grads, expected)
    assert found.keys.shape == (3, 2) and found.keys.dtype == jnp.uint32
    assert len({tuple(k) for k in found.keys.tolist()}) == 3


@pytest.mark.parametrize("scheme, queries", [(zojax.two_sided, 6), (zojax.one_sided, 4)])
def test_losses_are_the_losses_at_the_moved_parameters(scheme, queries):
    estimator = zojax.Estimator(zojax.rademacher(), scheme(3), zojax.difference(), 0.25)
    assert (estimator.scheme.num_samples, estimator.scheme.num_queries) == (3, queries)
    found = zojax.estimate(_loss, estimator)(KEY, W, X)
    losses, two = found.losses, scheme is zojax.two_sided
    assert (losses.minus is None, losses.base is None) == (not two, two)
    for k, key in enumerate(found.keys):
        (term,) = estimator.direction.terms(key, W)
        z = term.materialize()
        np.testing.assert_allclose(losses.plus[k], _loss(W + z / 4, X), rtol=0, atol=4e-6)
        if two:
            np.testing.assert_allclose(losses.minus[k], _loss(W - z / 4, X), rtol=0, atol=4e-6)
    if two:
        mean = (losses.plus.mean() + losses.minus.mean()) / 2
        np.testing.assert_allclose(found.value, mean, rtol=1e-6)
    else:
        np.testing.assert_allclose(found.value, _loss(W, X), rtol=1e-6)
        assert found.value == losses.base


@pytest.mark.parametrize("scheme", [zojax.two_sided, zojax.one_sided])
@pytest.mark.parametrize("batch_size", [2, 3, 16])
def test_the_batch_of_queries_changes_nothing(scheme, batch_size):
    one, many = _losses(scheme, 1), _losses(scheme, batch_size)
    # sums of sixty values below one, added in another order
    chex.assert_trees_all_close(one, many, rtol=0, atol=20 * 2**-24 * 20)


@functools.cache
def _losses(scheme, batch_size):
    shaping = zojax.difference()
    estimator = zojax.Estimator(zojax.low_rank(2), scheme(3, batch_size), shaping, 0.25)
    return jax.jit(zojax.estimate(_loss, estimator))(KEY, W, X).losses


def test_has_aux_gives_the_first_query():
    fun = lambda w: (w.sum(), {"w": w, "n": 3})  # noqa: E731
    two = zojax.mezo(0.5, 2, direction=zojax.rademacher())
    (value, aux), grads = zojax.value_and_grad(fun, two, has_aux=True)(KEY, W)
    found = zojax.estimate(fun, two, has_aux=True)(KEY, W)
    (term,) = two.direction.terms(found.keys[0], W)
    np.testing.assert_allclose(aux["w"], W + 0.5 * term.materialize(), rtol=0, atol=1e-6)
    assert aux["n"] == 3 and grads.shape == W.shape
    np.testing.assert_array_equal(value, found.value)
    one = zojax.fzoo(0.5, 2)
    np.testing.assert_array_equal(zojax.estimate(fun, one, has_aux=True)(KEY, W).aux["w"], W)
    assert zojax.estimate(lambda w: w.sum(), one)(KEY, W).aux is None


def test_argnums_and_keywords():
    a, b, c = X[0], W, jnp.float32(2)
    fun = lambda a, b, *, c: (a @ b).sum() * c  # noqa: E731
    estimator = zojax.mezo(0.5, 2)
    vg = lambda argnums: zojax.value_and_grad(fun, estimator, argnums=argnums)(KEY, a, b, c=c)[1]  # noqa: E731
    assert vg(0).shape == a.shape and vg(1).shape == b.shape
    both = vg((1, 0))
    assert isinstance(both, tuple) and [g.shape for g in both] == [b.shape, a.shape]
    # linear in b: the coefficient is the exact derivative along z, with c in it
    found = zojax.estimate(fun, estimator, argnums=1)(KEY, a, b, c=c)
    (term,) = estimator.direction.terms(found.keys[0], b)
    expected = 2 * float((a @ term.materialize()).sum())
    assert abs(float(found.coefficients[0]) - expected) < 64 * 2**-24 * 40


def test_a_tree_with_none_and_empty_parts():
    params = {"w": W, "none": None, "empty": {}}
    grads = zojax.value_and_grad(lambda p: p["w"].sum(), zojax.mezo())(KEY, params)[1]
    assert grads["none"] is None and grads["empty"] == {} and grads["w"].shape == W.shape


def test_normalized_has_no_scale():
    """c(a L + b) = c(L): the loss may be in any unit (a power of two scales exactly)."""
    estimator = zojax.fzoo(0.25, 4)
    find = lambda f: zojax.estimate(f, estimator)(KEY, W, X).coefficients  # noqa: E731
    base, scaled = find(_loss), find(lambda w, x: 1024 * _loss(w, x))
    # epsilon = 1e-8 against a spread of about one
    np.testing.assert_allclose(scaled, base, rtol=1e-6)
    two = zojax.Estimator(zojax.gaussian(), zojax.two_sided(2), zojax.normalized(), 0.25)
    found = zojax.estimate(_loss, two)(KEY, W, X)
    plus, minus = (np.asarray(a, np.float64) for a in found.losses[1:3])
    expected = (plus - minus) / 2 / np.concatenate([plus, minus]).std()
    np.testing.assert_allclose(found.coefficients, expected, rtol=1e-5)


@pytest.mark.parametrize("estimator", [zojax.fzoo(), zojax.mezo()])
def test_equal_losses_give_a_zero_gradient(estimator):
    value, grads = zojax.value_and_grad(lambda w: jnp.float32(7) + 0 * w.sum(), estimator)(KEY, W)
    assert value == 7 and not np.any(grads)


def test_shapings_that_lack_a_query_say_so():
    losses = zojax.Losses(None, jnp.ones(3), None)
    with pytest.raises(ValueError, match="needs a two-sided scheme, one with a base query, or a"):
        zojax.difference()(losses, jnp.float32(1), KEY)
    with pytest.raises(ValueError, match=r"at least two directions.*found 1 direction"):
        zojax.estimate(_loss, zojax.fzoo(num_samples=1))(KEY, W, X)


def test_a_loss_that_counts():
    """Integer-valued and piecewise constant: nothing to differentiate, all to ask."""
    fun = lambda w: jnp.sum(w > 0)  # noqa: E731
    found = zojax.estimate(fun, zojax.mezo(1.0, 4))(KEY, jnp.zeros(8))
    assert found.losses.plus.dtype == jnp.float32
    for k, key in enumerate(found.keys):
        (z,) = zojax.gaussian().terms(key, jnp.zeros(8))
        assert found.losses.plus[k] == int((z.materialize() > 0).sum())


def test_a_loss_outside_jax():
    shape = jax.ShapeDtypeStruct((), jnp.float32)
    fun = lambda w: jax.pure_callback(lambda w: np.float32(np.median(w)), shape, w)  # noqa: E731
    found = zojax.estimate(fun, zojax.mezo(1.0))(KEY, W)
    (z,) = zojax.gaussian().terms(found.keys[0], W)
    np.testing.assert_allclose(found.losses.plus[0], np.median(W + z.materialize()), rtol=1e-6)


@pytest.mark.parametrize("fun", [lambda w: w.sum(0), lambda w: w.sum()[None],
                                 lambda w: w.sum() + 1j])  # fmt: skip
def test_a_loss_that_is_no_real_scalar_is_an_error(fun):
    with pytest.raises(ValueError, match=r"must be a real scalar, found (float|complex).*has_aux"):
        zojax.value_and_grad(fun, zojax.mezo())(KEY, W)


@pytest.mark.parametrize("mu", [0, 0.0, -1e-3, float("nan"), jnp.float32(-2)])
def test_a_mu_that_is_not_positive_is_an_error(mu):
    with pytest.raises(ValueError, match="mu must be positive, found"):
        zojax.value_and_grad(_loss, zojax.mezo(mu))(KEY, W, X)


@pytest.mark.parametrize("scheme", [zojax.two_sided, zojax.one_sided])
@pytest.mark.parametrize("name", ["num_samples", "batch_size"])
def test_counts_below_one_are_errors(scheme, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, found 0"):
        scheme(**{name: 0})


@pytest.mark.parametrize("leaf", [jnp.arange(3), jnp.zeros(3, jnp.complex64)])
def test_a_leaf_that_cannot_move_is_named(leaf):
    with pytest.raises(TypeError, match=r"leaf \['ids'\] has dtype"):
        zojax.value_and_grad(lambda p: p["w"].sum(), zojax.mezo())(KEY, {"w": W, "ids": leaf})


def test_mu_follows_its_schedule():
    """Curvature shows mu: one-sided, f = |w|^2, c = 2 w.z + mu |z|^2 with |z|^2 = 12."""
    direction = zojax.rademacher()
    schedule = lambda step: 2.0 ** -(step + 1)  # noqa: E731
    estimator = zojax.Estimator(direction, zojax.one_sided(), zojax.difference(), schedule)
    ask = jax.jit(zojax.estimate(lambda w: (w**2).sum(), estimator))
    for step in range(3):
        found = ask(KEY, W, step=step)
        z = direction.terms(found.keys[0], W)[0].materialize()
        expected = 2 * float((W * z).sum()) + 12 * schedule(step)
        assert abs(float(found.coefficients[0]) - expected) < 24 * 2**-24 * 100 / schedule(step)


def test_no_retrace_over_keys_steps_and_parameters():
    traces = []

    def fun(w, x):
        traces.append(None)
        return _loss(w, x)

    estimator = zojax.mezo(lambda step: 0.1 / (1 + step))
    step = jax.jit(chex.assert_max_traces(zojax.value_and_grad(fun, estimator), n=1))
    for i in range(4):
        _, grads = step(jax.random.key(i), W + i, X, step=jnp.int32(i))
    assert len(traces) == 1 and np.all(np.isfinite(grads))
    chex.clear_trace_counter()


def test_bfloat16_gradients_have_the_parameters_dtype():
    w = W.astype(jnp.bfloat16)
    value, grads = zojax.value_and_grad(_loss, zojax.mezo(0.1))(KEY, w, X)
    assert grads.dtype == jnp.bfloat16 and value.dtype == jnp.float32
