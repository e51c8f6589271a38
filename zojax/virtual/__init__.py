"""Virtual arrays (base + formulas) and the transform that lets any function take them."""

from zojax.virtual._array import VirtualArray, is_virtual, materialize
from zojax.virtual._base import Base
from zojax.virtual._entries import Entries
from zojax.virtual._low_rank import LowRank
from zojax.virtual._noise import Noise
from zojax.virtual._report import Explanation, MaterializedError, MaterializedWarning, Use
from zojax.virtual._rules import register_rule
from zojax.virtual._term import Term
from zojax.virtual._virtualize import explain, virtualize

__all__ = [
    "Base",
    "Entries",
    "Explanation",
    "LowRank",
    "MaterializedError",
    "MaterializedWarning",
    "Noise",
    "Term",
    "Use",
    "VirtualArray",
    "explain",
    "is_virtual",
    "materialize",
    "register_rule",
    "virtualize",
]
