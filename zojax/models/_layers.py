"""The parts of a block: linear maps, norms, attention and the MLP."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from zojax.models._activations import ACTIVATIONS
from zojax.models._rope import rotate
from zojax.models.config import ModelConfig

# Standard deviation of random kernels and embeddings, as in all supported families.
INIT_SCALE = 0.02


class Context(NamedTuple):
    """What every layer needs beside its input.

    Attributes:
        allowed: Which keys a query sees, ``bool[B or 1, 1, 1, T, T]``.
        windowed: The same for layers with a sliding window, or None.
        rotation: Cosines and sines, each ``float32[B or 1, T, 1, head_dim / 2]``, or None.
    """

    allowed: jax.Array
    windowed: jax.Array | None
    rotation: tuple[jax.Array, jax.Array] | None


def _random(rngs: nnx.Rngs, shape: tuple[int, ...], config: ModelConfig) -> nnx.Param:
    values = INIT_SCALE * jax.random.normal(rngs.params(), shape, jnp.float32)
    return nnx.Param(values.astype(config.dtype))


class Linear(nnx.Module):
    """``x @ kernel + bias`` with a kernel of shape ``[in, out]``."""

    def __init__(
        self, inputs: int, outputs: int, bias: bool, config: ModelConfig, rngs: nnx.Rngs
    ) -> None:
        self.kernel = _random(rngs, (inputs, outputs), config)
        if bias:
            self.bias = nnx.Param(jnp.zeros(outputs, config.dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...]
        y = x.astype(kernel.dtype) @ kernel
        if hasattr(self, "bias"):
            y = y + jnp.broadcast_to(self.bias[...], y.shape).astype(y.dtype)
        return y


class Embedding(nnx.Module):
    """A table of rows."""

    def __init__(self, rows: int, width: int, config: ModelConfig, rngs: nnx.Rngs) -> None:
        self.embedding = _random(rngs, (rows, width), config)

    def __call__(self, index: jax.Array) -> jax.Array:
        return jnp.take(self.embedding[...], index, axis=0)


class Norm(nnx.Module):
    """RMS or layer norm over the last axis, in float32."""

    def __init__(self, width: int, config: ModelConfig) -> None:
        self.config = config
        # The stored scale is the distance from norm_offset.
        self.scale = nnx.Param(jnp.full(width, 1.0 - config.norm_offset, config.dtype))
        if not config.rms_norm:
            self.bias = nnx.Param(jnp.zeros(width, config.dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        if not self.config.rms_norm:
            y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.config.norm_eps)
        scale = self.scale[...].astype(jnp.float32) + self.config.norm_offset
        y = y * jnp.broadcast_to(scale, y.shape)
        if not self.config.rms_norm:
            y = y + jnp.broadcast_to(self.bias[...].astype(jnp.float32), y.shape)
        return y.astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query attention."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        queries = config.num_heads * config.head_dim
        keys = config.num_kv_heads * config.head_dim
        bias = config.qkv_bias
        self.query = Linear(config.hidden_size, queries, bias, config, rngs)
        self.key = Linear(config.hidden_size, keys, bias, config, rngs)
        self.value = Linear(config.hidden_size, keys, bias, config, rngs)
        self.output = Linear(queries, config.hidden_size, config.output_bias, config, rngs)
        if config.qk_norm:
            self.query_norm = Norm(config.head_dim, config)
            self.key_norm = Norm(config.head_dim, config)

    def __call__(
        self, x: jax.Array, allowed: jax.Array, rotation: tuple[jax.Array, jax.Array] | None
    ) -> jax.Array:
        batch, length, _ = x.shape
        groups, width = self.config.num_kv_heads, self.config.head_dim
        query = self.query(x).reshape(batch, length, self.config.num_heads, width)
        key = self.key(x).reshape(batch, length, groups, width)
        value = self.value(x).reshape(batch, length, groups, width)
        if self.config.qk_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        if rotation is not None:
            query, key = rotate(query, *rotation), rotate(key, *rotation)
        query = query.reshape(batch, length, groups, -1, width)
        scores = jnp.einsum("btkgd,bskd->bkgts", query, key, preferred_element_type=jnp.float32) * (
            width**-0.5
        )
        # The least finite number, not -inf: a row without any allowed key must not become NaN.
        scores = jnp.where(allowed, scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        mixed = jnp.einsum("bkgts,bskd->btkgd", weights, value)
        return self.output(mixed.reshape(batch, length, -1))


class MLP(nnx.Module):
    """``down(act(up(x)))`` or, gated, ``down(act(gate(x)) * up(x))``."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        if config.gated_mlp:
            self.gate = Linear(hidden, inner, bias, config, rngs)
        self.up = Linear(hidden, inner, bias, config, rngs)
        self.down = Linear(inner, hidden, bias, config, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        activation = ACTIVATIONS[self.config.activation]
        if self.config.gated_mlp:
            # or both matrices are made dense before one is used, where they are quantised
            gate, x = jax.lax.optimization_barrier((activation(self.gate(x)), x))
            return self.down(gate * self.up(x))
        return self.down(activation(self.up(x)))


class Block(nnx.Module):
    """Attention and MLP, each with a residual sum and a norm before or after it."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        self.attention = Attention(config, rngs)
        self.attention_norm = Norm(config.hidden_size, config)
        self.mlp = MLP(config, rngs)
        self.mlp_norm = Norm(config.hidden_size, config)

    def __call__(
        self, x: jax.Array, allowed: jax.Array, rotation: tuple[jax.Array, jax.Array] | None
    ) -> jax.Array:
        def attention(y: jax.Array) -> jax.Array:
            return self.attention(y, allowed, rotation)

        for sublayer, norm in ((attention, self.attention_norm), (self.mlp, self.mlp_norm)):
            if self.config.norm_first:
                x = x + sublayer(norm(x)).astype(x.dtype)
            else:
                x = norm(x + sublayer(x).astype(x.dtype))
        return x
