"""Tiles of the kernels for Hopper GPUs: their limits, and which of them a block makes."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

# of a block: bytes of shared memory less what barriers take, and columns of 64 sums in registers
SHARED_BYTES = 232448 - 1024
_SUMS = 256
# with more, the operands in registers make the tensor cores wait for each other
_MOST_QUERIES = 4
_MULTIPROCESSORS = 132


class GpuBlocks(NamedTuple):
    """Sizes of a Hopper kernel's tiles.

    Attributes:
        m: rows of x of one query, a multiple of 8; above 64, of 32.
        n: columns of the result, 64 for each of one or two warpgroups.
        queries: most that share a tile of w, up to 4; so many as divide S do. `queries * m` is at
            most 256, as the sums are held in registers.
        stages: tiles that are fetched ahead.
        splits: parts of the sum.
    """

    m: int
    n: int
    queries: int
    stages: int
    splits: int


def tiled(copies: int, queries: int, rows: int, n: int, steps: int, least_steps: int) -> GpuBlocks:
    """Fewest tiles over one tile of w, then enough blocks for all multiprocessors; two stages.

    Args:
        copies: of all that follows: directions.
        queries: S.
        rows: M.
        n: columns of the result.
        steps: of the sum.
        least_steps: that a part of the sum needs to pay.
    """
    fits = [(_rows(rows, q), q) for q in range(1, _MOST_QUERIES + 1) if queries % q == 0]
    m, q = min(fits, key=lambda f: (-(-rows // f[0]) * queries // f[1], f[1]))
    width = 64 if n <= 64 else 128
    blocks = copies * (queries // q) * -(-rows // m) * -(-n // width)
    splits = max(1, min(_MULTIPROCESSORS // blocks, steps // least_steps))
    return GpuBlocks(m, width, q, 2, splits)


def fitted(blocks: GpuBlocks, queries: int, shared_bytes: int) -> GpuBlocks:
    """The same for S queries, as many together as divide S.

    Raises:
        ValueError: if the sizes are not as `GpuBlocks` says, or need more shared memory than is.
    """
    m, n, most, stages, splits = blocks
    if (
        m < 8 or m % (8 if m <= 64 else 32) or n not in (64, 128)
        or not 1 <= most <= _MOST_QUERIES or most * m > _SUMS
        or stages < 2 or splits < 1 or shared_bytes > SHARED_BYTES
    ):  # fmt: skip
        raise ValueError(
            f"found {blocks}; needed are m a multiple of 8 (above 64, of 32), n of 64 or 128, "
            f"1 to {_MOST_QUERIES} queries, queries * m of at most {_SUMS}, 2 or more stages that "
            f"fit in {SHARED_BYTES} bytes, and 1 or more splits"
        )
    return blocks._replace(queries=max(q for q in range(1, most + 1) if queries % q == 0))


def unravel(index: jax.Array, sizes: Sequence[int]) -> list[jax.Array]:
    """Indices along axes of these sizes, the fastest first, and what is left."""
    found = []
    for size in sizes:
        found.append(lax.rem(index, jnp.int32(size)))
        index = lax.div(index, jnp.int32(size))
    return [*found, index]


def stored_rows(m: int) -> int:
    """Rows of the result that go through shared memory at once: a divisor, at most 64."""
    return m if m <= 64 else next(h for h in (64, 48, 32) if m % h == 0)


def round_up(size: int, multiple: int) -> int:
    """The first multiple that is no less."""
    return -(-size // multiple) * multiple


def _rows(rows: int, queries: int) -> int:
    """Rows of a tile: as few tiles as fit in registers, of about one size."""
    tiles = -(-rows // (_SUMS // queries // 32 * 32))
    each = -(-rows // tiles)
    return round_up(each, 8 if each <= 64 else 32)
