"""The picture of a plan."""

import os
from typing import Any

_COLORS = {
    "weights": "0.6",
    "trainables": "C0",
    "optimizer": "C2",
    "batch": "C4",
    "temporaries": "C1",
}


def draw(plan: Any, path: str | os.PathLike[str], title: str) -> None:
    """Draw the parts of a plan as one bar, and its largest arrays, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    unit, scale = ("GiB", 2**30) if plan.total >= 2**30 else ("MiB", 2**20)
    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    bar, arrays = figure.subplots(2, 1, height_ratios=(1, 2))
    figure.suptitle(title or f"A step on {plan.device}: {plan.total / scale:.2f} {unit}")
    left = 0.0
    for name, size in plan.parts.items():
        width = size / scale
        label = f"{name} {width:.2f}"
        bar.barh(0, width, left=left, color=_COLORS[name], label=label)
        left += width
    bar.axvline((plan.total - plan.temporaries + plan.forward) / scale, color="k", ls=":", lw=1,
                label="with a forward pass's temporaries")  # fmt: skip
    bar.set(yticks=[], xlim=(0, 1.02 * left), xlabel=unit)
    bar.legend(fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    largest = plan.leaves[:8][::-1]
    names = [f"{leaf.path} {leaf.dtype}" for leaf in largest]
    bars = arrays.barh(range(len(largest)), [leaf.bytes / scale for leaf in largest], color="0.75")
    arrays.bar_label(bars, fmt="%.3g", fontsize=7, padding=2)
    arrays.set_yticks(range(len(largest)), names, fontsize=7)
    arrays.set(xlabel=f"largest arrays, {unit}")
    arrays.margins(x=0.1)
    figure.savefig(path, dpi=120)
