"""The command `sensitivity`, as a function of its configuration."""

import time
from collections.abc import Iterator
from typing import Any

import jax
from tqdm import tqdm

import zojax
from zojax import tasks, training
from zojax.cli import base, build, method
from zojax.cli.config import Sensitivity
from zojax.trainables import coverage
from zojax.virtual import is_virtual

_DENSITIES = (1e-4, 1e-3, 1e-2)


def sensitivity(config: Sensitivity) -> dict[str, Any]:
    """Score a model's entries and write the scores.

    Args:
        config: which model, on what, and how.

    Returns:
        {"sequences", "seconds", "bytes", "coverage", ...}; "coverage" is the part of the Fisher
        mass of the layers' matrices that their entries with the highest scores have, by density.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: on bad input; nothing is half-written.
    """
    if config.out.is_dir():
        raise FileExistsError(f"{config.out}: it is a folder; name a file, scores.safetensors")
    if not config.out.parent.is_dir():
        raise FileNotFoundError(f"{config.out.parent}: no such folder")
    loaded, batches = _prepare(config)
    params, start = loaded.params, time.perf_counter()
    passes = 1 if config.forward_only else _passes(params, config.by)
    with _Bar(batches, passes, config.progress) as shown:
        if config.forward_only:
            key = jax.random.key(config.seed)
            scores = zojax.forward_sensitivity(
                key, loaded.language_loss, params, shown, num_samples=config.samples
            )
        else:
            scores = zojax.sensitivity(
                loaded.language_loss, params, shown, by=config.by, host=config.host
            )
    seconds = time.perf_counter() - start
    if loaded.is_encoder:
        params, scores = params["encoder"], scores["encoder"]
    size = training.save_scores(config.out, scores, params)
    moving = method.of_matrices(scores)
    found = {density: coverage(moving, density) for density in _DENSITIES}
    print(f"density {_DENSITIES[1]:g} of each matrix\n{found[_DENSITIES[1]]}", flush=True)
    return {
        "sequences": len(batches),
        "passes": passes,
        "seconds": round(seconds, 2),
        "bytes": size,
        **{f"covered_by_{density:g}": round(c.total, 4) for density, c in found.items()},
        "coverage": [row._asdict() for row in found[_DENSITIES[1]].rows],
        "out": str(config.out),
    }


def _prepare(config: Sensitivity) -> tuple[build.Loaded, list[dict[str, Any]]]:
    task, splits = config.task, None
    if task.data is not None and config.calibration is not None:
        raise ValueError("give calibration, a text file, or data, a folder of a task; found both")
    if task.data is not None:
        template = build.template_of(task)
        splits = build.splits_of(task, template)
        loaded = build.load(config.model, config.dtype, task, template)
    else:
        loaded = _language_model(config)
    batches = method.calibration(
        task, config.calibration, loaded, splits, config.sequences, config.length
    )
    return loaded, batches


def _language_model(config: Sensitivity) -> build.Loaded:
    shape, bind, params = base.load(config.model, config.dtype, base.Base())
    if not shape.causal:
        raise ValueError("an encoder is scored on a task: give data and task or prompt")
    tokenizer = build.load_tokenizer(config.model, shape)
    loss: Any = tasks.language_modelling(bind)
    problem = training.Problem(loss, loss, tasks.example_losses)
    return build.Loaded(params, problem, _no_task, loss, tokenizer, is_encoder=False)


def _no_task(examples: list[dict[str, Any]]) -> tasks.Encoded:
    raise TypeError("there is no task")


def _passes(params: Any, by: str) -> int:
    leaves = jax.tree.leaves(params, is_leaf=is_virtual)
    if by == "layer":
        return sum(x.shape[0] if x.ndim > 2 else 1 for x in leaves)
    return len(leaves) if by == "leaf" else 1


class _Bar:
    """Batches that can be gone through again, with one progress bar over all passes."""

    def __init__(self, batches: list[Any], passes: int, shown: bool):
        self._batches = batches
        self._bar = tqdm(total=len(batches) * passes, disable=not shown, unit=" sequences")

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches:
            yield batch
            self._bar.update()
