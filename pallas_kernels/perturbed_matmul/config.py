"""Block sizes and the rule that chooses an implementation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import _autotune
from pallas_kernels._gpu_tiles import SHARED_BYTES, GpuBlocks, fitted, tiled

_OPERATION = "perturbed_matmul"
# of a core's vector memory, 64 MiB on the smallest supported TPU
_MOST_BYTES = 24 * 2**20
_WIDTH = 128
# a row of bfloat16 in a GPU's shared memory is 128 bytes, and so deep is a step of a sum
GPU_DEPTH = 64
# fewer steps of a sum than this do not pay for another part
_LEAST_STEPS = 8


class TpuBlocks(NamedTuple):
    """Sizes of the TPU kernel's tiles.

    Attributes:
        m: rows of x of one query.
        k: along the sum.
        n: columns of the result.
        p: directions whose sums are held at once, so that a tile of w is read once for all.
    """

    m: int
    k: int
    n: int
    p: int


def select(
    *,
    rows: int,
    k: int,
    n: int,
    dtype,
    distribution: str = "rademacher",
    device_kind: str | None = None,
) -> _autotune.Choice:
    """Which implementation `perturbed_matmul` takes by itself, and why.

    The one that was fastest for the nearest problem in the table of measured times of this kind of
    device (`python -m tests.benchmarks.kernels --tune` writes it); "xla" where there is no table,
    where the rows are more than twice or less than half of any in it, and on CPU.

    Args:
        rows: M, of one query.
        k: rows of the weight.
        n: columns of the weight.
        dtype: of x and w.
        distribution: of the noise.
        device_kind: as `jax.Device.device_kind`; by default of the device that is compiled for.

    Returns:
        (implementation, reason, config).

    Raises:
        ValueError: if a table is there that cannot be read.
    """
    device = _autotune.device_kind() if device_kind is None else device_kind
    choice = _autotune.choose(
        _OPERATION, rows=rows, k=k, n=n, dtype=jnp.dtype(dtype).name, kind=distribution,
        device=device,
    )  # fmt: skip
    # what was measured was near this problem, but may have been one that the kernel can do
    problem = gpu_problem((k, n), dtype, distribution) or gpu_problem((n, k), dtype, distribution)
    if choice.implementation == "gpu" and problem:
        return _autotune.Choice("xla", problem)
    return choice


def tpu_blocks(
    directions: int, queries: int, rows: int, k: int, n: int, item: int, out_item: int
) -> TpuBlocks:
    """Block sizes by a heuristic: as large as fits, and dividing the axes where they can.

    Args:
        directions: P.
        queries: S.
        rows: M.
        k: rows of the weight.
        n: columns of the weight.
        item: bytes of a number of x and w.
        out_item: bytes of a number of the result.
    """
    blocks = TpuBlocks(min(rows, 256), _divisor(k, 512), min(n, 1024), directions)
    while vmem_bytes(blocks, queries, item, out_item) > _MOST_BYTES:
        smaller = _smaller(blocks, directions)
        if smaller == blocks:
            break
        blocks = smaller
    return blocks


def tpu_candidates(
    directions: int, queries: int, rows: int, k: int, n: int, item: int, out_item: int
) -> list[TpuBlocks]:
    """What the autotuner tries: the heuristic's choice first; arguments as for `tpu_blocks`."""
    found = [tpu_blocks(directions, queries, rows, k, n, item, out_item)]
    for block_k in (256, 512, 1024):
        for block_n in (256, 512, 1024):
            tried = found[0]._replace(k=_divisor(k, block_k), n=min(n, block_n))
            if vmem_bytes(tried, queries, item, out_item) <= _MOST_BYTES and tried not in found:
                found.append(tried)
    return found


def vmem_bytes(blocks: TpuBlocks, queries: int, item: int, out_item: int) -> int:
    """Estimate of the vector memory of the kernel: what is fetched twice, the rest once."""
    m, k, n, p = blocks
    fetched = queries * m * k * item + k * n * item + p * queries * m * n * out_item
    # bits, weight, perturbed weight and product
    return 2 * fetched + p * queries * m * n * 4 + 4 * k * n * 4 + m * n * 4


def gpu_blocks(directions: int, queries: int, rows: int, k: int, n: int) -> GpuBlocks:
    """Block sizes by a heuristic: least noise made, then enough blocks for all multiprocessors.

    Args:
        directions: P.
        queries: S.
        rows: M.
        k: length of the sum.
        n: columns of the result.
    """
    blocks = tiled(directions, queries, rows, n, -(-k // GPU_DEPTH), _LEAST_STEPS)
    for stages in (3, 4):
        tried = blocks._replace(stages=stages)
        blocks = tried if gpu_shared_bytes(tried) <= SHARED_BYTES else blocks
    return blocks


def gpu_candidates(directions: int, queries: int, rows: int, k: int, n: int) -> list[GpuBlocks]:
    """What the autotuner tries: the heuristic's choice first; arguments as for `gpu_blocks`."""
    first = gpu_blocks(directions, queries, rows, k, n)
    found = [first]
    for width in (64, 128):
        # three parts fill two waves where the tiles are two thirds of one
        for splits in sorted({1, 3, first.splits, 2 * first.splits}):
            for stages in (first.stages, 2):
                tried = first._replace(n=width, splits=splits, stages=stages)
                if tried not in found and gpu_shared_bytes(tried) <= SHARED_BYTES:
                    found.append(tried)
    return found


def gpu_shared_bytes(blocks: GpuBlocks) -> int:
    """Shared memory of a block: what is fetched ahead, and what is on its way out, in float32."""
    m, n, queries, stages, _ = blocks
    stage = 2 * GPU_DEPTH * (queries * m + n) + 8 * GPU_DEPTH
    return stages * stage + 4 * n * min(m, 64)


def gpu_problem(shape: tuple[int, ...], dtype, distribution: str) -> str:
    """Why the Hopper kernel cannot do a problem; empty if it can.

    Args:
        shape: of w as it is stored.
        dtype: of x and w.
        distribution: of the noise.
    """
    if jnp.dtype(dtype) != jnp.bfloat16:
        return f"the gpu kernel multiplies bfloat16, found {jnp.dtype(dtype).name}"
    if shape[0] % 8 or shape[1] % GPU_DEPTH:
        return f"the gpu kernel needs w of multiples of (8, {GPU_DEPTH}), found {tuple(shape)}"
    if distribution == "gaussian" and jax.__version_info__ < (0, 11, 2):
        return f"the gpu kernel makes gaussian noise since jax 0.11.2, found {jax.__version__}"
    return ""


def gpu_fitted(blocks: GpuBlocks, queries: int) -> GpuBlocks:
    """The same for S queries, as many together as divide S.

    Raises:
        ValueError: if the sizes are not as `GpuBlocks` says.
    """
    return fitted(blocks, queries, gpu_shared_bytes(blocks))


def _divisor(size: int, most: int) -> int:
    """The largest multiple of 128 up to `most` that divides a size; `most` if there is none."""
    if size <= most:
        return size
    fits = [b for b in range(_WIDTH, most + 1, _WIDTH) if size % b == 0]
    # a small divisor costs more than a masked edge
    return fits[-1] if fits and fits[-1] * 2 >= most else most


def _smaller(blocks: TpuBlocks, directions: int) -> TpuBlocks:
    if blocks.p > 1:
        return blocks._replace(p=max(d for d in range(1, blocks.p) if directions % d == 0))
    if blocks.n > 4 * _WIDTH:
        return blocks._replace(n=4 * _WIDTH)
    if blocks.m > _WIDTH:
        return blocks._replace(m=_WIDTH)
    return blocks
