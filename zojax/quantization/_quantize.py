"""Quantise the matrices of a parameter tree."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer

from zojax.quantization._codebook import fit_codebook
from zojax.quantization._formats import find_format
from zojax.quantization._packing import pack
from zojax.quantization._quantized import Quantized
from zojax.virtual import Entries, VirtualArray, is_virtual
from zojax.virtual._paths import is_head, path_name


def is_weight(path: str) -> bool:
    """Whether a path is of a weight matrix, and of no embedding, output layer or norm."""
    parts = path.lower().split("/")
    other = any("embed" in part or "norm" in part for part in parts)
    return not other and not is_head(path) and parts[-1] not in ("scale", "bias")


def quantize(
    tree: Any,
    format: str = "nf4",
    *,
    group_size: int = 64,
    where: Callable[[str], bool] | None = None,
    axis: int | Callable[[str], int] | None = None,
    exclude: Any = None,
    weights: Any = None,
    scale_dtype: Any = jnp.bfloat16,
) -> Any:
    """Matrices in 4 or 8 bits, in groups that share a scale.

    `w[k, n] ~ decode(code[k, n]) * scale[k // group_size, n]`, each code the nearest. The error is
    at most half the largest step times the scale, the scale being the largest |w| of its group
    (over 127 for int8, over 7 for int4): 0.0040, 0.0715 and 0.153 of that largest |w| for int8,
    int4 and nf4, and as much again as the cast to the leaf's dtype. The levels of "codebook" are 16
    means a channel, found by weighted k-means, which has no such bound.

    Args:
        tree: parameters, or the frozen part of `zojax.sensitive`: its replaced entries then count
            neither for a scale nor for a codebook, and are not stored twice with precision.
        format: "int8", "int4", "nf4" or "codebook".
        group_size: entries along `axis` that share a scale; a codebook is of the whole channel.
        where: called with each path; default: matrices that are no embedding, no output layer and
            no norm. Leading axes beyond two are stacks of matrices.
        axis: negative, of the groups, or a function of the path: the contracted axis of a matmul.
            Default: -1 for leaves called "embedding", as rows are looked up, else -2.
        exclude: tree like `tree`, int32 (*stack, k) flat positions in each matrix, None elsewhere.
        weights: tree like `tree`, for example Fisher scores, or None: weights of the k-means.
        scale_dtype: of the scales, rounded up so that no entry is out of range.

    Returns:
        The tree with a `VirtualArray` over a `Quantized` at each picked leaf; wrap the function
        that takes it in `zojax.virtualize`.

    Raises:
        ValueError: if the format is unknown, nothing is picked, a picked leaf is no matrix, is no
            floating-point array, is not finite, or its axis is no multiple of the group size.

    Reference: Dettmers et al., QLoRA, 2023 (NF4); Kim et al., SqueezeLLM, 2024 (codebook).

    >>> import jax, jax.numpy as jnp, zojax
    >>> params = {"w": jax.random.normal(jax.random.key(0), (64, 8)), "bias": jnp.zeros(8)}
    >>> small = zojax.quantize(params, "int8")
    >>> small["w"].base.nbytes, params["w"].nbytes
    (528, 2048)
    >>> x = jnp.ones((1, 64))
    >>> error = zojax.virtualize(jnp.dot)(x, small["w"]) - x @ params["w"]
    >>> bool(jnp.abs(error).max() < 64 * 0.004 * jnp.abs(params["w"]).max())
    True
    """
    find_format(format)
    if exclude is None and hasattr(tree, "params") and hasattr(tree, "index"):
        return tree._replace(
            params=quantize(
                tree.params, format, group_size=group_size, where=where, axis=axis,
                exclude=tree.index, weights=weights, scale_dtype=scale_dtype,
            )
        )  # fmt: skip
    paths, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_virtual)
    positions = _like(structure, exclude, len(paths))
    importance = _like(structure, weights, len(paths))
    new, found = [], False
    for (path, leaf), index, weight in zip(paths, positions, importance, strict=True):
        name = path_name(path)
        is_picked = where(name) if where else is_weight(name) and _is_matrix(leaf)
        if not is_picked or is_virtual(leaf):
            new.append(leaf)
            continue
        along = axis(name) if callable(axis) else axis
        if along is None:
            along = -1 if name.lower().endswith("embedding") else -2
        _check(name, leaf, format, group_size, along)
        base = _quantize(leaf, index, weight, format, group_size, along, jnp.dtype(scale_dtype))
        new.append(VirtualArray(base, name=jax.tree_util.keystr(path)))
        found = True
    if not found:
        raise ValueError(
            "no leaf is quantised; the leaves are "
            f"{', '.join(path_name(path) for path, _ in paths[:8])}: pass where="
        )
    return jax.tree.unflatten(structure, new)


def _quantize_leaf(w, index, weight, format, group_size, axis, scale_dtype) -> Quantized:
    """A leaf, one matrix of its stack at a time, so that one is in float32 at once."""

    def one(args):
        w, index, weight = args
        return _quantize_matrix(w, index, weight, format, group_size, axis, scale_dtype)

    fn: Callable = one
    for _ in range(w.ndim - 2):
        fn = partial(lax.map, fn)
    return fn((w, index, weight))


_quantize = jax.jit(_quantize_leaf, static_argnums=(3, 4, 5, 6))


def _quantize_matrix(w, index, weight, format, group_size, axis, scale_dtype) -> Quantized:
    dtype = w.dtype
    w = w.astype(jnp.float32)
    if index is not None:
        w = Entries(jnp.zeros(index.shape), index, w.shape).set_in(w)
    if format == "codebook":
        if weight is None:
            weight = jnp.ones_like(w)
        if index is not None:
            weight = Entries(jnp.zeros(index.shape), index, w.shape).set_in(weight)
        group_size = w.shape[axis]
    kind = find_format(format)
    at = axis % w.ndim
    groups = w.reshape(*w.shape[:at], -1, group_size, *w.shape[at + 1 :])
    largest = jnp.abs(groups).max(at + 1, keepdims=True)
    scales = round_up(largest / max(kind.levels or (1.0,)), scale_dtype)
    wide = scales.astype(jnp.float32)
    unit = (groups / jnp.where(wide == 0, 1.0, wide)).reshape(w.shape)
    table = None
    if format == "codebook":
        codes, table = fit_codebook(unit, weight, axis)
    elif format == "nf4":
        levels = jnp.array(kind.levels)
        edges = (levels[1:] + levels[:-1]) / 2
        codes = jnp.sum(unit > edges[:, None, None], 0, dtype=jnp.uint8)
    else:
        codes = jnp.round(unit).astype(jnp.int8)
    if format == "int4":
        codes = (codes + 8).astype(jnp.uint8)
    if kind.bits == 4:
        codes = pack(codes, axis)
    scales = lax.squeeze(scales, (at + 1,))
    return Quantized(codes, scales, None, table, format, w.shape[axis], axis, dtype)


def round_up(x: jax.Array, dtype: Any) -> jax.Array:
    """Non-negative float32 rounded up to a dtype."""
    near = x.astype(dtype)
    above = jnp.nextafter(near, jnp.array(jnp.inf, near.dtype))
    return jnp.where(near.astype(jnp.float32) < x, above, near)


def _check(name: str, leaf: Any, format: str, group_size: int, axis: int) -> None:
    if leaf.ndim < 2:
        raise ValueError(
            f"leaf {name} of shape {leaf.shape} is no matrix: {format} needs two axes; leave it "
            "out of where="
        )
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        raise ValueError(f"leaf {name} is {leaf.dtype}; only floating-point leaves are quantised")
    if not -leaf.ndim <= axis < 0:
        raise ValueError(f"axis {axis} of leaf {name} of shape {leaf.shape}: must be negative")
    length = leaf.shape[axis]
    if format != "codebook" and (group_size < 1 or length % group_size):
        fitting = [g for g in (256, 128, 64, 32, 16, 8) if length % g == 0] or [length]
        raise ValueError(
            f"leaf {name} of shape {leaf.shape} has {length} entries along axis {axis}, no "
            f"multiple of group_size {group_size}; use {' or '.join(map(str, fitting))}"
        )
    if not isinstance(leaf, (Tracer, jax.ShapeDtypeStruct)):
        if not bool(jnp.all(jnp.isfinite(jnp.asarray(leaf)))):
            raise ValueError(f"leaf {name} is not finite: NaN or Inf cannot be quantised")


def _is_matrix(leaf: Any) -> bool:
    return (
        hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating) and len(leaf.shape) > 1
    )


def _like(structure, tree: Any, count: int) -> list:
    return [None] * count if tree is None else structure.flatten_up_to(tree)
