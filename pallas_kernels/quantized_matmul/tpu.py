"""The TPU kernel: a tile of codes is read and decoded once for all queries.

Grid (blocks of M, of N, of K), the last fastest. Each query has scales of its own, which is how
noise on scales comes in. Within an atom of 128 rows the low halves of the bytes are the first 64
rows, so that unpacking is two masks and a concatenation of whole tiles.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels._tile import like
from pallas_kernels.quantized_matmul.config import QuantizedTpuBlocks, tpu_blocks
from pallas_kernels.quantized_matmul.reference import HALF, choose, of_levels

_VMEM_LIMIT = 48 * 2**20


def quantized_matmul_tpu(
    x: jax.Array,
    codes: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    table: jax.Array | None,
    *,
    levels: tuple[float, ...] | None,
    out_dtype: Any,
    config: QuantizedTpuBlocks | None,
    interpret: Any,
) -> jax.Array:
    """`quantized_matmul_reference` without entries, in a kernel; scales are [S, G, N].

    Raises:
        ValueError: if the blocks do not fit the lengths of the sum and of the groups.
    """
    queries, rows, k = x.shape
    n, groups, packed = codes.shape[1], scales.shape[1], codes.dtype == jnp.uint8
    sizes = (queries, rows, k, n, groups, 4 if packed else 8, x.dtype.itemsize)
    blocks = tpu_blocks(*sizes) if config is None else config
    group = k // groups
    bm, bk, bn = (min(b, s) for b, s in zip(blocks, (rows, k, n), strict=True))
    if k % bk or (group % bk and bk % group) or (packed and bk % (2 * HALF)):
        raise ValueError(
            f"a block along the sum must divide {k}, and hold or divide groups of {group}, found "
            f"{blocks}"
        )
    held = max(1, bk // group)  # groups of a block

    def of_groups(values):
        # the groups of a block as an axis of its own, so that any number of them is a whole axis
        return values.astype(jnp.float32).reshape(values.shape[0], -1, held, n)

    def grouped(count):
        steps = max(1, group // bk)  # of the sum, in one group
        return pl.BlockSpec((count, 1, held, bn), lambda i, j, t: (0, lax.div(t, steps), 0, j))

    arrays = [x, codes, of_groups(scales)]
    specs = [
        pl.BlockSpec((queries, bm, bk), lambda i, j, t: (0, i, t)),
        pl.BlockSpec((bk // 2 if packed else bk, bn), lambda i, j, t: (t, j)),
        grouped(queries),
    ]
    if zeros is not None:
        arrays.append(of_groups(zeros[None]))
        specs.append(grouped(1))
    if table is not None:
        arrays.append(table.astype(jnp.float32))
        specs.append(pl.BlockSpec((16, bn), lambda i, j, t: (0, j)))
    kind = "table" if table is not None else "levels" if zeros is None else "zeros"
    return pl.pallas_call(
        partial(_kernel, group=min(group, bk), kind=kind, levels=levels),
        grid=(pl.cdiv(rows, bm), pl.cdiv(n, bn), k // bk),
        in_specs=specs,
        out_specs=pl.BlockSpec((queries, bm, bn), lambda i, j, t: (0, i, j)),
        out_shape=like((queries, rows, n), out_dtype, *arrays),
        scratch_shapes=[pltpu.VMEM((queries, bm, bn), jnp.float32)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=_VMEM_LIMIT,
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * queries * rows * k * n, bytes_accessed=codes.size, transcendentals=0
        ),
        interpret=interpret,
    )(*arrays)


def _kernel(x_ref, codes_ref, scales_ref, *rest, group: int, kind: str, levels):
    out_ref, sum_ref = rest[-2:]
    number = _decoded(codes_ref[...], kind, levels, rest[0], group)
    step = pl.program_id(2)
    for s in range(x_ref.shape[0]):
        w = (number * _each_row(scales_ref[s, 0], group)).astype(x_ref.dtype)
        product = lax.dot_general(
            x_ref[s], w, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32
        )

        @pl.when(step == 0)
        def _(s=s, product=product):
            sum_ref[s] = product

        @pl.when(step > 0)
        def _(s=s, product=product):
            sum_ref[s] += product

        @pl.when(step == pl.num_programs(2) - 1)
        def _(s=s):
            out_ref[s] = sum_ref[s].astype(out_ref.dtype)


def _decoded(codes: jax.Array, kind: str, levels, extra_ref, group: int) -> jax.Array:
    """float32 [rows, columns] of a tile; `extra_ref` holds zeros or a table."""
    if codes.dtype == jnp.int8:
        return codes.astype(jnp.int32).astype(jnp.float32)
    codes = codes.astype(jnp.int32)
    halves = []
    for at in range(0, codes.shape[0], HALF):
        part = codes[at : at + HALF]
        halves += [part & 15, part >> 4]
    codes = jnp.concatenate(halves, axis=0)
    if kind == "table":
        return choose(codes, [extra_ref[i : i + 1, :] for i in range(16)])
    if kind == "zeros":
        return codes.astype(jnp.float32) - _each_row(extra_ref[0, 0], group)
    return of_levels(codes, levels)


def _each_row(values: jax.Array, group: int) -> jax.Array:
    """Rows of groups, repeated for each row of their group."""
    shape = (group, values.shape[1])
    parts = [jnp.broadcast_to(values[i : i + 1], shape) for i in range(values.shape[0])]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=0)
