"""The Hopper kernel without a GPU: its numbers in jax's interpreter, its lowering for cuda."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from pallas_kernels import _autotune
from pallas_kernels._gpu_tiles import SHARED_BYTES, fitted
from pallas_kernels._mosaic_gpu import HAS_INTERPRETER
from pallas_kernels.quantized_matmul import GpuBlocks, quantized_matmul, select
from pallas_kernels.quantized_matmul.config import gpu_blocks, gpu_shared_bytes
from tests.pallas_kernels.quantized import assert_products, make

interpreted = pytest.mark.skipif(
    not HAS_INTERPRETER, reason="this jax has no interpreter for GPU kernels; jax 0.12 has"
)


def _forced(**kwargs):
    return functools.partial(quantized_matmul, implementation="gpu", **kwargs)


def _problem(name, queries, rows, k, n, group, *, zeros=False, scales=jnp.bfloat16):
    """As `make`; scales in float32 are not those of bfloat16."""
    args, more, weights = make((name, queries, rows, k, n, group, "bfloat16", zeros))
    if scales == jnp.bfloat16:
        return args, more, weights
    x, codes, old = args
    return (x, codes, old.astype(np.float32) * np.float32(1.0123)), more, None


@interpreted
@pytest.mark.parametrize(
    "name, zeros, queries, k, n, group, blocks",
    [
        ("int4", False, 1, 128, 64, 128, GpuBlocks(128, 64, 1, 2, 1)),
        ("int4", True, 1, 256, 64, 64, GpuBlocks(256, 64, 1, 2, 2)),
        ("nf4", False, 2, 128, 192, 32, GpuBlocks(128, 128, 2, 2, 1)),
        ("codebook", False, 1, 256, 64, 256, GpuBlocks(256, 64, 1, 2, 1)),
        ("int8", False, 1, 200, 64, 200, GpuBlocks(128, 64, 1, 2, 1)),
    ],
)
def test_each_number_is_the_rounded_product_of_its_definition(
    name, zeros, queries, k, n, group, blocks
):
    """The product with the identity is the decoded weight: a sum of it and zeros."""
    (_, codes, scales), more, weights = _problem(name, queries, 1, k, n, group, zeros=zeros)
    x = np.broadcast_to(np.eye(k, dtype=jnp.bfloat16), (queries, k, k))
    found = _forced(interpret=True, config=blocks, **more)(x, codes, scales)
    np.testing.assert_array_equal(np.asarray(found, np.float64), weights)


@interpreted
def test_scales_in_float32_are_not_rounded():
    (_, codes, scales), more, _ = _problem("int8", 1, 1, 96, 64, 32, scales=jnp.float32)
    x = np.eye(96, dtype=jnp.bfloat16)[None]
    found = _forced(interpret=True, config=GpuBlocks(96, 64, 1, 2, 1), **more)(x, codes, scales)
    wide = codes.astype(np.float32) * np.repeat(scales[0], 32, 0)
    np.testing.assert_array_equal(found[0], wide.astype(jnp.bfloat16))


@interpreted
def test_products_with_entries_are_right_within_the_rounding_of_their_sums():
    (x, codes, scales), more, weights = _problem("int4", 3, 5, 384, 64, 128)
    at, values = np.array([5, 64 * 383], np.int32), np.array([3.5, -0.25], np.float32)
    found = _forced(interpret=True, out_dtype=jnp.float32, **more)(
        x, codes, scales, entries=(at, values)
    )
    # the kernel's product, without what was there and with what is
    extra = 4 * 2.0**-24 * np.abs(x.astype(np.float64)).max() * (np.abs(weights).max() + 3.5)
    weights.reshape(3, -1)[:, at] = values
    assert_products(np.asarray(found), x, weights, extra)


def _lowered(fn, *args) -> str:
    """Text of a module for an H200 that is not there."""
    device = AbstractDevice(device_kind="NVIDIA H200", num_cores=None, platform="gpu")
    mesh = AbstractMesh((1,), ("x",), axis_types=(AxisType.Auto,), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        return jax.jit(fn).trace(*args).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize(
    "name, zeros, sizes, scales",
    [
        ("int4", False, (1, 16, 256, 128, 128), jnp.bfloat16),
        ("int4", True, (2, 100, 256, 192, 32), jnp.float32),
        ("nf4", False, (4, 8, 256, 64, 64), jnp.bfloat16),
        ("codebook", False, (1, 1, 512, 192, 256), jnp.bfloat16),
        ("int8", False, (1, 300, 200, 128, 200), jnp.float32),
    ],
)
def test_it_lowers_for_cuda(name, zeros, sizes, scales):
    args, more, _ = _problem(name, *sizes, zeros=zeros, scales=scales)
    assert "mosaic_gpu" in _lowered(_forced(**more), *args)


@pytest.mark.parametrize(
    "case, message",
    [
        (("int4", 1, 2, 128, 64, 128, "float32", False), "bfloat16, found float32"),
        (("int4", 1, 2, 192, 64, 64, "bfloat16", False), r"of \(128, 64\), found \(192, 64\)"),
        (("int8", 1, 2, 128, 96, 128, "bfloat16", False), r"of \(8, 64\), found \(128, 96\)"),
        (("int8", 1, 2, 100, 64, 100, "bfloat16", False), r"of \(8, 64\), found \(100, 64\)"),
        (("nf4", 1, 2, 384, 64, 192, "bfloat16", False), "or one group of all, found 192"),
        (("int8", 1, 2, 128, 64, 16, "bfloat16", False), "groups of 32, 64 or .* found 16"),
    ],
)
def test_what_it_cannot_do_it_refuses(case, message):
    args, more, _ = make(case)
    with pytest.raises(ValueError, match=message):
        _forced(**more)(*args)


def test_the_rules_choose_it_only_for_what_it_can_do(monkeypatch):
    blocks = GpuBlocks(8, 128, 1, 4, 1)._asdict()
    found = _autotune.Choice("gpu", "measured", blocks)
    monkeypatch.setattr(_autotune, "choose", lambda *_, **__: found)
    sizes = {"rows": 8, "k": 256, "n": 128, "groups": 2, "bits": 4, "dtype": jnp.bfloat16}
    assert select(**sizes, device_kind="NVIDIA H200") == found
    # block sizes that need more shared memory than there is are those of another problem
    blocks |= {"m": 256, "stages": 9}
    assert select(**sizes, device_kind="NVIDIA H200") == found._replace(config=None)
    for change in ({"n": 130}, {"k": 192}, {"dtype": jnp.float32}, {"groups": 16}):
        choice = select(**sizes | change, device_kind="NVIDIA H200")
        assert choice.implementation == "xla" and "the gpu kernel" in choice.reason


def test_block_sizes_of_another_problem_are_refused():
    args, more, _ = make(("int4", 1, 2, 128, 64, 128, "bfloat16", False))
    # sums of 256 rows leave no room for eight stages of 64 KiB
    with pytest.raises(ValueError, match="needed are m a multiple of 8"):
        _forced(config=GpuBlocks(256, 64, 1, 8, 1), **more)(*args)


@pytest.mark.parametrize("queries", [1, 2, 3, 16])
@pytest.mark.parametrize("rows", [1, 16, 100, 256, 300, 4096])
@pytest.mark.parametrize("bits, group", [(4, 32), (4, 128), (8, 4096)])
def test_chosen_block_sizes_fit_and_keep_multiprocessors_busy(queries, rows, bits, group):
    for k, n in ((4096, 4096), (4096, 64), (12288, 4096)):
        groups = max(1, k // group)
        blocks = gpu_blocks(queries, rows, k, n, groups, bits, 4)
        needed = gpu_shared_bytes(blocks, k // groups, bits, 4)
        assert fitted(blocks, queries, needed) == blocks and needed <= SHARED_BYTES
        tiles = queries // blocks.queries * -(-rows // blocks.m) * -(-n // blocks.n)
        assert tiles * blocks.splits > 66 or k // 128 // blocks.splits <= 8
