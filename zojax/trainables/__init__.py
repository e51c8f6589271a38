"""Trainables: what moves and what stays, as a split and a merge."""

from zojax.trainables._abstract import abstract_sensitive
from zojax.trainables._lora import lora
from zojax.trainables._select import (
    bias_and_norm,
    full,
    head,
    is_bias_or_norm,
    is_head,
    path_name,
    select,
)
from zojax.trainables._sensitive import SensitiveFrozen, sensitive, sensitivity
from zojax.trainables._split import Split, size

__all__ = [
    "SensitiveFrozen",
    "Split",
    "abstract_sensitive",
    "bias_and_norm",
    "full",
    "head",
    "is_bias_or_norm",
    "is_head",
    "lora",
    "path_name",
    "select",
    "sensitive",
    "sensitivity",
    "size",
]
