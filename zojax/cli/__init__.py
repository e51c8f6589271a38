"""The command line, and the same runs as functions of a configuration object."""

from zojax.cli.config import (
    Demo,
    Evaluate,
    Export,
    Finetune,
    OptimizerConfig,
    Plan,
    Quantize,
    Sensitivity,
    TaskConfig,
)
from zojax.cli.main import main

__all__ = [
    "Demo",
    "Evaluate",
    "Export",
    "Finetune",
    "OptimizerConfig",
    "Plan",
    "Quantize",
    "Sensitivity",
    "TaskConfig",
    "main",
]
