"""The kernel for Hopper GPUs: a tile of codes is read and decoded once for the queries of a block.

It computes the transpose, `out.T = w.T @ x.T`, as the kernel of `perturbed_matmul` does: the
decoded tile is the operand that the tensor cores read from registers. A step of the sum is an atom
of 128 rows. A tile of 4-bit codes is brought into the operand's layout once, as bytes; its low and
high halves are then decoded in place, as two operands.

Codes that stand for integers are decoded without conversions: set into the mantissa of a bfloat16
number, of which a constant is subtracted, all exact. Their product with a scale in bfloat16 fits in
float32, so that one rounding to bfloat16 gives the bits of the definition.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels import _mosaic_gpu as mosaic
from pallas_kernels._gpu_tiles import GpuBlocks, fitted, round_up, stored_rows, unravel
from pallas_kernels._tile import like
from pallas_kernels.quantized_matmul.config import (
    GPU_DEPTH,
    gpu_blocks,
    gpu_problem,
    gpu_shared_bytes,
    kind_of,
)
from pallas_kernels.quantized_matmul.reference import HALF, choose

# decodings that read another array
_READ = ("zeros", "table", "levels")


def quantized_matmul_gpu(
    x: jax.Array,
    codes: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    table: jax.Array | None,
    *,
    levels: tuple[float, ...] | None,
    out_dtype: Any,
    config: GpuBlocks | None,
    interpret: Any,
) -> jax.Array:
    """`quantized_matmul_reference` without entries, in a kernel; scales are [S, G, N].

    Raises:
        ValueError: if the kernel cannot do it, with the reason, or `config` is none.
        NotImplementedError: if `interpret` and this jax has no interpreter for GPU kernels.
    """
    queries, rows, k = x.shape
    n, groups, bits = codes.shape[1], scales.shape[1], 8 if codes.dtype == jnp.int8 else 4
    if problem := gpu_problem(k, n, groups, bits, x.dtype):
        raise ValueError(f"{problem}; implementation='xla' does any")
    if scales.dtype not in (jnp.bfloat16, jnp.float32):
        scales = scales.astype(jnp.float32)
    group = k // groups if groups > 1 else round_up(k, GPU_DEPTH)
    item = scales.dtype.itemsize
    if config is None:
        config = gpu_blocks(queries, rows, k, n, groups, bits, item)
    blocks = fitted(config, queries, gpu_shared_bytes(config, group, bits, item))
    deep = min(group, HALF)
    x = jnp.pad(x, ((0, 0), (0, -rows % 8), (0, -k % GPU_DEPTH)))
    # hardware fills what lies beyond matrices, but may read short vectors beyond their end
    short, width = (0, -groups % max(1, GPU_DEPTH // group)), (0, -n % blocks.n)
    scales = jnp.pad(scales, ((0, 0), short, width))
    zeros = None if zeros is None else jnp.pad(zeros, (short, width))
    table = None if table is None else jnp.pad(table, ((0, 0), width))
    kind = kind_of(codes, levels, zeros, table)
    more = _read(kind, levels, zeros, table)
    args = (x, codes, scales, *more)
    stored = jnp.dtype(out_dtype) if blocks.splits == 1 else jnp.dtype(jnp.float32)
    warpgroups = blocks.n // mosaic.ROWS
    parts = mosaic.run(
        partial(
            _body, blocks=blocks, group=group, kind=kind, first=levels[0] if levels else 0,
        ),
        *args,
        name="quantized_matmul",
        out=like((blocks.splits, queries, x.shape[1], n), stored, *args),
        blocks=queries // blocks.queries * pl.cdiv(rows, blocks.m) * pl.cdiv(n, blocks.n)
        * blocks.splits,
        warpgroups=warpgroups,
        scratch=[
            mosaic.shared((warpgroups, stored_rows(blocks.m), mosaic.ROWS), stored),
            *([mosaic.shared((warpgroups, mosaic.ROWS, deep), x.dtype, deep)] if interpret else []),
        ],
        interpret=interpret,
    )  # fmt: skip
    out = parts[0] if blocks.splits == 1 else jnp.sum(parts, axis=0).astype(out_dtype)
    return out[:, :rows]


def _body(x, codes, scales, *rest, blocks: GpuBlocks, group: int, kind: str, first: float) -> None:
    """Of one block: `blocks.queries` tiles of `out`, 64 columns of each for a warpgroup."""
    more, (out, result, *staging) = rest[: kind in _READ], rest[kind in _READ :]
    _, queries, rows, n = out.shape
    packed, deep = codes.dtype == jnp.uint8, min(group, HALF)
    stored = HALF if packed else GPU_DEPTH
    steps = pl.cdiv(x.shape[2] // GPU_DEPTH, blocks.splits)
    sizes = queries // blocks.queries, pl.cdiv(rows, blocks.m), pl.cdiv(n, blocks.n)
    query, m, column, part = unravel(mosaic.block_index(), sizes)
    warpgroup = mosaic.warpgroup_index()
    at_q, at_m, at_n = query * blocks.queries, m * blocks.m, column * blocks.n
    mine = pl.ds(warpgroup * mosaic.ROWS, mosaic.ROWS)
    columns = pl.ds(at_n + warpgroup * mosaic.ROWS, mosaic.ROWS)
    shape = (mosaic.ROWS, deep)

    def around(loop):
        held: list[jax.Array] = []
        if kind == "table":
            held = [mosaic.load_vector(more[0].at[i, columns], 0) for i in range(16)]
        elif kind == "levels":
            held = [mosaic.load_of_lanes(more[0])]

        def add_up(*sums):
            loop((sums, held))
            asked = [at_q + s for s in range(blocks.queries)]
            mosaic.store_sums(sums, asked, out.at[part], at_m, columns, result.at[warpgroup])

        mosaic.with_accumulators(add_up, blocks.queries, blocks.m)

    def step(_, x_tile, tile, scale_tile, *rest):
        *zero_tile, (sums, held) = rest

        def vector(ref, at):
            return mosaic.load_vector(ref.at[at * deep // group, mine], 0)

        def add(number, unit, at):
            """Multiplies the decoded rows from `at * deep` on, which are `unit * number`."""
            for s, total in enumerate(sums):
                scale = vector(scale_tile.at[s], at)
                wide = jnp.promote_types(number.dtype, scale.dtype)
                scale = scale.astype(wide)
                scale = scale if unit == 1 else scale * wide.type(unit)
                w = number.astype(wide) * mosaic.spread(scale, 0, shape)
                right = x_tile.at[s, :, pl.ds(at * deep, deep)].transpose((1, 0))
                own = (r.at[warpgroup] for r in staging)
                mosaic.multiply(total, w.astype(x.dtype), right, *own)

        for i in range(stored // deep):
            piece = tile.at[pl.ds(i * deep, deep), mine]
            if not packed:
                add(mosaic.load_left(piece, transposed=True, dtype=x.dtype), 1, i)
                continue
            bytes_ = mosaic.load_left(piece, transposed=True, dtype=jnp.uint16)
            for is_high, at in ((False, i), (True, i + HALF // deep)):
                unit = 1
                if kind == "levels":
                    number = mosaic.look_up(
                        held[0], bytes_, first_bit=4 * is_high, interpret=bool(staging)
                    )
                elif kind == "table":
                    wide = bytes_.astype(jnp.uint32) >> jnp.uint32(4 * is_high)
                    number = choose(wide, [mosaic.spread(c, 0, shape) for c in held])
                else:
                    zero = vector(zero_tile[0], at) if kind == "zeros" else -int(first)
                    number, unit = _integers(bytes_, is_high, zero, shape)
                add(number, unit, at)
        mosaic.wait()
        return sums, held

    fetched, together = max(1, group // GPU_DEPTH), max(1, GPU_DEPTH // group)
    last = scales.shape[1] // together - 1

    def of_group(i):
        # beyond the end of the sum x is zero
        return jnp.minimum(lax.div(part * steps + i, jnp.int32(fetched)), last)

    at_k, wide = part * steps, pl.ds(at_n, blocks.n)
    x_tiles = x.at[
        pl.ds(at_q, blocks.queries),
        pl.ds(at_m, blocks.m),
        pl.ds(at_k * GPU_DEPTH, steps * GPU_DEPTH),
    ]
    block = (blocks.queries, blocks.m, GPU_DEPTH)
    operands = [
        mosaic.Fetched(x_tiles, block, 2, mosaic.swizzled(x.dtype, deep)),
        mosaic.Fetched(
            codes.at[pl.ds(at_k * stored, steps * stored), wide], (stored, blocks.n), 0,
            mosaic.swizzled(codes.dtype, mosaic.ROWS),
        ),
        mosaic.Fetched(
            scales.at[pl.ds(at_q, blocks.queries), :, wide],
            (blocks.queries, together, blocks.n), 1, index=of_group,
        ),
    ]  # fmt: skip
    if kind == "zeros":
        zero_tiles = more[0].at[:, wide]
        operands.append(mosaic.Fetched(zero_tiles, (together, blocks.n), 0, index=of_group))
    mosaic.pipeline(
        step, around, operands,
        steps=steps, stages=blocks.stages, warpgroups=blocks.n // mosaic.ROWS,
    )  # fmt: skip


def _read(kind: str, levels, zeros, table) -> list[jax.Array]:
    """What the kernel reads to decode."""
    if kind == "zeros":
        # integers of 8 bits are exact in bfloat16, of which vectors can be read
        return [zeros.astype(jnp.bfloat16)]
    if kind == "table":
        return [table.astype(jnp.float32)]
    return [jnp.tile(jnp.asarray(levels, jnp.float32), 8)] if kind == "levels" else []


def _integers(bytes_: jax.Array, is_high: bool, zero, shape) -> tuple[jax.Array, float]:
    """bfloat16 `code - zero` of one half of bytes in 16 bits, in units of 1 or 1/16.

    0x4300 is 128, and the last seven bits are its mantissa, in units of 1. The high half has four
    bits there, of which the uppermost is taken apart, as it would be one of the exponent.
    """

    def number(bits):
        return lax.bitcast_convert_type(bits, jnp.bfloat16)

    def constant(value):
        value = jnp.bfloat16(value) if isinstance(value, int) else value.astype(jnp.bfloat16)
        return value if value.ndim == 0 else mosaic.spread(value, 0, shape)

    if not is_high:
        return number((bytes_ & jnp.uint16(0xF)) | jnp.uint16(0x4300)) - constant(128 + zero), 1
    three = number((bytes_ & jnp.uint16(0x70)) | jnp.uint16(0x4300))
    # 128 for a code of 8 and more, else 256
    fourth = number((bytes_ & jnp.uint16(0x80)) ^ jnp.uint16(0x4380))
    found = three - fourth
    is_eight = isinstance(zero, int) and zero == 8
    return found if is_eight else found - constant(16 * (zero - 8)), 1 / 16
