"""Models as a function of their parameters."""

import functools
from collections.abc import Callable
from typing import Any

from flax import nnx

from zojax.models.config import ModelConfig
from zojax.models.decoder import Decoder
from zojax.models.encoder import Encoder


def functional(
    model: Decoder | Encoder,
) -> tuple[Callable[[dict[str, Any]], Any], dict[str, Any]]:
    """Split a model into a function and its parameters.

    Example:
        >>> import zojax.models as models
        >>> from flax import nnx
        >>> import jax.numpy as jnp
        >>> config = models.parse_config(dict(
        ...     model_type="llama", vocab_size=8, hidden_size=4, num_hidden_layers=2,
        ...     num_attention_heads=2, intermediate_size=8, max_position_embeddings=16))
        >>> bind, params = models.functional(models.Decoder(config, rngs=nnx.Rngs(0)))
        >>> params["layers"]["attention"]["query"]["kernel"].shape
        (2, 4, 4)
        >>> bind(params).logits(bind(params).hidden(jnp.zeros((1, 3), jnp.int32))).shape
        (1, 3, 8)

    Args:
        model: A decoder or an encoder.

    Returns:
        ``bind``, which gives a model with the parameters it is called with, and the parameters, a
        nested dict of arrays; those under ``"layers"`` have the layer as their first axis.
    """
    graph, state = nnx.split(model)
    return functools.partial(nnx.merge, graph), nnx.to_pure_dict(state)


def abstract(config: ModelConfig) -> Decoder | Encoder:
    """A model without values, of any size: its parameters are shapes.

    Example:
        >>> import zojax.models as models
        >>> model = models.abstract(models.known_config("llama-2-7b"))
        >>> bind, params = models.functional(model)
        >>> params["layers"]["attention"]["query"]["kernel"]
        ShapeDtypeStruct(shape=(32, 4096, 4096), dtype=bfloat16)

    Args:
        config: Shape of the model.

    Returns:
        A ``Decoder`` or an ``Encoder`` with ``jax.ShapeDtypeStruct`` for arrays.
    """
    kind = Decoder if config.causal else Encoder
    return nnx.eval_shape(lambda: kind(config, rngs=nnx.Rngs(0)))
