"""Move along a direction, and add directions up: the two places where terms meet parameters."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from zojax.directions._direction import Direction
from zojax.virtual import Term, VirtualArray, is_virtual
from zojax.virtual._buffer import after
from zojax.virtual._scaled import scaled_together

_UNROLLED = 16  # directions in one fusion; more need a loop, which carries a full accumulator
_CHUNK = 8  # directions an iteration of that loop: compile time against traffic


def perturb(direction: Direction, key: jax.Array, params: Any, scale, step=0) -> Any:
    """`params + scale * z(key)`, as virtual arrays.

    Args:
        direction: any direction.
        key: typed key or uint32[2] words.
        params: tree of floating-point arrays; of virtual arrays too, such as quantised weights.
        scale: float scalar.
        step: integer, for directions that keep a part of themselves for several steps.

    Returns:
        The tree with a `VirtualArray` for each leaf that moves.
    """
    paths, tree = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_virtual)
    terms = scaled_together(direction.terms(key, shapes_of(params), step), scale)
    leaves = [
        leaf if term is None else _as_virtual(path, leaf).plus(term)
        for (path, leaf), term in zip(paths, terms, strict=True)
    ]
    return jax.tree.unflatten(tree, leaves)


def shapes_of(params: Any) -> Any:
    """The tree with the shape and dtype of each virtual array in its place."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if is_virtual(x) else x,
        params,
        is_leaf=is_virtual,
    )


def _as_virtual(path, leaf) -> VirtualArray:
    if is_virtual(leaf):
        return leaf
    return VirtualArray(jnp.asarray(leaf), name=jax.tree_util.keystr(path))


def combine(
    direction: Direction, keys: jax.Array, coefficients: jax.Array, params: Any, step=0
) -> Any:
    """The weighted mean of directions, `1/n sum_k c_k z(key_k)`.

    Args:
        direction: the direction that perturbed.
        keys: uint32[n, 2].
        coefficients: float32[n].
        params: tree of arrays or `ShapeDtypeStruct`; only shapes and dtypes are read.
        step: the step whose directions these are, as for `perturb`.

    Returns:
        Tree like `params`, in its dtypes, accumulated in float32. Under `jit` the sum fuses into
        whatever uses it, up to 16 directions at a time.
    """
    count, params = keys.shape[0], shapes_of(params)
    # times the reciprocal: XLA would compile a division otherwise than it evaluates one
    weights = coefficients.astype(jnp.float32) * np.float32(1 / count)
    if direction.combine is not None:
        return _like(params, direction.combine(keys, weights, params, step))
    return _like(params, _sum(direction, keys, weights, params, step, _scaled))


def combine_squares(
    direction: Direction, keys: jax.Array, coefficients: jax.Array, params: Any, step=0
) -> Any:
    """The weighted mean of squares, `1/n sum_k c_k (z(key_k)^2 - 1)`, entry by entry.

    With `c_k = z_k . H z_k` and independent entries of kurtosis k its expectation is
    `(k - 1) diag(H)`: twice the diagonal for `gaussian`, nothing for `rademacher`.

    Args:
        direction, keys, coefficients, params, step: as of `combine`.

    Returns:
        Tree like `params`, in float32.
    """
    weights = coefficients.astype(jnp.float32) * np.float32(1 / keys.shape[0])
    totals = _sum(direction, keys, weights, params, step, _squared)
    return jax.tree.unflatten(jax.tree.structure(params), totals)


@jax.jit  # terms of equal leaves are traced once; XLA inlines the calls
def _dense(term: Term) -> jax.Array:
    return term.materialize()


def _scaled(terms: Sequence[Term | None], weight: jax.Array) -> list[jax.Array | None]:
    return [None if t is None else _dense(t) for t in scaled_together(terms, weight)]


def _squared(terms: Sequence[Term | None], weight: jax.Array) -> list[jax.Array | None]:
    return [None if t is None else (jnp.square(_dense(t)) - 1) * weight for t in terms]


def _sum(direction: Direction, keys, weights, params, step, values) -> list[jax.Array]:
    """`sum_k values(z_k, w_k)` of each leaf, float32."""
    leaves, count = jax.tree.leaves(params), keys.shape[0]
    # or XLA draws what is stored of them before the loss is asked, and keeps it all the while
    keys = after(weights, keys)

    def chunk_sum(keys, weights):
        totals: list[Any] = [None] * len(leaves)
        for k in range(keys.shape[0]):
            for i, value in enumerate(values(direction.terms(keys[k], params, step), weights[k])):
                if value is not None:
                    totals[i] = value if totals[i] is None else totals[i] + value
        zeros = [jnp.zeros(jnp.shape(leaf), jnp.float32) for leaf in leaves]
        return [z if total is None else total for total, z in zip(totals, zeros, strict=True)]

    head = count % _CHUNK if count > _UNROLLED else count
    totals = chunk_sum(keys[:head], weights[:head])
    if head < count:
        chunks = (
            keys[head:].reshape(-1, _CHUNK, 2),
            weights[head:].reshape(-1, _CHUNK),
        )
        totals, _ = lax.scan(
            lambda acc, chunk: ([a + b for a, b in zip(acc, chunk_sum(*chunk), strict=True)], None),
            totals,
            chunks,
        )
    return totals


def _like(params: Any, totals: list[jax.Array]) -> Any:
    leaves, tree = jax.tree.flatten(params)
    grads = [_rounded_to(t, jnp.result_type(leaf)) for t, leaf in zip(totals, leaves, strict=True)]
    return jax.tree.unflatten(tree, grads)


def _rounded_to(total: jax.Array, dtype) -> jax.Array:
    """The sum in a leaf's dtype, rounded even where XLA would fuse the two casts away."""
    # a leaf that a mask leaves out may have any dtype
    if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
        info = jnp.finfo(dtype)
        total = lax.reduce_precision(total, int(info.nexp), int(info.nmant))
    return total.astype(dtype)
