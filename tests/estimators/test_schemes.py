"""Schemes: what they ask, and what is unbiased about the answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax
from tests.benchmarks import gpt
from zojax import noise

KEY = jax.random.key(0)
EPS = 2.0**-23
DRAW = np.random.default_rng(0)
W = jnp.asarray(DRAW.standard_normal((3, 4)), jnp.float32)
SLOPE = jnp.asarray(DRAW.standard_normal((3, 4)), jnp.float32)
SIZE = W.size


def _linear(w):
    return jnp.vdot(SLOPE, w)


def _tanh(w):
    return jnp.sum(jnp.tanh(w) * SLOPE)


def _z(direction, keys):
    one = lambda k: direction.terms(k, W)[0].materialize()  # noqa: E731
    return np.asarray(jax.jit(jax.vmap(one))(keys), np.float64)


def _samples(estimator, loss, count=8192, steps=0):
    keys = noise.fold_in(KEY, jnp.arange(count))
    vg = zojax.value_and_grad(loss, estimator)
    found = jax.jit(jax.vmap(lambda k: vg(k, W, step=steps)[1].ravel()))(keys)
    return np.asarray(found, np.float64)


def _assert_mean_and_variance(found, mean, variance):
    error = found - mean
    assert np.all(abs(error.mean(0)) < 5 * error.std(0) / len(found) ** 0.5)
    squared = ((found - found.mean(0)) ** 2).sum(1)
    assert abs(squared.mean() - variance) < 5 * squared.std() / len(found) ** 0.5


@pytest.mark.parametrize(
    "baseline, shrinks, variance",
    [("mean", 1 - 1 / 4, 3 / 16), ("leave_one_out", 1.0, 1 / 3)],
)
def test_the_population_estimate_is_a_sample_covariance_times_the_gradient(
    baseline, shrinks, variance
):
    """`1/n sum_k (z_k - mean z) z_k^T g` is a Wishart matrix W(n - 1) / n times g.

    So the mean is (1 - 1/n) g and the total variance (n - 1) / n^2 (d + 1) |g|^2; leaving one out
    divides by n - 1 in the place of n.
    """
    shaping = zojax.difference(baseline)
    estimator = zojax.Estimator(zojax.gaussian(), zojax.population(4), shaping, 0.5)
    g = np.asarray(SLOPE, np.float64).ravel()
    found = _samples(estimator, _linear)
    _assert_mean_and_variance(found, shrinks * g, variance * (SIZE + 1) * (g @ g))


def test_a_population_asks_its_points_and_nothing_else():
    scheme = zojax.population(3)
    estimator = zojax.Estimator(zojax.gaussian(), scheme, zojax.difference("mean"), 0.25)
    found = jax.jit(zojax.estimate(_tanh, estimator))(KEY, W)
    assert (scheme.num_samples, scheme.num_queries) == (3, 3)
    assert found.losses.base is None and found.losses.minus is None
    expected = jax.vmap(lambda z: _tanh(W + 0.25 * z))(_z(estimator.direction, found.keys))
    np.testing.assert_allclose(found.losses.plus, expected, rtol=0, atol=SIZE * EPS * 8)
    np.testing.assert_allclose(
        found.value, np.mean(np.asarray(expected)), rtol=0, atol=SIZE * EPS * 8
    )


def test_a_base_is_asked_beside_both_sides():
    with_base = zojax.two_sided(3, base=True)
    assert with_base.num_queries == 7

    def ask(scheme):
        return jax.jit(zojax.estimate(_tanh, zojax.mezo(0.25)._replace(scheme=scheme)))(KEY, W)

    found, plain = ask(with_base), ask(zojax.two_sided(3))
    for name in ("plus", "minus"):
        np.testing.assert_array_equal(getattr(found.losses, name), getattr(plain.losses, name))
    np.testing.assert_array_equal(found.keys, plain.keys)
    np.testing.assert_array_equal(found.coefficients, plain.coefficients)
    np.testing.assert_allclose(found.losses.base, _tanh(W), rtol=0, atol=SIZE * EPS * 8)
    assert found.value == found.losses.base


@pytest.mark.parametrize(
    "direction",
    [
        zojax.low_rank(2),
        zojax.sphere(),
        zojax.integer_normal(),
        *(
            pytest.param(d, marks=pytest.mark.slow)
            for d in (
                zojax.gaussian(),
                zojax.coordinates(3),
                zojax.n_m(zojax.gaussian(), 1, 2),
                zojax.rademacher(),
            )
        ),
    ],
    ids=lambda d: d.name,
)
def test_a_forward_gradient_is_the_derivative_along_its_direction(direction):
    """On a loss that is no quadratic: no mu in it, and no rounding of a quotient."""
    scheme = zojax.forward_gradient(3, 2)
    estimator = zojax.Estimator(direction, scheme, zojax.difference(), 1e30)
    found = jax.jit(zojax.estimate(_tanh, estimator))(KEY, W)
    g = np.asarray(jax.grad(_tanh)(W), np.float64)
    zs = _z(direction, found.keys)
    # 1/sqrt(170) in 13 bits, as it moves the weights, against the derivative, which has all of its
    short = 2.0**-14 if direction.name == "integer_normal()" else 0.0
    for c, z in zip(found.coefficients, zs, strict=True):
        allowed = 2 * SIZE * EPS * abs(g * z).sum() + short * abs((g * z).sum())
        assert abs(float(c) - (g * z).sum()) < allowed
    np.testing.assert_allclose(found.value, _tanh(W), rtol=0, atol=SIZE * EPS * 8)
    expected = np.tensordot(np.asarray(found.coefficients, np.float64), zs, 1) / 3
    grads = jax.jit(lambda k, c: zojax.gradient(estimator, k, c, W))(found.keys, found.coefficients)
    # one coefficient in 13 bits where the direction has integer entries
    np.testing.assert_allclose(grads, expected, rtol=0, atol=2**-12 * abs(expected).max())


def test_a_forward_gradient_has_the_variance_of_theory():
    estimator = zojax.Estimator(
        zojax.gaussian(), zojax.forward_gradient(2), zojax.difference(), 1.0
    )
    g = np.asarray(jax.grad(_tanh)(W), np.float64).ravel()
    _assert_mean_and_variance(_samples(estimator, _tanh), g, (SIZE + 1) * (g @ g) / 2)


@pytest.mark.parametrize("direction", [zojax.low_rank(1), zojax.gaussian()], ids=lambda d: d.name)
def test_a_forward_gradient_needs_two_forwards(direction):
    """Its tangent is as large as what it is the tangent of; directions stay formulas."""
    shape = gpt.Shape(layers=4, width=256, vocabulary=512)
    params = gpt.parameters(shape, scanned=True)
    tokens = jax.ShapeDtypeStruct((shape.batch, shape.length), jnp.int32)

    def loss(params, tokens):
        return gpt.loss(params, tokens, heads=shape.heads)

    def temporaries(fn, *args):
        return jax.jit(fn).lower(*args).compile().memory_analysis().temp_size_in_bytes

    scheme = zojax.forward_gradient()
    ask = zojax.estimate(loss, zojax.Estimator(direction, scheme, zojax.difference(), 1.0))
    key = jax.eval_shape(lambda: jax.random.key(0))
    found = temporaries(lambda k, p, t: ask(k, p, t).coefficients, key, params, tokens)
    assert found <= 2.2 * temporaries(loss, params, tokens)


OFFSET, EXAMPLES = 2.0**13 + 17.0, 1024
DATA = jnp.asarray(DRAW.standard_normal((EXAMPLES, SIZE)), jnp.float32)


def _each(w):
    """Losses with a large constant: eleven digits of them would be needed for the slope."""
    return OFFSET + DATA @ w.ravel()


@pytest.mark.parametrize("scheme", [zojax.two_sided(4), zojax.one_sided(4)])
def test_per_example_losses_have_the_same_mean(scheme):
    small = lambda w: DATA[:8] @ w.ravel()  # noqa: E731
    estimator = zojax.mezo(0.5)._replace(scheme=scheme)
    each = jax.jit(zojax.estimate(small, estimator, per_example=True))(KEY, W)
    mean = jax.jit(zojax.estimate(lambda w: small(w).mean(), estimator))(KEY, W)
    assert each.losses.plus.shape == (4, 8) and mean.losses.plus.shape == (4,)
    np.testing.assert_array_equal(each.keys, mean.keys)
    np.testing.assert_allclose(each.coefficients, mean.coefficients, rtol=0, atol=64 * EPS * 8)
    np.testing.assert_allclose(each.value, mean.value, rtol=0, atol=16 * EPS * 8)


def test_differences_of_each_example_keep_the_digits():
    """Losses near 8192 are multiples of u = 2^-10, so rounding moves each by u / sqrt 12.

    The difference of two is off by u / sqrt 6, and so is that of two means, rounded once more; the
    mean of B differences by u / sqrt(6 B) alone: sqrt B = 32 times less.
    """
    n, mu, unit = 256, 0.5, 2.0**-10
    estimator = zojax.mezo(mu, n)

    def error(fun, per_example):
        found = jax.jit(zojax.estimate(fun, estimator, per_example=per_example))(KEY, W)
        slope = np.asarray(DATA, np.float64).mean(0)
        exact = _z(estimator.direction, found.keys).reshape(n, -1) @ slope
        off = np.asarray(found.coefficients, np.float64) - exact
        return np.sqrt((off**2).mean()) * 2 * mu

    rounding = unit / 6**0.5
    assert error(_each, True) < 1.5 * rounding / EXAMPLES**0.5
    assert error(lambda w: _each(w).mean(), False) > rounding / 1.5


@pytest.mark.parametrize("scheme", [zojax.two_sided, zojax.one_sided], ids=lambda s: s.__name__)
def test_directions_that_are_not_active_are_not_asked(scheme):
    calls = []

    def loss(w):
        def seen(w):
            calls.append(w)
            return np.float32(np.vdot(SLOPE, w))

        return jax.pure_callback(seen, jax.ShapeDtypeStruct((), jnp.float32), w)

    estimator = zojax.mezo(0.5)._replace(scheme=scheme(4), active=lambda step: 1 + step)
    ask = jax.jit(zojax.estimate(loss, estimator))
    for step in range(4):
        calls.clear()
        found = jax.block_until_ready(ask(KEY, W, step=step))
        assert len(calls) == ((1 + step) * 2 if scheme is zojax.two_sided else 2 + step)
        assert np.all(found.coefficients[1 + step :] == 0)
        zs = _z(estimator.direction, found.keys[: 1 + step])
        expected = (zs * np.asarray(SLOPE)).sum((1, 2)) * 4 / (1 + step)
        np.testing.assert_allclose(
            found.coefficients[: 1 + step], expected, rtol=0, atol=64 * SIZE * EPS * 16
        )


@pytest.mark.parametrize("batch_size", [2, 3, 16])
def test_batches_in_which_no_direction_is_active_are_not_asked(batch_size):
    """A batch is asked once for all its queries, and what was not asked counts nothing."""
    calls = []

    def loss(w):
        def seen(w):
            calls.append(w)
            return np.tensordot(w, SLOPE, SLOPE.ndim).astype(np.float32)

        shape = jax.ShapeDtypeStruct((), jnp.float32)
        return jax.pure_callback(seen, shape, w, vmap_method="broadcast_all")

    for scheme in (zojax.two_sided, zojax.one_sided):
        estimator = zojax.mezo(0.5)._replace(scheme=scheme(4), active=lambda step: step)
        many = estimator._replace(scheme=scheme(4, batch_size=batch_size))
        one, ask = (jax.jit(zojax.estimate(loss, e)) for e in (estimator, many))
        for step in (1, 3):
            expected = one(KEY, W, step=step)
            calls.clear()
            found = jax.block_until_ready(ask(KEY, W, step=step))
            asked = 2 * step if scheme is zojax.two_sided else 1 + step
            assert len(calls) == -(-asked // batch_size)
            np.testing.assert_array_equal(found.keys, expected.keys)
            assert np.all(found.coefficients[step:] == 0)
            for a, b in (
                (found.value, expected.value),
                (found.coefficients, expected.coefficients),
            ):
                np.testing.assert_allclose(a, b, rtol=0, atol=64 * SIZE * EPS * 16)


@pytest.mark.parametrize("active", [0, 1])
def test_the_value_is_of_the_queries_that_were_asked(active):
    """And one direction is asked at least."""
    estimator = zojax.mezo(0.5)._replace(scheme=zojax.two_sided(4), active=lambda step: active)
    found = zojax.estimate(lambda w: 7 + 0 * w.sum(), estimator)(KEY, W)
    assert found.value == 7 and np.all(np.isfinite(found.coefficients))


@pytest.mark.parametrize("active", [1, 3])
def test_fewer_active_directions_are_unbiased_with_the_variance_of_as_many(active):
    estimator = zojax.mezo(0.5)._replace(scheme=zojax.two_sided(4), active=lambda step: active)
    g = np.asarray(SLOPE, np.float64).ravel()
    _assert_mean_and_variance(_samples(estimator, _linear), g, (SIZE + 1) * (g @ g) / active)
