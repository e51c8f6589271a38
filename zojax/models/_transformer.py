"""The transformer that decoders and encoders share, in stages."""

import jax
import jax.numpy as jnp
from flax import nnx

from zojax.models._layers import Block, Context, Embedding, Linear, Norm
from zojax.models._rope import frequencies
from zojax.models.config import ModelConfig


class Transformer(nnx.Module):
    """Embeddings, a scan over stacked blocks, and a finish.

    ``hidden`` is ``finish(run_layers(embed(tokens, mask), mask), mask)``; the stages are public so
    that activations below the first trainable layer can be kept.

    Args:
        config: Shape of the model.
        rngs: Source of the random initial parameters.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        width = config.embedding_size or config.hidden_size
        self.embedding = Embedding(config.vocab_size, width, config, rngs)
        if not config.rotary:
            rows = config.max_positions + config.position_offset
            self.position_embedding = Embedding(rows, config.hidden_size, config, rngs)
        if config.type_vocab_size:
            self.type_embedding = Embedding(
                config.type_vocab_size, config.hidden_size, config, rngs
            )
        if config.embedding_norm:
            self.embedding_norm = Norm(config.hidden_size, config)
        if width != config.hidden_size:
            self.project_in = Linear(width, config.hidden_size, False, config, rngs)
            self.project_out = Linear(config.hidden_size, width, False, config, rngs)
        self.layers = _stack_blocks(config, rngs)
        if config.final_norm:
            self.final_norm = Norm(config.hidden_size, config)

    def embed(self, tokens: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Embed tokens, ready for the first layer.

        Args:
            tokens: Token numbers, ``int32[B, T]``.
            mask: True at real tokens, ``bool[B, T]``; None if there is no padding.

        Returns:
            Input of the first layer, ``[B, T, hidden_size]``, in the dtype of the embedding.

        Raises:
            ValueError: If the shapes disagree or the sequence is longer than the position table.
        """
        _check_mask(tokens.shape, mask)
        length = tokens.shape[1]
        if not self.config.rotary and length > self.config.max_positions:
            raise ValueError(
                f"The sequence has {length} tokens and the model only "
                f"{self.config.max_positions} positions; shorten the sequence."
            )
        x = self.embedding(tokens)
        if self.config.embedding_scale != 1.0:
            x = x * jnp.asarray(self.config.embedding_scale, x.dtype)
        dtype = x.dtype
        if hasattr(self, "project_in"):
            x = self.project_in(x).astype(dtype)
        if hasattr(self, "type_embedding"):
            kind = self.type_embedding(jnp.zeros((1, 1), jnp.int32)).astype(dtype)
            x = x + jnp.broadcast_to(kind, x.shape)
        if hasattr(self, "position_embedding"):
            index = self._positions(length, mask) + self.config.position_offset
            position = self.position_embedding(jnp.maximum(index, 0)).astype(dtype)
            x = x + jnp.broadcast_to(position, x.shape)
        if hasattr(self, "embedding_norm"):
            x = self.embedding_norm(x)
        return x

    def run_layers(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        first: int = 0,
        last: int | None = None,
    ) -> jax.Array:
        """Run layers ``first`` to ``last - 1``.

        Args:
            x: Output of ``embed`` or of layer ``first - 1``, ``[B, T, hidden_size]``.
            mask: True at real tokens, ``bool[B, T]``; None if there is no padding.
            first: First layer to run.
            last: Layer to stop before; None for all layers.

        Returns:
            Output of layer ``last - 1``, ``[B, T, hidden_size]``, not normed.

        Raises:
            ValueError: If there are no such layers, or the shapes disagree.
        """
        config = self.config
        last = config.num_layers if last is None else last
        if not 0 <= first <= last <= config.num_layers:
            raise ValueError(
                f"Layers {first} to {last} were asked of a model with {config.num_layers} layers; "
                "0 <= first <= last <= num_layers must hold."
            )
        _check_mask(x.shape[:2], mask)
        if first == last:
            return x
        context = self._context(x.shape[1], mask)
        graph, state = nnx.split(self.layers)
        stacked = nnx.to_pure_dict(state)
        if (first, last) != (0, config.num_layers):
            stacked = jax.tree.map(lambda leaf: leaf[first:last], stacked)

        def step(x: jax.Array, layer: tuple[dict, jax.Array | None]) -> tuple[jax.Array, None]:
            parameters, uses_window = layer
            allowed = context.allowed
            if context.windowed is not None and uses_window is not None:
                allowed = jnp.where(uses_window, context.windowed, allowed)
            return nnx.merge(graph, parameters)(x, allowed, context.rotation), None

        uses_window = None
        if context.windowed is not None:
            uses_window = jnp.arange(first, last) >= config.first_window_layer
        x, _ = jax.lax.scan(step, x, (stacked, uses_window))
        return x

    def finish(self, x: jax.Array) -> jax.Array:
        """Turn the output of the last layer into hidden states: final norm and projection.

        Args:
            x: Output of the last layer, ``[..., hidden_size]``.

        Returns:
            Hidden states, ``[..., embedding_size or hidden_size]``.
        """
        if hasattr(self, "final_norm"):
            x = self.final_norm(x)
        if hasattr(self, "project_out"):
            x = self.project_out(x).astype(x.dtype)
        return x

    def hidden(self, tokens: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Compute the final hidden states.

        Args:
            tokens: Token numbers, ``int32[B, T]``.
            mask: True at real tokens, ``bool[B, T]``; padding may be on either side. None if
                there is none.

        Returns:
            Hidden states, ``[B, T, embedding_size or hidden_size]``; those at padding mean nothing.
        """
        return self.finish(self.run_layers(self.embed(tokens, mask), mask))

    def _positions(self, length: int, mask: jax.Array | None) -> jax.Array:
        """Positions of the tokens, -1 at padding: ``int32[B or 1, T]``."""
        if mask is None or not self.config.positions_skip_padding:
            return jnp.arange(length, dtype=jnp.int32)[None]
        mask = mask.astype(jnp.bool_)
        return jnp.where(mask, jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, -1)

    def _context(self, length: int, mask: jax.Array | None) -> Context:
        config = self.config
        keys = jnp.arange(length)[None, :]
        queries = jnp.arange(length)[:, None]
        allowed = (keys <= queries) if config.causal else jnp.ones((length, length), jnp.bool_)
        allowed = allowed[None, None, None]
        if mask is not None:
            allowed = allowed & mask.astype(jnp.bool_)[:, None, None, None, :]
        windowed = None
        if config.sliding_window is not None:
            near = (keys > queries - config.sliding_window)[None, None, None]
            windowed = allowed & near
            if config.first_window_layer <= 0:
                allowed, windowed = windowed, None
        rotation = None
        if config.rotary:
            rates = frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
            positions = jnp.maximum(self._positions(length, mask), 0).astype(jnp.float32)
            angles = positions[:, :, None, None] * rates[None, None, None]
            rotation = jnp.cos(angles), jnp.sin(angles)
        return Context(allowed, windowed, rotation)


def _stack_blocks(config: ModelConfig, rngs: nnx.Rngs) -> Block:
    @nnx.split_rngs(splits=config.num_layers)
    @nnx.vmap
    def make(rngs: nnx.Rngs) -> Block:
        return Block(config, rngs)

    return make(rngs)


def _check_mask(shape: tuple[int, ...], mask: jax.Array | None) -> None:
    if len(shape) != 2:
        raise ValueError(f"Tokens have shape {shape}; expected [batch, length].")
    if mask is not None and mask.shape != shape:
        raise ValueError(
            f"The mask has shape {mask.shape} and the tokens {shape}; they must be equal."
        )
