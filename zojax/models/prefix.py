"""Models with trained virtual tokens before their input."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from zojax.models.decoder import Decoder
from zojax.models.encoder import Encoder
from zojax.trainables import Prefixed


class PrefixedModel:
    """A model that sees virtual tokens before every text; its outputs are those of the text.

    The virtual tokens are inputs of the first layer. Learned positions are those of the text
    alone; rotary ones count the virtual tokens too.

    Args:
        model: A decoder or an encoder.
        prefix: Inputs of the first layer, ``[length, hidden_size]``.
    """

    def __init__(self, model: Decoder | Encoder, prefix: jax.Array) -> None:
        self.model, self.prefix = model, prefix

    def __call__(self, tokens: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """What the model gives for the text: logits of a decoder, hidden states of an encoder."""
        hidden = self.hidden(tokens, mask)
        return self.model.logits(hidden) if isinstance(self.model, Decoder) else hidden

    def hidden(self, tokens: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Final hidden states of the text.

        Args:
            tokens: Token numbers, ``int32[B, T]``.
            mask: True at real tokens, ``bool[B, T]``; None if there is no padding.

        Returns:
            ``[B, T, embedding_size or hidden_size]``, without the virtual tokens.

        Raises:
            ValueError: If the prefix is not as wide as the model.
        """
        x = self.model.embed(tokens, mask)
        if self.prefix.shape[1] != x.shape[2]:
            raise ValueError(
                f"The prefix is {self.prefix.shape[1]} wide and the model {x.shape[2]}; make it "
                "of (length, hidden_size)."
            )
        length = self.prefix.shape[0]
        before = jnp.broadcast_to(self.prefix.astype(x.dtype), (x.shape[0], *self.prefix.shape))
        if mask is not None:
            seen = jnp.ones((x.shape[0], length), jnp.bool_)
            mask = jnp.concatenate([seen, mask.astype(jnp.bool_)], axis=1)
        x = self.model.run_layers(jnp.concatenate([before, x], axis=1), mask)
        return self.model.finish(x[:, length:])

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Score the vocabulary; of decoders alone, see ``Decoder.logits``."""
        assert isinstance(self.model, Decoder)
        return self.model.logits(hidden)


def with_prefix(bind: Callable[[Any], Decoder | Encoder]) -> Callable[[Prefixed], PrefixedModel]:
    """Let the losses of ``zojax.tasks`` see the parameters of ``zojax.prefix``.

    Example:
        >>> import jax, jax.numpy as jnp, zojax
        >>> import zojax.models as models
        >>> from flax import nnx
        >>> config = models.parse_config(dict(
        ...     model_type="llama", vocab_size=8, hidden_size=4, num_hidden_layers=2,
        ...     num_attention_heads=2, intermediate_size=8, max_position_embeddings=16))
        >>> bind, params = models.functional(models.Decoder(config, rngs=nnx.Rngs(0)))
        >>> theta, frozen, merge = zojax.prefix(params, jnp.zeros((5, 4)))
        >>> bind = models.with_prefix(bind)
        >>> bind(merge(theta, frozen))(jnp.zeros((1, 3), jnp.int32)).shape
        (1, 3, 8)

    Args:
        bind: From parameters to a model, as ``functional`` gives.

    Returns:
        The same from a ``zojax.trainables.Prefixed``, for example
        ``zojax.tasks.language_modelling(with_prefix(bind))``.
    """
    return lambda prefixed: PrefixedModel(bind(prefixed.params), prefixed.prefix)
