"""Losses and predictions: options scored by a decoder, classes by a head on an encoder."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from zojax.tasks.tokens import encode_texts

Bind = Callable[[Any], Any]
Batch = Mapping[str, Any]
Loss = Callable[[Any, Batch], jax.Array]
Logits = Callable[[Any, Batch], jax.Array]


def example_losses(
    logits: jax.Array,
    labels: jax.Array,
    loss: Literal["classification", "generation"] = "classification",
) -> jax.Array:
    r"""The loss of each example, from what `option_scoring` or `head_classification` predicts.

    Args:
        logits: float32[B,C], -inf where an example has no such option.
        labels: int32[B].
        loss: `"classification"`, the cross-entropy $-\log \mathrm{softmax}(s)_y$, or
            `"generation"`, the negative log-likelihood $-s_y$ of the right option.

    Returns:
        float32[B].
    """
    if loss not in ("classification", "generation"):
        raise ValueError(f"loss={loss!r}; expected 'classification' or 'generation'")
    scores = jax.nn.log_softmax(logits, axis=-1) if loss == "classification" else logits
    return -jnp.take_along_axis(scores, labels[:, None], axis=-1)[:, 0]


def option_scoring(
    bind: Bind, loss: Literal["classification", "generation"] = "classification"
) -> tuple[Loss, Logits]:
    r"""Scores options by the mean log-probability of their tokens after the prompt.

    $s_o = \frac{1}{m_o} \sum_{j \le m_o} \log p(o_j \mid \text{prompt}, o_1 \dots o_{j-1})$

    Hidden states are gathered where an option's tokens are predicted before they meet the
    vocabulary, so no logits of other positions exist.

    Args:
        bind: From parameters to a causal model with `hidden(tokens, mask)` and
            `logits(hidden)`, as `zojax.models.functional` gives.
        loss: `"classification"`, the cross-entropy over the options' scores, or
            `"generation"`, the negative score of the right option.

    Returns:
        `loss(params, batch)`, the float32 mean over the batch, and `logits(params, batch)`,
        the scores float32[B,O], -inf for options that an example does not have. Batches are
        those of `encode_options`.

    Raises:
        ValueError: If `loss` is neither.
    """
    if loss not in ("classification", "generation"):
        raise ValueError(f"loss={loss!r}; expected 'classification' or 'generation'")

    def logits(params: Any, batch: Batch) -> jax.Array:
        model = bind(params)
        tokens = batch["tokens"]
        num, num_rows, width = tokens.shape
        hidden = model.hidden(
            tokens.reshape(num * num_rows, width), _mask(batch).reshape(num * num_rows, width)
        )
        hidden = hidden.reshape(num, num_rows * width, hidden.shape[-1])
        place = batch["row"][..., None] * width + batch["position"]
        hidden = jnp.take_along_axis(hidden, place.reshape(num, -1, 1), axis=1)
        vocabulary = model.logits(hidden)
        target = batch["target"].reshape(num, -1, 1)
        chosen = jnp.take_along_axis(vocabulary, target, axis=-1)[..., 0]
        log_prob = chosen - jax.nn.logsumexp(vocabulary, axis=-1)
        present = jnp.asarray(batch["target_mask"])
        total = jnp.where(present, log_prob.reshape(place.shape), 0.0).sum(axis=-1)
        mean = total / jnp.maximum(present.sum(axis=-1), 1)
        return jnp.where(batch["option_mask"], mean, -jnp.inf)

    return _mean_loss(logits, loss), logits


def head_classification(
    bind: Bind,
    num_labels: int,
    pool: Literal["mean", "first"] = "mean",
    normalize: bool = False,
    scale: float = 1.0,
) -> tuple[Loss, Logits]:
    r"""Classifies by a linear head on the pooled hidden states of an encoder.

    $s = \gamma\, h\, W + b$, with $h$ the pooled hidden state, of unit length if `normalize`.

    Args:
        bind: From encoder parameters to a model with `hidden(tokens, mask)`.
        num_labels: C.
        pool: `"mean"` over the tokens, or the `"first"` token.
        normalize: Whether to scale the pooled state to unit length.
        scale: The factor $\gamma$.

    Returns:
        `loss(params, batch)`, the float32 mean cross-entropy, and `logits(params, batch)`,
        float32[B,C]. Batches are those of `encode_texts`; `params` is
        `{"encoder": ..., "head": {"kernel": [d,C], "bias": [C]}}`.

    Raises:
        ValueError: If `pool` is neither, or a head has another number of columns.
    """
    if pool not in ("mean", "first"):
        raise ValueError(f"pool={pool!r}; expected 'mean' or 'first'")

    def logits(params: Any, batch: Batch) -> jax.Array:
        kernel, bias = params["head"]["kernel"], params["head"]["bias"]
        if kernel.shape[-1] != num_labels or bias.shape[-1] != num_labels:
            raise ValueError(
                f"head: found kernel {kernel.shape} and bias {bias.shape}; expected "
                f"{num_labels} columns, one a label"
            )
        pooled = _pool(bind(params["encoder"]), batch, pool, normalize)
        return (scale * pooled) @ kernel + bias

    return _mean_loss(logits, "classification"), logits


def init_head(key: jax.Array, hidden_size: int, num_labels: int) -> dict[str, jax.Array]:
    """A head of small random weights, normal with standard deviation 0.02, and zero biases.

    Args:
        key: A typed key.
        hidden_size: d.
        num_labels: C.

    Returns:
        `{"kernel": float32[d,C], "bias": float32[C]}`.
    """
    kernel = 0.02 * jax.random.normal(key, (hidden_size, num_labels), jnp.float32)
    return {"kernel": kernel, "bias": jnp.zeros(num_labels, jnp.float32)}


def label_name_head(
    bind: Bind,
    params: Any,
    tokenizer: Tokenizer,
    names: Sequence[str],
    pool: Literal["mean", "first"] = "mean",
    max_length: int = 64,
) -> dict[str, jax.Array]:
    """A head that classifies before any training: its columns embed the names of the labels.

    With `normalize=True` in `head_classification` the logits are the cosines between a text
    and the label names, times `scale`.

    Args:
        bind: From encoder parameters to a model with `hidden(tokens, mask)`.
        params: The parameters of the encoder.
        tokenizer: Its tokenizer.
        names: A name for each of C labels.
        pool: As in `head_classification`.
        max_length: Most tokens in a name.

    Returns:
        `{"kernel": float32[d,C], "bias": float32[C]}`, columns of unit length, zero biases.
    """
    data = encode_texts(names, range(len(names)), tokenizer, max_length, len(names))
    batch = {"tokens": jnp.asarray(data.tokens), "length": jnp.asarray(data.length)}
    columns = _pool(bind(params), batch, pool, normalize=True)
    return {"kernel": columns.T, "bias": jnp.zeros(len(names), jnp.float32)}


def accuracy(logits: Any, labels: Any, valid: Any = None) -> float:
    """The share of examples whose largest logit is the label's.

    Args:
        logits: [B,C].
        labels: int[B].
        valid: bool[B], which examples count; all if None.

    Returns:
        A number from 0 to 1.
    """
    predicted, labels = _predictions(logits, labels, valid)
    return float(np.mean(predicted == labels))


def macro_f1(logits: Any, labels: Any, valid: Any = None) -> float:
    r"""The mean of $F_1 = 2\,tp / (2\,tp + fp + fn)$ over the classes labelled or predicted.

    Args:
        logits: [B,C].
        labels: int[B].
        valid: bool[B], which examples count; all if None.

    Returns:
        A number from 0 to 1.
    """
    predicted, labels = _predictions(logits, labels, valid)
    hits = [np.sum((predicted == c) & (labels == c)) for c in np.union1d(predicted, labels)]
    sizes = [np.sum(predicted == c) + np.sum(labels == c) for c in np.union1d(predicted, labels)]
    return float(np.mean(2 * np.array(hits) / np.array(sizes)))


def _mask(batch: Batch) -> jax.Array:
    # A row that is not there keeps one token: attention over none at all gives NaN.
    length = jnp.maximum(batch["length"], 1)
    return jnp.arange(batch["tokens"].shape[-1]) < length[..., None]


def _mean_loss(logits: Logits, kind: Literal["classification", "generation"]) -> Loss:
    def loss(params: Any, batch: Batch) -> jax.Array:
        return jnp.mean(example_losses(logits(params, batch), batch["label"], kind))

    return loss


def _pool(model: Any, batch: Batch, pool: str, normalize: bool) -> jax.Array:
    mask = _mask(batch)
    hidden = model.hidden(batch["tokens"], mask).astype(jnp.float32)
    if pool == "first":
        pooled = hidden[:, 0]
    else:
        kept = jnp.where(mask[..., None], hidden, 0.0)
        pooled = kept.sum(axis=1) / mask.sum(axis=1)[:, None]
    if normalize:
        square = jnp.sum(pooled * pooled, axis=-1, keepdims=True)
        pooled = pooled * jax.lax.rsqrt(jnp.maximum(square, 1e-24))
    return pooled


def _predictions(logits: Any, labels: Any, valid: Any) -> tuple[np.ndarray, np.ndarray]:
    predicted, labels = np.argmax(np.asarray(logits), axis=-1), np.asarray(labels)
    if valid is not None:
        valid = np.asarray(valid, bool)
        predicted, labels = predicted[valid], labels[valid]
    if not len(labels):
        raise ValueError("no examples to measure; expected at least one that is valid")
    return predicted, labels
