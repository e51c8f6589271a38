"""Low-rank compensation of what quantising lost."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from zojax.virtual import Entries, LowRank, VirtualArray, is_virtual


def compensate(tree: Any, params: Any, rank: int, *, moments: Any = None) -> Any:
    """Add to each quantised matrix the best low-rank part of its error.

    With `R = W - dequantised(W)` the term is `A B^T = argmin E|x (R - A B^T)|^2` of rank r, from
    the singular value decomposition of `C^(1/2) R`, C being the second moment `E[x^T x]` of the
    layer's input; without moments C is the identity. `zojax.trainables.factors` trains A and B.

    Args:
        tree: quantised parameters, or the frozen part of `zojax.sensitive` with them: the error of
            replaced entries does not count, and A B^T is added to their values.
        params: the same parameters before they were quantised.
        rank: r, at least 1.
        moments: tree like `params`, float32 (*stack, K, K), None where there is none.

    Returns:
        The tree with a low-rank term on each quantised matrix, in float32.

    Raises:
        ValueError: if the rank is below 1, no leaf is quantised, or a shape does not fit.

    Reference: Liu et al., EoRA: fine-tuning-free compensation for compressed LLMs with eigenspace
    low-rank approximation, 2024.

    >>> import jax, jax.numpy as jnp, zojax
    >>> from zojax import quantization
    >>> params = {"w": jax.random.normal(jax.random.key(0), (32, 16))}
    >>> small = zojax.quantize(params, "int4", group_size=32)
    >>> better = quantization.compensate(small, params, rank=16)
    >>> bool(jnp.abs(better["w"].materialize() - params["w"]).max() < 1e-5)
    True
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, found {rank}")
    if hasattr(tree, "params") and hasattr(tree, "index"):
        return tree._replace(params=_terms(tree.params, params, rank, moments, tree.index))
    return _terms(tree, params, rank, moments, None)


def _terms(tree, params, rank, moments, index):
    paths, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_virtual)
    dense = structure.flatten_up_to(params)
    nothing = [None] * len(paths)
    moments = nothing if moments is None else structure.flatten_up_to(moments)
    places = nothing if index is None else structure.flatten_up_to(index)
    new, found = [], False
    for (path, leaf), w, moment, at in zip(paths, dense, moments, places, strict=True):
        if not is_virtual(leaf):
            new.append(leaf)
            continue
        name = jax.tree_util.keystr(path)
        if jnp.shape(w) != leaf.shape:
            raise ValueError(f"leaf {name} has shape {leaf.shape}, before it was {jnp.shape(w)}")
        expected = (*leaf.shape[:-1], leaf.shape[-2])
        if moment is not None and jnp.shape(moment) != expected:
            raise ValueError(
                f"the moments of leaf {name} have shape {jnp.shape(moment)}, expected {expected}"
            )
        stack = len(leaf.shape) - 2
        fit = _fit
        for _ in range(stack):
            fit = _over_stack(fit)
        bare = VirtualArray(leaf.base)
        a, b = fit((bare, jnp.asarray(w), moment, at), min(rank, *leaf.shape[-2:]))
        new.append(leaf.plus(LowRank.of_matrices(a, b)))
        found = True
    if not found:
        raise ValueError("no leaf is quantised: quantise the parameters first (zojax.quantize)")
    return jax.tree.unflatten(structure, new)


def _over_stack(fit):
    def stacked(args, rank):
        bare, *rest = args
        count = bare.shape[0]

        def one(i):
            layer = bare.index(i)
            assert layer is not None  # a stack of quantised matrices follows its index
            parts = [None if x is None else lax.dynamic_index_in_dim(x, i, 0, False) for x in rest]
            return fit((layer, *parts), rank)

        return lax.map(one, jnp.arange(count))

    return stacked


def _fit(args, rank: int):
    bare, w, moment, at = args
    error = w.astype(jnp.float32) - bare.materialize().astype(jnp.float32)
    if at is not None:
        error = Entries(jnp.zeros(at.shape, jnp.float32), at, error.shape).set_in(error)
    root = inverse = None
    if moment is not None:
        values, vectors = jnp.linalg.eigh(moment.astype(jnp.float32))
        # directions that no input has cannot be asked for
        sizes = jnp.sqrt(jnp.maximum(values, 1e-6 * values[-1]))
        root, inverse = (vectors * sizes) @ vectors.T, (vectors / sizes) @ vectors.T
        error = root @ error
    u, s, vt = jnp.linalg.svd(error, full_matrices=False)
    a = u[:, :rank] * s[:rank]
    return (a if inverse is None else inverse @ a), vt[:rank].T
