"""Formats: packing, round trips within their bounds, k-means against the exact optimum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zojax import quantize
from zojax.quantization._codebook import fit_codebook
from zojax.quantization._formats import FORMATS
from zojax.quantization._packing import pack, unpack, unpack_rows

# the published levels of NF4
NF4 = (
    -1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
)  # fmt: skip


def normal(*shape, seed=0, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def only(tree_leaf, format, **options):
    return quantize([tree_leaf], format, where=lambda _: True, **options)[0].base


def test_nf4_has_the_published_levels():
    # which were made in float32
    np.testing.assert_allclose(FORMATS["nf4"].levels, NF4, atol=4 * 2**-24, rtol=0)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([1, 2, 3, 7, 32, 127, 128, 256, 384]), st.integers(0, 2), st.integers(0, 9))
def test_unpack_inverts_pack(length, axis, seed):
    shape = [2, 3, 2]
    shape[axis] = length
    codes = np.random.default_rng(seed).integers(0, 16, shape).astype(np.uint8)
    index = np.random.default_rng(seed).integers(0, length, 5).astype(np.int32)

    @jax.jit
    def there_and_back(codes, index):
        packed = pack(codes, axis)
        return packed, unpack(packed, axis, length), unpack_rows(packed, axis, length, index)

    packed, found, rows = there_and_back(codes, index)
    assert packed.shape[axis] == (length + 1) // 2
    np.testing.assert_array_equal(found, codes)
    np.testing.assert_array_equal(rows, codes.take(index, axis))


def test_halves_of_an_atom_are_its_halves():
    codes = jnp.arange(256, dtype=jnp.uint8)[:, None] % 16
    packed = np.asarray(pack(codes, 0))[:, 0]
    # byte row i of an atom of 128 holds rows i and i + 64
    np.testing.assert_array_equal(packed[:64] & 15, np.arange(64) % 16)
    np.testing.assert_array_equal(packed[64:] >> 4, np.arange(192, 256) % 16)


@pytest.mark.parametrize("format", ["int8", "int4", "nf4"])
@pytest.mark.parametrize("axis", [-2, -1])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(64, 96), (2, 2, 32, 160)])
def test_round_trip_is_within_half_a_step_of_the_scale(format, axis, dtype, shape):
    w = normal(*shape, dtype=dtype) * 10.0 ** normal(*shape[:-1], 1, seed=1).astype(dtype)
    q = only(w, format, group_size=32, axis=axis)
    assert q.shape == shape and q.dtype == dtype and q.group_size == 32
    scales = np.repeat(np.asarray(q.scales, np.float64), 32, axis)
    found, w = (np.asarray(x, np.float64) for x in (q.materialize(), w))
    rounding = float(jnp.finfo(dtype).eps) * np.abs(found)
    # float32 division and product on top
    slack = 1e-6 * scales * max(FORMATS[format].levels)
    assert (np.abs(found - w) <= FORMATS[format].half_step * scales + rounding + slack).all()
    # the scale is the least bfloat16 that covers the group
    groups = np.moveaxis(np.abs(w), axis, -1).reshape(-1, 32).max(-1)
    covered = np.moveaxis(np.asarray(q.scales, np.float64), axis, -1).reshape(-1)
    covered = covered * max(FORMATS[format].levels)
    assert (covered >= groups * (1 - 1e-6)).all()
    assert (covered <= groups * (1 + 2**-7) * (1 + 1e-6)).all()


def test_a_group_of_zeros_stays_zero():
    w = normal(64, 4).at[:32].set(0)
    for format in FORMATS:
        q = only(w, format, group_size=32)
        found = q.materialize()
        assert jnp.isfinite(found).all()
        assert format == "codebook" or (found[:32] == 0).all()


def test_sizes_are_those_of_the_formats():
    w = normal(128, 64)
    # codes, and a bfloat16 for each 64 entries
    assert only(w, "int8").nbytes == 128 * 64 + 2 * 128
    assert only(w, "nf4").nbytes == 128 * 64 // 2 + 2 * 128
    # a scale and 16 levels a channel
    assert only(w, "codebook").nbytes == 128 * 64 // 2 + 64 * (2 + 16 * 4)


def best_clustering(x: np.ndarray, weight: np.ndarray, levels: int) -> float:
    """Least weighted sum of squares in one dimension, by dynamic programming."""
    order = np.argsort(x)
    x, weight = x[order], weight[order]
    sums = [np.concatenate([[0.0], np.cumsum(weight * x**p)]) for p in range(3)]

    def cost(i, j):
        w, m, s = (c[j] - c[i] for c in sums)
        return s - m * m / w if w > 0 else 0.0

    best = [cost(0, j) for j in range(len(x) + 1)]
    for _ in range(levels - 1):
        best = [
            min((best[i] + cost(i, j) for i in range(j)), default=0.0) for j in range(len(x) + 1)
        ]
    return best[-1]


def test_codebook_is_near_the_best_clustering():
    w = np.asarray(normal(96, 6) / 4, np.float64)
    weight = np.random.default_rng(0).gamma(0.5, size=w.shape)
    codes, levels = fit_codebook(jnp.asarray(w, jnp.float32), jnp.asarray(weight, jnp.float32), 0)
    found = np.take_along_axis(np.asarray(levels, np.float64), np.asarray(codes, np.int64), 0)
    mine = (weight * (found - w) ** 2).sum(0)
    best = [best_clustering(w[:, n], weight[:, n], 16) for n in range(w.shape[1])]
    assert (mine >= np.array(best) * (1 - 1e-4)).all()
    assert mine.sum() <= 1.05 * sum(best)


@pytest.mark.parametrize("axis", [-2, -1])
def test_fisher_weights_lower_the_weighted_error(axis):
    w, fisher = normal(64, 48), jnp.exp(3 * normal(64, 48, seed=1))

    def error(weights):
        q = quantize({"w": w}, "codebook", axis=axis, weights=weights)["w"].base
        return float((fisher * (q.materialize() - w) ** 2).sum())

    assert error({"w": fisher}) < 0.6 * error(None)


@pytest.mark.parametrize("format", ["int8", "int4", "nf4", "codebook"])
def test_excluded_entries_do_not_count(format):
    w = normal(2, 64, 8)
    spoilt = w.reshape(2, -1).at[:, 77].set(1e4).reshape(w.shape)
    index = jnp.full((2, 1), 77, jnp.int32)
    q = quantize({"w": spoilt}, format, exclude={"w": index})["w"].base
    clean = quantize({"w": w.reshape(2, -1).at[:, 77].set(0).reshape(w.shape)}, format)["w"].base
    found, expected = q.materialize().reshape(2, -1), clean.materialize().reshape(2, -1)
    if format == "codebook":  # there a zero still is a point of the clean one
        kept = jnp.arange(512) != 77
        errors = [jnp.sum((x - w.reshape(2, -1))[:, kept] ** 2) for x in (found, expected)]
        assert float(errors[0]) <= 1.1 * float(errors[1])
    else:
        np.testing.assert_array_equal(found, expected)


def test_abstract_trees_are_quantised_abstractly():
    params = {"w": jax.ShapeDtypeStruct((2, 128, 64), jnp.bfloat16)}
    found = jax.eval_shape(lambda p: quantize(p, "nf4"), params)["w"].base
    assert found.codes.shape == (2, 64, 64) and found.scales.shape == (2, 2, 64)
    assert found.shape == (2, 128, 64) and found.dtype == jnp.bfloat16


def test_embeddings_and_heads_are_left_unless_asked_for():
    params = {
        "embedding": {"embedding": normal(32, 64)},
        "layers": {"query": {"kernel": normal(2, 64, 64)}, "norm": {"scale": normal(2, 64)}},
        "head": {"kernel": normal(64, 32)},
    }
    found = quantize(params, "int4")
    kinds = jax.tree.map(lambda x: type(x).__name__, found, is_leaf=lambda x: hasattr(x, "base"))
    assert kinds["layers"]["query"]["kernel"] == "VirtualArray"
    assert kinds["embedding"]["embedding"] == kinds["head"]["kernel"] == "ArrayImpl"
    whole = quantize(params, "int4", where=lambda path: "norm" not in path)
    assert whole["embedding"]["embedding"].base.axis == -1
    assert whole["head"]["kernel"].base.axis == -2


BAD = [
    (dict(format="int5"), "no format 'int5'; the formats are int8, int4, nf4, codebook"),
    (dict(group_size=48), r"leaf w of shape \(64, 8\) has 64 .* no multiple of group_size 48; use"),
    (dict(group_size=0), "group_size 0"),
    (dict(axis=1), "axis 1 of leaf w"),
    (dict(where=lambda path: path == "bias"), r"leaf bias of shape \(8,\) is no matrix"),
    (dict(where=lambda path: path == "ids"), "leaf ids is int32"),
    (dict(where=lambda path: False), "no leaf is quantised; the leaves are bias, ids, nan, w"),
    (dict(where=lambda path: path == "nan"), "leaf nan is not finite"),
]


@pytest.mark.parametrize("options,message", BAD)
def test_bad_input_names_the_leaf(options, message):
    params = {"w": normal(64, 8), "bias": jnp.zeros(8), "ids": jnp.zeros((8, 8), jnp.int32)}
    params["nan"] = normal(64, 8).at[3, 3].set(jnp.nan)
    options = {"where": lambda path: path == "w", **options}
    with pytest.raises(ValueError, match=message):
        quantize(params, **options)
