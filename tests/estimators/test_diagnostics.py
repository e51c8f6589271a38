"""Signal, noise and the split of a budget, against the truth that jax.grad tells."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax
from tests.slow import slow_but
from zojax.estimators import Joint

KEY = jax.random.key(0)
DRAW = np.random.default_rng(0)
FEATURES = jnp.asarray(DRAW.standard_normal((40, 6)), jnp.float32)
TARGETS = jnp.asarray(DRAW.standard_normal(40), jnp.float32)
PARAMS = {"b": jnp.float32(0.3), "w": jnp.asarray(DRAW.standard_normal(6), jnp.float32)}
SIZE, BATCH = 7, 5


def _squares(params, rows):
    """Quadratic in the parameters: the quotient of two sides has no bias."""
    return jnp.square(FEATURES[rows] @ params["w"] + params["b"] - TARGETS[rows])


def _linear(params, rows):
    return FEATURES[rows] @ params["w"] + params["b"] * TARGETS[rows]


def _truth(loss):
    """|g|^2 and the trace of the covariance over all forty examples."""
    each = jax.vmap(jax.grad(lambda p, i: loss(p, i[None])[0]), (None, 0))(PARAMS, jnp.arange(40))
    flat = np.concatenate(
        [np.asarray(leaf, np.float64).reshape(40, -1) for leaf in each.values()], 1
    )
    mean = flat.mean(0)
    return mean @ mean, ((flat - mean) ** 2).sum() / 40, mean


def _samples(loss, estimator, count=8000, per_example=True):
    fun = loss if per_example else lambda p, rows: jnp.mean(loss(p, rows))
    ask = zojax.diagnose(fun, estimator, per_example=per_example)

    def one(i):
        key = jax.random.fold_in(KEY, i)
        rows = jax.random.randint(jax.random.fold_in(key, 1), (BATCH,), 0, 40)
        info = ask(key, PARAMS, rows)
        found = info.estimate
        grads = zojax.gradient(estimator, found.keys, found.coefficients, PARAMS)
        return info, jnp.concatenate([grads["b"][None], grads["w"]])

    return jax.jit(lambda: jax.lax.map(one, jnp.arange(count), batch_size=200))()


def _close(samples, truth):
    samples = np.asarray(samples, np.float64)
    return abs(samples.mean() - truth) < 5 * samples.std() / len(samples) ** 0.5


HEAD = zojax.masked(zojax.gaussian(), {"b": True, "w": False})
BODY = zojax.masked(zojax.gaussian(), {"b": False, "w": True})
CASES = {
    "two_sided": (_squares, zojax.mezo(0.5, 4)),
    "rademacher": (_squares, zojax.mezo(0.5, 2, direction=zojax.rademacher())),
    "forward_gradient": (_squares, zojax.fgd(3)),
    "one_sided": (_linear, zojax.mezo(0.5)._replace(scheme=zojax.one_sided(3))),
    "population": (_linear, zojax.mezo(0.5)._replace(
        scheme=zojax.population(4), shaping=zojax.difference("leave_one_out"))),
    "active": (_squares, zojax.mezo(0.5, 4)._replace(active=lambda step: 2)),
    "joint": (_squares, zojax.joint(zojax.mezo(0.5, 1, direction=HEAD),
                                    zojax.mezo(0.5, 3, direction=BODY))),
}  # fmt: skip


@pytest.mark.parametrize("loss, estimator", slow_but(["two_sided", "joint"], CASES))
def test_signal_and_noise_are_unbiased(loss, estimator):
    """G and T against jax.grad over all data, V and T / B against the error that estimates have."""
    g, t, mean = _truth(loss)
    info, grads = _samples(loss, estimator)
    assert _close(info.gradient_squared, g)
    assert _close(info.example_variance, t)
    errors = ((np.asarray(grads, np.float64) - mean) ** 2).sum(1)
    if isinstance(estimator, Joint) or estimator.scheme.num_queries != estimator.scheme.num_samples:
        assert _close(errors - np.asarray(info.direction_variance), t / BATCH)
    # ratios of averages: five standard errors of each, to first order
    ratio = np.mean(info.example_variance) / np.mean(info.gradient_squared)
    spread = (
        sum(np.std(x) / np.mean(x) for x in (info.example_variance, info.gradient_squared))
        / len(errors) ** 0.5
    )
    assert abs(ratio / (t / g) - 1) < 5 * spread < 0.5


def test_the_variance_of_gaussian_directions_is_that_of_theory():
    g, t, _ = _truth(_squares)
    info, _ = _samples(_squares, zojax.mezo(0.5, 4))
    assert _close(info.direction_variance, (SIZE + 1) * (g + t / BATCH) / 4)


def test_without_losses_of_examples_it_speaks_of_the_batch():
    estimator = zojax.mezo(0.5, 4)
    rows = jnp.arange(40)
    ask = zojax.diagnose(lambda p: jnp.mean(_squares(p, rows)), estimator)
    info = jax.jit(jax.vmap(lambda i: ask(jax.random.fold_in(KEY, i), PARAMS)))(jnp.arange(2000))
    g, _, _ = _truth(_squares)
    assert _close(info.gradient_squared, g)
    assert jnp.isnan(info.example_variance).all() and jnp.isnan(info.noise_scale).all()
    np.testing.assert_allclose(
        info.signal_to_noise, info.gradient_squared / info.direction_variance, rtol=1e-6
    )


def test_the_estimate_is_the_estimate():
    estimator = zojax.eggroll(0.5, 4)
    info = zojax.diagnose(_squares, estimator, per_example=True)(KEY, PARAMS, jnp.arange(5))
    found = zojax.estimate(_squares, estimator, per_example=True)(KEY, PARAMS, jnp.arange(5))
    np.testing.assert_array_equal(info.estimate.coefficients, found.coefficients)
    with pytest.raises(ValueError, match="at least two points of a population, found 1"):
        lonely = estimator._replace(
            scheme=zojax.population(1), shaping=lambda losses, mu, key: losses.plus
        )
        zojax.diagnose(lambda p: p["b"], lonely)(KEY, PARAMS)


@pytest.mark.parametrize("forwards", [1, 7, 12, 60, 97])
@pytest.mark.parametrize("d", [1, 30, 10**6])
@pytest.mark.parametrize("noise", [0.0, 1.0, 76.0, 1e7])
def test_the_split_is_the_least_of_all(forwards, d, noise):
    def error(b, m):
        return (d + 1) * 2.0 / m + 2.0 * noise / b * (1 + (d + 1) / m)

    found = zojax.split_budget(2.0, 2.0 * noise, d, forwards)
    least = min(error(b, m) for b in range(1, forwards + 1) for m in range(1, forwards // b + 1))
    assert found.error == pytest.approx(least, rel=1e-12)
    assert found.error == pytest.approx(error(found.examples, found.directions), rel=1e-12)
    assert found.examples * found.directions <= forwards


def test_large_budgets_split_in_the_ratio_of_theory():
    found = zojax.split_budget(1.0, 5000.0, 99, 10**8)
    assert found.directions / found.examples == pytest.approx(100 / 5000, rel=2e-3)


@pytest.mark.parametrize("shared", [True, False])
def test_the_predicted_error_is_the_error(shared):
    """Six forward passes as the split says; own directions by jax.vmap over keys and examples."""
    g, t, mean = _truth(_squares)
    split = zojax.split_budget(g, t, SIZE, 6, shared=shared)
    b, m = split.examples, split.directions
    estimator = zojax.mezo(0.5, m)

    def one(i):
        key = jax.random.fold_in(KEY, i)
        rows = jax.random.randint(jax.random.fold_in(key, 1), (b,), 0, 40)
        if shared:
            fun = lambda p: jnp.mean(_squares(p, rows))  # noqa: E731
            grads = zojax.value_and_grad(fun, estimator)(key, PARAMS)[1]
        else:
            fun = lambda p, row: jnp.mean(_squares(p, row[None]))  # noqa: E731
            vg = jax.vmap(zojax.value_and_grad(fun, estimator), (0, None, 0))
            grads = jax.tree.map(lambda x: x.mean(0), vg(jax.random.split(key, b), PARAMS, rows)[1])
        return jnp.sum(jnp.square(jnp.concatenate([grads["b"][None], grads["w"]]) - mean))

    errors = jax.jit(lambda: jax.lax.map(one, jnp.arange(8000), batch_size=200))()
    assert _close(errors, split.error)


def test_budgets_that_make_no_sense_are_errors():
    for bad in ((-1.0, 1.0, 5, 5), (1.0, -1.0, 5, 5), (1.0, 1.0, 0, 5), (1.0, 1.0, 5, 0)):
        with pytest.raises(ValueError, match="split_budget needs gradient_squared > 0"):
            zojax.split_budget(*bad)
