"""mu and the step size, found by asking: against float64 and against theory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax
from tests.slow import slow_but

KEY = jax.random.key(0)
DRAW = np.random.default_rng(0)
W = jnp.asarray(DRAW.standard_normal(16), jnp.float32)
GRID = np.logspace(-6, 0.5, 14)


def _waves(w):
    return 100 + _sines(w)


def _sines(w):
    module = np.sin if isinstance(w, np.ndarray) else jnp.sin
    return module(2 * w + 1).sum()


def _in_float64(key, sides):
    """Quotients of the same directions without rounding noise."""
    keys = zojax.mezo(num_samples=4).scheme.keys(key)
    zs = [np.asarray(zojax.gaussian().terms(k, W)[0].materialize(), np.float64) for k in keys]
    x = np.asarray(W, np.float64)
    at = lambda scale, z: 100 + _sines(x + scale * z)  # noqa: E731
    return np.array(
        [
            [
                (at(mu, z) - at(-mu, z)) / (2 * mu) if sides == 2 else (at(mu, z) - at(0, z)) / mu
                for z in zs
            ]
            for mu in GRID
        ]
    )


@pytest.mark.parametrize("sides", [1, 2])
def test_the_range_lies_between_rounding_and_curvature(sides):
    tolerance = 0.1
    probe = zojax.probe_mu(_waves, mus=GRID, sides=sides, tolerance=tolerance)(KEY, W)
    exact = _in_float64(KEY, sides)
    size = np.sqrt((exact**2).mean(1))
    changes = np.sqrt((np.diff(exact, axis=0) ** 2).mean(1)) / np.maximum(size[1:], size[:-1])
    # without rounding the lowest of the grid agree: curvature alone ends the range
    end = int(np.argmax(changes > tolerance))
    assert 0 < end < len(GRID) - 1 and probe.high == GRID[end]
    errors = np.sqrt(((probe.quotients - exact) ** 2).mean(1)) / size
    inside = (probe.mus >= probe.low) & (probe.mus <= probe.high)
    assert errors[inside].max() < tolerance
    # agreement ends where the error is of the size of the tolerance, not long before
    below = int(np.argmax(inside)) - 1
    assert errors[below] > tolerance / 3 and errors[0] > tolerance
    # both kinds of error together, against the slope
    chosen = probe.quotients[list(probe.mus).index(probe.mu)]
    assert np.sqrt(((chosen - exact[0]) ** 2).mean()) / size[0] < tolerance / 4
    table = str(probe).splitlines()
    assert len(table) == len(GRID) + 1 and sum(line[0] == "*" for line in table) == 1
    assert sum(line[0] in "*|" for line in table) == inside.sum()


def test_a_staircase_has_no_range_below_its_steps():
    stairs = lambda w: jnp.sum(jnp.round(w * 4))  # noqa: E731
    probe = zojax.probe_mu(stairs, mus=[1e-5, 1e-4, 1e-3])(KEY, jnp.zeros(8) + 0.03)
    assert np.isnan([probe.mu, probe.low, probe.high]).all() and not probe.quotients.any()
    assert "*" not in str(probe)
    # beyond them it looks like the line that it follows
    probe = zojax.probe_mu(stairs, mus=np.logspace(-5, 3, 17))(KEY, jnp.zeros(8) + 0.03)
    assert probe.low > 0.25 and probe.high == 1e3


def test_a_mean_of_differences_has_a_wider_range():
    """Large losses that cancel: each example's difference keeps its digits."""
    offsets = jnp.asarray([1e4, -1e4, 3e3, -3e3], jnp.float32)
    each = lambda w: offsets + jnp.tanh(w[:4])  # noqa: E731
    mean = lambda w: jnp.sum(jnp.abs(offsets)) + jnp.mean(jnp.tanh(w[:4]))  # noqa: E731
    apart = zojax.probe_mu(each, per_example=True)(KEY, W)
    together = zojax.probe_mu(mean)(KEY, W)
    assert not together.low <= apart.low


def test_grids_that_are_none_are_errors():
    for bad in ([1e-3], [1e-3, 1e-4], [0.0, 1.0], [[1.0, 2.0]]):
        with pytest.raises(ValueError, match="the grid of mu must rise from above zero"):
            zojax.probe_mu(_waves, mus=bad)
    with pytest.raises(ValueError, match="sides must be 1 or 2, found 3"):
        zojax.probe_mu(_waves, sides=3)


_ROOT = DRAW.standard_normal((16, 16))
HESSIAN = jnp.asarray(_ROOT @ _ROOT.T / 16 + np.diag(np.arange(16) / 4), jnp.float32)


def _bowl(w):
    return 0.5 * w @ (HESSIAN @ w)


@pytest.mark.parametrize("num_samples", [1, 4])
def test_slope_and_curvature_are_those_of_theory(num_samples):
    found = zojax.suggest_learning_rate(_bowl, zojax.mezo(0.5, num_samples), trials=4000)(KEY, W)
    h, x, n = np.asarray(HESSIAN, np.float64), np.asarray(W, np.float64), num_samples
    g = h @ x
    for samples, theory in (
        (found.slopes, g @ g),
        (found.curvatures, (g @ g * np.trace(h) + (n + 1) * g @ h @ g) / n),
    ):
        samples = np.asarray(samples, np.float64)
        assert abs(samples.mean() - theory) < 5 * samples.std() / len(samples) ** 0.5
    np.testing.assert_allclose(
        found.learning_rate, np.mean(found.slopes) / np.mean(found.curvatures), rtol=1e-5
    )


HEAD = zojax.masked(zojax.gaussian(), [True, False])
BODY = zojax.masked(zojax.low_rank(1), [False, True])
ESTIMATORS = {
    "mezo": zojax.mezo(0.01, 2),
    "fzoo": zojax.fzoo(0.01),
    "ranks": zojax.rank_sgd(0.1, 8),
    "joint": zojax.joint(zojax.mezo(0.01, 2, direction=HEAD), zojax.mezo(0.02, 2, direction=BODY)),
}


@pytest.mark.parametrize("estimator", slow_but(["mezo", "ranks"], ESTIMATORS))
def test_the_suggestion_descends_and_ten_times_it_does_not(estimator):
    params = [W[:4], W[4:].reshape(3, 4)]
    loss = lambda p: _bowl(jnp.concatenate([p[0], p[1].ravel()]))  # noqa: E731
    rate = zojax.suggest_learning_rate(loss, estimator, trials=64)(KEY, params).learning_rate
    vg = zojax.value_and_grad(loss, estimator)

    @jax.jit
    def run(rate):
        def step(p, i):
            grads = vg(jax.random.fold_in(KEY, 1000 + i), p)[1]
            return jax.tree.map(lambda p, g: p - rate * g, p, grads), None

        return loss(jax.lax.scan(step, params, jnp.arange(80))[0])

    start = loss(params)
    assert run(rate) < 0.7 * start
    assert not run(10 * rate) < start


def test_where_nothing_is_steep_there_is_nothing_to_suggest():
    flat = zojax.suggest_learning_rate(lambda w: jnp.sum(w) * 0, zojax.mezo(), trials=2)(KEY, W)
    assert flat.learning_rate == jnp.inf and not flat.slopes.any()
    hill = zojax.suggest_learning_rate(lambda w: -jnp.sum(w**2), zojax.mezo(0.1))(KEY, W)
    assert hill.learning_rate == jnp.inf and (hill.curvatures < 0).all()
    broken = zojax.suggest_learning_rate(lambda w: jnp.sum(w) * jnp.nan, zojax.mezo())(KEY, W)
    assert jnp.isnan(broken.learning_rate)
    with pytest.raises(ValueError, match="trials must be at least 1"):
        zojax.suggest_learning_rate(_bowl, zojax.mezo(), trials=0)
