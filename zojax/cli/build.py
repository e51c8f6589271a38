"""From a configuration to the parts of a run: model, data, problem."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import zojax
from zojax import models, tasks, training
from zojax.cli import base
from zojax.cli.config import TaskConfig
from zojax.tasks import Encoded, Splits, Template
from zojax.training import Problem

_HEAD_SCALE = 20.0


class Loaded(NamedTuple):
    """A model and its task, ready to be asked.

    Attributes:
        params: all parameters; {"encoder", "head"} for an encoder.
        problem: loss and predictions.
        encode: `(examples) -> Encoded`.
        language_loss: next-token loss of a decoder, the task's own loss for an encoder.
        tokenizer: of the model.
        is_encoder: whether there is a head.
    """

    params: Any
    problem: Problem
    encode: Callable[[list[dict[str, Any]]], Encoded]
    language_loss: Callable[[Any, Any], jax.Array]
    tokenizer: Any
    is_encoder: bool


def template_of(config: TaskConfig) -> Template:
    """The built-in template or the user's own.

    Raises:
        ValueError: if neither or both are given.
    """
    if (config.task is None) == (config.prompt is None):
        raise ValueError(
            "give either task (one of " + ", ".join(sorted(tasks.TEMPLATES)) + ") or prompt and "
            f"options; found task={config.task!r}, prompt={config.prompt!r}"
        )
    if config.task is not None:
        return tasks.find_template(config.task)
    if len(config.options) < 2:
        raise ValueError(f"a prompt needs two options or more; found options={config.options!r}")
    return Template(
        prompt=config.prompt or "",
        options=config.options,
        label=config.label_field,
        label_names=config.label_names,
    )


def splits_of(config: TaskConfig, template: Template) -> Splits:
    """The examples of a task."""
    if config.data is None:
        raise ValueError("give data, a folder with train.jsonl")
    return tasks.load_splits(
        template,
        config.data,
        num_train=config.num_train,
        num_dev=config.num_dev,
        num_test=config.num_test,
        seed=config.data_seed,
    )


def load(
    folder: Path,
    dtype: str,
    config: TaskConfig,
    template: Template,
    how: base.Base = base.Base(),  # noqa: B008 (a tuple)
    exclude: Any = None,
) -> Loaded:
    """Load a model, quantised or not, and make the problem that the template poses to it."""
    if exclude is not None:
        exclude = exclude.get("encoder", exclude)
    shape, bind, params = base.load(folder, dtype, how, exclude)
    tokenizer = load_tokenizer(folder, shape)
    context = shape.max_positions
    length = min(config.max_length or context, context)
    if shape.causal:
        return _decoder(bind, params, tokenizer, template, length)
    return _encoder(bind, params, tokenizer, template, length)


def load_tokenizer(folder: Path, shape: models.ModelConfig) -> Any:
    """The tokenizer of a model.

    Raises:
        ValueError: if it has more tokens than the model.
    """
    tokenizer = tasks.load_tokenizer(folder)
    vocabulary = tokenizer.get_vocab_size()
    if vocabulary > shape.vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has {vocabulary} tokens, the model's embedding "
            f"{shape.vocab_size}; they are not of one model"
        )
    return tokenizer


def load_tuned(
    folder: Path, path: Path, config: TaskConfig, template: Template, scores: Path | None
) -> tuple[Loaded, Any, training.Adapter]:
    """The model of a run, quantised as there, and its parameters with the adapter on top.

    Raises:
        ValueError: if the adapter is of another model.
    """
    adapter = base.read_adapter(path)
    how, dtype, exclude = base.base_of_adapter(adapter, scores)
    loaded = load(folder, dtype, config, template, how, exclude)
    base.check_base(adapter, loaded.params, path, folder)
    return loaded, training.apply_adapter(loaded.params, adapter), adapter


def _decoder(bind, params, tokenizer, template: Template, length: int) -> Loaded:
    loss, logits = tasks.option_scoring(bind, template.loss)
    kind = template.loss
    return Loaded(
        params,
        Problem(loss, logits, lambda lo, y: tasks.example_losses(lo, y, kind)),
        lambda examples: tasks.encode_options(examples, template, tokenizer, length),
        tasks.language_modelling(bind),
        tokenizer,
        is_encoder=False,
    )


def _encoder(bind, params, tokenizer, template: Template, length: int) -> Loaded:
    if callable(template.options):
        raise ValueError(
            f"task {template.name!r} has other options for every example, which a linear head "
            "cannot score: use a decoder"
        )
    names = [option.strip() for option in template.options]

    def encode(examples):
        texts = [template.render(e, f"example {i}").prompt for i, e in enumerate(examples)]
        labels = [template.gold(e, f"example {i}") for i, e in enumerate(examples)]
        return tasks.encode_texts(texts, labels, tokenizer, length, len(names))

    return with_head(bind, params, tokenizer, names, encode)


def with_head(bind, params, tokenizer, names: list[str], encode) -> Loaded:
    """An encoder with a head that starts from the embeddings of the label names."""
    make_head = zojax.virtualize(lambda p: tasks.label_name_head(bind, p, tokenizer, names))
    head = make_head(params)
    loss, logits = tasks.head_classification(
        bind, len(names), pool="mean", normalize=True, scale=_HEAD_SCALE
    )
    return Loaded(
        {"encoder": params, "head": head},
        Problem(loss, logits, tasks.example_losses),
        encode,
        loss,
        tokenizer,
        is_encoder=True,
    )


def batch_at(data: Encoded, batch_size: int, seed: int) -> Callable[[int], dict[str, np.ndarray]]:
    """The batch of each step, a pure function of the step."""
    lengths = data.longest

    def batch(step: int) -> dict[str, np.ndarray]:
        return tasks.take(data, tasks.batch_indices(lengths, batch_size, seed, step))

    return batch
