"""Training: pure step functions first, a loop with journal, checkpoints and a report second."""

from zojax.training.adapter import Adapter, apply_adapter, load_adapter, make_adapter, save_adapter
from zojax.training.checkpoint import Checkpoints
from zojax.training.functions import (
    Functions,
    Metrics,
    Problem,
    TrainState,
    evaluate,
    step,
    training_functions,
)
from zojax.training.journal import Journal, JournalWarning, Record, read_journal, replay
from zojax.training.loop import FitResult, NonFiniteLossError, Schedule, fit
from zojax.training.memory import StepMemory, step_memory
from zojax.training.report import draw_report, read_metrics
from zojax.training.run_folder import RunFolder, fingerprint
from zojax.training.scores import load_scores, save_scores

__all__ = [
    "Adapter",
    "Checkpoints",
    "FitResult",
    "Functions",
    "Journal",
    "JournalWarning",
    "Metrics",
    "NonFiniteLossError",
    "Problem",
    "Record",
    "RunFolder",
    "Schedule",
    "StepMemory",
    "TrainState",
    "apply_adapter",
    "draw_report",
    "evaluate",
    "fingerprint",
    "fit",
    "load_adapter",
    "load_scores",
    "make_adapter",
    "read_journal",
    "read_metrics",
    "replay",
    "save_adapter",
    "save_scores",
    "step",
    "step_memory",
    "training_functions",
]
