"""Add updates to parameters without losing those below the parameters' resolution."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from zojax import noise
from zojax.quantization import Quantized, stepped
from zojax.virtual import VirtualArray, is_virtual


def apply_updates(params: Any, updates: Any, *, key: jax.Array | None = None) -> Any:
    """`params + updates`, stochastically rounded where the parameters are below float32.

    The sum is made in float32 and rounded up with the probability that makes its expectation
    exact. Rounding to nearest would drop nearly all of a step of 1e-6 in bfloat16.

    Args:
        params: tree of floating-point arrays. Quantised leaves move from level to level
            (`zojax.quantization.stepped`).
        updates: tree like `params`; None leaves stay as they are, as in optax.
        key: typed key; required if a leaf is bfloat16, float16, smaller or quantised, and to be a
            new one at every step.

    Returns:
        Tree like `params`, in its dtypes.

    Raises:
        ValueError: if a key is needed and missing, or a leaf and its update differ in shape.

    >>> import jax, jax.numpy as jnp, zojax
    >>> p = jnp.ones(10_000, jnp.bfloat16)
    >>> stepped = zojax.apply_updates(p, jnp.full(10_000, 1e-3), key=jax.random.key(0))
    >>> bool(abs(stepped.astype(jnp.float32).mean() - 1.001) < 1e-4)
    True
    """
    paths, tree = jax.tree_util.tree_flatten_with_path(params, is_leaf=_is_leaf)
    deltas = tree.flatten_up_to(updates)
    new = []
    for i, ((path, leaf), delta) in enumerate(zip(paths, deltas, strict=True)):
        if leaf is None or delta is None:
            new.append(leaf)
            continue
        leaf, delta = leaf if is_virtual(leaf) else jnp.asarray(leaf), jnp.asarray(delta)
        if leaf.shape != delta.shape:
            raise ValueError(
                f"leaf {jax.tree_util.keystr(path)} has shape {leaf.shape}, its update has shape "
                f"{delta.shape}"
            )
        is_narrow = jnp.issubdtype(leaf.dtype, jnp.floating) and jnp.finfo(leaf.dtype).bits < 32
        if not is_virtual(leaf) and not is_narrow:
            new.append((leaf + delta).astype(leaf.dtype))
            continue
        if key is None:
            kind = "quantised" if is_virtual(leaf) else leaf.dtype
            raise ValueError(
                f"leaf {jax.tree_util.keystr(path)} is {kind}: pass key=, a new one every "
                "step, for stochastic rounding (optax.apply_updates rounds to nearest)"
            )
        if is_virtual(leaf):
            new.append(_stepped(path, leaf, delta, noise.fold_in(key, i)))
            continue
        total = leaf.astype(jnp.float32) + delta.astype(jnp.float32)
        new.append(_round_stochastically(total, noise.fold_in(key, i), leaf.dtype))
    return jax.tree.unflatten(tree, new)


def _stepped(path, leaf: Any, delta: jax.Array, key: jax.Array) -> VirtualArray:
    if not isinstance(leaf.base, Quantized) or leaf.entries is not None or leaf.terms:
        raise ValueError(
            f"leaf {jax.tree_util.keystr(path)} is a virtual array that is more than quantised "
            "weights, which has no one thing to update; split it (zojax.trainables)"
        )
    return replace(leaf, base=stepped(leaf.base, delta, key))


def _is_leaf(x: Any) -> bool:
    return x is None or is_virtual(x)


def _round_stochastically(x: jax.Array, key: jax.Array, dtype) -> jax.Array:
    """Add noise below the last kept mantissa bit and truncate; exact in expectation."""
    info = jnp.finfo(dtype)
    noise_bits = noise.leaf_bits(key, x.shape)
    mask = jnp.uint32(2 ** (23 - info.nmant) - 1)
    raw = jax.lax.bitcast_convert_type(x, jnp.uint32)
    kept = (raw + (noise_bits & mask)) & ~mask
    rounded = jnp.where(jnp.isfinite(x), jax.lax.bitcast_convert_type(kept, jnp.float32), x)
    if info.minexp > jnp.finfo(jnp.float32).minexp:
        # below the smallest normal number the spacing is constant
        step = float(info.smallest_subnormal)
        uniform = (noise_bits >> jnp.uint32(8)).astype(jnp.float32) * 2.0**-24
        lower = jnp.floor(x / step)
        small = (lower + (uniform < x / step - lower)) * step
        rounded = jnp.where(jnp.abs(x) < float(info.smallest_normal), small, rounded)
    return rounded.astype(dtype)
