"""One `pallas_call`: each program makes the noise of one tile from its own address."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels._tile import Distribution, numbers


def _fill(address_ref, out_ref, *, distribution: Distribution):
    """address: uint32[4] in scalar memory, the two key words and the first row and column."""
    height, width = out_ref.shape
    row = (pl.program_id(0) * height).astype(jnp.uint32) + address_ref[2]
    col = (pl.program_id(1) * width).astype(jnp.uint32) + address_ref[3]
    shape = (height, width)
    out_ref[...] = numbers(address_ref[0], address_ref[1], row, col, shape, distribution)


def counter_noise_tpu(
    address: jax.Array,
    shape: tuple[int, int],
    distribution: Distribution,
    block: tuple[int, int],
    interpret: bool,
) -> jax.Array:
    """float32 `shape`; tiles that reach over the edge are cut there by Pallas."""
    return pl.pallas_call(
        partial(_fill, distribution=distribution),
        grid=(pl.cdiv(shape[0], block[0]), pl.cdiv(shape[1], block[1])),
        in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM)],
        out_specs=pl.BlockSpec(block, lambda i, j: (i, j)),
        out_shape=jax.ShapeDtypeStruct(shape, jnp.float32),
        interpret=interpret,
    )(address)
