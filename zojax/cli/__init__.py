"""The command line, and the same runs as functions of a configuration object."""

from zojax.cli.config import Demo, Evaluate, Finetune, OptimizerConfig, Plan, TaskConfig
from zojax.cli.main import main

__all__ = ["Demo", "Evaluate", "Finetune", "OptimizerConfig", "Plan", "TaskConfig", "main"]
