"""Block sizes and the rule that chooses an implementation."""

from typing import NamedTuple

import jax.numpy as jnp

from pallas_kernels import _autotune
from pallas_kernels._gpu_tiles import SHARED_BYTES, GpuBlocks, tiled

_OPERATION = "quantized_matmul"
_WIDTH = 128
_MOST_BYTES = 24 * 2**20
# rows of a step of the Hopper kernel's sum: what two 4-bit codes of a byte are apart, doubled
GPU_DEPTH = 128
# fewer steps of a sum than this do not pay for another part
_LEAST_STEPS = 4


class QuantizedTpuBlocks(NamedTuple):
    """Sizes of the TPU kernel's tiles.

    Attributes:
        m: rows of x of one query.
        k: along the sum: divides K, and divides a group or holds whole ones.
        n: columns of the result.
    """

    m: int
    k: int
    n: int


def select(
    *,
    rows: int,
    k: int,
    n: int,
    groups: int,
    bits: int,
    dtype,
    kind: str = "levels",
    has_entries: bool = False,
    device_kind: str | None = None,
) -> _autotune.Choice:
    """Which implementation `quantized_matmul` takes by itself, and why.

    As `pallas_kernels.perturbed_matmul.select`; moreover "xla" where the kernel cannot do the
    problem, and where entries replace values.

    Args:
        rows: of all queries together if they share the scales, else of one.
        k: rows of the weight.
        n: columns of the weight.
        groups: of the scales along K.
        bits: 4 or 8, of a code.
        dtype: of x.
        kind: what `kind_of` gives.
        has_entries: whether entries replace decoded values.
        device_kind: as `jax.Device.device_kind`; by default of the device that is compiled for.

    Returns:
        (implementation, reason, config).

    Raises:
        ValueError: if a table of measured times is there that cannot be read.
    """
    device = _autotune.device_kind() if device_kind is None else device_kind
    choice = _autotune.choose(
        _OPERATION, rows=rows, k=k, n=n, dtype=jnp.dtype(dtype).name, kind=kind, device=device
    )
    if choice.implementation == "xla":
        return choice
    if has_entries:
        reason = "to add up what entries change took longer on an H100 than to decode the weight"
        return _autotune.Choice("xla", reason)
    if choice.implementation == "tpu" and (reason := tpu_problem(k, groups, bits)):
        return _autotune.Choice("xla", reason)
    if choice.implementation == "gpu" and (reason := gpu_problem(k, n, groups, bits, dtype)):
        return _autotune.Choice("xla", reason)
    # a block that was fastest for another length or group may not fit this one
    if choice.implementation == "gpu" and choice.config:
        blocks = GpuBlocks(**choice.config)
        if gpu_shared_bytes(blocks, k // groups, bits, 4) <= SHARED_BYTES:
            return choice
    return choice._replace(config=None)


def kind_of(codes, levels=None, zeros=None, table=None) -> str:
    """How codes are decoded, as tables of measured times name it.

    Args:
        codes: of a weight.
        levels: 16 numbers or None; consecutive integers need no table.
        zeros: array or None.
        table: array or None.

    Returns:
        "int8", "integers", "levels", "zeros" or "table".
    """
    if codes.dtype == jnp.int8:
        return "int8"
    if levels is None:
        return "zeros" if zeros is not None else "table"
    first = levels[0]
    is_counted = abs(first) <= 128 and all(x == int(first) + i for i, x in enumerate(levels))
    return "integers" if is_counted else "levels"


def tpu_problem(k: int, groups: int, bits: int) -> str:
    """Why the TPU kernel cannot do a problem; empty if it can."""
    if bits == 4 and k % _WIDTH:
        return f"codes of 4 bits must be packed in atoms of {_WIDTH} rows, found {k} rows"
    if not _depths(k, groups, bits):
        return f"no block along {k} rows holds or divides groups of {k // groups}"
    return ""


def tpu_blocks(
    queries: int, rows: int, k: int, n: int, groups: int, bits: int, item: int
) -> QuantizedTpuBlocks:
    """Block sizes by a heuristic: as large as fits.

    Args:
        queries: that have scales of their own.
        rows: of one query.
        k: rows of the weight.
        n: columns of the weight.
        groups: of the scales along K.
        bits: of a code.
        item: bytes of a number of x.

    Raises:
        ValueError: if there is none; says why.
    """
    if reason := tpu_problem(k, groups, bits):
        raise ValueError(f"{reason}; use the xla implementation")
    depth = max(_depths(k, groups, bits))
    blocks = QuantizedTpuBlocks(min(rows, 256), depth, min(n, 1024))
    while vmem_bytes(blocks, queries, item) > _MOST_BYTES:
        if blocks.n > _WIDTH:
            blocks = blocks._replace(n=max(_WIDTH, blocks.n // 2 // _WIDTH * _WIDTH))
        elif blocks.m > _WIDTH:
            blocks = blocks._replace(m=_WIDTH)
        else:
            break
    return blocks


def vmem_bytes(blocks: QuantizedTpuBlocks, queries: int, item: int) -> int:
    """Estimate of the vector memory of the kernel."""
    m, k, n = blocks
    fetched = queries * m * k * item + k * n + queries * m * n * 4
    return 2 * fetched + queries * m * n * 4 + 6 * k * n * 4


def gpu_problem(k: int, n: int, groups: int, bits: int, dtype) -> str:
    """Why the Hopper kernel cannot do a problem; empty if it can.

    Args:
        k: rows of the weight.
        n: columns of the weight.
        groups: of the scales along K.
        bits: of a code.
        dtype: of x.
    """
    if jnp.dtype(dtype) != jnp.bfloat16:
        return f"the gpu kernel multiplies bfloat16, found {jnp.dtype(dtype).name}"
    rows = GPU_DEPTH if bits == 4 else 8
    if k % rows or n % 64:
        return f"the gpu kernel needs {bits}-bit weights of multiples of ({rows}, 64), found {k, n}"
    if groups > 1 and k // groups not in (32, 64) and k // groups % GPU_DEPTH:
        return (
            f"the gpu kernel needs groups of 32, 64 or multiples of {GPU_DEPTH} rows, or one group "
            f"of all, found {k // groups}"
        )
    return ""


def gpu_blocks(
    queries: int, rows: int, k: int, n: int, groups: int, bits: int, scale_item: int = 2
) -> GpuBlocks:
    """Block sizes by a heuristic: least decoding, then enough blocks for all multiprocessors.

    Args:
        queries: that have scales of their own.
        rows: of one query.
        k: rows of the weight.
        n: columns of the weight.
        groups: of the scales along K.
        bits: of a code.
        scale_item: bytes of a scale.
    """
    blocks = tiled(1, queries, rows, n, -(-k // GPU_DEPTH), _LEAST_STEPS)
    for stages in (3, 4):
        tried = blocks._replace(stages=stages)
        needed = gpu_shared_bytes(tried, k // groups, bits, scale_item)
        blocks = tried if needed <= SHARED_BYTES else blocks
    return blocks


def gpu_candidates(
    queries: int, rows: int, k: int, n: int, groups: int, bits: int, scale_item: int = 2
) -> list[GpuBlocks]:
    """What the autotuner tries: the heuristic's choice first; arguments as for `gpu_blocks`."""
    first = gpu_blocks(queries, rows, k, n, groups, bits, scale_item)
    found = [first]
    for width in (64, 128):
        # three parts fill two waves where the tiles are two thirds of one
        for splits in sorted({1, 3, first.splits, 2 * first.splits}):
            for stages in (first.stages, 2):
                tried = first._replace(n=width, splits=splits, stages=stages)
                needed = gpu_shared_bytes(tried, k // groups, bits, scale_item)
                if tried not in found and needed <= SHARED_BYTES:
                    found.append(tried)
    return found


def gpu_shared_bytes(blocks: GpuBlocks, group: int, bits: int, scale_item: int) -> int:
    """Shared memory of a block: what is fetched ahead, and what is on its way out, in float32."""
    m, n, queries, stages, _ = blocks
    scales = max(1, GPU_DEPTH // group) * n * (queries * scale_item + 2)
    stage = 2 * GPU_DEPTH * queries * m + GPU_DEPTH * bits // 8 * n + scales
    return stages * stage + 4 * n * min(m, 64)


def _depths(k: int, groups: int, bits: int) -> list[int]:
    """Blocks along the sum: divisors of K that are made of whole groups, or a part of one."""
    group = k // groups
    sizes = [b for b in range(_WIDTH, 513, _WIDTH) if k % b == 0]
    if bits == 8 and k <= 1024:
        sizes.append(k)
    # rows of a group are tiles of their own
    return [b for b in sizes if group % b == 0 or (b % group == 0 and group % 8 == 0)]
