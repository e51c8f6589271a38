"""Plain text for a language model: chunks of tokens and the next-token loss."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from zojax.tasks.tokens import pad_rows


def encode_chunks(
    texts: Sequence[str], tokenizer: Tokenizer, length: int, limit: int
) -> list[dict[str, np.ndarray]]:
    """Cut texts into batches of one chunk of tokens each, for `zojax.sensitivity`.

    Args:
        texts: texts; those of fewer than two tokens are passed over.
        tokenizer: a tokenizer.
        length: most tokens in a chunk, T.
        limit: most chunks.

    Returns:
        Batches `{"tokens": int32[1,T], "length": int32[1]}`, right padded.

    Raises:
        ValueError: if no text has two tokens.
    """
    rows: list[list[int]] = []
    for encoding in tokenizer.encode_batch(list(texts)):
        ids = encoding.ids
        rows += [ids[i : i + length] for i in range(0, len(ids), length)]
    rows = [row for row in rows if len(row) > 1][:limit]
    if not rows:
        raise ValueError("no text has two tokens or more; give text to score sensitivity on")
    tokens, lengths = pad_rows([*rows, [0] * length])
    return [{"tokens": tokens[i : i + 1], "length": lengths[i : i + 1]} for i in range(len(rows))]


def language_modelling(bind: Callable[[Any], Any]) -> Callable[[Any, Any], jax.Array]:
    r"""The mean next-token cross-entropy, $-\frac1n \sum_t \log p(x_{t+1} \mid x_{\le t})$.

    Args:
        bind: from parameters to a causal model, as `zojax.models.functional` gives.

    Returns:
        `loss(params, batch)`, float32, over batches of `encode_chunks`.
    """

    def loss(params: Any, batch: Any) -> jax.Array:
        tokens = jnp.asarray(batch["tokens"])
        mask = jnp.arange(tokens.shape[1]) < jnp.asarray(batch["length"])[:, None]
        logits = bind(params)(tokens, mask)[:, :-1]
        target = tokens[:, 1:, None]
        chosen = jnp.take_along_axis(logits, target, axis=-1)[..., 0]
        log_prob = chosen - jax.nn.logsumexp(logits, axis=-1)
        counted = mask[:, 1:]
        return -jnp.sum(jnp.where(counted, log_prob, 0.0)) / jnp.maximum(counted.sum(), 1)

    return loss
