"""A GPT-like model written the ordinary way, for the benchmarks: nothing here knows zojax."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Shape(NamedTuple):
    """Sizes of the model and of the batch it is asked on."""

    layers: int = 12
    width: int = 512
    heads: int = 8
    vocabulary: int = 8192
    batch: int = 1
    length: int = 256


def parameters(shape: Shape, scanned: bool) -> dict[str, Any]:
    """Abstract parameters; layers are stacked if scanned, a list of layers otherwise."""
    d, v = shape.width, shape.vocabulary

    def leaf(*sizes):
        sizes = (shape.layers, *sizes) if scanned else sizes
        return jax.ShapeDtypeStruct(sizes, jnp.float32)

    layer = {
        "norm1": leaf(d),
        "qkv": leaf(d, 3 * d),
        "out": leaf(d, d),
        "norm2": leaf(d),
        "up": leaf(d, 4 * d),
        "up_bias": leaf(4 * d),
        "down": leaf(4 * d, d),
    }
    return {
        "embedding": jax.ShapeDtypeStruct((v, d), jnp.float32),
        "position": jax.ShapeDtypeStruct((shape.length, d), jnp.float32),
        "layers": layer if scanned else [layer] * shape.layers,
        "norm": jax.ShapeDtypeStruct((d,), jnp.float32),
    }


def batch(shape: Shape) -> jax.ShapeDtypeStruct:
    """Abstract tokens."""
    return jax.ShapeDtypeStruct((shape.batch, shape.length), jnp.int32)


def _norm(x, scale):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5) * (1 + scale)


def _block(x, p, heads):
    b, t, d = x.shape
    q, k, v = jnp.split(_norm(x, p["norm1"]) @ p["qkv"], 3, axis=-1)
    q, k, v = (a.reshape(b, t, heads, d // heads) for a in (q, k, v))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * (d // heads) ** -0.5
    scores = jnp.where(jnp.tril(jnp.ones((t, t), bool)), scores, -1e30)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v).reshape(b, t, d)
    x = x + mixed @ p["out"]
    return x + jax.nn.gelu(_norm(x, p["norm2"]) @ p["up"] + p["up_bias"]) @ p["down"]


def loss(params: dict[str, Any], tokens: jax.Array, heads: int) -> jax.Array:
    """Mean next-token cross-entropy; tokens int32[B, T]."""
    x = params["embedding"][tokens] + params["position"]
    layers = params["layers"]
    if isinstance(layers, list):
        for layer in layers:
            x = _block(x, layer, heads)
    else:
        x, _ = jax.lax.scan(lambda x, p: (_block(x, p, heads), None), x, layers)
    logits = _norm(x, params["norm"]) @ params["embedding"].T
    log_probabilities = jax.nn.log_softmax(logits[:, :-1])
    return -jnp.take_along_axis(log_probabilities, tokens[:, 1:, None], -1).mean()
