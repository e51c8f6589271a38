"""Split and merge: the identity at first, and then what moves is where it should be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax
from zojax.virtual import materialize

DRAW = np.random.default_rng(0)


def _normal(*shape, dtype=jnp.float32):
    return jnp.asarray(DRAW.standard_normal(shape), dtype)


PARAMS = {
    "attention": [{"kernel": _normal(4, 6), "bias": _normal(6)}],
    "embedding": _normal(7, 4),
    "layers": {"kernel": _normal(3, 4, 4), "norm": _normal(3, 4)},
    "lm_head": _normal(6, 7),
    "nothing": None,
}
HALF = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
SCORES = jax.tree.map(lambda x: jnp.asarray(DRAW.random(x.shape), jnp.float32), PARAMS)

SPLITS = {
    "full": zojax.full,
    "select": lambda p: zojax.select(p, lambda path: path == "layers/kernel"),
    "bias_and_norm": zojax.bias_and_norm,
    "head": zojax.head,
    "sensitive": lambda p: zojax.sensitive(p, SCORES, 0.2),
    "lora": lambda p: zojax.lora(p, jax.random.key(0), 2),
    "lora of a stack": lambda p: zojax.lora(
        p, jax.random.key(0), 2, where=lambda path: path in ("layers/kernel", "embedding")
    ),
}


def _loss(params, batch):
    x = params["embedding"][batch]
    x = x + jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, params["layers"]["kernel"])[0]
    x = x * params["layers"]["norm"].mean(0)
    x = x @ params["attention"][0]["kernel"] + params["attention"][0]["bias"]
    logits = x @ params["lm_head"] + (x[:, :4] @ params["embedding"].T)
    return jnp.square(logits).mean()


BATCH = jnp.array([0, 3, 3, 6])


def _equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("params", [PARAMS, HALF], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", SPLITS)
def test_merge_of_split_is_the_identity(name, params):
    trainable, frozen, merge = SPLITS[name](params)
    merged = jax.jit(lambda t, f: materialize(merge(t, f)))(trainable, frozen)
    _equal(merged, params)
    assert jax.tree.map(lambda x: x.dtype, merged) == jax.tree.map(lambda x: x.dtype, params)
    if name != "full":
        assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(trainable))


@pytest.mark.parametrize("name", ["select", "sensitive", "lora of a stack"])
def test_the_estimate_is_that_of_the_materialised_problem(name):
    """c = g.z of theta -> loss(materialize(merge(theta))): through lookups, ties and scans."""
    trainable, frozen, merge = SPLITS[name](PARAMS)
    virtual = lambda theta, batch: zojax.virtualize(_loss)(merge(theta, frozen), batch)  # noqa: E731
    dense = lambda theta, batch: _loss(materialize(merge(theta, frozen)), batch)  # noqa: E731
    estimator = zojax.mezo(2.0**-5, 2)
    find = lambda f: jax.jit(zojax.estimate(f, estimator))(jax.random.key(1), trainable, BATCH)  # noqa: E731
    found, expected = find(virtual), find(dense)
    size = float(jnp.max(expected.losses.plus))
    # each loss to a hundred roundings; the quotient divides by 2 mu
    for a, b in zip(found.losses[1:3], expected.losses[1:3], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=100 * 2**-24 * size)
    np.testing.assert_allclose(
        found.coefficients, expected.coefficients, rtol=0, atol=100 * 2**-24 * size * 2**5
    )
    grads = jax.jit(jax.grad(dense))(trainable, BATCH)
    assert jax.tree.structure(grads) == jax.tree.structure(trainable)
    draw = lambda key: [t.materialize() for t in zojax.gaussian().terms(key, trainable)]  # noqa: E731
    z = jax.jit(draw)(found.keys[0])
    slope = sum(float((g * z).sum()) for g, z in zip(jax.tree.leaves(grads), z, strict=True))
    assert np.sign(slope) == np.sign(float(found.coefficients[0])) or abs(slope) < 0.1 * size


@pytest.mark.parametrize("density", [1e-6, 0.1, 0.5, 1.0])
def test_sensitive_picks_the_highest_scores_of_each_matrix(density):
    trainable, frozen, merge = zojax.sensitive(PARAMS, SCORES, density)
    for leaf, score, values, index in [
        (PARAMS["embedding"], SCORES["embedding"], trainable["embedding"],
         frozen.index["embedding"]),
        (PARAMS["layers"]["kernel"], SCORES["layers"]["kernel"], trainable["layers"]["kernel"],
         frozen.index["layers"]["kernel"]),
    ]:  # fmt: skip
        matrices = np.asarray(leaf).reshape(-1, leaf.shape[-2] * leaf.shape[-1])
        scores = np.asarray(score).reshape(matrices.shape)
        k = max(1, round(density * matrices.shape[1]))
        assert values.shape == index.shape == (*leaf.shape[:-2], k)
        for m, s, v, i in zip(
            matrices, scores, values.reshape(-1, k), index.reshape(-1, k), strict=True
        ):
            assert i.tolist() == sorted(np.argsort(s)[::-1][:k])
            np.testing.assert_array_equal(v, m[np.asarray(i)])
    assert trainable["attention"][0]["bias"] is None


@pytest.mark.parametrize("params", [PARAMS, HALF], ids=["float32", "bfloat16"])
def test_trained_values_land_where_the_index_says_and_nowhere_else(params):
    trainable, frozen, merge = zojax.sensitive(params, SCORES, 0.2)
    moved = materialize(merge(jax.tree.map(lambda v: v + 8, trainable), frozen))
    for name in ("embedding", "lm_head"):
        expected = np.asarray(params[name], np.float32).ravel().copy()
        expected[np.asarray(frozen.index[name])] = np.asarray(trainable[name]) + 8
        expected = jnp.asarray(expected).astype(params[name].dtype).reshape(params[name].shape)
        np.testing.assert_array_equal(moved[name], expected)
    kernel = np.asarray(moved["layers"]["kernel"] != params["layers"]["kernel"])
    for changed, index in zip(kernel, frozen.index["layers"]["kernel"], strict=True):
        assert np.flatnonzero(changed).tolist() == index.tolist()


def test_a_leaf_without_scores_stays_frozen():
    scores = SCORES | {"embedding": None, "nothing": None}
    trainable, frozen, merge = zojax.sensitive(PARAMS, scores, 0.1)
    assert trainable["embedding"] is None and trainable["lm_head"] is not None
    _equal(materialize(merge(trainable, frozen)), PARAMS)


@pytest.mark.parametrize("density", [0, -0.1, 1.5, float("nan")])
def test_a_density_out_of_range_is_an_error(density):
    with pytest.raises(ValueError, match=r"density must be in \(0, 1\], found"):
        zojax.sensitive(PARAMS, SCORES, density)


def test_scores_of_another_model_are_an_error():
    with pytest.raises(ValueError, match=r"leaf embedding has shape \(7, 4\).*shape \(4, 7\)"):
        zojax.sensitive(PARAMS, SCORES | {"embedding": jnp.ones((4, 7))})


def test_scores_that_are_nan_are_an_error():
    scores = SCORES | {"embedding": jnp.full((7, 4), jnp.nan)}
    with pytest.raises(ValueError, match="score of leaf embedding has NaN"):
        zojax.sensitive(PARAMS, scores)


def test_nothing_sensitive_is_an_error():
    with pytest.raises(ValueError, match="nothing would be trained"):
        zojax.sensitive({"b": jnp.ones(3)}, {"b": jnp.ones(3)})


def test_sensitivity_is_the_mean_squared_gradient():
    batches = [jnp.array([i, 6 - i]) for i in range(3)]
    found = zojax.sensitivity(_loss, PARAMS, iter(batches))
    each = [jax.jit(jax.grad(_loss))(PARAMS, b) for b in batches]
    expected = jax.tree.map(
        lambda *g: np.mean([np.asarray(x, np.float64) ** 2 for x in g], 0), *each
    )
    jax.tree.map(
        # gradients agree to float32 sums of about twenty terms, squares to twice that
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=64 * 2**-24 * b.max()),
        found,
        expected,
    )
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(found))
    low = zojax.sensitivity(lambda p, b: _loss(p, b).astype(jnp.float32), HALF, batches[:1])
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(low))


def test_sensitivity_without_batches_is_an_error():
    with pytest.raises(ValueError, match="no calibration batch"):
        zojax.sensitivity(_loss, PARAMS, [])


def test_sensitivity_that_overflows_names_the_leaf():
    loss = lambda p, b: p["a"].sum() * 1e30 + p["b"].sum()  # noqa: E731
    with pytest.raises(ValueError, match="sensitivity of leaf a is not finite"):
        zojax.sensitivity(loss, {"a": jnp.ones(2), "b": jnp.ones(2)}, [0.0])


@pytest.mark.parametrize("alpha, scale", [(None, 1.0), (8.0, 4.0)])
def test_lora_is_the_matrix_plus_its_product(alpha, scale):
    where = lambda path: path in ("layers/kernel", "lm_head")  # noqa: E731
    trainable, frozen, merge = zojax.lora(PARAMS, jax.random.key(0), 2, alpha=alpha, where=where)
    assert trainable["embedding"] is None
    trained = jax.tree.map(lambda x: x + 0.5, trainable)
    moved = materialize(merge(trained, frozen))
    for leaf, moved_leaf, pair in [
        (PARAMS["lm_head"], moved["lm_head"], trained["lm_head"]),
        (PARAMS["layers"]["kernel"], moved["layers"]["kernel"], trained["layers"]["kernel"]),
    ]:
        a, b = (np.asarray(pair[k], np.float64) for k in "ab")
        expected = np.asarray(leaf, np.float64) + scale * a @ np.swapaxes(b, -1, -2)
        np.testing.assert_allclose(
            moved_leaf, expected, rtol=0, atol=8 * 2**-24 * abs(expected).max()
        )
    wide = zojax.lora({"attention": {"kernel": jnp.zeros((400, 500))}}, jax.random.key(1), 8)
    a = np.asarray(wide.trainable["attention"]["kernel"]["a"], np.float64)
    assert abs((a**2).mean() * 400 - 1) < 5 * (2 / a.size) ** 0.5


def test_lora_errors():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="rank must be at least 1, found 0"):
        zojax.lora(PARAMS, key, 0)
    with pytest.raises(ValueError, match="no leaf is selected for LoRA"):
        zojax.lora(PARAMS, key, 2, where=lambda path: False)
    with pytest.raises(ValueError, match=r"attention/0/bias of shape \(6,\) is no matrix"):
        zojax.lora(PARAMS, key, 2, where=lambda path: path == "attention/0/bias")


def test_select_trains_in_float32_over_bfloat16():
    """A step below bfloat16's resolution is kept by the trainable, and rounded by the merge."""
    trainable, frozen, merge = zojax.select(HALF, lambda path: path == "embedding")
    assert trainable["embedding"].dtype == jnp.float32 and frozen["embedding"] is None
    stepped = jax.tree.map(lambda x: x * (1 + 2.0**-12), trainable)
    assert np.all(np.asarray(stepped["embedding"] != trainable["embedding"]))
    assert merge(stepped, frozen)["embedding"].dtype == jnp.bfloat16


def test_named_selections():
    def moving(split):
        flat = jax.tree_util.tree_flatten_with_path(split.trainable)[0]
        return [jax.tree_util.keystr(path) for path, _ in flat]

    assert moving(zojax.bias_and_norm(PARAMS)) == ["['attention'][0]['bias']", "['layers']['norm']"]
    assert moving(zojax.head(PARAMS)) == ["['lm_head']"]


def test_select_errors():
    with pytest.raises(ValueError, match="no leaf is selected; the leaves are attention/0/bias"):
        zojax.select(PARAMS, lambda path: False)
    with pytest.raises(TypeError, match="leaf ids is int32; only floating-point"):
        zojax.select({"ids": jnp.arange(3)}, lambda path: True)
