"""What a direction is, and the elementary ones."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from zojax import noise
from zojax.virtual import LowRank, Noise, Term


class Direction(NamedTuple):
    """A distribution over directions z in a parameter tree, with `E[z] = 0`, `E[z z^T] = I`.

    Attributes:
        terms: `(key, params, step=0) -> tuple` with one unscaled term a leaf of `params`, in the
            order of `jax.tree.leaves`, or None where the leaf stays put. The same terms perturb the
            forward and make the update, so the two cannot differ. Only shapes and dtypes of
            `params` are read; `step`, an integer that may be traced, matters to directions that
            keep a part of themselves for several steps.
        name: for messages.
    """

    terms: Callable[..., tuple[Term | None, ...]]
    name: str


def _each_leaf(make: Callable[[jax.Array, Any], Term], name: str) -> Direction:
    def terms(key, params, step=0):
        del step
        leaves = _floating_leaves(params)
        return tuple(map(make, _leaf_keys(key, len(leaves)), leaves))

    return Direction(terms, name)


def _leaf_keys(key, count: int) -> list[jax.Array]:
    # the barrier keeps XLA from compiling the key hash again inside every use of every leaf
    keys = lax.optimization_barrier(noise.fold_in(key, jnp.arange(count, dtype=jnp.uint32)))
    return [keys[i] for i in range(count)]


def _floating_leaves(params) -> list:
    paths, _ = jax.tree_util.tree_flatten_with_path(params)
    for path, leaf in paths:
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"leaf {jax.tree_util.keystr(path)} has dtype {dtype}; only real floating-point "
                "leaves can be perturbed: split it off as frozen (zojax.select) or mask it "
                "(zojax.masked)"
            )
    return [leaf for _, leaf in paths]


def gaussian() -> Direction:
    """Independent standard normals, `z_i ~ N(0, 1)`.

    Variance of the two-sided estimate with n samples: `(d + 1) |g|^2 / n` in total.

    Returns:
        A `Direction`. Dense: each matmul makes one perturbed matrix, used once.

    Reference: Nesterov and Spokoiny, Random gradient-free minimization of convex functions, 2017.
    """
    return _each_leaf(
        lambda key, x: Noise.of_leaf(key, 1.0, "gaussian", jnp.shape(x)), "gaussian()"
    )


def rademacher() -> Direction:
    """Independent signs, `z_i = -1 or +1`; the least variance of all iid directions.

    Variance of the two-sided estimate with n samples: `(d - 1) |g|^2 / n` in total.

    Returns:
        A `Direction`. Dense, as `gaussian`, at a third of its cost.

    Reference: Spall, Multivariate stochastic approximation (SPSA), 1992.
    """
    return _each_leaf(
        lambda key, x: Noise.of_leaf(key, 1.0, "rademacher", jnp.shape(x)), "rademacher()"
    )


def low_rank(rank: int = 1) -> Direction:
    """Matrices of low rank, `Z = A B^T / sqrt(rank)` with standard normal A (m, r), B (n, r).

    A leaf of three and more axes is one tall matrix, its last axis the columns: so attention
    kernels (d, heads, head) and convolutions (height, width, in, out) stay formulas too, and a
    stack of layers shares its right factor. Vectors and scalars get dense normals.
    The entries are uncorrelated with variance one, but not independent: the total variance of the
    two-sided estimate of one matrix is `(mn + 1 + 2(m + n + 1) / rank) |g|^2 / n_samples`, against
    `(mn + 1) |g|^2 / n_samples` with `gaussian`.

    Args:
        rank: r, at least 1.

    Returns:
        A `Direction` whose matrices are never made: `x @ W + scale * (x @ A) @ B^T`.

    Raises:
        ValueError: if `rank` is below 1.

    Reference: Chen et al., Enhancing zeroth-order fine-tuning with low-rank structures (LOZO),
    2024, whose direction lacks the factor `1/sqrt(rank)`: scale its step size by `rank`.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, found {rank}")

    def terms(key, params, step=0):
        del step
        leaves = _floating_leaves(params)
        keys = _leaf_keys(key, len(leaves))
        matrices = [i for i, leaf in enumerate(leaves) if jnp.ndim(leaf) >= 2]
        factors = iter(_factors([(keys[i], jnp.shape(leaves[i])) for i in matrices], rank))
        out: list[Term] = []
        for leaf, leaf_key in zip(leaves, keys, strict=True):
            if jnp.ndim(leaf) < 2:
                out.append(Noise.of_leaf(leaf_key, 1.0, "gaussian", jnp.shape(leaf)))
                continue
            # rounded to the leaf's dtype here, so that forward and update see the same factors
            a, b = (f.astype(jnp.result_type(leaf)) for f in next(factors))
            out.append(LowRank.of_matrices(a, b, rank**-0.5))
        return tuple(out)

    return Direction(terms, f"low_rank({rank})")


def _factors(matrices: list[tuple[jax.Array, tuple[int, ...]]], rank: int):
    """Standard normal factors ((*rows, r), (1, ..., n, r)) of each leaf.

    Those of one size are made by one call, so that compile time does not grow with depth.
    """
    keys, shapes = [], []
    for key, shape in matrices:
        keys += [(key, 0), (key, 1)]
        shapes += [(*shape[:-1], rank), (*(1,) * (len(shape) - 2), shape[-1], rank)]
    by_size: dict[int, list[int]] = {}
    for i, shape in enumerate(shapes):
        by_size.setdefault(math.prod(shape[:-1]), []).append(i)
    factors: list[Any] = [None] * len(shapes)
    for rows, members in by_size.items():
        leaf_keys = jnp.stack([keys[i][0] for i in members])
        sides = jnp.array([keys[i][1] for i in members], jnp.uint32)
        bits = noise.stacked_bits(jax.vmap(noise.fold_in)(leaf_keys, sides), rows, rank)
        drawn = lax.optimization_barrier(noise.gaussian(bits))
        for place, i in enumerate(members):
            factors[i] = drawn[place].reshape(shapes[i])
    return list(zip(factors[::2], factors[1::2], strict=True))


def masked(direction: Direction, mask: Any | Callable[[Any], Any]) -> Direction:
    """A direction that moves only the leaves a mask picks.

    Args:
        direction: any direction.
        mask: tree of booleans, a prefix of the parameter tree, or a function from parameters to
            such a tree, as in `optax.masked`.

    Returns:
        A `Direction` with zeros in the leaves whose mask is False.

    Raises:
        ValueError: if the mask is not a prefix of the tree or picks no leaf.
    """

    def terms(key, params, step=0):
        tree = mask(params) if callable(mask) else mask
        try:
            flags = jax.tree.leaves(
                jax.tree.map(lambda m, sub: jax.tree.map(lambda _: bool(m), sub), tree, params)
            )
        except ValueError as error:
            raise ValueError(
                f"the mask {jax.tree.structure(tree)} is not a prefix of the parameter tree "
                f"{jax.tree.structure(params)}"
            ) from error
        if not any(flags):
            raise ValueError("the mask picks no leaf: every direction would be zero")
        leaves, structure = jax.tree.flatten(params)
        # a leaf that stays may be of any dtype, an integer one for example
        seen = [
            leaf if flag else jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.float32)
            for leaf, flag in zip(leaves, flags, strict=True)
        ]
        kept = direction.terms(key, jax.tree.unflatten(structure, seen), step)
        return tuple(t if flag else None for t, flag in zip(kept, flags, strict=True))

    return Direction(terms, f"masked({direction.name})")
