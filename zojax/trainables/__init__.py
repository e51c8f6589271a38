"""Trainables: what moves and what stays, as a split and a merge."""

from zojax.trainables._abstract import abstract_n_m, abstract_sensitive
from zojax.trainables._blocks import blocks
from zojax.trainables._compose import ComposedFrozen, compose, entry_mask, leaf_mask
from zojax.trainables._coverage import (
    Coverage,
    CoverageRow,
    Overlap,
    OverlapRow,
    coverage,
    overlap,
)
from zojax.trainables._fisher import sensitivity
from zojax.trainables._forward import forward_sensitivity
from zojax.trainables._lora import factors, lora
from zojax.trainables._prefix import Prefixed, prefix
from zojax.trainables._scales import codebook, scales
from zojax.trainables._select import (
    bias_and_norm,
    full,
    head,
    is_bias_or_norm,
    is_head,
    select,
)
from zojax.trainables._sensitive import SensitiveFrozen, magnitude, n_m, random, sensitive
from zojax.trainables._split import Split, size
from zojax.virtual._paths import path_name

__all__ = [
    "ComposedFrozen",
    "Coverage",
    "CoverageRow",
    "Overlap",
    "OverlapRow",
    "Prefixed",
    "SensitiveFrozen",
    "Split",
    "abstract_n_m",
    "abstract_sensitive",
    "bias_and_norm",
    "blocks",
    "codebook",
    "compose",
    "coverage",
    "entry_mask",
    "factors",
    "forward_sensitivity",
    "full",
    "head",
    "is_bias_or_norm",
    "is_head",
    "leaf_mask",
    "lora",
    "magnitude",
    "n_m",
    "overlap",
    "path_name",
    "prefix",
    "random",
    "scales",
    "select",
    "sensitive",
    "sensitivity",
    "size",
]
