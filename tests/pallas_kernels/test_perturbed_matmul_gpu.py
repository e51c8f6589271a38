"""The Hopper kernel without a GPU: its numbers in jax's interpreter, its lowering for cuda."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from pallas_kernels import _autotune
from pallas_kernels._mosaic_gpu import HAS_INTERPRETER
from pallas_kernels.perturbed_matmul import GpuBlocks, perturbed_matmul, select
from pallas_kernels.perturbed_matmul.config import gpu_blocks, gpu_fitted, gpu_shared_bytes
from zojax import noise

interpreted = pytest.mark.skipif(
    not HAS_INTERPRETER, reason="this jax has no interpreter for GPU kernels; jax 0.12 has"
)
_DRAWS = {
    "rademacher": noise.rademacher,
    "nibble_sum": noise.nibble_sum,
    "gaussian": noise.gaussian,
}
_ROW, _COL = 7, 2**32 - 3


def _problem(p, s, m, k, n, transposed, seed=0):
    draw = np.random.default_rng(seed)
    x = jnp.asarray(draw.standard_normal((p, s, m, k)), jnp.bfloat16)
    w = jnp.asarray(draw.standard_normal((n, k) if transposed else (k, n)), jnp.bfloat16)
    keys = jnp.asarray(draw.integers(0, 2**32, (p, 2), dtype=np.uint32))
    scales = noise.round_coefficient(jnp.asarray(draw.standard_normal((p, s)), jnp.float32))
    return x, w, keys, scales


def _moved(w, keys, scales, distribution):
    """bfloat16 [P, S, *w.shape] of perturbed weights, each number at its address."""
    rows = (_ROW + np.arange(w.shape[0], dtype=np.uint64)).astype(np.uint32)[:, None]
    cols = (_COL + np.arange(w.shape[1], dtype=np.uint64)).astype(np.uint32)[None]
    z = jnp.stack([_DRAWS[distribution](noise.bits(key, rows, cols)) for key in keys])
    moved = w.astype(jnp.float32) + scales[..., None, None] * z[:, None]
    return jax.lax.reduce_precision(moved, 8, 7).astype(jnp.bfloat16)


def _interpret(x, w, keys, scales, **kwargs):
    return perturbed_matmul(
        x, w, keys, scales, row=_ROW, col=_COL, implementation="gpu", interpret=True, **kwargs
    )


@interpreted
@pytest.mark.parametrize(
    "p, k, n, distribution, transposed, blocks",
    [
        (2, 72, 64, "rademacher", False, GpuBlocks(64, 64, 2, 2, 1)),
        (1, 128, 136, "rademacher", True, GpuBlocks(128, 128, 2, 2, 2)),
        (1, 72, 192, "nibble_sum", False, GpuBlocks(96, 128, 1, 3, 1)),
        (1, 128, 8, "gaussian", True, GpuBlocks(64, 64, 2, 2, 1)),
    ],
)
def test_each_number_of_a_perturbed_weight_is_that_of_its_address(
    p, k, n, distribution, transposed, blocks
):
    """The product with the identity is the perturbed weight: a sum of it and zeros."""
    _, w, keys, scales = _problem(p, 2, 1, k, n, transposed)
    x = jnp.broadcast_to(jnp.eye(k, dtype=jnp.bfloat16), (p, 2, k, k))
    got = _interpret(
        x, w, keys, scales, distribution=distribution, transposed=transposed, config=blocks
    )
    moved = _moved(w, keys, scales, distribution)
    np.testing.assert_array_equal(got, moved.mT if transposed else moved)


@interpreted
@pytest.mark.parametrize(
    "p, s, m, k, n, transposed, out_dtype, blocks",
    [
        (1, 2, 20, 200, 128, False, jnp.float32, None),
        (1, 3, 5, 8, 64, False, jnp.bfloat16, GpuBlocks(8, 64, 2, 2, 1)),
        (1, 1, 1, 192, 8, True, jnp.float32, GpuBlocks(8, 128, 1, 4, 3)),
    ],
)
def test_products_are_right_within_the_rounding_of_their_sums(
    p, s, m, k, n, transposed, out_dtype, blocks
):
    x, w, keys, scales = _problem(p, s, m, k, n, transposed)
    got = _interpret(
        x, w, keys, scales, distribution="nibble_sum", transposed=transposed,
        out_dtype=out_dtype, config=blocks,
    )  # fmt: skip
    assert got.shape == (p, s, m, n) and got.dtype == out_dtype
    moved = np.asarray(_moved(w, keys, scales, "nibble_sum"), np.float64)
    moved = moved.swapaxes(-1, -2) if transposed else moved
    wide = np.asarray(x, np.float64)
    exact = wide @ moved
    # k float32 additions, and the rounding of the result
    bound = k * 2.0**-24 * (np.abs(wide) @ np.abs(moved))
    bound += float(jnp.finfo(out_dtype).eps) / 2 * (np.abs(exact) + bound)
    assert np.all(np.abs(np.asarray(got, np.float64) - exact) <= bound)


@interpreted
@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")
def test_what_is_not_finite_stays_where_it_is():
    x, w, keys, scales = _problem(1, 2, 3, 72, 64, False)
    x = x.at[0, 0, 1, 5].set(jnp.nan)
    w = w.at[9, 4].set(jnp.inf)
    got = np.asarray(_interpret(x, w, keys, scales, distribution="rademacher"), np.float32)
    expected = np.ones(got.shape, bool)
    expected[0, 0, 1] = False
    expected[..., 4] = False
    np.testing.assert_array_equal(np.isfinite(got), expected)
    np.testing.assert_array_equal(np.isnan(got[0, 0, 1]), True)
    np.testing.assert_array_equal(np.isinf(got[0, 1, :, 4]), True)


@interpreted
def test_the_interpreter_wants_as_many_threads_as_warpgroups(monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda backend: 2)
    with pytest.raises(RuntimeError, match="found 2 devices; set XLA_FLAGS=.*=4 or more"):
        _interpret(*_problem(1, 1, 1, 8, 128, False), distribution="rademacher")


@pytest.mark.skipif(HAS_INTERPRETER, reason="this jax has an interpreter")
def test_without_an_interpreter_it_says_so():
    with pytest.raises(NotImplementedError, match="jax 0.12 has; .*implementation='xla'"):
        _interpret(*_problem(1, 1, 1, 8, 128, False), distribution="rademacher")


def _lowered(fn, *args) -> str:
    """Text of a module for an H200 that is not there."""
    device = AbstractDevice(device_kind="NVIDIA H200", num_cores=None, platform="gpu")
    mesh = AbstractMesh((2,), ("x",), axis_types=(AxisType.Auto,), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        return jax.jit(fn).trace(*args).lower(lowering_platforms=("cuda",)).as_text()


def _forced(**kwargs):
    return functools.partial(perturbed_matmul, implementation="gpu", **kwargs)


@pytest.mark.parametrize(
    "distribution, shape, transposed",
    [
        ("rademacher", (2, 2, 128, 4096, 1024), False),
        ("nibble_sum", (1, 3, 100, 1000, 64), False),
        ("nibble_sum", (1, 1, 1, 192, 1000), True),
        ("gaussian", (1, 2, 16, 256, 256), True),
    ],
)
def test_it_lowers_for_cuda(distribution, shape, transposed):
    args = _problem(*shape, transposed)
    fn = _forced(distribution=distribution, transposed=transposed)
    if distribution == "gaussian" and jax.__version_info__ < (0, 11, 2):
        with pytest.raises(ValueError, match="gaussian noise since jax 0.11.2"):
            _lowered(fn, *args)
        return
    assert "mosaic_gpu" in _lowered(fn, *args)


def test_it_lowers_in_shard_map_with_the_address_of_the_shard():
    x, w, keys, scales = _problem(1, 2, 8, 128, 64, False)

    def local(x, w, keys, scales):
        first = jax.lax.axis_index("x") * w.shape[0]
        out = _forced(distribution="rademacher", row=first)(x, w, keys, scales)
        return jax.lax.psum(out, "x")

    fn = jax.shard_map(local, in_specs=(P(None, None, None, "x"), P("x"), P(), P()), out_specs=P())
    assert "mosaic_gpu" in _lowered(fn, x, w, keys, scales)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x, w: (x.astype(jnp.float32), w.astype(jnp.float32)), "bfloat16, found float32"),
        (lambda x, w: (x, w[:, :63]), r"multiples of \(8, 64\), found \(72, 63\)"),
        (lambda x, w: (x[..., :70], w[:70]), r"multiples of \(8, 64\), found \(70, 64\)"),
    ],
)
def test_what_it_cannot_do_it_refuses(change, message):
    x, w, keys, scales = _problem(1, 2, 3, 72, 64, False)
    with pytest.raises(ValueError, match=message):
        _forced(distribution="rademacher")(*change(x, w), keys, scales)


@pytest.mark.parametrize(
    "blocks",
    [(4, 64, 1, 2, 1), (72, 64, 1, 2, 1), (64, 192, 1, 2, 1), (128, 64, 3, 2, 1),
     (64, 64, 1, 1, 1), (8, 64, 5, 2, 1), (256, 128, 1, 9, 1), (64, 64, 1, 2, 0)],
)  # fmt: skip
def test_wrong_block_sizes_are_refused(blocks):
    with pytest.raises(ValueError, match="needed are m a multiple of 8"):
        _forced(distribution="rademacher", config=GpuBlocks(*blocks))(
            *_problem(1, 3, 3, 72, 64, False)
        )


@pytest.mark.parametrize("directions, queries", [(1, 1), (1, 2), (4, 2), (1, 3), (2, 16)])
@pytest.mark.parametrize("rows", [1, 16, 100, 128, 256, 300, 4096])
@pytest.mark.parametrize("k, n", [(8, 64), (4096, 4096), (11008, 4096), (4096, 32000)])
def test_chosen_block_sizes_fit_and_keep_multiprocessors_busy(directions, queries, rows, k, n):
    blocks = gpu_blocks(directions, queries, rows, k, n)
    assert gpu_fitted(blocks, queries) == blocks
    assert gpu_shared_bytes(blocks) < 227 * 1024
    tiles = directions * queries // blocks.queries * -(-rows // blocks.m) * -(-n // blocks.n)
    steps = -(-k // 64)
    assert tiles * blocks.splits > 66 or steps // blocks.splits <= 16
    # at most a fifth more noise than the fewest tiles of 4 queries and 256 sums would take
    made = queries // blocks.queries * -(-rows // blocks.m)
    assert made <= max(-(-queries // 4), -(-queries * rows // 256)) * 1.2 + 1


def test_the_rules_choose_it_only_for_what_it_can_do(monkeypatch):
    found = _autotune.Choice("gpu", "measured", {"m": 8})
    monkeypatch.setattr(_autotune, "choose", lambda *_, **__: found)
    sizes = {"rows": 8, "k": 128, "n": 128, "dtype": jnp.bfloat16, "device_kind": "NVIDIA H200"}
    assert select(**sizes) == found
    for change in ({"n": 130}, {"k": 8}, {"dtype": jnp.float32}):
        choice = select(**sizes | change)
        assert choice.implementation == "xla" and "the gpu kernel" in choice.reason


def test_the_rules_do_not_choose_it_before_it_was_measured(monkeypatch, tmp_path):
    monkeypatch.setenv("ZOJAX_KERNELS", str(tmp_path))
    choice = select(rows=128, k=4096, n=4096, dtype=jnp.bfloat16, device_kind="NVIDIA H200")
    assert choice.implementation == "xla" and "was not measured on a NVIDIA H200" in choice.reason


def test_block_sizes_of_other_queries_are_made_to_divide():
    assert gpu_fitted(GpuBlocks(64, 128, 4, 2, 1), 6).queries == 3
