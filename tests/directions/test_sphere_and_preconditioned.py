"""The sphere's radius, and directions with a covariance of one's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax
from tests.directions.trees import TREE, assert_covariance, draws
from zojax import noise
from zojax.directions import combine, perturb
from zojax.virtual import LowRank, Noise

KEY = jax.random.key(0)


def test_the_sphere_has_the_radius_of_the_whole_tree():
    z = draws(zojax.sphere(), TREE, 256)
    np.testing.assert_allclose((z**2).sum(1), 18, rtol=18 * 2**-23)
    part = {"matrix": True, "scalar": False, "stack": False, "vector": True}
    z = draws(zojax.masked(zojax.sphere(), part), TREE, 256)
    np.testing.assert_allclose((z**2).sum(1), 9, rtol=18 * 2**-23)


def test_the_sphere_is_uniform():
    """z_i^2 / d is Beta(1/2, (d-1)/2): E z_i^4 = 3 d / (d + 2), and 15 d^2 / ((d+2)(d+4))."""
    z = draws(zojax.sphere(), {"v": jnp.zeros(3), "w": jnp.zeros((1, 2))})
    d, count = 5, len(z)
    for power, moment, double in [
        (4, 3 * d / (d + 2), 105 * d**3 / ((d + 2) * (d + 4) * (d + 6))),
        (2, 1, 3 * d / (d + 2)),
    ]:
        error = 5 * ((double - moment**2) / count) ** 0.5
        assert np.all(abs((z**power).mean(0) - moment) < error + 4e-3 * (power == 4))


@pytest.mark.parametrize("shape", [(2000, 1000), (3, 700_001), (700_001,), (5, 600, 999)])
def test_the_norm_of_a_large_leaf_is_summed_in_parts(shape):
    leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
    z = np.asarray(jax.jit(lambda k: zojax.sphere().terms(k, leaf)[0].materialize())(KEY), float)
    # each part is a tree of sums, of at most 2**18 numbers
    np.testing.assert_allclose((z**2).sum(), z.size, rtol=64 * 2**-24)


def test_the_norm_of_the_sphere_stores_no_noise():
    """Neither in the update of one matrix, nor beside the perturbed one of a forward."""

    def temporaries(direction, use):
        def moved(key, w, x):
            return zojax.virtualize(use)(perturb(direction, key, w, 1e-3), x)

        shapes = [(2,), (4096, 2048), (4, 4096)]
        dtypes = [jnp.uint32, jnp.float32, jnp.float32]
        args = map(jax.ShapeDtypeStruct, shapes, dtypes)
        return jax.jit(moved).lower(*args).compile().memory_analysis().temp_size_in_bytes

    for use in (lambda w, x: w + 1.0, lambda w, x: jnp.sum(x @ w)):
        # two parts at most, of the 32 that the matrix has, and a few numbers a row
        assert (
            temporaries(zojax.sphere(), use) <= temporaries(zojax.gaussian(), use) + 2**21 + 2**16
        )


D = {
    "matrix": jnp.array([[0.5, 2.0, 1.0], [3.0, 0.0, 1.5]]),
    "scalar": 4.0,
    "stack": jnp.array([[[0.25], [1.0]], [[2.0], [3.0]]]),
    "vector": jnp.array([1.0, 2.0, 0.5]),
}


@pytest.mark.parametrize(
    "direction", [zojax.gaussian(), zojax.integer_normal(), zojax.low_rank(2)], ids=lambda d: d.name
)
def test_the_covariance_is_the_diagonal(direction):
    z = draws(zojax.preconditioned(direction, D), TREE)
    expected = [np.broadcast_to(D[k], TREE[k].shape).ravel() for k in sorted(TREE)]
    assert_covariance(z, np.diag(np.concatenate(expected)), 2**-13)


def test_the_estimate_is_the_preconditioned_gradient():
    """Its mean is D g, its total variance (tr(D) g^T D g + |D g|^2) / n with Gaussian z."""
    slope = jnp.array([1.0, -2.0, 0.5])
    d, n, count = np.array([4.0, 0.25, 1.0]), 2, 8192
    direction = zojax.preconditioned(zojax.gaussian(), jnp.asarray(d))
    vg = zojax.value_and_grad(lambda w: slope @ w, zojax.mezo(0.5, n, direction=direction))
    keys = noise.fold_in(KEY, jnp.arange(count))
    found = np.asarray(jax.jit(jax.vmap(lambda k: vg(k, jnp.zeros(3))[1]))(keys), np.float64)
    g = np.asarray(slope, np.float64)
    error = found - d * g
    assert np.all(abs(error.mean(0)) < 5 * error.std(0) / count**0.5)
    squared = (error**2).sum(1)
    theory = (d.sum() * (g @ (d * g)) + ((d * g) ** 2).sum()) / n
    assert abs(squared.mean() - theory) < 5 * squared.std() / count**0.5


@pytest.mark.parametrize(
    "shape, diagonal, low_rank",
    [
        ((4, 6), (), True),
        ((4, 6), (1, 1), True),
        ((4, 6), (4, 1), True),
        ((4, 6), (1, 6), True),
        ((4, 6), (6,), True),
        ((4, 6), (4, 6), False),
        ((2, 4, 6), (2, 4, 1), True),
        ((2, 4, 6), (6,), True),
        ((2, 4, 6), (2, 1, 6), False),
    ],
)
def test_low_rank_terms_stay_so_where_they_can(shape, diagonal, low_rank):
    d = jnp.asarray(np.random.default_rng(0).uniform(0.1, 2, diagonal), jnp.float32)
    w = jnp.zeros(shape)
    inner = zojax.low_rank(2)

    @jax.jit
    def run(key):
        (term,), (plain,) = zojax.preconditioned(inner, d).terms(key, w), inner.terms(key, w)
        assert isinstance(term, LowRank) == low_rank
        flipped = term.transpose(tuple(reversed(range(len(shape)))))
        return plain.materialize(), term.materialize(), flipped.materialize()

    plain, found, flipped = run(KEY)
    expected = np.sqrt(np.asarray(d, np.float64)) * np.asarray(plain, np.float64)
    bound = 16 * 2**-24 * abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound)
    np.testing.assert_allclose(flipped, expected.T, rtol=0, atol=bound)


def test_nested_diagonals_are_an_outer_product():
    rows, cols = jnp.array([[1.0], [4.0]]), jnp.array([1.0, 9.0, 0.25])
    outer = zojax.preconditioned(zojax.preconditioned(zojax.low_rank(1), rows), cols)
    (term,) = outer.terms(KEY, jnp.zeros((2, 3)))
    (plain,) = zojax.low_rank(1).terms(KEY, jnp.zeros((2, 3)))
    assert isinstance(term, LowRank)
    expected = jnp.sqrt(rows * cols) * plain.materialize()
    np.testing.assert_allclose(term.materialize(), expected, rtol=8 * 2**-23)


def test_a_scalar_keeps_noise_exact():
    (term,) = zojax.preconditioned(zojax.rademacher(), 4.0).terms(KEY, jnp.zeros((3, 4)))
    assert isinstance(term, Noise) and np.all(abs(np.asarray(term.materialize())) == 2)


def test_a_traced_diagonal_and_a_masked_one():
    def moved(d):
        direction = zojax.preconditioned(zojax.gaussian(), d)
        return combine(direction, noise.words(KEY)[None], jnp.ones(1), TREE)

    traced, eager = jax.jit(moved)(D), jax.jit(lambda: moved(D))()
    for a, b in zip(jax.tree.leaves(traced), jax.tree.leaves(eager), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    flags = {"matrix": False, "scalar": True, "stack": True, "vector": True}
    masked = zojax.masked(zojax.preconditioned(zojax.gaussian(), D), flags)
    z = dict(zip(sorted(TREE), masked.terms(KEY, TREE), strict=True))
    assert z["matrix"] is None
    np.testing.assert_allclose(z["stack"].materialize(), eager["stack"], rtol=1e-6)


@pytest.mark.parametrize(
    "diagonal, message",
    [
        ({"w": jnp.ones((3, 2))}, r"leaf \['w'\] has shape \[3, 2\].*shape \[2, 3\]"),
        ({"w": jnp.ones((1, 2, 3))}, r"does not broadcast"),
        ({"w": -1.0}, r"leaf \['w'\] has an entry that is negative or NaN"),
        ({"w": jnp.array([1.0, jnp.nan, 1.0])}, "negative or NaN"),
        ({"v": 1.0}, "the diagonal .* is not a prefix of the parameter tree"),
    ],
)
def test_a_wrong_diagonal_is_an_error(diagonal, message):
    with pytest.raises(ValueError, match=message):
        zojax.preconditioned(zojax.gaussian(), diagonal).terms(KEY, {"w": jnp.zeros((2, 3))})
