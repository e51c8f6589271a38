"""Rademacher, nibble sum and Gaussian: the numbers, the moments and the shape."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from zojax import noise

COUNT = 2**20
BITS = noise.leaf_bits(jnp.array([3, 4], jnp.uint32), (1024, 1024))


@pytest.mark.parametrize(
    "bits, sign, integer, normal",
    [
        (0x3A5C57A3, 1.0, -5.0, -0.94257605),
        (0xAC95ED6E, -1.0, 23.0, 0.79737133),
        (0x869CD48B, -1.0, 11.0, 0.54776198),
        (0xF7DAEEC7, -1.0, 32.0, 0.23193589),
        (0x00000000, 1.0, -60.0, 4.85458579),
        (0xFFFF8000, -1.0, 8.0, -0.00390626),
        (0x00008000, 1.0, -52.0, -4.85458579),
        (0xFFFFFFFF, -1.0, 60.0, 0.00390626),
    ],
)
def test_golden(bits, sign, integer, normal):
    bits = jnp.uint32(bits)
    assert float(noise.rademacher(bits)) == sign
    assert float(noise.nibble_sum(bits)) == integer
    assert abs(float(noise.gaussian(bits)) - normal) <= 2e-6


def test_gaussian_is_box_muller():
    """Against float64; the absolute error is of a few float32 operations on values below 5."""
    bits = np.asarray(BITS[:256], np.uint64)
    u, v = ((bits >> np.uint64(16)) + 0.5) / 2**16, (bits & np.uint64(0xFFFF)) / 2**16
    expected = np.sqrt(-2 * np.log(u)) * np.cos(2 * np.pi * v)
    found = np.asarray(noise.gaussian(BITS[:256]), np.float64)
    assert abs(found - expected).max() < 2e-6


def test_rademacher_moments():
    x = np.asarray(noise.rademacher(BITS), np.float64)
    assert set(np.unique(x)) == {-1.0, 1.0}
    assert abs(x.mean()) < 5 / COUNT**0.5


def test_gaussian_moments():
    """E x^k within five standard errors, sqrt((E x^2k - (E x^k)^2) / n), of the normal's.

    The grid itself is off by 1e-5 in the variance and .004 in the fourth moment.
    """
    x = np.asarray(noise.gaussian(BITS), np.float64)
    for power, moment, double, grid in [(1, 0, 1, 0), (2, 1, 3, 1e-5), (3, 0, 15, 0),
                                        (4, 3, 105, 4e-3)]:  # fmt: skip
        error = 5 * ((double - moment**2) / COUNT) ** 0.5
        assert abs((x**power).mean() - moment) < error + grid, power
    assert abs(x).max() <= 4.854587


def test_gaussian_distribution_function():
    """Kolmogorov-Smirnov at five sigma: sqrt(n) D < sqrt(log(2 / 5.7e-7) / 2) = 2.74."""
    x = np.sort(np.asarray(noise.gaussian(BITS), np.float64).ravel())
    grid = np.linspace(-4.5, 4.5, 2001)
    empirical = np.searchsorted(x, grid, side="right") / COUNT
    normal = np.array([0.5 * math.erfc(-g / 2**0.5) for g in grid])
    assert abs(empirical - normal).max() * COUNT**0.5 < 2.74


def test_gaussian_has_no_serial_correlation():
    x = np.asarray(noise.gaussian(BITS), np.float64)
    for a, b in [(x[:, 1:], x[:, :-1]), (x[1:], x[:-1])]:
        assert abs((a * b).mean()) < 5 / a.size**0.5
        # squares too: their product has variance (E x^4 - 1)^2 = 4
        assert abs(((a**2 - 1) * (b**2 - 1)).mean()) < 5 * 2 / a.size**0.5


def _nibble_law():
    """P(n) for n = -60..60: the eightfold convolution of sixteen equal numbers."""
    law = np.ones(1)
    for _ in range(8):
        law = np.convolve(law, np.full(16, 1 / 16))
    return np.arange(-60, 61), law


def test_nibble_sum_is_the_sum_of_the_nibbles():
    bits = np.asarray(BITS[:64])
    expected = sum(((bits >> (4 * i)) & 15).astype(np.int64) for i in range(8)) - 60
    np.testing.assert_array_equal(noise.nibble_sum(BITS[:64]), expected)


def test_nibble_sum_moments():
    """E n = 0, E n^2 = 170, E n^3 = 0, E n^4 = 82331: within five standard errors of each."""
    n, law = _nibble_law()
    assert [round(float((law * n**k).sum()), 6) for k in range(1, 5)] == [0, 170, 0, 82331]
    x = np.asarray(noise.nibble_sum(BITS), np.float64)
    for power in range(1, 5):
        moment, double = (
            float((law * n.astype(np.float64) ** k).sum()) for k in (power, 2 * power)
        )
        error = 5 * ((double - moment**2) / COUNT) ** 0.5
        assert abs((x**power).mean() - moment) < error, power


def test_nibble_sum_follows_its_law():
    """Chi-square over the values expected at least ten times."""
    n, law = _nibble_law()
    counts = np.bincount(np.asarray(noise.nibble_sum(BITS), np.int64).ravel() + 60, minlength=121)
    common = law * COUNT >= 10
    seen = np.append(counts[common], counts[~common].sum())
    expected = np.append(law[common], law[~common].sum()) * COUNT
    statistic = ((seen - expected) ** 2 / expected).sum()
    freedom = seen.size - 1
    # exact variance of Pearson's statistic: 2 f + (sum 1/p - k^2 - 2k + 2) / n
    p = expected / COUNT
    variance = 2 * freedom + ((1 / p).sum() - p.size**2 - 2 * p.size + 2) / COUNT
    assert abs(statistic - freedom) < 5 * variance**0.5


def _unit(distribution):
    x = np.asarray(getattr(noise, distribution)(BITS), np.float64)
    return x / 170**0.5 if distribution == "nibble_sum" else x


@pytest.mark.parametrize(
    "distribution, kurtosis", [("nibble_sum", 82331 / 170**2), ("gaussian", 3)]
)
@pytest.mark.parametrize("lag", [1, 2, 7, 64])
def test_no_serial_correlation_of_values_or_squares(distribution, kurtosis, lag):
    """Products have variance one; products of centred squares (kurtosis - 1)^2."""
    x = _unit(distribution)
    pairs = [(x[:, lag:], x[:, :-lag]), (x[lag:], x[:-lag]), (x[lag:, lag:], x[:-lag, :-lag])]
    for a, b in pairs:
        assert abs((a * b).mean()) < 5 / a.size**0.5
        assert abs(((a**2 - 1) * (b**2 - 1)).mean()) < 5 * (kurtosis - 1) / a.size**0.5
        assert abs((a**2 * b - b).mean()) < 5 * (kurtosis - 1) ** 0.5 / a.size**0.5


@pytest.mark.parametrize(
    "distribution, kurtosis", [("nibble_sum", 82331 / 170**2), ("gaussian", 3)]
)
def test_no_correlation_between_neighbouring_keys(distribution, kurtosis):
    x = _unit(distribution)
    keys = [(3, 5), (2, 4), (4, 3), (3, 4 + 2**31)]
    keys = [jnp.array(k, jnp.uint32) for k in keys]
    keys += list(noise.fold_in(jnp.array([3, 4], jnp.uint32), jnp.arange(2)))
    for key in keys:
        y = np.asarray(getattr(noise, distribution)(noise.leaf_bits(key, BITS.shape)), np.float64)
        y = y / 170**0.5 if distribution == "nibble_sum" else y
        assert abs((x * y).mean()) < 5 / COUNT**0.5
        assert abs(((x**2 - 1) * (y**2 - 1)).mean()) < 5 * (kurtosis - 1) / COUNT**0.5


@pytest.mark.parametrize("distribution", ["rademacher", "nibble_sum", "gaussian"])
def test_rows_columns_and_keys_have_no_means_of_their_own(distribution):
    """sum of squared means of 1024 groups of 1024: 1024 +- sqrt(2 * 1024) of their variance."""
    x = _unit(distribution)
    keys = noise.fold_in(jnp.array([3, 4], jnp.uint32), jnp.arange(1024))
    by_key = np.asarray(getattr(noise, distribution)(noise.stacked_bits(keys, 32, 32)), np.float64)
    by_key = by_key.reshape(1024, -1) / (170**0.5 if distribution == "nibble_sum" else 1)
    for groups in (x, x.T, by_key):
        statistic = (groups.mean(1) ** 2).sum() * 1024
        assert abs(statistic - 1024) < 5 * (2 * 1024) ** 0.5
