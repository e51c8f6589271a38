"""Differential privacy: sensitivity, noise, and the account against integrals of our own."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax

DRAW = np.random.default_rng(0)
MU = jnp.float32(0.5)
CLIP, N, B = 0.75, 4, 6
PLUS, MINUS = (jnp.asarray(3 * DRAW.standard_normal((N, B)), jnp.float32) for _ in range(2))
LOSSES = zojax.Losses(plus=PLUS, minus=MINUS)


def _coefficients(losses, noise_multiplier=0.0, key=0):
    shaped = zojax.private(CLIP, noise_multiplier)(losses, MU, jax.random.key(key))
    return np.asarray(shaped, np.float64)


@pytest.mark.parametrize(
    "losses",
    [
        LOSSES,
        zojax.Losses(base=MINUS[0], plus=PLUS),
        zojax.Losses(base=MINUS[0], slope=PLUS),
    ],
    ids=["two_sided", "one_sided", "forward_gradient"],
)
def test_each_example_is_clipped_before_the_mean(losses):
    if losses.slope is not None:
        each = np.asarray(PLUS, np.float64)
    elif losses.minus is not None:
        each = np.asarray(PLUS, np.float64) - np.asarray(MINUS, np.float64)
    else:
        each = (np.asarray(PLUS, np.float64) - np.asarray(MINUS[0], np.float64)) * 2
    assert 0 < (abs(each) > CLIP).sum() < each.size
    expected = np.clip(each, -CLIP, CLIP).mean(1)
    np.testing.assert_allclose(_coefficients(losses), expected, rtol=0, atol=8 * 2**-23 * 8)


@pytest.mark.parametrize("loss", [0.1, -3.0, 1e6, -np.inf, np.inf])
def test_one_example_moves_the_sums_by_at_most_the_clip(loss):
    """Added or taken away: at most C in each of n sums, so C sqrt(n) in norm, whatever it says."""
    one = lambda a, x: a.at[:, 2].set(x)  # noqa: E731
    # an example with no difference adds nothing: it is as if it were not there
    without = zojax.Losses(plus=one(PLUS, 0.0), minus=one(MINUS, 0.0))
    signs = jnp.asarray([1.0, -1.0, 1.0, 1.0])
    others = zojax.Losses(plus=one(PLUS, loss * signs), minus=one(MINUS, 0.0))
    moved = B * (_coefficients(others) - _coefficients(without))
    assert np.linalg.norm(moved) <= CLIP * N**0.5 * (1 + 2**-20)
    if abs(loss) > 2 * CLIP:
        np.testing.assert_allclose(abs(moved), CLIP, rtol=2**-20)


def test_the_noise_has_its_variance():
    """s^2 C^2 n / B^2, mean zero, independent between directions."""
    multiplier, count = 1.5, 4096
    draw = jax.vmap(lambda k: zojax.private(CLIP, multiplier)(LOSSES, MU, k))
    noisy = jax.jit(draw)(jax.random.split(jax.random.key(0), count))
    noise = np.asarray(noisy, np.float64) - _coefficients(LOSSES)
    deviation = multiplier * CLIP * N**0.5 / B
    assert np.all(abs(noise.mean(0)) < 5 * deviation / count**0.5)
    covariance = noise.T @ noise / count
    spread = deviation**2 * np.sqrt((1 + np.eye(N)) / count)
    assert np.all(abs(covariance - deviation**2 * np.eye(N)) < 5 * spread)


def test_the_noise_differs_from_step_to_step():
    loss = lambda w: jnp.stack([w.sum(), -w.sum()])  # noqa: E731
    shaping = zojax.private(1.0, 1.0)
    estimator = zojax.mezo(0.5)._replace(shaping=shaping)
    ask = jax.jit(zojax.estimate(loss, estimator, per_example=True))
    # the two examples cancel: what is left is noise, another in each estimate
    found = [float(ask(jax.random.key(k), jnp.zeros(3)).coefficients[0]) for k in range(8)]
    assert len(set(found)) == 8 and 0 not in found


def test_a_mean_cannot_be_private():
    means = zojax.Losses(plus=PLUS[:, 0], minus=MINUS[:, 0])
    with pytest.raises(ValueError, match="clips each example.*per_example=True"):
        _coefficients(means)
    with pytest.raises(ValueError, match="needs a two-sided scheme, one with a base query"):
        _coefficients(zojax.Losses(plus=PLUS))


@pytest.mark.parametrize("clip, multiplier", [(0.0, 1.0), (-1.0, 1.0), (1.0, -1.0)])
def test_settings_of_private_out_of_range_are_errors(clip, multiplier):
    with pytest.raises(ValueError, match=f"found {clip}, {multiplier}"):
        zojax.private(clip, multiplier)


def _log_integral(log_values, step):
    top = log_values.max()
    return top + math.log(np.exp(log_values - top).sum() * step)


def _renyi_by_quadrature(order, sigma, rate, reverse=False):
    """Divergence between a subsampled Gaussian and the Gaussian, by the trapezoid rule."""
    step = sigma / 200
    x = np.arange(-60 * sigma, 60 * sigma + order + 1, step)
    base = -(x**2) / (2 * sigma**2) - math.log(sigma * math.sqrt(2 * math.pi))
    shifted = base + (2 * x - 1) / (2 * sigma**2)
    mixed = np.logaddexp(base + math.log1p(-rate), shifted + math.log(rate))
    p, q = (base, mixed) if reverse else (mixed, base)
    return _log_integral(order * p + (1 - order) * q, step) / (order - 1)


ORDERS = range(2, 65)


def _epsilon_by_quadrature(sigma, rate, steps, delta, reverse=False):
    found = []
    for order in ORDERS:
        divergence = steps * _renyi_by_quadrature(order, sigma, rate, reverse)
        convert = math.log1p(-1 / order) - math.log(delta * order) / (order - 1)
        found.append(divergence + convert)
    return min(found)


@pytest.mark.parametrize(
    "sigma, rate, steps, delta",
    [(1.1, 256 / 60_000, 14_063, 1e-5), (0.8, 0.1, 50, 1e-5), (2.0, 0.5, 10, 1e-6)],
)
def test_the_account_is_the_integral(sigma, rate, steps, delta):
    found = zojax.privacy_spent(sigma, rate, steps, delta)
    expected = _epsilon_by_quadrature(sigma, rate, steps, delta)
    assert abs(found - expected) < 1e-6 * expected
    # an example taken away says no more than one added
    assert _epsilon_by_quadrature(sigma, rate, steps, delta, reverse=True) <= expected * (1 + 1e-9)


@pytest.mark.parametrize("sigma, steps", [(1.0, 1), (5.0, 10), (10.0, 1000), (0.5, 3)])
def test_the_account_is_an_upper_bound_of_the_gaussian_mechanism(sigma, steps):
    """Without subsampling delta is known in closed form: Balle and Wang, 2018, theorem 8."""
    delta = 1e-5
    epsilon = zojax.privacy_spent(sigma, 1.0, steps, delta)
    shift = math.sqrt(steps) / sigma

    def exact(epsilon):
        normal = lambda x: math.erfc(-x / math.sqrt(2)) / 2  # noqa: E731
        return normal(shift / 2 - epsilon / shift) - math.exp(epsilon) * normal(
            -shift / 2 - epsilon / shift
        )

    # Renyi accounting is known to lose a few percent, and never gains
    assert exact(epsilon) <= delta
    assert exact(0.85 * epsilon) > delta


def test_the_account_grows_and_shrinks_as_it_should():
    spent = zojax.privacy_spent
    assert spent(1.0, 0.01, 0, 1e-5) == 0
    assert spent(1.0, 0.01, 100, 1e-5) < spent(1.0, 0.01, 200, 1e-5)
    assert spent(2.0, 0.01, 100, 1e-5) < spent(1.0, 0.01, 100, 1e-5)
    assert spent(1.0, 0.01, 100, 1e-5) < spent(1.0, 0.02, 100, 1e-5)
    assert spent(1.0, 0.01, 100, 1e-5) < spent(1.0, 0.01, 100, 1e-7)
    # a rate that is nearly one is nearly no subsampling
    assert abs(spent(2.0, 1 - 1e-9, 10, 1e-5) - spent(2.0, 1.0, 10, 1e-5)) < 1e-5


@pytest.mark.parametrize(
    "arguments", [(0.0, 0.1, 1, 1e-5), (1.0, 0.0, 1, 1e-5), (1.0, 1.1, 1, 1e-5),
                  (1.0, 0.1, -1, 1e-5), (1.0, 0.1, 1, 0.0), (1.0, 0.1, 1, 1.0)]
)  # fmt: skip
def test_an_account_out_of_range_is_an_error(arguments):
    with pytest.raises(ValueError, match="privacy_spent needs noise_multiplier > 0"):
        zojax.privacy_spent(*arguments)
