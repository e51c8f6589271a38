"""Draws what `python -m tests.benchmarks.kernels --out RESULTS` measured, over rows of a sign."""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image

from tests.benchmarks.kernels import LEVELS


def plot(products: list[dict], device: str, path: Path) -> None:
    """Milliseconds over rows: a column for each shape, products above, 4-bit ones below."""
    shapes = sorted({tuple(p["shape"]) for p in products})
    of_codes = ("bare", *(f"{name} {how}" for name in LEVELS for how in ("xla", "kernel")))
    names = list(dict.fromkeys(p["name"] for p in products))
    rows = [[n for n in names if n not in of_codes], [n for n in names if n in of_codes]]
    titles = ("both products of a perturbed weight", "one product with a 4-bit weight")
    figure, panels = plt.subplots(
        2, len(shapes), figsize=(4 * len(shapes) + 2, 7), squeeze=False, sharey="row"
    )
    for line, title, shown in zip(panels, titles, rows, strict=True):
        for panel, shape in zip(line, shapes, strict=True):
            for name in shown:
                here = [p for p in products if (tuple(p["shape"]), p["name"]) == (shape, name)]
                points = sorted((p["rows"], p["ms"]) for p in here)
                style = "--" if name in ("two", "one", "bare") else "-"
                panel.plot(*zip(*points, strict=True), style, marker=".", label=name)
            panel.set(
                xscale="log", yscale="log", xlabel="rows a sign", title=f"{shape[0]} x {shape[1]}"
            )
        line[0].set_ylabel(f"{title},\nms, {device}", fontsize=8)
        line[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    Image.open(path).quantize(64).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("picture", type=Path, help="PNG to write")
    args = parser.parse_args()
    result = json.loads(args.results.read_text())
    plot(result["products"], result["device"], args.picture)


if __name__ == "__main__":
    main()
