"""What of a model moves, and how: from a configuration to a split, an estimator, an optimiser."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import zojax
from zojax import planning, tasks, trainables, training
from zojax.cli import base
from zojax.cli.build import Loaded, load, template_of
from zojax.cli.config import Finetune, Method, OptimizerConfig, Plan, TaskConfig
from zojax.quantization import is_weight
from zojax.tasks import Splits, Template
from zojax.trainables import is_bias_or_norm, is_head, path_name, size

_CALIBRATION_CHUNKS, _CALIBRATION_LENGTH = 100, 512
_OF_ENTRIES = ("sensitive", "random", "magnitude", "n-m")
_OF_QUANTISED = ("scales", "codebook")
# where Adam's step is a part of the root mean square of the entries that move
_OF_FEW, _STEP_OF_ENTRIES = ("sensitive", "random", "magnitude"), 0.1


def prepare(config: Finetune, template: Template, splits: Splits) -> tuple[Loaded, zojax.Split]:
    """The model of a run and what of it moves.

    Entries that move are found on the dense model. Then the model is read once more and quantised
    without them, as it is for their adapter.

    Raises:
        ValueError: if the method does not go with the base, or scores are given for nothing.
    """
    is_codebook = config.base == "codebook"
    how = base.Base(
        None if config.base == "none" else config.base,
        config.group_size,
        config.quantize_embeddings,
        config.scores if is_codebook else None,
    )
    if config.scores is not None and not (is_codebook or config.method in ("sensitive", "n-m")):
        raise ValueError(
            f"scores are given, and neither method {config.method} nor base {config.base} uses them"
        )
    if how.format is None or config.method not in _OF_ENTRIES:
        loaded = load(config.model, config.dtype, config.task, template, how)
        return loaded, split_of(config, loaded, splits)
    is_scoring = config.method in ("sensitive", "n-m") and config.scores is None
    with contextlib.nullcontext() if is_scoring else base.on_host():
        dense = load(config.model, config.dtype, config.task, template)
        if base.is_quantised(dense.params):
            raise ValueError(f"{config.model} is quantised already; leave base={config.base} out")
        split = split_of(config, dense, splits)
    parts = split.trainable, split.frozen.index
    trainable, index = jax.tree.map(np.asarray, parts)
    merge = split.merge
    del dense, split  # the dense model must not stay beside the quantised one
    loaded = load(config.model, config.dtype, config.task, template, how, index)
    trainable, index = jax.tree.map(jnp.asarray, (trainable, index))
    frozen = trainables.SensitiveFrozen(loaded.params, index)
    return loaded, zojax.Split(trainable, frozen, merge)


def split_of(config: Finetune, loaded: Loaded, train: Splits) -> zojax.Split:
    """What moves and what stays, of parameters that are dense or quantised already.

    Single entries are of the layers' matrices: of no embedding, head or norm.
    """
    params, method = loaded.params, config.method
    check_base(method, base.is_quantised(params))
    key = jax.random.key(config.seed)
    if method not in _OF_ENTRIES:
        return without_values(config, key)(params)
    if method == "random":
        return trainables.random(key, params, config.density, where=is_weight)
    if method == "magnitude":
        return trainables.magnitude(params, config.density, config.per, where=is_weight)
    if config.scores is not None:
        scores = of_matrices(load_scores(config.scores, params))
    else:
        batches = calibration(
            config.task, config.calibration, loaded, train, _CALIBRATION_CHUNKS, _CALIBRATION_LENGTH
        )
        scores = zojax.sensitivity(loaded.language_loss, params, batches, where=is_weight)
    if method == "n-m":
        return trainables.n_m(params, scores, *config.n_of_m)
    return zojax.sensitive(params, scores, config.density, config.per)


def check_base(method: Method, quantised: bool) -> None:
    """Raise `ValueError` if a method does not go with a model that is quantised, or dense."""
    if method == "full" and quantised:
        raise ValueError(
            "method full moves every parameter, so none can be quantised; choose another method, "
            "such as sensitive, lora or scales, or the dense model"
        )
    if method in _OF_QUANTISED and not quantised:
        raise ValueError(f"method {method} needs a quantised model: add base, such as nf4")


def without_values(config: Finetune | Plan, key: jax.Array) -> Callable[[Any], zojax.Split]:
    """The split of a method for which the shapes of the parameters are enough."""
    return {
        "full": zojax.full,
        "bias-and-norm": lambda p: zojax.select(p, lambda n: is_bias_or_norm(n) or is_head(n)),
        "head": zojax.head,
        "lora": lambda p: zojax.lora(p, key, config.lora_rank),
        # logarithms: mu and the step size are then relative, whatever the format
        "scales": lambda p: zojax.scales(p, "exp"),
        "codebook": zojax.codebook,
    }[config.method]


def abstract_split(config: Plan, params: Any) -> zojax.Split:
    """The shapes of `split_of`, of parameters that may be shapes themselves."""
    if config.method == "n-m":
        return trainables.abstract_n_m(params, *config.n_of_m, where=is_weight)
    if config.method in _OF_ENTRIES:
        return trainables.abstract_sensitive(params, config.density, where=is_weight)
    return planning.abstract_split(without_values(config, jax.random.key(0)), params)


def of_matrices(scores: Any) -> Any:
    """The scores of the layers' matrices, None elsewhere."""
    return jax.tree_util.tree_map_with_path(
        lambda path, score: score if is_weight(path_name(path)) else None, scores
    )


def load_scores(path: Path, params: Any) -> Any:
    """The scores of a model; the head of an encoder has none."""
    if "encoder" not in params:
        return training.load_scores(path, params)
    head = jax.tree.map(lambda _: None, params["head"])
    return {"encoder": training.load_scores(path, params["encoder"]), "head": head}


def calibration(
    task: TaskConfig,
    text: Path | None,
    loaded: Loaded,
    splits: Splits | None,
    chunks: int,
    length: int,
) -> list[dict[str, Any]]:
    """Batches of one sequence to score sensitivity on: of a text file, or of a task."""
    if loaded.is_encoder:
        if splits is None:
            raise ValueError("an encoder is scored on a task: give data and task or prompt")
        data = loaded.encode(splits.train[:chunks])
        width = (data.tokens.shape[-1],)
        return [tasks.take(data, [i], buckets=width) for i in range(len(data))]
    if text is not None:
        texts = text.read_text().split("\n\n")
    elif splits is not None:
        template = template_of(task)
        texts = [template.render(e).prompt for e in splits.train]
    else:
        raise ValueError("nothing to score sensitivity on: give calibration, a text file, or data")
    length = min(length, task.max_length or length)
    return tasks.encode_chunks(texts, loaded.tokenizer, length, chunks)


def mu_of(config: OptimizerConfig, method: Method) -> float:
    """The smoothing parameter."""
    default = 1e-2 if method in _OF_QUANTISED else 1e-3
    return default if config.mu is None else config.mu


def estimator_of(
    config: OptimizerConfig, method: Method, trainable: Any
) -> zojax.Estimator | zojax.Joint:
    """The recipe; a head beside other trainables gets many directions that share a forward."""
    mu = mu_of(config, method)
    direction = {
        "default": None,
        "gaussian": zojax.gaussian(),
        "rademacher": zojax.rademacher(),
        "low-rank": zojax.low_rank(config.rank),
    }[config.direction]
    name = config.recipe
    if name == "auto":
        name = "qzo" if method in _OF_QUANTISED else "mezo"
    recipe = {"mezo": zojax.mezo, "fzoo": zojax.fzoo, "qzo": zojax.qzo}[name]
    body = recipe(mu, config.num_samples, direction=direction)
    paths = jax.tree_util.tree_flatten_with_path(trainable)[0]
    in_head = [is_head(path_name(path)) and "encoder" in trainable for path, _ in paths]
    if not any(in_head):
        return body
    # rank one: hundreds of perturbed heads at once would otherwise outweigh the activations
    head = zojax.mezo(
        mu,
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


def _default_rate(optimizer: str, method: Method, trainable: Any) -> float:
    if optimizer == "sgd":
        return 250 / size(trainable)
    if method in _OF_QUANTISED:
        return 1e-2
    if method not in _OF_FEW:
        return 1e-3
    # as weights of other sizes need other steps
    leaves = jax.tree.leaves(trainable)
    squares = sum(float(jnp.sum(jnp.square(leaf))) for leaf in leaves)
    # with one threshold for all matrices, some hold zeros as padding
    count = sum(int(jnp.count_nonzero(leaf)) for leaf in leaves)
    rate = _STEP_OF_ENTRIES * (squares / max(count, 1)) ** 0.5
    # two digits: the same wherever the sum is made
    return float(f"{rate:.1e}") or 1e-3


def optimizer_of(
    config: OptimizerConfig, method: Method, steps: int, trainable: Any
) -> tuple[optax.GradientTransformation, str, float]:
    """The optax transformation, its name and its step size."""
    name = config.optimizer
    if name == "auto":
        name = "sgd" if method == "full" else "adam"
    rate = config.learning_rate
    if rate is None:
        rate = _default_rate(name, method, trainable)
    schedule = {
        "constant": lambda: rate,
        "linear": lambda: optax.linear_schedule(rate, 0.0, steps),
        "cosine": lambda: optax.cosine_decay_schedule(rate, steps),
    }[config.decay]()
    return {"sgd": optax.sgd, "adam": optax.adam}[name](schedule), name, rate
