"""Numbers drawn for many leaves at once are those that each leaf would draw by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax
from tests.noise.test_exact_updates import INTEGERS
from zojax import noise, virtual
from zojax.directions import Direction, combine, perturb
from zojax.virtual import Noise
from zojax.virtual._noise import ONE, ONES, scaled

KEY = jax.random.key(7)
PARAMS = {
    "bias": [jnp.ones(64), jnp.ones(127), jnp.ones(250), jnp.ones(64), jnp.ones(())],
    "empty": jnp.ones((0, 3)),
    "long": jnp.ones(2**16 + 1),
    "weights": [jnp.ones((6, 64)), jnp.ones((2, 3, 64)), jnp.ones((6, 128)), jnp.ones((5, 64))],
    "narrow": [jnp.ones((64, 2))] * 2,
}
# of each layer's layout what is before and after the layers has two parts and one
VECTORS = {
    "after": jnp.ones(262),
    "before": [jnp.ones(66), jnp.ones(262)],
    "layers": [[jnp.ones(n) for n in (197, 66, 262, 262)] for _ in range(5)],
}
# the same beside matrices; one vector leaves some numbers of its part
MODEL = {
    "after": {"norm": jnp.ones(64), "other": jnp.ones(55), "scalar": jnp.ones(())},
    "before": [jnp.ones((96, 64)), jnp.ones(128), jnp.ones((32, 64))],
    "layers": [
        [jnp.ones(shape) for shape in ((64,), (64, 128), (64, 64), (128, 64), (128,), (64,))]
        for _ in range(4)
    ],
}
MADE = {
    "gaussian": zojax.gaussian(),
    "nibble_sum": zojax.integer_normal(),
    "rademacher": zojax.rademacher(),
}


def _terms(direction: Direction) -> list:
    return list(jax.jit(lambda key: direction.terms(key, PARAMS))(KEY))


@pytest.mark.parametrize("params", [PARAMS, VECTORS, MODEL], ids=["params", "vectors", "model"])
@pytest.mark.parametrize("distribution", MADE)
def test_a_leaf_draws_the_numbers_of_its_own_key(distribution, params):
    @jax.jit
    def values(key, scale):
        alone = [
            Noise.of_leaf(noise.fold_in(key, i), 1.0, distribution, leaf.shape)
            for i, leaf in enumerate(jax.tree.leaves(params))
        ]
        drawn = MADE[distribution].terms(key, params)
        return [[t.scaled(scale).materialize() for t in terms] for terms in (drawn, alone)]

    for scale in (1.0, 0.3):
        for a, b in zip(*values(KEY, jnp.float32(scale)), strict=True):
            if distribution == "gaussian":
                np.testing.assert_allclose(a, b, rtol=2e-6, atol=0)
            else:
                np.testing.assert_array_equal(a, b)


def test_what_is_stored_is_small():
    stored = [leaf for term in _terms(zojax.gaussian()) for leaf in jax.tree.leaves(term)]
    # the numbers of four vectors, 64 at a time, and fewer words of keys: nothing of the long vector
    # or of a matrix
    assert max(leaf.size for leaf in stored) == 64 + 128 + 256 + 64


@pytest.mark.parametrize("distribution", ["rademacher", "nibble_sum"])
def test_known_row_keys_change_no_view(distribution):
    # integers of several kinds: a row has one key, or several
    weights = [i for i, leaf in enumerate(jax.tree.leaves(PARAMS)) if leaf.shape == (2, 3, 64)]
    (place,) = weights
    term = _terms(MADE[distribution])[place]
    assert isinstance(term, Noise) and term.row_keys is not None
    plain = Noise.of_leaf(noise.fold_in(KEY, place), 1.0, distribution, (2, 3, 64))
    views = [
        lambda t: t.transpose((2, 0, 1)),
        lambda t: t.transpose((1, 0, 2)),  # rows out of their order: hashed again
        lambda t: t.reshape((6, 64)),
        lambda t: t.reshape((2, 3, 8, 8)).transpose((2, 0, 3, 1)),
        lambda t: t.slice((1, 0, 5), (1, 3, 9), (1, 1, 1)),
        lambda t: t.slice((0, 0, 0), (2, 2, 64), (1, 1, 1)),
        lambda t: t.slice((0, 1, 0), (2, 1, 32), (1, 2, 2)),
        lambda t: t.slice((jnp.int32(1), 0, 0), (1, 3, 64), (1, 1, 1)).reshape((3, 64)),
        lambda t: t.broadcast((4, 2, 3, 64), (1, 2, 3)),
    ]
    at = jnp.array([1, 0, 1])

    @jax.jit
    def seen(t):
        return [*(view(t).materialize() for view in views), t.rows(at, 0)]

    for a, b in zip(seen(term), seen(plain), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("distribution", [*INTEGERS, "gaussian"])
def test_the_coefficient_of_a_scale_of_one(distribution):
    scale, coefficient = scaled(jnp.float32(1), 1.0, distribution)
    assert (float(scale), float(coefficient)) == (float(ONE), float(ONES[distribution]))


STRETCHED = {
    "w": jnp.linspace(0.5, 2, 128),
    "v": jnp.linspace(1, 3, 64),
    "s": jnp.float32(4),
}


@pytest.mark.parametrize(
    "direction",
    [
        *MADE.values(),
        zojax.preconditioned(zojax.gaussian(), STRETCHED),
        zojax.preconditioned(zojax.rademacher(), STRETCHED),
        zojax.masked(zojax.gaussian(), {"w": True, "v": True, "s": False}),
        zojax.blocks(zojax.gaussian(), {"w": "a", "v": "b", "s": "b"}),
        zojax.sphere(),
        zojax.n_m(zojax.gaussian(), 2, 4),
    ],
    ids=lambda direction: direction.name,
)
def test_what_perturbs_is_what_updates(direction):
    params = {"w": jnp.zeros((64, 128)), "v": jnp.zeros(64), "s": jnp.zeros(())}

    @jax.jit
    def both(key):
        words = noise.words(key)
        moved = virtual.materialize(perturb(direction, words, params, 0.25))
        return moved, combine(direction, words[None], jnp.array([0.25]), params)

    moved, update = both(KEY)
    for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(update), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
