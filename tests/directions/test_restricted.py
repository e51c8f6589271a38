"""Directions that move a part: blocks, coordinates, n of every m; and the draws they rest on."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax
from zojax import noise
from zojax.directions import perturb
from zojax.directions._direction import below, choose
from zojax.virtual import LowRank, materialize

KEY = jax.random.key(0)
KEYS = noise.fold_in(KEY, jnp.arange(4096))
PARAMS = {"a": jnp.zeros((3, 4)), "b": jnp.zeros(6), "c": jnp.zeros((2, 2, 3)), "d": jnp.zeros(())}
_M = 2**32


def _many(direction, params=PARAMS, keys=KEYS):
    """Every leaf of many directions, dense: arrays (keys, *shape)."""

    def dense(key):
        terms = direction.terms(key, params)
        flat = jax.tree.leaves(params)
        return [jnp.zeros(x.shape) if t is None else t.materialize() + jnp.zeros(x.shape)
                for t, x in zip(terms, flat, strict=True)]  # fmt: skip

    leaves = jax.jit(jax.vmap(dense))(keys)
    return jax.tree.unflatten(jax.tree.structure(params), list(map(np.asarray, leaves)))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000, 2**16, 2**16 + 1, 2**31 + 5, 2**32 - 1])
def test_below_is_the_high_word_of_a_product(size):
    draw = np.random.default_rng(size)
    words = draw.integers(0, _M, (2, 500), dtype=np.uint64).astype(np.uint32)
    words[:, :4] = [[0, 0, _M - 1, _M - 1], [0, _M - 1, 0, _M - 1]]
    found = below((jnp.asarray(words[0]), jnp.asarray(words[1])), size)
    expected = [(int(a) * _M + int(b)) * size >> 64 for a, b in words.T]
    assert np.asarray(found).tolist() == expected and max(expected) < size


@pytest.mark.parametrize(
    "weights", [[1], [1, 1], [3, 5, 7], [1, 2**40, 1], [7_000_000_000, 1, 4096], [1, 0, 2, 0, 0]]
)
def test_choose_splits_the_words_by_weight(weights):
    """Against exact fractions, at the borders: the last word before each and the first after."""
    borders = [sum(weights[:i]) * 2**64 // sum(weights) for i in range(1, len(weights) + 1)]
    points = {p for b in borders for p in (b - 1, b, b + 1)} | {0, 2**64 - 1}
    points = sorted(p for p in points if 0 <= p < 2**64)
    words = np.array([[p >> 32 for p in points], [p % _M for p in points]], np.uint64)
    found = choose(tuple(jnp.asarray(w.astype(np.uint32)) for w in words), weights)
    expected = [next(i for i, b in enumerate(borders) if p < b) for p in points]
    assert np.asarray(found).tolist() == expected
    assert all(weights[i] for i in expected)


# blocks

PARTITION = {"a": "left", "b": "right", "c": "left", "d": "rest"}


@pytest.mark.parametrize(
    "probabilities",
    [None, {"left": 0.5, "right": 0.25, "rest": 0.25}, {"left": 1, "right": 2, "rest": 5}],
)
def test_one_block_moves_with_its_probability_and_scale(probabilities):
    z = _many(zojax.blocks(zojax.rademacher(), PARTITION, probabilities))
    weights = probabilities or {"left": 1, "right": 1, "rest": 1}
    active = {name: np.any(z[name].reshape(len(KEYS), -1), axis=1) for name in z}
    np.testing.assert_array_equal(active["a"], active["c"])
    assert np.all(active["a"].astype(int) + active["b"] + active["d"] == 1)
    for name, label in PARTITION.items():
        p = float(Fraction(weights[label]) / sum(map(Fraction, weights.values())))
        moved = np.count_nonzero(active[name])
        assert abs(moved - p * len(KEYS)) < 5 * (p * (1 - p) * len(KEYS)) ** 0.5
        values = abs(z[name][active[name]])
        np.testing.assert_allclose(values, p**-0.5, rtol=2**-14)


def test_a_block_that_moves_is_the_direction_itself():
    inner = zojax.gaussian()
    z, free = _many(zojax.blocks(inner, PARTITION)), _many(inner)
    active = np.any(z["b"], axis=1)
    np.testing.assert_allclose(z["b"][active], 3**0.5 * free["b"][active], rtol=2e-6)


def test_the_noise_of_a_block_that_stays_is_not_made():
    """Its branch of the conditional is a constant; the other one holds all the multiplications."""

    def moved(key, w):
        tree = perturb(zojax.blocks(zojax.gaussian()), key, {"w": w, "v": w}, 1e-3)
        return materialize(tree)

    w = jnp.zeros((64, 64))
    jaxpr = jax.make_jaxpr(moved)(noise.words(KEY), w)
    conds = [
        [{e.primitive.name for e in _equations(b.jaxpr)} for b in cond.params["branches"]]
        for cond in _equations(jaxpr.jaxpr)
        if cond.primitive.name == "cond"
    ]
    drawing = [branches for branches in conds if any("log" in names for names in branches)]
    assert len(drawing) == 2
    for still, moving in drawing:
        assert still <= {"broadcast_in_dim"} and {"log", "shift_right_logical"} <= moving
    assert "log" not in {e.primitive.name for e in _equations(jaxpr.jaxpr)}


def _equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        if eqn.primitive.name != "cond":
            for inner in eqn.params.values():
                if hasattr(inner, "jaxpr"):
                    yield from _equations(inner.jaxpr)


def test_blocks_without_entries_are_never_drawn():
    params = {"full": jnp.zeros(3), "empty": jnp.zeros((0, 2))}
    z = _many(zojax.blocks(zojax.rademacher()), params)
    assert np.all(abs(z["full"]) == 1)
    masked = zojax.masked(
        zojax.blocks(zojax.rademacher()), {"a": True, "b": False, "c": True, "d": False}
    )
    z = _many(masked)
    one = np.any(z["a"], axis=(1, 2)) != np.any(z["c"], axis=(1, 2, 3))
    assert np.all(one) and not np.any(z["b"]) and not np.any(z["d"])


@pytest.mark.parametrize(
    "partition, probabilities, message",
    [
        ({"a": 0}, None, "the partition .* is not a prefix of the parameter tree"),
        (PARTITION, {"left": 1, "right": 1}, r"blocks .*'left'.* the partition has .*'rest'"),
        (
            PARTITION,
            {"left": 1, "right": 0, "rest": 1},
            "of block 'right' must be positive, found 0",
        ),
        (PARTITION, {"left": 1, "right": float("nan"), "rest": 1}, "must be positive, found nan"),
    ],
)
def test_wrong_blocks_are_errors(partition, probabilities, message):
    with pytest.raises(ValueError, match=message):
        zojax.blocks(zojax.gaussian(), partition, probabilities).terms(KEY, PARAMS)
    with pytest.raises(ValueError, match="have no entries"):
        zojax.blocks(zojax.gaussian()).terms(KEY, {"a": jnp.zeros(0)})


# coordinates


@pytest.mark.parametrize("count", [1, 3])
def test_coordinates_are_drawn_uniformly(count):
    z = _many(zojax.coordinates(count))
    flat = np.concatenate([z[k].reshape(len(KEYS), -1) for k in sorted(z)], axis=1)
    d = flat.shape[1]
    assert d == 31
    hits = np.abs(flat) / (d / count) ** 0.5
    if count == 1:
        np.testing.assert_allclose(hits.sum(1), 1, rtol=1e-6)
        # Pearson's chi-square of the coordinates: mean d - 1, variance 2 (d - 1)
        expected = len(KEYS) / d
        statistic = ((hits.sum(0) - expected) ** 2 / expected).sum()
        assert abs(statistic - (d - 1)) < 5 * (2 * (d - 1)) ** 0.5
    else:
        np.testing.assert_allclose(hits, np.round(hits), rtol=0, atol=1e-6)
        assert np.all((hits.sum(1) < count + 0.01) & (np.round(hits.sum(1)) % 2 == count % 2))


def test_coordinates_of_a_mask():
    mask = {"a": np.arange(12).reshape(3, 4) % 5 == 0, "b": False, "c": True, "d": True}
    z = _many(zojax.coordinates(1, mask))
    assert not np.any(z["b"]) and not np.any(z["a"][:, ~mask["a"]])
    flat = np.concatenate([z["a"][:, mask["a"]], z["c"].reshape(len(KEYS), -1), z["d"][:, None]], 1)
    d = 3 + 12 + 1
    assert np.all((flat != 0).sum(1) == 1)
    np.testing.assert_allclose(abs(flat).max(1), d**0.5, rtol=1e-6)
    counts, expected = (flat != 0).sum(0), len(KEYS) / d
    assert abs(((counts - expected) ** 2 / expected).sum() - (d - 1)) < 5 * (2 * (d - 1)) ** 0.5


def test_coordinates_are_never_dense_in_a_matmul():
    w, x = jnp.zeros((64, 32)), jnp.ones((5, 64))
    explanation = zojax.explain(lambda w: x @ w)(perturb(zojax.coordinates(2), KEY, w, 1.0))
    assert [use.how for use in explanation.uses] == ["fused"]
    (term,) = zojax.coordinates(2).terms(KEY, w)
    assert isinstance(term, LowRank) and (term.left.size, term.right.size) == (128, 64)


def test_coordinates_of_a_tree_beyond_two_to_the_32():
    """Leaves in proportion to their sizes, without a leaf ever being made."""
    sizes = [(2**17, 2**16), (2**17, 2**15), (5,)]
    words = noise.leaf_bits(KEY, (2, 30_000))
    leaves = choose((words[0], words[1]), [2**33, 2**32, 5])
    counts = np.bincount(np.asarray(leaves), minlength=3)
    assert abs(counts[0] - 20_000) < 5 * (30_000 * 2 / 9) ** 0.5 and counts[2] == 0
    shapes = jax.eval_shape(
        lambda k: zojax.coordinates(1).terms(
            k, [jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in sizes]
        ),
        KEY,
    )
    assert [t.left.size for t in shapes] == [2**17, 2**17, 1]


@pytest.mark.parametrize(
    "mask, message",
    [
        ({"a": False, "b": False, "c": False, "d": False}, "no coordinate to draw"),
        ({"a": np.ones((3, 4)), "b": True, "c": False, "d": True}, r"\['a'\] is float64\[3, 4\]"),
        ({"a": np.ones((4, 3), bool), "b": False, "c": False, "d": False}, r"shape \[3, 4\]"),
        ({"a": True}, "the mask .* is not a prefix"),
    ],
)
def test_wrong_masks_of_coordinates_are_errors(mask, message):
    with pytest.raises(ValueError, match=message):
        zojax.coordinates(1, mask).terms(KEY, PARAMS)


def test_a_count_below_one_is_an_error():
    with pytest.raises(ValueError, match="count must be at least 1, found 0"):
        zojax.coordinates(0)


# n of every m


@pytest.mark.parametrize("n, m", [(2, 4), (1, 3), (3, 3), (5, 8)])
def test_n_of_every_m_entries_move(n, m):
    """Exactly n of each whole group, every subset equally often, by chi-square."""
    params = {"w": jnp.zeros((2, 2 * m)), "rest": jnp.zeros(m + 1)}
    z = _many(zojax.n_m(zojax.rademacher(), n, m), params)
    groups = z["w"].reshape(-1, m)
    assert np.all((groups != 0).sum(1) == n)
    np.testing.assert_allclose(abs(groups[groups != 0]), (m / n) ** 0.5, rtol=2**-14)
    subsets, counts = np.unique((groups != 0) @ 2 ** np.arange(m), return_counts=True)
    ways = {(2, 4): 6, (1, 3): 3, (3, 3): 1, (5, 8): 56}[n, m]
    assert len(subsets) == ways
    expected = len(groups) / ways
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert abs(statistic - (ways - 1)) <= 5 * (2 * (ways - 1)) ** 0.5
    last = (z["rest"][:, -1] != 0).mean()  # a group of one entry moves n times out of m
    assert abs(last - n / m) <= 5 * (n / m * (1 - n / m) / len(KEYS)) ** 0.5


def test_views_of_a_pattern_see_the_same_pattern():
    def views(key):
        (term,) = zojax.n_m(zojax.gaussian(), 2, 4).terms(key, jnp.zeros((3, 4, 10)))
        seen = [
            term,
            term.transpose((2, 0, 1)),
            term.slice((1, 0, 3), (1, 4, 6), (1, 1, 1)).reshape((4, 6)),
            term.reshape((12, 2, 5)),
            term.broadcast((3, 2, 4, 10), (0, 2, 3)),
            term.slice((0, 1, 2), (3, 2, 3), (1, 2, 3)),
        ]
        return term.reshape((12, 10)).rows(jnp.array([5, 0]), 0), [t.materialize() for t in seen]

    picked, whole = jax.tree.map(np.asarray, jax.jit(views)(KEY))
    dense, turned, cut, split, wide, strided = whole
    np.testing.assert_array_equal(turned, dense.transpose(2, 0, 1))
    np.testing.assert_array_equal(cut, dense[1, :, 3:9])
    np.testing.assert_array_equal(split, dense.reshape(12, 2, 5))
    np.testing.assert_array_equal(picked, dense.reshape(12, 10)[[5, 0]])
    np.testing.assert_array_equal(wide, np.broadcast_to(dense[:, None], wide.shape))
    np.testing.assert_array_equal(strided, dense[:, 1::2, 2::3])


@pytest.mark.parametrize("n, m", [(0, 4), (5, 4), (-1, 2), (16, 32), (1, 33)])
def test_an_impossible_pattern_is_an_error(n, m):
    with pytest.raises(ValueError, match=rf"found n={n}, m={m}|choose a smaller m"):
        zojax.n_m(zojax.gaussian(), n, m)
