"""Rademacher and Gaussian: the numbers, the moments and the shape."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from zojax import noise

COUNT = 2**20
BITS = noise.leaf_bits(jnp.array([3, 4], jnp.uint32), (1024, 1024))


@pytest.mark.parametrize(
    "bits, sign, normal",
    [
        (0x3A5C57A3, 1.0, -0.94257605),
        (0xAC95ED6E, -1.0, 0.79737133),
        (0x869CD48B, -1.0, 0.54776198),
        (0xF7DAEEC7, -1.0, 0.23193589),
        (0x00000000, 1.0, 4.85458579),
        (0xFFFF8000, -1.0, -0.00390626),
        (0x00008000, 1.0, -4.85458579),
    ],
)
def test_golden(bits, sign, normal):
    bits = jnp.uint32(bits)
    assert float(noise.rademacher(bits)) == sign
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
