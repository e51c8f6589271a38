"""What a step will need, in bytes and operations, before anything is allocated or run."""

from zojax.planning._flops import matmul_flops
from zojax.planning._plan import Leaf, Plan, abstract_split, plan
from zojax.planning._target import TARGETS, Target, missing, target_device

__all__ = [
    "TARGETS",
    "Leaf",
    "Plan",
    "Target",
    "abstract_split",
    "matmul_flops",
    "missing",
    "plan",
    "target_device",
]
