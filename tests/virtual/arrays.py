"""Small virtual arrays of every kind of term, for the tests of this folder."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from zojax import noise, quantize
from zojax.virtual import Entries, LowRank, Noise, VirtualArray

ENTRIES = 5

KINDS = (
    "gaussian", "rademacher", "low_rank_1", "low_rank_12", "tall_2", "entries",
    "low_rank_entries", "two_terms", "nf4", "int8_entries",
)  # fmt: skip


def _low_rank(draw, shape, rank):
    a = draw.standard_normal((*shape[:-1], rank), np.float32)
    b = draw.standard_normal((*shape[:-2], shape[-1], rank), np.float32)
    return LowRank.of_matrices(jnp.asarray(a), jnp.asarray(b), 0.25)


def _tall(draw, shape, rank):
    """All axes but the last are rows, as in the directions."""
    a = draw.standard_normal((*shape[:-1], rank), np.float32)
    b = draw.standard_normal((*(1,) * (len(shape) - 2), shape[-1], rank), np.float32)
    return LowRank.of_matrices(jnp.asarray(a), jnp.asarray(b), 0.25)


def _entries(draw, shape):
    stack, size = shape[:-2], math.prod(shape[-2:])
    count = min(ENTRIES, size)
    picks = [draw.permutation(size)[:count] for _ in range(math.prod(stack))]
    index = np.array(picks, np.int32).reshape(*stack, count)
    return Entries(jnp.asarray(draw.standard_normal(index.shape, np.float32)), index, shape)


def make(kind: str, shape: tuple[int, ...], dtype=jnp.float32, scale=0.25) -> VirtualArray:
    """A virtual array with standard normal base; scales are powers of two, so products exact."""
    draw = np.random.default_rng([len(shape), *shape])
    base = jnp.asarray(draw.standard_normal(shape, np.float32), dtype)
    if kind.startswith(("nf4", "int8")) and len(shape) > 1:
        format = kind.partition("_")[0]
        whole = quantize([base], format, group_size=shape[-2], where=lambda _: True, axis=-2)
        base = whole[0].base
    key = noise.words(jax.random.key(7))
    entries, terms = None, ()
    if kind in ("gaussian", "rademacher"):
        terms = (Noise.of_leaf(key, 0.25, kind, shape),)
    elif kind == "two_terms":
        terms = (Noise.of_leaf(key, 0.25, "rademacher", shape), _low_rank(draw, shape, 2))
    elif kind == "tall_2":
        terms = (_tall(draw, shape, 2),)
    elif kind.startswith("low_rank"):
        terms = (_low_rank(draw, shape, 12 if kind == "low_rank_12" else 1),)
    if kind.endswith("entries"):
        entries = _entries(draw, shape)
    terms = tuple(t.scaled(scale / 0.25) for t in terms)
    return VirtualArray(base, entries, terms, f"['{kind}']")
