"""Decoder language models."""

import jax
import jax.numpy as jnp
from flax import nnx

from zojax.models._layers import Linear
from zojax.models._transformer import Transformer
from zojax.models.config import ModelConfig


class Decoder(Transformer):
    """A causal language model: Llama, Mistral, Qwen2, Qwen3, Gemma, OPT or GPT-2.

    Args:
        config: Shape of the model.
        rngs: Source of the random initial parameters.

    Raises:
        ValueError: If ``config`` is that of an encoder.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        if not config.causal:
            raise ValueError(f"{config.family} is an encoder; use Encoder.")
        super().__init__(config, rngs=rngs)
        if not config.tie_embeddings:
            width = config.embedding_size or config.hidden_size
            self.head = Linear(width, config.vocab_size, False, config, rngs)

    def __call__(self, tokens: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Predict the next token at every position.

        Args:
            tokens: Token numbers, ``int32[B, T]``.
            mask: True at real tokens, ``bool[B, T]``; padding may be on either side. None if
                there is none.

        Returns:
            Logits, ``float32[B, T, vocab_size]``; those at padding mean nothing.
        """
        return self.logits(self.hidden(tokens, mask))

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Score the vocabulary, ``h E^T`` or ``h W``, accumulated in float32.

        Args:
            hidden: Hidden states, ``[..., embedding_size or hidden_size]``.

        Returns:
            Logits, ``float32[..., vocab_size]``.
        """
        tied = self.config.tie_embeddings
        weight = self.embedding.embedding[...] if tied else self.head.kernel[...]
        contracted = (hidden.ndim - 1,), (1 if tied else 0,)
        return jax.lax.dot_general(
            hidden.astype(weight.dtype),
            weight,
            (contracted, ((), ())),
            preferred_element_type=jnp.float32,
        )
