"""Encoder models."""

import jax
from flax import nnx

from zojax.models._transformer import Transformer
from zojax.models.config import ModelConfig


class Encoder(Transformer):
    """A bidirectional encoder, BERT or RoBERTa, with token type 0 and without a pooler.

    RoBERTa counts positions by ``mask``, where transformers counts tokens that are not padding;
    give a mask whenever there is padding.

    Args:
        config: Shape of the model.
        rngs: Source of the random initial parameters.

    Raises:
        ValueError: If ``config`` is that of a decoder.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        if config.causal:
            raise ValueError(f"{config.family} is a decoder; use Decoder.")
        super().__init__(config, rngs=rngs)

    def __call__(self, tokens: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Compute the last hidden states.

        Args:
            tokens: Token numbers, ``int32[B, T]``.
            mask: True at real tokens, ``bool[B, T]``; padding may be on either side. None if
                there is none.

        Returns:
            Hidden states, ``[B, T, hidden_size]``; those at padding mean nothing.
        """
        return self.hidden(tokens, mask)
