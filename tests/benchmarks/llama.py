"""A Llama-like decoder written the ordinary way, for the benchmarks: nothing here knows zojax."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Shape(NamedTuple):
    """Sizes of the model, those of Llama 2 7B, and of the batch it is asked on."""

    layers: int = 32
    width: int = 4096
    hidden: int = 11008
    heads: int = 32
    vocabulary: int = 32000
    batch: int = 1
    length: int = 256


def parameters(shape: Shape, dtype=jnp.bfloat16) -> dict[str, Any]:
    """Abstract parameters with stacked layers."""
    d, f = shape.width, shape.hidden

    def leaf(*sizes):
        return jax.ShapeDtypeStruct(sizes, dtype)

    def stack(*sizes):
        return leaf(shape.layers, *sizes)

    return {
        "embedding": leaf(shape.vocabulary, d),
        "layers": {
            "norm1": stack(d),
            "query": stack(d, d),
            "key": stack(d, d),
            "value": stack(d, d),
            "out": stack(d, d),
            "norm2": stack(d),
            "gate": stack(d, f),
            "up": stack(d, f),
            "down": stack(f, d),
        },
        "norm": leaf(d),
        "head": leaf(d, shape.vocabulary),
    }


def batch(shape: Shape) -> jax.ShapeDtypeStruct:
    """Abstract tokens."""
    return jax.ShapeDtypeStruct((shape.batch, shape.length), jnp.int32)


def _norm(x, scale):
    wide = x.astype(jnp.float32)
    wide = wide * lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + 1e-5)
    return wide.astype(x.dtype) * scale


def _rotate(x):
    """Rotary position embedding of x (B, T, H, E)."""
    half = x.shape[-1] // 2
    frequency = 10000.0 ** (-jnp.arange(half) / half)
    angle = jnp.arange(x.shape[1])[:, None] * frequency
    cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    return turned.astype(x.dtype)


def _block(x, p, heads):
    b, t, d = x.shape
    y = _norm(x, p["norm1"])
    q, k, v = ((y @ p[name]).reshape(b, t, heads, d // heads) for name in ("query", "key", "value"))
    scores = jnp.einsum("bqhe,bkhe->bhqk", _rotate(q), _rotate(k)).astype(jnp.float32)
    scores = scores * (d // heads) ** -0.5
    scores = jnp.where(jnp.tril(jnp.ones((t, t), bool)), scores, -1e30)
    weights = jax.nn.softmax(scores).astype(x.dtype)
    x = x + jnp.einsum("bhqk,bkhe->bqhe", weights, v).reshape(b, t, d) @ p["out"]
    y = _norm(x, p["norm2"])
    return x + (jax.nn.silu(y @ p["gate"]) * (y @ p["up"])) @ p["down"]


def loss(params: dict[str, Any], tokens: jax.Array, heads: int) -> jax.Array:
    """Mean next-token cross-entropy; tokens int32[B, T]."""
    x = params["embedding"][tokens]
    x, _ = lax.scan(lambda x, p: (_block(x, p, heads), None), x, params["layers"])
    logits = (_norm(x, params["norm"]) @ params["head"]).astype(jnp.float32)
    log_probabilities = jax.nn.log_softmax(logits[:, :-1])
    return -jnp.take_along_axis(log_probabilities, tokens[:, 1:, None], -1).mean()
