"""Every implementation: the reference's bits, float64's values, at any size, tile and address."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from pallas_kernels.perturbed_matmul import TpuBlocks, perturbed_matmul
from tests.pallas_kernels import oracle
from tests.pallas_kernels.implementations import PERTURBED
from zojax import noise

ADDRESSES = [(0, 0), (1000, 70_000), (2**32 - 10, 2**32 - 100)]
# directions, queries, rows, k, n, transposed, dtype, distribution
CASES = {
    "one of each": (1, 1, 1, 1, 1, False, "float32", "rademacher"),
    "one row, odd": (1, 2, 1, 130, 137, False, "bfloat16", "nibble_sum"),
    "one column": (2, 1, 9, 257, 1, False, "float32", "nibble_sum"),
    "gaussian": (2, 2, 5, 140, 131, False, "float32", "gaussian"),
    "whole tiles": (2, 2, 8, 256, 128, False, "bfloat16", "rademacher"),
    "transposed": (3, 2, 17, 131, 129, True, "float32", "rademacher"),
    "transposed gaussian": (1, 2, 11, 258, 5, True, "bfloat16", "gaussian"),
}


def _make(case, seed=0):
    directions, queries, rows, k, n, transposed, dtype, distribution = case
    draw = np.random.default_rng(seed)
    x = draw.standard_normal((directions, queries, rows, k)).astype(jnp.dtype(dtype))
    w = draw.standard_normal((n, k) if transposed else (k, n)).astype(jnp.dtype(dtype))
    words = draw.integers(0, 2**32, (directions, 2), np.uint32)
    c = np.array(noise.round_coefficient(0.1 * draw.standard_normal((directions, queries))))
    return (x, w, words, c), {"distribution": distribution, "transposed": transposed}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("implementation", PERTURBED)
def test_values_are_those_of_float64(implementation, name):
    args, static = _make(CASES[name])
    run = jax.jit(partial(perturbed_matmul, **static, **PERTURBED[implementation]))
    for row, col in ADDRESSES:
        found = run(*args, row=jnp.uint32(row), col=jnp.uint32(col))
        assert found.dtype == args[0].dtype
        oracle.assert_within(found, *oracle.products(*args, row, col, *static.values()))


@pytest.mark.parametrize("name", ["whole tiles", "transposed gaussian"])
@pytest.mark.parametrize("implementation", [name for name in PERTURBED if name != "xla"])
def test_tiles_of_their_own_choice(implementation, name):
    args, static = _make(CASES[name])
    how = PERTURBED[implementation] | {"config": None}
    found = jax.jit(partial(perturbed_matmul, **static, **how))(*args)
    oracle.assert_within(found, *oracle.products(*args, 0, 0, *static.values()))


@pytest.mark.parametrize("distribution", ["rademacher", "nibble_sum"])
@pytest.mark.parametrize("implementation", PERTURBED)
def test_perturbed_weights_are_the_same_bits(implementation, distribution):
    """Rows of the identity read the perturbed weight out: one product that is not zero."""
    (_, w, words, c), _ = _make((2, 2, 1, 139, 130, False, "bfloat16", distribution))
    x = np.broadcast_to(np.eye(139, dtype=jnp.bfloat16), (2, 2, 139, 139))
    c[0] = 1.0, -0.0
    run = jax.jit(partial(perturbed_matmul, distribution=distribution, **PERTURBED[implementation]))
    for row, col in ADDRESSES[1:]:
        found = run(x, w, words, c, row=jnp.uint32(row), col=jnp.uint32(col))
        for p in range(2):
            for s in range(2):
                moved, _ = oracle.perturbed(w, words[p], c[p, s], row, col, distribution)
                np.testing.assert_array_equal(np.asarray(found[p, s]).astype(float), moved)


@pytest.mark.parametrize("implementation", PERTURBED)
def test_nan_and_infinity_pass_and_stay_where_they_are(implementation):
    args, static = _make((1, 2, 10, 150, 140, False, "float32", "rademacher"))
    x, w = args[0], args[1]
    w[3, 7], w[149, 139], w[140, 20], w[5, 30], w[6, 30] = np.nan, np.inf, -np.inf, np.inf, -np.inf
    x[0, 0, 4, 2], x[0, 1, 9, 149], x[0, 0, 2, 149] = np.nan, np.inf, 0.0
    run = jax.jit(partial(perturbed_matmul, **static, **PERTURBED[implementation]))
    found = np.asarray(run(*args))
    with np.errstate(invalid="ignore"):
        expected, bound = oracle.products(*args, 0, 0, *static.values())
    for same in (np.isnan, np.isposinf, np.isneginf):
        np.testing.assert_array_equal(same(found), same(expected))
    finite = np.isfinite(expected)
    assert np.isnan(expected).any() and np.isinf(expected).any() and finite.any()
    oracle.assert_within(found[finite], expected[finite], bound[finite])


@pytest.mark.parametrize("implementation", PERTURBED)
def test_results_of_another_dtype(implementation):
    """bfloat16 in, float32 out: the sum as it was, not rounded again."""
    args, static = _make((1, 1, 8, 128, 128, False, "bfloat16", "rademacher"))
    static |= {"out_dtype": jnp.float32}
    found = jax.jit(partial(perturbed_matmul, **static, **PERTURBED[implementation]))(*args)
    assert found.dtype == jnp.float32
    expected = oracle.products(*args, 0, 0, *static.values())
    oracle.assert_within(found, *expected)


BATCHED = {
    "x": (0, None, None, None, None),
    "coefficient": (None, None, None, 0, None),
    "x and coefficient": (0, None, None, 0, None),
    "key": (None, None, 0, None, None),
    "x, key and coefficient": (1, None, 0, 0, None),
    "w": (None, 0, None, None, None),
    "row": (None, None, None, None, 0),
}


# the rules are the same for all; an interpreter takes long to compile
@pytest.mark.parametrize(
    "implementation, what",
    [
        *[("xla", what) for what in BATCHED],
        *[(name, "x, key and coefficient") for name in PERTURBED if name != "xla"],
    ],
)
def test_vmap_is_one_call_after_the_other(implementation, what):
    axes = BATCHED[what]
    (x, w, words, c), static = _make((2, 2, 3, 20, 10, False, "float32", "rademacher"))
    args = [x, w, words, c, np.uint32(7)]
    for i, axis in enumerate(axes):
        if axis is not None:
            args[i] = np.stack([args[i], np.roll(args[i], 1), args[i] + args[i]], axis)
    run = partial(perturbed_matmul, **static, **PERTURBED[implementation])
    call = jax.jit(jax.vmap(lambda *a: run(*a[:4], row=a[4], col=2), axes))
    found = call(*args)
    for i in range(3):
        one = [
            a if axis is None else np.take(a, i, axis) for a, axis in zip(args, axes, strict=True)
        ]
        oracle.assert_within(found[i], *oracle.products(*one[:4], int(one[4]), 2, "rademacher"))


def _equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        if eqn.primitive.name != "pallas_call":
            for inner in eqn.params.values():
                yield from _equations(inner.jaxpr) if hasattr(inner, "jaxpr") else ()


def test_vmap_makes_rows_queries_or_directions_of_one_kernel():
    (x, w, words, c), static = _make((2, 2, 3, 20, 10, False, "float32", "rademacher"))
    run = partial(perturbed_matmul, **static, implementation="tpu")

    def shapes(axes, *args):
        jaxpr = jax.make_jaxpr(jax.vmap(lambda *a: run(a[0], w, a[1], a[2]), axes))(*args)
        (call,) = [e for e in _equations(jaxpr.jaxpr) if e.primitive.name == "pallas_call"]
        return call.outvars[0].aval.shape

    assert shapes((0, None, None), np.stack([x] * 5), words, c) == (2, 2, 15, 10)
    # more queries than a tile of noise serves: ten are twice five
    assert shapes((None, None, 0), x, words, np.stack([c] * 5)) == (4, 5, 3, 10)
    assert shapes((None, None, 0), x, words, np.stack([c] * 3)) == (2, 6, 3, 10)
    assert shapes((None, 0, None), x, np.stack([words] * 5), c) == (10, 2, 3, 10)


@pytest.mark.parametrize("implementation", PERTURBED)
def test_shards_are_the_whole(implementation):
    """w in four parts of columns and two of rows; each knows only where it begins."""
    args, static = _make((1, 2, 4, 32, 48, False, "float32", "rademacher"))
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(2, 4), ("rows", "cols"))
    run = partial(perturbed_matmul, **static, **PERTURBED[implementation])

    @jax.jit
    @partial(
        jax.shard_map, mesh=mesh, out_specs=P(None, None, None, "cols"),
        in_specs=(P(None, None, None, "rows"), P("rows", "cols"), P(), P(), P(), P()),
        check_vma=False,
    )  # fmt: skip
    def sharded(x, w, words, c, row, col):
        row = row + jax.lax.axis_index("rows").astype(jnp.uint32) * jnp.uint32(16)
        col = col + jax.lax.axis_index("cols").astype(jnp.uint32) * jnp.uint32(12)
        return jax.lax.psum(run(x, w, words, c, row=row, col=col), "rows")

    for row, col in ADDRESSES:
        found = sharded(*args, jnp.uint32(row), jnp.uint32(col))
        oracle.assert_within(found, *oracle.products(*args, row, col, *static.values()))


@pytest.mark.parametrize("name", CASES)
def test_lowers_for_tpu(name):
    args, static = _make(CASES[name])
    for config in (None, TpuBlocks(8, 128, 128, 1)):
        run = partial(perturbed_matmul, **static, implementation="tpu", config=config)
        lowered = jax.jit(run).trace(*args).lower(lowering_platforms=("tpu",))
        assert lowered.as_text().count("tpu_custom_call") == 1


def test_without_a_measured_device_it_is_plain_jax(monkeypatch, tmp_path):
    monkeypatch.setenv("ZOJAX_KERNELS", str(tmp_path))
    args, static = _make(CASES["gaussian"])
    texts = [
        jax.jit(partial(perturbed_matmul, **static, **how)).lower(*args).as_text()
        for how in ({}, {"implementation": "xla"})
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"w": np.ones((5, 7), np.float32)}, ValueError, r"w must be \[K, N\], with K = 6"),
        ({"x": np.ones((1, 2, 6), np.float32)}, ValueError, r"x must be \[P, S, M, K\]"),
        ({"x": np.ones((1, 2, 0, 6), np.float32)}, ValueError, "no size may be zero"),
        ({"w": np.ones((6, 7), jnp.bfloat16)}, TypeError, "found float32 and bfloat16"),
        ({"key_words": np.ones(2, np.uint32)}, TypeError, r"key_words must be uint32\[1, 2\]"),
        (
            {"coefficient": np.ones(2, np.float32)},
            TypeError,
            r"coefficient must be float32\[1, 2\]",
        ),
        ({"distribution": "uniform"}, ValueError, "distribution must be rademacher"),
        ({"implementation": "cuda"}, ValueError, "one of xla, tpu, gpu or None, found 'cuda'"),
        ({"config": TpuBlocks(8, 8, 8, 1)}, ValueError, "name it"),
        ({"config": 3, "implementation": "xla"}, ValueError, "xla implementation has no block"),
        (
            {"config": TpuBlocks(8, 8, 8, 2), "implementation": "tpu"},
            ValueError,
            "p divide 1 directions",
        ),
    ],
)
def test_bad_arguments_are_errors(change, error, message):
    given = {
        "x": np.ones((1, 2, 3, 6), np.float32),
        "w": np.ones((6, 7), np.float32),
        "key_words": np.ones((1, 2), np.uint32),
        "coefficient": np.ones((1, 2), np.float32),
        "distribution": "rademacher",
    }
    with pytest.raises(error, match=message):
        perturbed_matmul(**(given | change))
