"""Every implementation: products with the weights that `zojax.quantize` stores."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import zojax
from pallas_kernels.quantized_matmul import QuantizedTpuBlocks, quantized_matmul, select
from pallas_kernels.quantized_matmul.config import tpu_blocks, tpu_problem
from tests.pallas_kernels import oracle
from tests.pallas_kernels.implementations import QUANTIZED
from tests.pallas_kernels.quantized import INT4, NF4, assert_products, make
from zojax.quantization import Quantized

# format, queries, rows, k, n, group, dtype of x, zeros
CASES = {
    "nf4": ("nf4", 2, 3, 384, 137, 64, "bfloat16", False),
    "int4": ("int4", 1, 9, 256, 130, 32, "float32", False),
    "int4 with zeros": ("int4", 2, 8, 256, 128, 128, "bfloat16", True),
    "codebook": ("codebook", 2, 5, 256, 20, 256, "float32", False),
    "int8": ("int8", 2, 17, 256, 140, 256, "bfloat16", False),
    "int8, odd": ("int8", 1, 1, 130, 1, 130, "float32", False),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("implementation", QUANTIZED)
def test_values_are_those_of_float64(implementation, name):
    (x, codes, scales), more, weights = make(CASES[name])
    how = dict(QUANTIZED[implementation])
    if name == "int8, odd" and "config" in how:
        how["config"] = None  # one block
    run = jax.jit(partial(quantized_matmul, **how), static_argnames="levels")
    found = run(x, codes, scales, **more)
    assert found.dtype == x.dtype
    assert_products(found, x, weights)


@pytest.mark.parametrize("implementation", QUANTIZED)
def test_decoded_weights_are_the_same_bits(implementation):
    """Rows of the identity read the weight out."""
    (_, codes, scales), more, weights = make(CASES["nf4"])
    x = np.broadcast_to(np.eye(384, dtype=jnp.bfloat16), (2, 384, 384))
    run = jax.jit(partial(quantized_matmul, **more, **QUANTIZED[implementation]))
    np.testing.assert_array_equal(np.asarray(run(x, codes, scales)).astype(float), weights)


@pytest.mark.parametrize("implementation", QUANTIZED)
def test_shards_are_the_whole(implementation):
    """Codes in two parts of whole groups and two of columns, scales with them."""
    (x, codes, scales), more, weights = make(("nf4", 2, 3, 512, 128, 64, "float32", False))
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("rows", "cols"))
    run = partial(quantized_matmul, **more, **QUANTIZED[implementation])

    @jax.jit
    @partial(
        jax.shard_map, mesh=mesh, out_specs=P(None, None, "cols"), check_vma=False,
        in_specs=(P(None, None, "rows"), P("rows", "cols"), P(None, "rows", "cols")),
    )  # fmt: skip
    def sharded(x, codes, scales):
        return jax.lax.psum(run(x, codes, scales), "rows")

    assert_products(sharded(x, codes, scales), x, weights)


@pytest.mark.parametrize("format", ["nf4", "int8", "codebook"])
def test_what_quantize_stores_is_what_is_decoded(format):
    w = np.random.default_rng(0).standard_normal((256, 3)).astype(np.float32)
    quantize = jax.jit(lambda w: zojax.quantize({"w": w}, format, group_size=64)["w"].base)
    base = quantize(w)
    assert isinstance(base, Quantized) and base.axis % 2 == 0
    more = {"table": base.table, "levels": NF4 if format == "nf4" else None}
    x = jnp.eye(256, dtype=base.dtype)[None]
    run = jax.jit(partial(quantized_matmul, levels=more.pop("levels"), implementation="xla"))
    found = run(x, base.codes, base.scales, **more)
    np.testing.assert_array_equal(found[0], jax.jit(Quantized.materialize)(base))


@pytest.mark.parametrize("name", ["int4 with zeros", "codebook"])
@pytest.mark.parametrize("implementation", QUANTIZED)
def test_entries_replace_values(implementation, name):
    (x, codes, scales), more, weights = make(CASES[name])
    draw = np.random.default_rng(1)
    size = weights[0].size
    index = np.sort(draw.choice(size, 37, replace=False)).astype(np.int32)
    values = 3 * draw.standard_normal((x.shape[0], 37)).astype(np.float32)
    run = jax.jit(partial(quantized_matmul, **QUANTIZED[implementation]))
    found = run(x, codes, scales, **more, entries=(index, values))
    replaced = weights.reshape(-1, size).copy()
    replaced[:, index] = oracle.rounded(values.astype(np.float64), x.dtype)
    replaced = replaced.reshape(weights.shape)
    # a kernel adds the difference, so sums hold the old values too
    extra = 2.0**-22 * abs(x.astype(np.float64)) @ (abs(weights) + abs(replaced))
    assert_products(found, x, replaced, extra)


@pytest.mark.parametrize("implementation", QUANTIZED)
def test_nan_and_infinity_pass_and_stay_where_they_are(implementation):
    (x, codes, scales), more, weights = make(CASES["int4 with zeros"])
    x[0, 2, 5], x[1, 3, 7] = np.nan, np.inf
    scales[0, 1, 9] = np.nan
    group = np.s_[0, 128:, 9]
    weights[group] = np.nan
    run = jax.jit(partial(quantized_matmul, **QUANTIZED[implementation]))
    found = np.asarray(run(x, codes, scales, **more)).astype(float)
    with np.errstate(invalid="ignore"):
        expected = x.astype(np.float64) @ weights
    for same in (np.isnan, np.isposinf, np.isneginf):
        np.testing.assert_array_equal(same(found), same(expected))
    assert np.isnan(expected).any() and np.isinf(expected).any()


BATCHED = {
    "x": (0, None, None, None, None),
    "scales": (None, None, 0, None, None),
    "x and scales": (0, None, 0, None, None),
    "values": (None, None, None, None, 0),
    "x, scales and values": (0, None, 0, None, 0),
    "codes": (0, 0, None, None, None),
    "positions": (None, None, None, 0, None),
}


# scales shared by the queries, or of each; the rules are the same for all implementations
@pytest.mark.parametrize(
    "implementation, what, shared",
    [
        *[("xla", what, False) for what in BATCHED],
        *[("xla", what, True) for what in ("scales", "x and scales", "values")],
        *[(name, "x, scales and values", False) for name in QUANTIZED if name != "xla"],
    ],
)
def test_vmap_is_one_call_after_the_other(implementation, what, shared):
    (x, codes, scales), _, _ = make(("int8", 2, 3, 128, 10, 64, "float32", False))
    scales = scales[:1] if shared else scales
    index, values = np.array([3, 700, 1279], np.int32), np.ones((1 if shared else 2, 3), np.float32)
    axes = BATCHED[what]
    args = [x, codes, scales, index, values]
    for i, axis in enumerate(axes):
        if axis is not None:
            args[i] = np.stack([args[i], args[i] // 2, args[i] + args[i]])
    run = partial(quantized_matmul, **QUANTIZED[implementation])
    call = lambda *a: run(*a[:3], entries=(a[3], a[4]))  # noqa: E731
    found = jax.jit(jax.vmap(call, axes))(*args)
    alone = jax.jit(partial(quantized_matmul, implementation="xla"))
    for i in range(3):
        one = [a if axis is None else a[i] for a, axis in zip(args, axes, strict=True)]
        expected = np.asarray(alone(*one[:3], entries=(one[3], one[4]))).astype(float)
        # codes to 128, scales to 4; both sums are rounded, and the entries' own
        bound = 3 * 2.0**-24 * 130 * 4 * 128 * abs(one[0].astype(float)).sum(-1, keepdims=True)
        oracle.assert_within(found[i], expected, np.broadcast_to(bound, expected.shape))


@pytest.mark.parametrize("name", CASES)
def test_lowers_for_tpu(name):
    args, more, _ = make(CASES[name])
    run = partial(quantized_matmul, **more, implementation="tpu")
    lowered = jax.jit(run).trace(*args).lower(lowering_platforms=("tpu",))
    assert lowered.as_text().count("tpu_custom_call") == 1


def test_blocks_fit_groups_and_lengths():
    assert tpu_blocks(1, 16, 11008, 4096, 172, 4, 2).k == 256
    assert tpu_blocks(1, 16, 4096, 4096, 64, 4, 2).k == 512
    assert tpu_blocks(1, 16, 4096, 4096, 1, 4, 2).k == 512  # a part of a group
    assert "atoms of 128 rows, found 130" in tpu_problem(130, 1, 4)
    assert "no block along 2050 rows" in tpu_problem(2050, 1, 8)
    with pytest.raises(ValueError, match="found 130 rows; use the xla"):
        tpu_blocks(1, 16, 130, 4096, 1, 4, 2)


def test_the_rule_says_what_the_kernel_cannot_do(monkeypatch, tmp_path):
    from pallas_kernels import _autotune

    monkeypatch.setenv("ZOJAX_KERNELS", str(tmp_path))
    given = {"rows": 16, "k": 4096, "n": 4096, "groups": 64, "bits": 4, "dtype": jnp.bfloat16}
    given["device_kind"] = "TPU v9x"
    assert "was not measured" in select(**given).reason
    entry = _autotune.Entry(
        16, 4096, 4096, "bfloat16", "levels", {"xla": 2.0, "tpu": 1.0}, {"tpu": {"m": 1}}
    )
    wide = entry._replace(rows=512)
    _autotune.store("quantized_matmul", "TPU v9x", [entry, wide])
    assert select(**given).implementation == "tpu"
    assert "atoms of 128" in select(**given | {"k": 4100, "groups": 1}).reason
    choice = select(**given, has_entries=True)
    assert choice.implementation == "xla" and "entries" in choice.reason


GIVEN = {
    "x": np.ones((2, 3, 6), np.float32),
    "codes": np.ones((3, 5), np.uint8),
    "scales": np.ones((2, 5), np.float32),
    "levels": INT4,
}


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"x": np.ones((3, 6), np.float32)}, ValueError, r"x must be \[S, M, K\]"),
        ({"x": np.ones((2, 3, 6), np.float16)}, TypeError, "x must be float32 or bfloat16"),
        ({"codes": np.ones((3, 5), np.int32)}, TypeError, "found int32 and float32"),
        ({"codes": np.ones((6, 5), np.uint8)}, ValueError, r"must be \[3, N\], found \(6, 5\)"),
        ({"scales": np.ones((4, 5), np.float32)}, ValueError, "G dividing 6"),
        ({"scales": np.ones((3, 2, 5), np.float32)}, ValueError, "of each query must be 2"),
        ({"levels": None}, ValueError, "need one of levels, zeros and table, found none"),
        ({"table": np.ones((16, 5))}, ValueError, "found levels, table"),
        ({"levels": (1, 2)}, ValueError, r"levels must be \[16\], found \[2\]"),
        ({"entries": (np.ones(2, np.int32), np.ones(3))}, ValueError, "positions"),
        ({"implementation": "cuda"}, ValueError, "one of xla, tpu, gpu or None"),
        ({"config": 3}, ValueError, "name it"),
        ({"config": 3, "implementation": "xla"}, ValueError, "no block sizes"),
        (
            {
                "codes": np.ones((256, 5), np.int8), "x": np.ones((1, 2, 256), np.float32),
                "levels": None, "config": QuantizedTpuBlocks(8, 96, 128), "implementation": "tpu",
            },
            ValueError,
            "must divide 256",
        ),
    ],
)  # fmt: skip
def test_bad_arguments_are_errors(change, error, message):
    with pytest.raises(error, match=message):
        quantized_matmul(**(GIVEN | change))
