"""The command `plan`, as a function of its configuration."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import zojax
from zojax import models, planning, tasks
from zojax.cli import base, method
from zojax.cli.config import Plan
from zojax.trainables import size

_STEPS = 1000  # of the learning rate's schedule, which takes no room


def plan(config: Plan) -> dict[str, Any]:
    """Plan a step of fine-tuning and print it.

    Args:
        config: the model, what moves, and the batch.

    Returns:
        Sizes in GiB under "total_gib", "weights_gib" and so on, "flops" a step, what it was
        compiled for and how sure that is.

    Raises:
        FileNotFoundError, ModuleNotFoundError, ValueError: on bad input; no picture is written.
    """
    if config.target is not None and (reason := planning.missing(config.target)):
        raise ModuleNotFoundError(reason)
    if config.draw is not None and not config.draw.parent.is_dir():
        raise FileNotFoundError(f"{config.draw}: no folder {config.draw.parent} to write it to")
    loss, params, batch = _problem(config)
    count = base.count(params)
    method.check_base(config.method, config.base != "none" or base.is_quantised(params))
    split = method.abstract_split(config, _stored(config, params))
    # what entries are worth is not known; the step size changes no program
    settings = config.optimizer
    if settings.learning_rate is None:
        settings = dataclasses.replace(settings, learning_rate=1e-3)
    optimizer, name, _ = method.optimizer_of(settings, config.method, _STEPS, split.trainable)
    found = zojax.plan(
        loss,
        params,
        batch,
        method.estimator_of(config.optimizer, config.method, split.trainable),
        trainable=split,
        optimizer=optimizer,
        target=config.target,
    )
    moving = size(split.trainable)
    model = config.config or str(config.model)
    title = f"{model}, {config.method} over {config.base}, {config.batch} x {config.seq} tokens"
    print(f"{title}: {moving:,} of {count:,} parameters move, {name}\n{found}", flush=True)
    if config.draw is not None:
        found.draw(config.draw, f"{title}, {found.device}: {found.total / 2**30:.2f} GiB")
    return found.to_dict() | {"parameters": count, "trainable_parameters": moving}


def _problem(config: Plan) -> tuple[Callable, Any, Any]:
    """Loss, abstract parameters and abstract batch."""
    if (config.model is None) == (config.config is None):
        raise ValueError(
            f"give either a model or a config; found model={config.model}, config={config.config}"
        )
    if config.batch < 1 or config.seq < 2:
        raise ValueError(
            f"batch {config.batch} x {config.seq}: needs a sequence of two tokens at least"
        )
    found, bind, params = _model(config)
    if found.max_positions < config.seq:
        raise ValueError(f"seq {config.seq}: the model has {found.max_positions} positions")
    rows = config.batch

    def integers(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    def flags(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.bool_)

    if not found.causal:
        loss, _ = tasks.head_classification(bind, 2, normalize=True)
        head = {
            "kernel": jax.ShapeDtypeStruct((found.hidden_size, 2), jnp.float32),
            "bias": jax.ShapeDtypeStruct((2,), jnp.float32),
        }
        batch = {"tokens": integers(rows, config.seq), "length": integers(rows)}
        return loss, {"encoder": params, "head": head}, batch | {"label": integers(rows)}
    if config.objective == "language":
        batch = {"tokens": integers(rows, config.seq), "length": integers(rows)}
        return tasks.language_modelling(bind), params, batch
    loss, _ = tasks.option_scoring(bind)
    batch = {
        "tokens": integers(rows, 1, config.seq),
        "length": integers(rows, 1),
        "label": integers(rows),
        "row": integers(rows, 2),
        "position": integers(rows, 2, 1),
        "target": integers(rows, 2, 1),
        "target_mask": flags(rows, 2, 1),
        "option_mask": flags(rows, 2),
    }
    return loss, params, batch


def _model(config: Plan) -> tuple[models.ModelConfig, Callable, Any]:
    """Configuration, bind and abstract parameters."""
    dtype = None if config.dtype == "stored" else config.dtype
    if config.model is not None:
        return models.abstract_params(config.model, dtype)
    name = config.config or ""
    found = models.read_config(name) if Path(name).exists() else models.known_config(name)
    if dtype is not None:
        found = dataclasses.replace(found, dtype=dtype)
    return found, *models.functional(models.abstract(found))


def _stored(config: Plan, params: Any) -> Any:
    """The parameters as the base stores them."""
    if config.base == "none":
        if config.quantize_embeddings:
            raise ValueError("quantize_embeddings needs a base: int8, int4, nf4 or codebook")
        return params
    if base.is_quantised(params):
        raise ValueError(f"{config.model} is quantised already; leave base={config.base} out")
    is_encoder = "encoder" in params  # with a new head, which is trained

    def where(path: str) -> bool:
        of_encoder = path.startswith("encoder/") or not is_encoder
        return of_encoder and base.with_embeddings(path.removeprefix("encoder/"))

    picked = where if config.quantize_embeddings else None
    return jax.eval_shape(
        lambda p: zojax.quantize(p, config.base, group_size=config.group_size, where=picked), params
    )
