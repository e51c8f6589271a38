"""The estimate against theory: the projected gradient, its mean and its variance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import zojax
from tests.slow import slow_but
from zojax import noise
from zojax.directions import combine

DIRECTIONS = [
    zojax.gaussian(),
    zojax.rademacher(),
    zojax.integer_normal(),
    zojax.sphere(),
    zojax.low_rank(1),
    zojax.low_rank(3),
    zojax.low_rank(2, refresh=10),
    zojax.subspace(2, refresh=10),
    zojax.coordinates(2),
    zojax.blocks(zojax.rademacher()),
    zojax.n_m(zojax.gaussian(), 2, 4),
    zojax.preconditioned(zojax.low_rank(2), {"b": 2.0, "s": 0.5, "w": np.arange(4.0)}),
]
# made of the code of others
LIKE_OTHERS = {
    "gaussian()", "integer_normal()", "low_rank(1)", "low_rank(3)", "n_m(gaussian(), 2, 4)"
}  # fmt: skip
FAST = [d.name for d in DIRECTIONS if d.name not in LIKE_OTHERS]
each_direction = pytest.mark.parametrize(
    "direction", slow_but(FAST, {d.name: d for d in DIRECTIONS})
)

DRAW = np.random.default_rng(0)
PARAMS = {
    "b": jnp.asarray(DRAW.standard_normal(3), jnp.float32),
    "s": jnp.asarray(DRAW.standard_normal((2, 2, 2)), jnp.float32),
    "w": jnp.asarray(DRAW.standard_normal((3, 4)), jnp.float32),
}
FLAT, UNRAVEL = ravel_pytree(PARAMS)
SIZE = FLAT.size
_ROOT = DRAW.standard_normal((SIZE, SIZE)) / SIZE**0.5
HESSIAN = jnp.asarray(_ROOT + _ROOT.T, jnp.float32)
SLOPE = jnp.asarray(DRAW.standard_normal(SIZE), jnp.float32)


def _quadratic(params):
    x = ravel_pytree(params)[0]
    return 0.5 * x @ (HESSIAN @ x) + SLOPE @ x


def _flat(direction, key):
    return ravel_pytree([t.materialize() for t in direction.terms(key, PARAMS)])[0]


@each_direction
def test_the_coefficient_is_the_projected_gradient(direction):
    """g.z exactly for two sides, g.z + mu/2 z.H.z for one; the same z that makes the update.

    Losses are sums of 23 x 23 products; the quotient divides their rounding error by mu.
    """
    mu, n = 0.5, 2
    draw = jax.jit(lambda keys: jax.lax.map(lambda k: _flat(direction, k), keys))
    update = jax.jit(lambda keys, coefficients: combine(direction, keys, coefficients, PARAMS))
    for scheme in (zojax.two_sided, zojax.one_sided):
        estimator = zojax.Estimator(direction, scheme(n), zojax.difference(), mu)
        found = jax.jit(zojax.estimate(_quadratic, estimator))(jax.random.key(1), PARAMS)
        x, h, b, zs = (np.asarray(a, np.float64) for a in (FLAT, HESSIAN, SLOPE, draw(found.keys)))
        for c, z in zip(found.coefficients, zs, strict=True):
            bias = mu / 2 * z @ h @ z if scheme is zojax.one_sided else 0.0
            moved = abs(x) + mu * abs(z)
            size = 0.5 * moved @ abs(h) @ moved + abs(b) @ moved
            assert abs(float(c) - ((h @ x + b) @ z + bias)) <= 2 * SIZE * 2**-24 * size / mu
        _assert_mean(direction, found.coefficients, zs, update(found.keys, found.coefficients))


def _assert_mean(direction, coefficients, zs, update):
    products = np.asarray(coefficients, np.float64)[:, None] * zs
    expected, size = products.mean(0), abs(products).mean(0).max()
    # integers have one coefficient of 13 bits, everything else a few float32 operations
    integers = direction.name in ("rademacher()", "integer_normal()", "blocks(rademacher())")
    atol = (2**-13 if integers else 16 * 2**-24) * size
    np.testing.assert_allclose(ravel_pytree(update)[0], expected, rtol=0, atol=atol)


MATRIX = {"w": PARAMS["w"]}
ROWS, COLUMNS = PARAMS["w"].shape


def _matrix_loss(params):
    x = params["w"].ravel()
    n = x.size
    return 0.5 * x @ (HESSIAN[:n, :n] @ x) + SLOPE[:n] @ x


def _samples(estimator, loss=_matrix_loss, count=8192):
    steps = jnp.arange(count)
    keys = noise.fold_in(jax.random.key(0), steps)
    vg = zojax.value_and_grad(loss, estimator)
    grads = jax.jit(jax.vmap(lambda k, i: vg(k, MATRIX, step=i)[1]["w"].ravel()))(keys, steps)
    return np.asarray(grads, np.float64)


@pytest.mark.parametrize(
    "direction, excess",
    [
        (zojax.gaussian(), 1.0),
        (zojax.rademacher(), -1.0),
        (zojax.low_rank(1), 1 + 2 * (ROWS + COLUMNS + 1)),
        (zojax.low_rank(3), 1 + 2 * (ROWS + COLUMNS + 1) / 3),
        # half of what the kept factors do, as two samples share them
        (zojax.low_rank(2, refresh=1), 1 + (ROWS + COLUMNS + 1) + (COLUMNS + 1) / 2),
        (zojax.subspace(2, refresh=1), ROWS * COLUMNS * (1 / 4 + 2 / 4) - 2),
        (zojax.integer_normal(), 82331 / 170**2 - 2),
        (zojax.sphere(), -1.0),
        (zojax.coordinates(1), -1.0),
        (zojax.coordinates(4), 0.5),
        (zojax.n_m(zojax.rademacher(), 2, 4), -1.0),
        (zojax.n_m(zojax.gaussian(), 1, 4), 7.0),
    ],
    ids=lambda p: getattr(p, "name", ""),
)
def test_unbiased_with_the_variance_of_theory(direction, excess):
    """E g' = g and E |g' - g|^2 = (d + excess) |g|^2 / n; two sides of a quadratic have no bias.

    The excess of low rank r is 1 + 2 (rows + columns + 1) / r: Isserlis' theorem for
    E |Z|^2 (Z.G)^2 with Z = A B^T / sqrt(r).
    """
    n = 2
    found = _samples(zojax.mezo(0.5, n, direction=direction))
    g = np.asarray(jax.grad(_matrix_loss)(MATRIX)["w"], np.float64).ravel()
    error = found - g
    assert np.all(abs(error.mean(0)) < 5 * error.std(0) / len(found) ** 0.5)
    squared = (error**2).sum(1)
    theory = (g.size + excess) * (g @ g) / n
    assert abs(squared.mean() - theory) < 5 * squared.std() / len(found) ** 0.5


def test_fzoo_is_a_descent_direction_of_fixed_length():
    """Biased by design: on a linear loss the mean is 1.053 g / |g| with eight Gaussian directions.

    With s_k = z_k.g normal, mean and variance of the s_k are independent, so the length along
    g / |g| is E chi_7 / sqrt 8 + (1/8) sqrt 8 E (1 / chi_7) = 0.9027 + 0.1505.
    """
    slope = SLOPE[: ROWS * COLUMNS]
    loss = lambda p: slope @ p["w"].ravel()  # noqa: E731
    found = _samples(zojax.fzoo(0.5, direction=zojax.gaussian()), loss)
    g = np.asarray(slope, np.float64)
    expected = 1.0532 * g / np.linalg.norm(g)
    assert np.all(abs(found.mean(0) - expected) < 5 * found.std(0) / len(found) ** 0.5 + 1e-4)


def test_fzoo_with_its_signs_points_along_the_gradient():
    found = _samples(zojax.fzoo(0.01)).mean(0)
    g = np.asarray(jax.grad(_matrix_loss)(MATRIX)["w"], np.float64).ravel()
    cosine = found @ g / np.linalg.norm(found) / np.linalg.norm(g)
    assert cosine > 0.99
    assert 0.9 < np.linalg.norm(found) < 1.2
