"""Formats: what a code stands for, before it is multiplied by its scale."""

import statistics
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


def _normal_float() -> tuple[float, ...]:
    """The 16 levels of NF4: quantiles of a normal, eight on each side of an exact zero.

    Reference: Dettmers et al., QLoRA, 2023, appendix E.
    """
    normal = statistics.NormalDist()
    most = (1 - 1 / 30 + 1 - 1 / 32) / 2

    def half(count: int) -> list[float]:
        return [normal.inv_cdf(float(p)) for p in np.linspace(most, 0.5, count + 1)[:-1]]

    levels = sorted([*half(8), 0.0, *(-x for x in half(7))])
    return tuple(x / levels[-1] for x in levels)


class Format(NamedTuple):
    """A way to write a number in a few bits.

    Attributes:
        name: as `quantize` takes it.
        bits: of a code.
        levels: what the codes stand for, if that is the same everywhere; empty for a codebook,
            whose levels are fitted to each channel.
        half_step: the largest error over the scale, within the range.
    """

    name: str
    bits: int
    levels: tuple[float, ...]
    half_step: float


def _fixed(name: str, bits: int, levels: tuple[float, ...]) -> Format:
    gaps = [b - a for a, b in zip(levels, levels[1:], strict=False)]
    return Format(name, bits, levels, max(gaps) / 2)


FORMATS = {
    "int8": _fixed("int8", 8, tuple(float(i) for i in range(-127, 128))),
    # -8 is never written by `quantize`; files of others have it
    "int4": _fixed("int4", 4, tuple(float(i) for i in range(-8, 8))),
    "nf4": _fixed("nf4", 4, _normal_float()),
    "codebook": Format("codebook", 4, (), float("inf")),
}


def find_format(name: str) -> Format:
    """A format by name.

    Raises:
        ValueError: if there is none of that name; lists them.
    """
    if name not in FORMATS:
        raise ValueError(f"no format {name!r}; the formats are {', '.join(FORMATS)}")
    return FORMATS[name]


def choose(codes: jax.Array, levels: list) -> jax.Array:
    """`levels[codes]` by comparing bits: elementwise, so that XLA fuses it, unlike a lookup.

    Args:
        codes: uint8, below 16.
        levels: 16 floats, or arrays that broadcast against the codes.
    """
    for bit in range(4):
        is_set = (codes & (1 << bit)) != 0
        levels = [
            jnp.where(is_set, high, low)
            for low, high in zip(levels[::2], levels[1::2], strict=True)
        ]
    return levels[0]
