"""Directions: identity covariance, masks, and one vector for the forward and for the update."""

import re
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax
from tests.directions.trees import TREE, assert_covariance, dense, draws
from tests.slow import slow_but
from zojax import noise
from zojax.directions import combine, perturb
from zojax.virtual import materialize

KEY = jax.random.key(0)
# each leaf by itself
LEAFWISE = [
    zojax.gaussian(),
    zojax.rademacher(),
    zojax.integer_normal(),
    zojax.low_rank(1),
    zojax.low_rank(3),
    zojax.low_rank(2, refresh=3, key=5),
    zojax.subspace(2, refresh=3),
    zojax.n_m(zojax.gaussian(), 1, 2),
    zojax.n_m(zojax.low_rank(2), 2, 4),
]
# the tree as a whole: what one leaf does depends on the others
TREEWISE = [
    zojax.sphere(),
    zojax.coordinates(1),
    zojax.coordinates(4),
    zojax.blocks(zojax.gaussian()),
    zojax.blocks(zojax.low_rank(1)),
]
DIRECTIONS = LEAFWISE + TREEWISE
# made of the same code as others
LIKE_OTHERS = {
    "gaussian()", "integer_normal()", "low_rank(1)", "n_m(gaussian(), 1, 2)", "coordinates(1)",
    "blocks(low_rank(1))",
}  # fmt: skip
FAST = [d.name for d in DIRECTIONS if d.name not in LIKE_OTHERS]
each_direction = pytest.mark.parametrize(
    "direction", slow_but(FAST, {d.name: d for d in DIRECTIONS})
)
each_leafwise = pytest.mark.parametrize("direction", LEAFWISE, ids=lambda d: d.name)


@pytest.mark.parametrize("direction", DIRECTIONS, ids=lambda d: d.name)
def test_identity_covariance(direction):
    """E z = 0 and E z z^T = I, over samples and over the steps of what a direction keeps."""
    assert_covariance(draws(direction, TREE), np.eye(18), _rounding(direction))


def _rounding(direction):
    # of the coefficient of integers; of float32 otherwise
    return 2**-13 if direction.name == "integer_normal()" else 1e-5


ONES = jax.tree.map(jnp.ones_like, TREE)
MASK = {"matrix": True, "scalar": False, "stack": False, "vector": True}


class Seen(NamedTuple):
    z: Any
    moved: Any  # ONES, by half of it
    update: Any
    masked_moved: Any  # ONES, by all of it
    masked_update: Any


@partial(jax.jit, static_argnums=0)
def see(direction, key):
    """What a direction does to a tree, in one program: its noise is the same throughout."""
    masked = zojax.masked(direction, MASK)
    moved, masked_moved = perturb(direction, key, ONES, 0.5), perturb(masked, key, ONES, 1.0)
    assert moved["matrix"].name == "['matrix']"
    assert all((masked_moved[name] is leaf) != MASK[name] for name, leaf in ONES.items())
    keys, ones = noise.words(key)[None], jnp.ones(1)
    return Seen(
        dense(direction, key, ONES),
        materialize(moved),
        combine(direction, keys, ones, ONES),
        materialize(masked_moved),
        combine(masked, keys, ones, ONES),
    )


@each_direction
def test_one_key_one_direction(direction):
    first, again = (see(direction, k).z for k in (KEY, jax.random.key(0)))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    other = see(direction, jax.random.key(1)).z
    assert any(jax.tree.leaves(jax.tree.map(lambda a, b: bool(np.any(a != b)), first, other)))


@each_leafwise
def test_equal_leaves_get_different_noise(direction):
    z = dense(direction, KEY, [jnp.zeros((8, 8)), jnp.zeros((8, 8)), jnp.zeros((2, 8, 8))])
    rows = [z[0], z[1], z[2][0], z[2][1]]
    for i, a in enumerate(rows):
        for b in rows[:i]:
            assert np.mean(np.asarray(a) == np.asarray(b)) < 0.9


@each_direction
def test_a_scan_sees_the_slices_of_the_stacked_direction(direction):
    params = {"w": jax.random.normal(KEY, (3, 4, 5)), "v": jax.random.normal(KEY, (3, 4))}
    layers = lambda p: jax.lax.scan(lambda c, layer: (c, layer), 0, p)[1]  # noqa: E731

    @jax.jit
    def both(key, params):
        moved = perturb(direction, key, params, 0.5)
        return zojax.virtualize(layers)(moved), materialize(moved)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=8 * 2**-24 * 4),
        *both(KEY, params),
    )


@each_direction
def test_perturb_moves_by_scale_times_the_direction(direction):
    found = see(direction, KEY)
    jax.tree.map(
        lambda a, z: np.testing.assert_allclose(a, 1 + 0.5 * z, rtol=0, atol=4 * 2**-24 * 8),
        found.moved,
        found.z,
    )


@pytest.mark.parametrize(
    "direction, count",
    [(zojax.rademacher(), n) for n in (1, 17)]
    + [pytest.param(zojax.rademacher(), n, marks=pytest.mark.slow) for n in (16, 40)]
    + [(zojax.integer_normal(), 3), (zojax.low_rank(2), 17), (zojax.sphere(), 3)],
)
def test_combine_is_the_mean_in_float64(direction, count):
    """In one fusion up to sixteen, then in chunks of eight and a rest."""
    params = {"matrix": TREE["matrix"], "vector": TREE["vector"]}
    keys = noise.fold_in(KEY, jnp.arange(count))
    coefficients = jnp.asarray(np.random.default_rng(0).standard_normal(count), jnp.float32)
    found = jax.jit(lambda k, c: combine(direction, k, c, params))(keys, coefficients)
    each = jax.jit(jax.vmap(lambda k: dense(direction, k, params)))(keys)
    weights = coefficients * np.float32(1 / count)
    if direction.name == "rademacher()":  # integers: what is added is one rounded coefficient
        weights = noise.round_coefficient(weights)
        assert np.all(abs(weights * count - coefficients) <= 2**-14 * 1.001 * abs(coefficients))
    for a, z in zip(jax.tree.leaves(found), jax.tree.leaves(each), strict=True):
        terms = np.asarray(z, np.float64) * np.asarray(weights, np.float64).reshape(
            -1, *(1,) * (z.ndim - 1)
        )
        terms *= count
        # each term has up to six roundings, its sum up to `count`
        bound = (count + 6) * 2**-24 * abs(terms).sum(0) / count
        if "low_rank" in direction.name:  # products of factors may cancel within one term
            bound = bound * 4 + 2**-20 * np.abs(coefficients).mean()
        if direction.name == "integer_normal()":  # two roundings of a scale, here and of z
            bound = bound + 2**-13 * 1.001 * abs(terms).sum(0) / count
        assert np.all(abs(np.asarray(a, np.float64) - terms.mean(0)) <= bound)


def test_combine_reads_only_shapes_and_dtypes():
    """The program is the same, to the letter: no value of a parameter is anywhere in it."""
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), TREE)
    full = jax.tree.map(lambda x: jnp.full(x.shape, 7, x.dtype), abstract)
    keys, ones = noise.fold_in(KEY, jnp.arange(2)), jnp.ones(2)
    for direction in (zojax.low_rank(3), zojax.subspace(2), zojax.coordinates(4), zojax.sphere()):
        run = partial(combine, direction)
        found, same = (
            jax.make_jaxpr(lambda k, c, p=params, run=run: run(k, c, p))(keys, ones)
            for params in (abstract, full)
        )
        assert re.sub("0x[0-9a-f]+", "", str(found)) == re.sub("0x[0-9a-f]+", "", str(same))
        assert all(x.dtype == jnp.bfloat16 for x in found.out_avals)
        jax.tree.map(np.testing.assert_array_equal, found.consts, same.consts)


def test_bfloat16_factors_are_the_same_in_forward_and_update():
    """Rounded once, in the direction: a forward that rounds them further would see other ones."""
    params = jnp.zeros((4, 6), jnp.bfloat16)
    (term,) = jax.jit(zojax.low_rank(2).terms)(KEY, params)
    assert term.left.dtype == term.right.dtype == jnp.bfloat16
    identity, float32 = jnp.eye(4), jax.ShapeDtypeStruct((4, 6), jnp.float32)

    @jax.jit
    def run(key):
        moved = perturb(zojax.low_rank(2), key, params, 1.0)
        seen = zojax.virtualize(lambda w: identity @ w.astype(jnp.float32))(moved)
        return seen, combine(zojax.low_rank(2), noise.words(key)[None], jnp.ones(1), float32)

    seen, update = run(KEY)
    a, b = (np.asarray(f, np.float64).squeeze() for f in (term.left, term.right))
    expected = a @ b.T / 2**0.5
    np.testing.assert_allclose(seen, expected, rtol=0, atol=4 * 2**-24 * abs(expected).max())
    # float32 parameters have factors of their own precision, within bfloat16's rounding of these
    bound = 2**-7 * 1.01 * (abs(a) @ abs(b).T) / 2**0.5
    assert np.all(abs(np.asarray(update) - expected) <= bound)


@each_direction
def test_masked_leaves_stay_in_perturb_and_combine(direction):
    found = see(direction, KEY)
    update = found.masked_update
    for name, leaf in ONES.items():
        if MASK[name]:
            moved = found.masked_moved[name] - 1
            np.testing.assert_allclose(moved, update[name], atol=1e-6, rtol=0)
            if direction in LEAFWISE:  # and as without the mask
                np.testing.assert_array_equal(update[name], found.update[name])
        else:
            np.testing.assert_array_equal(update[name], jnp.zeros_like(leaf))
    assert any(np.any(np.asarray(leaf)) for leaf in update.values())


def test_a_mask_may_be_a_function():
    by_size = zojax.masked(zojax.low_rank(1), lambda p: jax.tree.map(lambda x: x.ndim in (1, 2), p))
    found, expected = (
        jax.jit(partial(perturb, direction))(KEY, TREE, 1.0)
        for direction in (by_size, zojax.masked(zojax.low_rank(1), MASK))
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_mask_may_be_a_prefix():
    params = {"a": {"x": jnp.zeros(2), "y": jnp.zeros(3)}, "b": jnp.zeros(4)}
    terms = zojax.masked(zojax.gaussian(), {"a": True, "b": False}).terms(KEY, params)
    assert [t is None for t in terms] == [False, False, True]


@pytest.mark.parametrize("mask", [{"a": True}, {"a": True, "b": {"c": False}}, [True, False]])
def test_a_mask_of_another_tree_is_an_error(mask):
    params = {"a": jnp.zeros(2), "b": jnp.zeros(4)}
    with pytest.raises(ValueError, match="is not a prefix of the parameter tree"):
        zojax.masked(zojax.gaussian(), mask).terms(KEY, params)


def test_an_empty_mask_is_an_error():
    with pytest.raises(ValueError, match="picks no leaf"):
        zojax.masked(zojax.gaussian(), {"a": False}).terms(KEY, {"a": jnp.zeros(2)})


@each_direction
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.complex64, jnp.bool_])
def test_a_leaf_that_is_not_real_floating_point_is_named(direction, dtype):
    params = {"w": jnp.zeros(2), "table": {"ids": jnp.zeros((2, 2), dtype)}}
    expected = rf"leaf \['table'\]\['ids'\] has dtype {jnp.dtype(dtype)}.*zojax.masked"
    with pytest.raises(TypeError, match=expected):
        perturb(direction, KEY, params, 1.0)


@each_direction
def test_a_masked_leaf_may_have_any_dtype(direction):
    """As the error message promises."""
    params = {"ids": jnp.arange(3), "w": jnp.zeros((4, 8))}
    masked = zojax.masked(direction, {"ids": False, "w": True})

    @jax.jit
    def run(key, params):
        assert perturb(masked, key, params, 1.0)["ids"] is params["ids"]
        return combine(masked, noise.words(key)[None], jnp.ones(1), params)

    update = run(KEY, params)
    assert update["ids"].tolist() == [0, 0, 0] and np.any(np.asarray(update["w"]))


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_below_one_is_an_error(rank):
    with pytest.raises(ValueError, match=f"rank must be at least 1, found {rank}"):
        zojax.low_rank(rank)
