"""The picture of a run."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from zojax.training.memory import StepMemory


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a metrics file; a torn last line is left out.

    Args:
        path: JSON Lines file of a run.

    Returns:
        One dict a line.
    """
    rows = []
    for line in Path(path).read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def draw_report(
    metrics: list[dict[str, Any]],
    path: str | os.PathLike[str],
    title: str,
    memory: StepMemory | None = None,
) -> None:
    """Draw loss, accuracy and memory of a run as PNG.

    Args:
        metrics: rows with "step" and "loss" (training) or "dev_loss" and "dev_accuracy".
        path: PNG file; replaced if it exists.
        title: above the picture.
        memory: draws a third panel if given.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    train = [r for r in metrics if "loss" in r]
    dev = [r for r in metrics if "dev_accuracy" in r]
    panels = 3 if memory else 2
    figure = Figure(figsize=(4.2 * panels, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels)
    figure.suptitle(title, fontsize=11)

    steps = np.array([r["step"] for r in train])
    losses = np.array([r["loss"] for r in train])
    axes[0].plot(steps, losses, color="0.75", linewidth=0.8, label="a batch")
    window = max(1, len(losses) // 25)
    if len(losses) > window:
        smooth = np.convolve(losses, np.ones(window) / window, "valid")
        axes[0].plot(steps[window - 1 :], smooth, color="C0", label=f"mean of {window}")
    axes[0].plot([r["step"] for r in dev], [r["dev_loss"] for r in dev], "o-", color="C1",
                 markersize=3, label="held out")  # fmt: skip
    axes[0].set(xlabel="step", ylabel="loss")
    axes[0].legend(fontsize=8)

    accuracy = [100 * r["dev_accuracy"] for r in dev]
    axes[1].plot([r["step"] for r in dev], accuracy, "o-", color="C1", markersize=3)
    axes[1].set(xlabel="step", ylabel="held-out accuracy, %")
    axes[1].grid(alpha=0.3)

    if memory:
        names = ("forward", "zojax step", "backprop")
        values = np.array([memory.forward, memory.zeroth_order, memory.backward]) / 1e6
        bars = axes[2].bar(names, values, color=("0.6", "C0", "C3"))
        axes[2].bar_label(bars, fmt="%.1f", fontsize=8)
        axes[2].set(ylabel="temporaries, MB")
    figure.savefig(path, dpi=120)
