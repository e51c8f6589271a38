"""The TPU kernel: a tile of w is read once for all queries and directions, and perturbed there.

Grid (groups of directions, blocks of M, of N, of K, directions of a group), the last fastest: while
the directions of a group take turns, the tile of w stays, and each adds to a sum of its own. With
all directions in one group w is read once for each block of M. A tile of noise is made once for
all queries of a direction. The keys of its rows are made outside, once for all tiles, with columns
in the place of rows, which would fill one lane of 128.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels._tile import inside, like, scaled
from pallas_kernels.perturbed_matmul.config import TpuBlocks, tpu_blocks
from zojax import noise

# what a program may take of a core's 64 to 128 MiB; the compiler's default is less
_VMEM_LIMIT = 48 * 2**20
# queries of one tile of noise
_MOST_QUERIES = 8


def perturbed_matmul_tpu(
    x: jax.Array,
    w: jax.Array,
    key_words: jax.Array,
    coefficient: jax.Array,
    address: jax.Array,
    *,
    distribution: str,
    transposed: bool,
    out_dtype: Any,
    config: TpuBlocks | None,
    interpret: Any,
) -> jax.Array:
    """As `perturbed_matmul_reference`, in a kernel.

    Raises:
        ValueError: if `config` holds more directions than a divisor of P, or a size below 1.
    """
    directions, queries, rows, k = x.shape
    few = max(d for d in range(1, _MOST_QUERIES + 1) if queries % d == 0)
    if few < queries:
        # more directions, several with one key
        more = queries // few
        out = perturbed_matmul_tpu(
            x.reshape(directions * more, few, rows, k), w, jnp.repeat(key_words, more, axis=0),
            coefficient.reshape(directions * more, few), address, distribution=distribution,
            transposed=transposed, out_dtype=out_dtype, config=config, interpret=interpret,
        )  # fmt: skip
        return out.reshape(directions, queries, rows, -1)
    n = w.shape[0 if transposed else 1]
    sizes = (directions, queries, rows, k, n, x.dtype.itemsize, jnp.dtype(out_dtype).itemsize)
    blocks = tpu_blocks(*sizes) if config is None else config
    if min(blocks) < 1 or directions % blocks.p:
        raise ValueError(
            f"block sizes must be positive and p divide {directions} directions, found {blocks}"
        )
    bm, bk, bn, bp = (min(b, s) for b, s in zip(blocks, (rows, k, n, directions), strict=True))
    if transposed:
        w_spec = pl.BlockSpec((bn, bk), lambda g, i, j, t, p: (j, t))
        keys_spec = pl.BlockSpec((1, 2, bn), lambda g, i, j, t, p: (g * bp + p, 0, j))
    else:
        w_spec = pl.BlockSpec((bk, bn), lambda g, i, j, t, p: (t, j))
        keys_spec = pl.BlockSpec((1, 2, bk), lambda g, i, j, t, p: (g * bp + p, 0, t))
    addresses = address[0] + lax.iota(jnp.uint32, w.shape[0])
    row_keys = jax.vmap(lambda words: jnp.stack(noise.row_keys(words, addresses)))(key_words)
    scalars = pl.BlockSpec(memory_space=pltpu.SMEM)
    kernel = partial(
        _kernel, length=k, block_k=bk, distribution=distribution, transposed=transposed
    )
    return pl.pallas_call(
        kernel,
        grid=(directions // bp, pl.cdiv(rows, bm), pl.cdiv(n, bn), pl.cdiv(k, bk), bp),
        in_specs=[
            scalars,
            scalars,
            keys_spec,
            pl.BlockSpec((1, queries, bm, bk), lambda g, i, j, t, p: (g * bp + p, 0, i, t)),
            w_spec,
        ],
        out_specs=pl.BlockSpec((bp, queries, bm, bn), lambda g, i, j, t, p: (g, 0, i, j)),
        out_shape=like((directions, queries, rows, n), out_dtype, x, w, key_words, coefficient),
        scratch_shapes=[pltpu.VMEM((bp, queries, bm, bn), jnp.float32)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",) * 3 + ("arbitrary",) * 2,
            vmem_limit_bytes=_VMEM_LIMIT,
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * directions * queries * rows * k * n,
            bytes_accessed=(x.size + w.size) * x.dtype.itemsize,
            transcendentals=0,
        ),
        interpret=interpret,
    )(coefficient.reshape(-1), address, row_keys, x, w)


def _kernel(
    coefficient_ref, address_ref, keys_ref, x_ref, w_ref, out_ref, sum_ref,
    *, length: int, block_k: int, distribution: str, transposed: bool,
):  # fmt: skip
    local = pl.program_id(4)
    p = pl.program_id(0) * pl.num_programs(4) + local
    step = pl.program_id(3)
    at_k, at_n = step * block_k, pl.program_id(2) * w_ref.shape[0 if transposed else 1]
    col = (at_k if transposed else at_n).astype(jnp.uint32) + address_ref[1]
    cols = col + lax.broadcasted_iota(jnp.uint32, (1, w_ref.shape[1]), 1)
    row_keys = keys_ref[0].T
    bits = noise.bits_of_row_keys(row_keys[:, 0:1], row_keys[:, 1:2], cols)
    wide = w_ref[...].astype(jnp.float32)
    is_cut = length % block_k != 0
    queries = x_ref.shape[1]
    for s in range(queries):
        c = coefficient_ref[queries * p + s]
        moved, x = wide + scaled(bits, c, distribution), x_ref[0, s]
        if is_cut:
            # what is beyond the end may be NaN, on either side
            kept = inside(at_k, length, moved.shape, 1 if transposed else 0)
            moved = jnp.where(kept, moved, 0.0)
            kept = inside(at_k, length, x.shape, 1)
            x = jnp.where(kept, x.astype(jnp.float32), 0.0).astype(x.dtype)
        product = lax.dot_general(
            x,
            moved.astype(w_ref.dtype),
            (((1,), (1 if transposed else 0,)), ((), ())),
            preferred_element_type=jnp.float32,
        )

        @pl.when(step == 0)
        def _(s=s, product=product):
            sum_ref[local, s] = product

        @pl.when(step > 0)
        def _(s=s, product=product):
            sum_ref[local, s] += product

        @pl.when(step == pl.num_programs(3) - 1)
        def _(s=s):
            out_ref[local, s] = sum_ref[local, s].astype(out_ref.dtype)
