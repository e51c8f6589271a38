"""The command `quantize`, as a function of its configuration."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

from zojax import models
from zojax.cli import base
from zojax.cli.config import Quantize
from zojax.quantization import Quantized
from zojax.virtual import is_virtual


def quantize(config: Quantize) -> dict[str, Any]:
    """Write a quantised model and say what it lost.

    Args:
        config: which model, and how.

    Returns:
        {"bytes_before", "bytes_after", "relative_rms", "tensors", ...}; each of "tensors" has its
        path, shape, bits a weight, and the root mean square of its error over that of its weights.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: on bad input; nothing is half-written.
    """
    check_output(config.out)
    if config.scores is not None and config.format != "codebook":
        raise ValueError(f"scores are weights of format codebook; found format={config.format!r}")
    squares: dict[str, list[float]] = {}
    with tqdm(disable=not config.progress, unit=" matrices") as bar:

        def observe(path: str, matrix: jax.Array, found: Quantized) -> None:
            error, size = _squares(matrix, found)
            total = squares.setdefault(path, [0.0, 0.0])
            total[0] += float(error)
            total[1] += float(size)
            bar.update()

        how = base.Base(config.format, config.group_size, config.embeddings, config.scores)
        shape, _, params = base.load(config.model, config.dtype, how, observe=observe)
    tensors, before = [], 0
    for path, leaf in jax.tree_util.tree_flatten_with_path(params, is_leaf=is_virtual)[0]:
        before += leaf.size * leaf.dtype.itemsize
        name = "/".join(str(key.key) for key in path)
        if name in squares:
            error, size = squares[name]
            tensors.append(
                {
                    "path": name,
                    "shape": list(leaf.shape),
                    "bits": round(8 * leaf.base.nbytes / leaf.size, 3),
                    "relative_rms": round((error / size) ** 0.5 if size else 0.0, 5),
                }
            )
    models.save_params(shape, params, config.out, config.model)
    print(_table(tensors), flush=True)
    error, size = (sum(s[i] for s in squares.values()) for i in range(2))
    return {
        "format": config.format,
        "group_size": config.group_size,
        "bytes_before": before,
        "bytes_after": base.nbytes(params),
        "relative_rms": round((error / size) ** 0.5, 5),
        "tensors": tensors,
        "out": str(config.out),
    }


def check_output(folder: Path) -> None:
    """Raise `FileExistsError` unless a folder is new or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder}: it is there and not an empty folder; choose a new one")


@jax.jit
def _squares(matrix: jax.Array, found: Quantized) -> tuple[jax.Array, jax.Array]:
    wide = matrix.astype(jnp.float32)
    error = found.materialize().astype(jnp.float32) - wide
    return jnp.sum(error * error), jnp.sum(wide * wide)


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [("tensor", "shape", "bits", "relative rms error")]
    lines += [
        (r["path"], "x".join(map(str, r["shape"])), f"{r['bits']:.2f}", f"{r['relative_rms']:.4f}")
        for r in rows
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    )
