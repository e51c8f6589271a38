"""Single entries that move: which ones, and that nothing else does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zojax
from zojax import trainables
from zojax.virtual import materialize

DRAW = np.random.default_rng(0)
PARAMS = {
    "bias": jnp.asarray(DRAW.standard_normal(6), jnp.float32),
    "layers": jnp.asarray(DRAW.standard_normal((3, 8, 5)), jnp.bfloat16),
    "low": jnp.asarray(DRAW.standard_normal((4, 4)), jnp.float32),
    "w": jnp.asarray(DRAW.standard_normal((7, 6)), jnp.float32),
}
SCORES = {
    "bias": None,
    "layers": jnp.asarray(DRAW.random((3, 8, 5)), jnp.float32),
    "low": jnp.asarray(DRAW.random((4, 4)) / 1000, jnp.float32),
    "w": jnp.asarray(DRAW.random((7, 6)) + 0.2, jnp.float32),
}
MATRICES = ("layers", "low", "w")
TOTAL = 3 * 8 * 5 + 4 * 4 + 7 * 6


def _moved(split):
    """Which entries differ when all trainables are moved."""
    merged = jax.jit(lambda t: materialize(split.merge(t, split.frozen)))
    far = merged({n: None if v is None else np.asarray(v) + 64 for n, v in split.trainable.items()})
    return {name: np.asarray(far[name]) != np.asarray(PARAMS[name]) for name in PARAMS}


def _is_identity(split):
    merged = jax.jit(lambda t: materialize(split.merge(t, split.frozen)))(split.trainable)
    jax.tree.map(np.testing.assert_array_equal, merged, PARAMS)


@pytest.mark.parametrize("density", [1 / TOTAL, 0.1, 1.0])
def test_one_threshold_for_the_model(density):
    split = zojax.sensitive(PARAMS, SCORES, density, per="model")
    _is_identity(split)
    count, moved = round(density * TOTAL), _moved(split)
    flat = np.concatenate([np.asarray(SCORES[name]).ravel() for name in MATRICES])
    expected = np.zeros(TOTAL, bool)
    expected[np.argsort(-flat)[:count]] = True
    found = np.concatenate([moved[name].ravel() for name in MATRICES])
    np.testing.assert_array_equal(found, expected)
    assert not moved["bias"].any()
    if density < 0.5:
        assert split.trainable["low"] is None  # its scores are a thousandth of the others
    mask = trainables.entry_mask(split.frozen)
    for name in PARAMS:
        np.testing.assert_array_equal(mask[name], moved[name])


def test_matrices_of_a_stack_have_padding_without_effect():
    split = zojax.sensitive(PARAMS, SCORES, 0.1, per="model")
    index = np.asarray(split.frozen.index["layers"])
    counts = (index < 40).sum(1)
    assert len(set(counts.tolist())) > 1 and counts.max() == index.shape[1]
    padding = jnp.asarray(index == 40)
    values = split.trainable["layers"]
    assert not np.asarray(values)[np.asarray(padding)].any()
    nan = split.trainable | {"layers": jnp.where(padding, jnp.nan, values)}
    merged = split.merge(nan, split.frozen)
    use = zojax.virtualize(lambda p, x: jax.lax.scan(lambda c, w: (c, x @ w), 0.0, p["layers"])[1])
    x = jnp.ones((2, 8), jnp.bfloat16)
    np.testing.assert_array_equal(use(merged, x), use(PARAMS, x))


def test_equal_scores_fill_the_density_and_no_more():
    ones = {name: None if s is None else jnp.ones(s.shape) for name, s in SCORES.items()}
    moved = _moved(zojax.sensitive(PARAMS, ones, 0.2, per="model"))
    assert sum(m.sum() for m in moved.values()) == round(0.2 * TOTAL)


def test_scores_may_be_negative():
    minus = jax.tree.map(lambda s: s - 10, SCORES)
    for per in ("tensor", "model"):
        found, expected = (zojax.sensitive(PARAMS, s, 0.2, per) for s in (minus, SCORES))
        assert jax.tree.structure(found.trainable) == jax.tree.structure(expected.trainable)
        # subtracting rounds; no two of these scores are that near
        jax.tree.map(np.testing.assert_array_equal, found.frozen.index, expected.frozen.index)


def test_a_density_without_any_entry_is_an_error():
    with pytest.raises(ValueError, match=r"less than one entry: nothing .* at least 5.6e-03"):
        zojax.sensitive(PARAMS, SCORES, 1e-3, per="model")
    with pytest.raises(ValueError, match=r'per must be "tensor" or "model", found \'leaf\''):
        zojax.sensitive(PARAMS, SCORES, 0.1, per="leaf")  # pyright: ignore
    nan = SCORES | {"w": SCORES["w"].at[2, 2].set(jnp.nan)}
    for make in (
        lambda: zojax.sensitive(PARAMS, nan, 0.1, per="model"),
        lambda: trainables.n_m(PARAMS, nan, 1, 4),
        lambda: trainables.coverage(nan, 0.1),
    ):
        with pytest.raises(ValueError, match="score of leaf w has NaN"):
            make()
    with pytest.raises(ValueError, match="the scores are no tree like the parameters"):
        zojax.sensitive(PARAMS, {"w": SCORES["w"]})


def test_magnitude_is_sensitive_by_size():
    sizes = {n: None if n == "bias" else jnp.abs(p.astype(jnp.float32)) for n, p in PARAMS.items()}
    for per in ("tensor", "model"):
        found = trainables.magnitude(PARAMS, 0.2, per)
        _is_identity(found)
        expected = zojax.sensitive(PARAMS, sizes, 0.2, per)
        jax.tree.map(np.testing.assert_array_equal, found.frozen.index, expected.frozen.index)
    only = trainables.magnitude(PARAMS, 0.2, where=lambda path: path == "w")
    assert only.trainable["layers"] is None and only.trainable["w"].shape == (8,)
    with pytest.raises(ValueError, match="nothing would be trained"):
        trainables.magnitude(PARAMS, where=lambda path: path == "bias")
    with pytest.raises(ValueError, match="density must be"):
        trainables.magnitude(PARAMS, 0)


def test_random_entries_are_uniform_and_distinct():
    split = trainables.random(jax.random.key(0), PARAMS, 0.2)
    _is_identity(split)
    again = trainables.random(jax.random.key(0), PARAMS, 0.2)
    jax.tree.map(np.testing.assert_array_equal, split.frozen.index, again.frozen.index)
    moved = _moved(split)
    assert {n: m.sum() for n, m in moved.items()} == {"bias": 0, "layers": 24, "low": 3, "w": 8}
    assert (moved["layers"].reshape(3, -1).sum(1) == 8).all()
    stack = {"w": jnp.zeros((2000, 4, 5))}
    index = np.asarray(trainables.random(jax.random.key(1), stack, 0.2).frozen.index["w"])
    assert (np.diff(index, axis=1) > 0).all()
    counts = np.bincount(index.ravel(), minlength=20)
    # each entry is in a draw of 4 of 20 with probability .2
    assert np.abs(counts - 400).max() < 5 * (2000 * 0.2 * 0.8) ** 0.5


@pytest.mark.parametrize("n, m", [(1, 4), (3, 5)])
def test_n_of_every_m_along_the_summed_axis(n, m):
    split = trainables.n_m(PARAMS, SCORES, n, m)
    _is_identity(split)
    moved = _moved(split)
    assert not moved["bias"].any()
    for name in MATRICES:
        score = np.asarray(SCORES[name])
        for start in range(0, score.shape[-2], m):
            part, mask = (x[..., start : start + m, :] for x in (score, moved[name]))
            k = min(n, part.shape[-2])
            assert (mask.sum(-2) == k).all()
            least = np.where(mask, part, np.inf).min(-2)
            assert (least >= np.where(mask, -np.inf, part).max(-2)).all()


def test_n_m_errors():
    for n, m in ((0, 4), (5, 4)):
        with pytest.raises(ValueError, match=f"1 <= n <= m, found n={n}, m={m}"):
            trainables.n_m(PARAMS, SCORES, n, m)


def test_the_mask_of_leaves_says_what_moves():
    where = lambda path: path == "low"  # noqa: E731
    splits = {
        "full": zojax.full(PARAMS),
        "select": zojax.select(PARAMS, where),
        "sensitive": zojax.sensitive(PARAMS, SCORES, 0.05, "model"),
        "lora": zojax.lora(PARAMS, jax.random.key(0), 1, where=where),
        "composed": zojax.compose(
            zojax.lora(PARAMS, jax.random.key(0), 1, where=where),
            zojax.select(PARAMS, lambda path: path == "bias"),
        ),
    }
    expected = {
        "full": {"bias", "layers", "low", "w"},
        "select": {"low"},
        "sensitive": {"layers", "w"},
        "lora": {"low"},
        "composed": {"bias", "low"},
    }
    for name, split in splits.items():
        mask = trainables.leaf_mask(split)
        assert {leaf for leaf, flag in mask.items() if flag} == expected[name], name
    # as optax takes it: the step of the masked leaf alone
    tx = optax.masked(optax.set_to_zero(), trainables.leaf_mask(splits["select"]))
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    updates, _ = tx.update(ones, tx.init(PARAMS), PARAMS)
    assert {n for n, u in updates.items() if not np.asarray(u).any()} == {"low"}
    # and as a direction takes it
    z = zojax.masked(zojax.rademacher(), trainables.leaf_mask(splits["select"]))
    assert [t is not None for t in z.terms(jax.random.key(0), PARAMS)] == [
        False,
        False,
        True,
        False,
    ]
