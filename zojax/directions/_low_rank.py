"""Directions that are matrices of low rank, never made: LOZO's and SubZero's."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from zojax import noise
from zojax.directions._direction import (
    Direction,
    at_least_one,
    floating_leaves,
    own_key,
)
from zojax.directions._draw import alike, hashed, leaf_key_table
from zojax.virtual import LowRank, Noise, Term
from zojax.virtual._noise import ONE

_LEFT, _RIGHT, _CORE = 0, 1, 2


def low_rank(rank: int = 1, refresh: int | None = None, *, key: jax.Array | int = 0) -> Direction:
    """Matrices of low rank, `Z = A B^T / sqrt(rank)` with standard normal A (m, r), B (n, r).

    A leaf of three and more axes is one tall matrix, its last axis the columns: so attention
    kernels (d, heads, head) and convolutions (height, width, in, out) stay formulas too, and a
    stack of layers shares its right factor. Vectors and scalars get dense normals.
    The entries are uncorrelated with variance one, but not independent: the total variance of the
    two-sided estimate of one matrix is `(mn + 1 + 2(m + n + 1) / rank) |g|^2 / n_samples`, against
    `(mn + 1) |g|^2 / n_samples` with `gaussian`.

    With `refresh`, B is kept for that many steps and A is fresh in every sample (LOZO). The
    covariance is the identity over a whole run; within one period it is `I (x) B B^T / rank`: the
    steps of a period stay in the span of one B, and of the variance `(n + 1) / rank |g|^2` is that
    of B, which more samples a step do not lessen. Perturbation and update read the same B, that of
    the step of the estimate, so no refresh can come between them.

    Args:
        rank: r, at least 1.
        refresh: steps that B is kept, at least 1; None draws it in every sample.
        key: key or seed of the kept B; without effect where `refresh` is None.

    Returns:
        A `Direction` whose matrices are never made: `x @ W + scale * (x @ A) @ B^T`.

    Raises:
        ValueError: if `rank` or `refresh` is below 1.

    Reference: Chen et al., Enhancing zeroth-order fine-tuning with low-rank structures (LOZO),
    2024, whose direction lacks the factor `1/sqrt(rank)`: scale its step size by `rank`.
    """
    at_least_one(rank=rank, refresh=1 if refresh is None else refresh)

    def terms(sample_key, params, step=0):
        leaves = floating_leaves(params)
        count = len(leaves)
        matrices = [i for i, leaf in enumerate(leaves) if _is_matrix(leaf)]
        vectors = [i for i, leaf in enumerate(leaves) if not _is_matrix(leaf)]
        requests = [(i, _LEFT, math.prod(jnp.shape(leaves[i])[:-1]), rank) for i in matrices]
        requests += [(i, _RIGHT, jnp.shape(leaves[i])[-1], rank) for i in matrices]
        requests += [(i, _LEFT, math.prod(jnp.shape(leaves[i])), 1) for i in vectors]
        keys = noise.words(sample_key)
        if refresh is not None:
            is_kept = np.array([tag == _RIGHT for _, tag, _, _ in requests])
            keys = jnp.where(is_kept[:, None], own_key(key, step, refresh), keys)
        drawn = _normals(keys, requests)
        right, rest = drawn[len(matrices) :], drawn[2 * len(matrices) :]
        scale = np.float32(rank**-0.5)  # one for all: `scaled_together` multiplies it once
        found = {i: _product(leaves[i], drawn[k], right[k], scale)
                 for k, i in enumerate(matrices)}  # fmt: skip
        found |= {i: _vector(leaves[i], rest[k]) for k, i in enumerate(vectors)}
        return tuple(found[i] for i in range(count))

    rest = "" if refresh is None else f", refresh={refresh}"
    return Direction(terms, f"low_rank({rank}{rest})")


def subspace(rank: int = 16, refresh: int = 1000, *, key: jax.Array | int = 0) -> Direction:
    """Random subspaces, `Z = sqrt(mn)/r U X V^T` with X (r, r) standard normal (SubZero).

    U (m, r) and V (n, r) are orthonormal, from the QR decomposition of standard normals, and kept
    for `refresh` steps; X is fresh in every sample. A leaf of three and more axes is one tall
    matrix, as in `low_rank`, with its own X for each index of the first axis, so that each layer
    of a stack moves on its own. Where a matrix has fewer than `rank` rows or columns, r is their
    number. Vectors and scalars get dense normals.

    The covariance is the identity over a whole run; within one period it is `mn/r^2` times the
    projector on the subspace. The total variance of the two-sided estimate of one matrix is
    `(mn (1 + 1/r^2) / n_samples + mn/r^2 - 1) |g|^2`, the last part being that of U and V.

    Args:
        rank: r, at least 1.
        refresh: steps that U and V are kept, at least 1; the paper uses 500 to 2000.
        key: key or seed of U and V.

    Returns:
        A `Direction` whose matrices are never made: `x @ W + scale * (x @ (U X)) @ V^T`.

    Raises:
        ValueError: if `rank` or `refresh` is below 1.

    Reference: Yu et al., SubZero: Zeroth-order fine-tuning of LLMs in random subspaces, 2024,
    whose direction lacks the factor `sqrt(mn)/r`: scale its step size by `r^2/(mn)`.
    """
    at_least_one(rank=rank, refresh=refresh)

    def terms(sample_key, params, step=0):
        leaves = floating_leaves(params)
        kept = own_key(key, step, refresh)
        matrices = [i for i, leaf in enumerate(leaves) if _is_matrix(leaf)]
        bases, cores = [], []
        for side in (_LEFT, _RIGHT):
            for i in matrices:
                rows, cols = _rows_and_columns(leaves[i])
                r = min(rank, rows, cols)
                bases.append((i, side, (rows, cols)[side], r))
        for i in matrices:
            r = min(rank, *_rows_and_columns(leaves[i]))
            layers = jnp.shape(leaves[i])[0] if jnp.ndim(leaves[i]) > 2 else 1
            cores.append((i, _CORE, layers * r, r))
        bases, cores = _normals(kept, bases, orthonormal=True), _normals(sample_key, cores)
        found: dict[int, Term] = {}
        for k, i in enumerate(matrices):
            u, v, r = bases[k], bases[k + len(matrices)], cores[k].shape[-1]
            core = cores[k].reshape(-1, r, r)
            left = jnp.einsum("lmr,lrs->lms", u.reshape(core.shape[0], -1, r), core)
            scale = math.prod(_rows_and_columns(leaves[i])) ** 0.5 / r
            # the barrier keeps XLA from multiplying U X again for each entry of the matrix
            left = lax.optimization_barrier(left).reshape(-1, r)
            found[i] = _product(leaves[i], left, v, np.float32(scale))
        keys = leaf_key_table(sample_key, len(leaves))
        return tuple(
            found[i] if i in found else _dense(keys[i], leaf) for i, leaf in enumerate(leaves)
        )

    return Direction(terms, f"subspace({rank}, refresh={refresh})")


def _is_matrix(leaf) -> bool:
    return jnp.ndim(leaf) >= 2 and 0 not in jnp.shape(leaf)


def _rows_and_columns(leaf) -> tuple[int, int]:
    shape = jnp.shape(leaf)
    return math.prod(shape[:-1]), shape[-1]


def _dense(key, leaf) -> Noise:
    return Noise.of_leaf(key, 1.0, "gaussian", jnp.shape(leaf))


def _product(leaf, a: jax.Array, b: jax.Array, scale: Any) -> LowRank:
    """The leaf's term of its factors: a, the rows of the tall matrix, and b, its columns."""
    shape, dtype = jnp.shape(leaf), jnp.result_type(leaf)
    a = a.reshape(*shape[:-1], 1, a.shape[-1])
    b = b.reshape(*(1,) * (len(shape) - 1), shape[-1], b.shape[-1])
    # rounded to the leaf's dtype here, so that forward and update see the same factors
    return LowRank(a.astype(dtype), b.astype(dtype), scale, shape)


def _vector(leaf, values: jax.Array) -> LowRank:
    """The term of a vector or a scalar, stored: a factor beside a one."""
    shape, dtype = jnp.shape(leaf), jnp.result_type(leaf)
    one = jnp.ones((*(1,) * len(shape), 1), dtype)
    return LowRank(values.reshape(*shape, 1).astype(dtype), one, ONE, shape)


def _normals(
    keys: jax.Array, requests: list[tuple[int, int, int, int]], orthonormal: bool = False
) -> list[jax.Array]:
    """Standard normals (rows, rank) for each (leaf, tag, rows, rank); or Q of their QR.

    `keys` is one key or one a request, of which that of the leaf is made. The numbers are addressed
    the other way about, a column of the factor being a row of the noise: its key is then hashed
    `rank` times, not `rows` times.
    """
    if not requests:
        return []
    leaf, tags, _, ranks = np.array(requests, np.uint32).T
    most, words = max(ranks), noise.words(keys)

    def words_of(places):
        # of one shape with the keys that are hashed after them: one computation
        of_leaf = words[places] if words.ndim > 1 else jnp.broadcast_to(words, (len(places), 2))
        of_factor = hashed(hashed(of_leaf, leaf[places]), tags[places])
        columns = np.tile(np.arange(most, dtype=np.uint32), len(places))
        of_factor = jnp.repeat(of_factor, most, axis=0) if most > 1 else of_factor
        return jnp.swapaxes(hashed(of_factor, columns, 0).reshape(-1, most, 2), 1, 2)

    def draw(words, part, size):
        rows, rank = size
        first, second = words[part, 0, :rank, None], words[part, 1, :rank, None]
        cols = jnp.arange(rows, dtype=jnp.uint32)
        drawn = noise.gaussian(noise.bits_of_row_keys(first, second, cols))
        if not orthonormal:
            return drawn
        return jnp.swapaxes(jnp.linalg.qr(jnp.swapaxes(drawn, 1, 2))[0], 1, 2)

    drawn = alike([request[2:] for request in requests], words_of, draw)
    return [f.get().reshape(-1, 1) if f.shape[0] == 1 else f.get().T for f in drawn]
