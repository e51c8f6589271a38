"""Moving quantised weights: stochastic rounding to their own levels."""

from dataclasses import replace

import jax
import jax.numpy as jnp

from zojax import noise
from zojax.quantization._formats import FORMATS, choose
from zojax.quantization._packing import pack
from zojax.quantization._quantized import Quantized


def stepped(weights: Quantized, delta: jax.Array, key: jax.Array) -> Quantized:
    """`weights + delta`, each entry rounded to one of the two levels around it.

    The upper level is taken with the probability that makes the expectation exact, so that steps
    far below the distance of two levels add up instead of being lost. Beyond the last level an
    entry stays at it. Scales and tables stay as they are.

    Args:
        weights: without views.
        delta: float array of their shape.
        key: uint32[2] words, new at every step.

    Returns:
        The same scales under new codes.

    Raises:
        ValueError: if the shapes differ, or the weights have views.

    Reference: Zhou et al., QuZO: quantized zeroth-order fine-tuning for large language models, 2025
    (stochastic rounding of the update; theirs quantises the perturbation too).
    """
    if weights.views:
        raise ValueError("quantised weights with views cannot move; step the whole leaf")
    if weights.shape != delta.shape:
        raise ValueError(f"weights of shape {weights.shape}, found a step of {delta.shape}")
    kind, at = FORMATS[weights.format], weights.axis % delta.ndim
    wide = replace(weights, decoded=jnp.float32).materialize() + delta.astype(jnp.float32)
    scales = jnp.repeat(weights.scales.astype(jnp.float32), weights.group_size, at)
    # a group of zeros has no scale to move by
    unit = jnp.where(scales > 0, wide / jnp.where(scales > 0, scales, 1.0), 0.0)
    uniform = (noise.leaf_bits(key, delta.shape) >> 8).astype(jnp.float32) * 2.0**-24
    if weights.format == "int8":
        codes = jnp.clip(jnp.floor(unit + uniform), -127, 127).astype(jnp.int8)
        return replace(weights, codes=codes)
    if weights.table is not None:
        levels = jnp.split(weights.table, 16, at)
    else:
        levels = [jnp.float32(x) for x in kind.levels]
        if weights.zeros is not None:
            zeros = jnp.repeat(weights.zeros.astype(jnp.float32), weights.group_size, at)
            unit = unit + (zeros - 8.0)
    lower = jnp.zeros(unit.shape, jnp.uint8)
    for level in levels[1:15]:
        lower = lower + (unit >= level).astype(jnp.uint8)
    below, above = choose(lower, levels), choose(lower + jnp.uint8(1), levels)
    part = (unit - below) / jnp.maximum(above - below, jnp.finfo(jnp.float32).tiny)
    codes = lower + (uniform < part).astype(jnp.uint8)
    return replace(weights, codes=pack(codes, at))
