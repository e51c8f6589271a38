"""The kernel for Hopper GPUs: a tile of w is read once for the queries of a direction.

It computes the transpose, `out.T = (w + c Z).T @ x.T`. The perturbed tile is then the operand that
the tensor cores read from registers, so it is made there and stored nowhere, and few rows of x cost
little, as theirs is the side that may be as short as 8. One tile of noise serves all queries of a
block. Blocks of other directions, queries and rows over the same tile of w are neighbours in the
grid and share it through the L2 cache. A long sum is split where there would be fewer blocks than
multiprocessors, and its parts are added in float32.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels import _mosaic_gpu as mosaic
from pallas_kernels._gpu_tiles import GpuBlocks, round_up, stored_rows, unravel
from pallas_kernels._tile import DISTRIBUTIONS, like
from pallas_kernels.perturbed_matmul.config import (
    GPU_DEPTH,
    gpu_blocks,
    gpu_fitted,
    gpu_problem,
)
from zojax import noise


def perturbed_matmul_gpu(
    x: jax.Array,
    w: jax.Array,
    key_words: jax.Array,
    coefficient: jax.Array,
    address: jax.Array,
    *,
    distribution: str,
    transposed: bool,
    out_dtype: Any,
    config: GpuBlocks | None,
    interpret: Any,
) -> jax.Array:
    """As `perturbed_matmul_reference`, in a kernel.

    Raises:
        ValueError: if the kernel cannot do it, with the reason, or `config` is none.
        NotImplementedError: if `interpret` and this jax has no interpreter for GPU kernels.
    """
    directions, queries, rows, k = x.shape
    n = w.shape[0 if transposed else 1]
    if problem := gpu_problem(w.shape, x.dtype, distribution):
        raise ValueError(f"{problem}; implementation='xla' does any")
    blocks = gpu_blocks(directions, queries, rows, k, n) if config is None else config
    blocks = gpu_fitted(blocks, queries)
    # the keys of rows are made here, once for all blocks; the kernel reads two words a row
    along = round_up(n, blocks.n) if transposed else k
    at = address[0] + jnp.arange(along, dtype=jnp.uint32)
    keys = jax.vmap(lambda words: jnp.stack(noise.row_keys(words, at)))(key_words)
    # matrices are copied in pieces of (8, 64); w would have to be copied to be made to fit
    x = jnp.pad(x.reshape(-1, rows, k), ((0, 0), (0, -rows % 8), (0, -k % GPU_DEPTH)))
    stored = jnp.dtype(out_dtype) if blocks.splits == 1 else jnp.dtype(jnp.float32)
    parts = mosaic.run(
        partial(_body, blocks=blocks, distribution=distribution, transposed=transposed),
        x, w, keys, coefficient, address[1:],
        name="perturbed_matmul",
        out=like((blocks.splits, directions, queries, x.shape[1], round_up(n, 64)), stored, x, w,
                 keys, coefficient, address),
        blocks=directions * (queries // blocks.queries) * pl.cdiv(rows, blocks.m)
        * pl.cdiv(n, blocks.n) * blocks.splits,
        warpgroups=blocks.n // mosaic.ROWS,
        scratch=[
            mosaic.shared((blocks.n // mosaic.ROWS, stored_rows(blocks.m), mosaic.ROWS), stored),
            *([mosaic.shared((blocks.n // mosaic.ROWS, mosaic.ROWS, GPU_DEPTH), w.dtype)]
              if interpret else []),
        ],
        interpret=interpret,
    )  # fmt: skip
    out = parts[0] if blocks.splits == 1 else jnp.sum(parts, axis=0).astype(out_dtype)
    return out[..., :rows, :n]


def _body(
    x, w, keys, coefficient, first_col, out, result, *staging,
    blocks: GpuBlocks, distribution: str, transposed: bool,
) -> None:  # fmt: skip
    """Of one block: `blocks.queries` tiles of `out`, 64 columns of each for a warpgroup."""
    _, directions, queries, rows, n = out.shape
    steps = pl.cdiv(pl.cdiv(x.shape[2], GPU_DEPTH), blocks.splits)
    sizes = directions, queries // blocks.queries, pl.cdiv(rows, blocks.m), pl.cdiv(n, blocks.n)
    p, group, m, column, part = unravel(mosaic.block_index(), sizes)
    warpgroup = mosaic.warpgroup_index()
    asked = [group * blocks.queries + s for s in range(blocks.queries)]
    at_m, at_n, at_k = m * blocks.m, column * blocks.n, part * (steps * GPU_DEPTH)
    at_mine = at_n + warpgroup * mosaic.ROWS
    columns = pl.ds(at_mine, mosaic.ROWS)
    shape = (mosaic.ROWS, GPU_DEPTH)

    def around(loop):
        scales = [coefficient[p, s] for s in asked]
        start = (at_k if transposed else at_mine).astype(jnp.uint32) + first_col[0]
        of_rows = [mosaic.load_vector(keys.at[p, i, columns], 0) for i in (0, 1) if transposed]

        def add_up(*sums):
            loop((sums, scales, start, of_rows))
            mosaic.store_sums(sums, asked, out.at[part, p], at_m, columns, result.at[warpgroup])

        mosaic.with_accumulators(add_up, blocks.queries, blocks.m)

    def step(i, *args):
        x_tile, tile, *of_step, carry = args
        sums, scales, start, of_rows = carry
        mine = pl.ds(warpgroup * mosaic.ROWS, mosaic.ROWS)
        if transposed:
            wide = mosaic.load_left(tile.at[mine], transposed=False)
            key0, key1 = (mosaic.spread(key, 0, shape) for key in of_rows)
            cols = mosaic.iota(1, shape) + (start + (i * GPU_DEPTH).astype(jnp.uint32))
        else:
            wide = mosaic.load_left(tile.at[:, mine], transposed=True)
            words = (mosaic.load_vector(of_step[0].at[i], 1) for i in (0, 1))
            key0, key1 = (mosaic.spread(key, 1, shape) for key in words)
            cols = mosaic.iota(0, shape) + start
        z = DISTRIBUTIONS[distribution](noise.bits_of_row_keys(key0, key1, cols))
        wide = wide.astype(jnp.float32)
        for s, (scale, total) in enumerate(zip(scales, sums, strict=True)):
            moved = (wide + scale * z).astype(w.dtype)
            right = x_tile.at[s].transpose((1, 0))
            mosaic.multiply(total, moved, right, *(r.at[warpgroup] for r in staging))
        mosaic.wait()
        return carry

    deep, wide_tile = pl.ds(at_k, steps * GPU_DEPTH), pl.ds(at_n, blocks.n)
    first = p * queries + group * blocks.queries
    x_tiles = x.at[pl.ds(first, blocks.queries), pl.ds(at_m, blocks.m), deep]
    swizzled = mosaic.swizzled(w.dtype)
    operands = [mosaic.Fetched(x_tiles, (blocks.queries, blocks.m, GPU_DEPTH), 2, swizzled)]
    if transposed:
        tiles = w.at[wide_tile, deep]
        operands.append(mosaic.Fetched(tiles, (blocks.n, GPU_DEPTH), 1, swizzled))
    else:
        tiles = w.at[deep, wide_tile]
        operands.append(mosaic.Fetched(tiles, (GPU_DEPTH, blocks.n), 0, swizzled))
        operands.append(mosaic.Fetched(keys.at[p, :, deep], (2, GPU_DEPTH), 1))
    mosaic.pipeline(
        step, around, operands,
        steps=steps, stages=blocks.stages, warpgroups=blocks.n // mosaic.ROWS,
    )  # fmt: skip
