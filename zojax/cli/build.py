"""From a configuration to the parts of a run: model, data, problem, trainables, estimator."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import zojax
from zojax import models, tasks
from zojax.cli.config import Finetune, Method, OptimizerConfig, TaskConfig
from zojax.tasks import Encoded, Splits, Template
from zojax.trainables import is_bias_or_norm, is_head, path_name, size
from zojax.training import Problem

_CALIBRATION_CHUNKS, _CALIBRATION_LENGTH = 100, 512
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
    return tasks.load_splits(
        template,
        config.data,
        num_train=config.num_train,
        num_dev=config.num_dev,
        num_test=config.num_test,
        seed=config.data_seed,
    )


def load(folder: Path, dtype: str, config: TaskConfig, template: Template) -> Loaded:
    """Load a model and make the problem that the template poses to it."""
    model = models.load(folder, None if dtype == "stored" else jnp.dtype(dtype))
    tokenizer = tasks.load_tokenizer(folder)
    vocabulary = tokenizer.get_vocab_size()
    if vocabulary > model.config.vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has {vocabulary} tokens, the model's embedding "
            f"{model.config.vocab_size}; they are not of one model"
        )
    context = model.config.max_positions
    length = min(config.max_length or context, context)
    bind, params = models.functional(model)
    if model.config.causal:
        return _decoder(bind, params, tokenizer, template, length)
    return _encoder(bind, params, tokenizer, template, length)


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
    head = tasks.label_name_head(bind, params, tokenizer, names)
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


def split_of(config: Finetune, loaded: Loaded, train: Splits) -> zojax.Split:
    """What moves and what stays."""
    params, method = loaded.params, config.method
    if method == "full":
        return zojax.full(params)
    if method == "bias-and-norm":
        return zojax.select(params, lambda path: is_bias_or_norm(path) or is_head(path))
    if method == "head":
        return zojax.head(params)
    if method == "lora":
        return zojax.lora(params, jax.random.key(config.seed), config.lora_rank)
    batches = _calibration(config, loaded, train)
    scores = zojax.sensitivity(loaded.language_loss, params, batches)
    return zojax.sensitive(params, scores, config.density)


def _calibration(config: Finetune, loaded: Loaded, splits: Splits):
    if loaded.is_encoder:
        data = loaded.encode(splits.train[:_CALIBRATION_CHUNKS])
        width = (data.tokens.shape[-1],)
        return [tasks.take(data, [i], buckets=width) for i in range(len(data))]
    template = template_of(config.task)
    if config.calibration is None:
        texts = [template.render(e).prompt for e in splits.train]
    else:
        texts = config.calibration.read_text().split("\n\n")
    length = min(_CALIBRATION_LENGTH, config.task.max_length or _CALIBRATION_LENGTH)
    return tasks.encode_chunks(texts, loaded.tokenizer, length, _CALIBRATION_CHUNKS)


def estimator_of(config: OptimizerConfig, trainable: Any) -> zojax.Estimator | zojax.Joint:
    """The recipe; a head beside other trainables gets many directions that share a forward."""
    direction = {
        "default": None,
        "gaussian": zojax.gaussian(),
        "rademacher": zojax.rademacher(),
        "low-rank": zojax.low_rank(config.rank),
    }[config.direction]
    recipe = {"mezo": zojax.mezo, "fzoo": zojax.fzoo}[config.recipe]
    body = recipe(config.mu, config.num_samples, direction=direction)
    paths = jax.tree_util.tree_flatten_with_path(trainable)[0]
    in_head = [is_head(path_name(path)) and "encoder" in trainable for path, _ in paths]
    if not any(in_head):
        return body
    # rank one: hundreds of perturbed heads at once would otherwise outweigh the activations
    head = zojax.mezo(
        config.mu,
        config.head_samples,
        direction=zojax.masked(zojax.low_rank(1), lambda p: _flags(p, head=True)),
        batch_size=2 * config.head_samples,
    )
    if all(in_head):
        return head
    masked = zojax.masked(body.direction, lambda p: _flags(p, head=False))
    return zojax.joint(head, body._replace(direction=masked))


def _flags(params: Any, head: bool) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: is_head(path_name(path)) == head, params
    )


def optimizer_of(
    config: OptimizerConfig, method: Method, steps: int, trainable: Any
) -> tuple[optax.GradientTransformation, str, float]:
    """The optax transformation, its name and its step size."""
    name = config.optimizer
    if name == "auto":
        name = "sgd" if method == "full" else "adam"
    rate = config.learning_rate
    if rate is None:
        rate = 250 / size(trainable) if name == "sgd" else 1e-3
    schedule = {
        "constant": lambda: rate,
        "linear": lambda: optax.linear_schedule(rate, 0.0, steps),
        "cosine": lambda: optax.cosine_decay_schedule(rate, steps),
    }[config.decay]()
    return {"sgd": optax.sgd, "adam": optax.adam}[name](schedule), name, rate


def batch_at(data: Encoded, batch_size: int, seed: int) -> Callable[[int], dict[str, np.ndarray]]:
    """The batch of each step, a pure function of the step."""
    lengths = data.longest

    def batch(step: int) -> dict[str, np.ndarray]:
        return tasks.take(data, tasks.batch_indices(lengths, batch_size, seed, step))

    return batch
