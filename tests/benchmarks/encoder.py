"""A BERT-like classifier written the ordinary way, for the benchmarks: nothing here knows zojax."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Shape(NamedTuple):
    """Sizes of the model and of the batch it is asked on."""

    layers: int = 6
    width: int = 384
    heads: int = 12
    vocabulary: int = 8192
    classes: int = 7
    batch: int = 8
    length: int = 128


def parameters(shape: Shape, scanned: bool) -> dict[str, Any]:
    """Abstract parameters; layers are stacked if scanned, a list of layers otherwise."""
    d, h = shape.width, shape.heads
    e = d // h
    stack = (shape.layers,) if scanned else ()

    def leaf(*sizes):
        return jax.ShapeDtypeStruct(sizes, jnp.float32)

    def linear(inputs, outputs):
        return {"kernel": leaf(*stack, *inputs, *outputs), "bias": leaf(*stack, *outputs)}

    def norm(*stack):
        return {"scale": leaf(*stack, d), "bias": leaf(*stack, d)}

    layer = {
        "query": linear((d,), (h, e)),
        "key": linear((d,), (h, e)),
        "value": linear((d,), (h, e)),
        "out": linear((h, e), (d,)),
        "norm1": norm(*stack),
        "up": linear((d,), (4 * d,)),
        "down": linear((4 * d,), (d,)),
        "norm2": norm(*stack),
    }
    return {
        "word": leaf(shape.vocabulary, d),
        "position": leaf(shape.length, d),
        "norm": norm(),
        "layers": layer if scanned else [layer] * shape.layers,
        "pool": {"kernel": leaf(d, d), "bias": leaf(d)},
        "head": {"kernel": leaf(d, shape.classes), "bias": leaf(shape.classes)},
    }


def batch(shape: Shape) -> dict[str, jax.ShapeDtypeStruct]:
    """Abstract tokens, their mask and labels."""
    return {
        "tokens": jax.ShapeDtypeStruct((shape.batch, shape.length), jnp.int32),
        "mask": jax.ShapeDtypeStruct((shape.batch, shape.length), jnp.bool_),
        "label": jax.ShapeDtypeStruct((shape.batch,), jnp.int32),
    }


def _norm(x, p):
    x = x - x.mean(-1, keepdims=True)
    x = x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-12)
    return x * p["scale"] + p["bias"]


def _block(x, p, mask):
    q, k, v = (
        jnp.einsum("btd,dhe->bthe", x, p[name]["kernel"]) + p[name]["bias"]
        for name in ("query", "key", "value")
    )
    scores = jnp.einsum("bqhe,bkhe->bhqk", q, k) * q.shape[-1] ** -0.5
    scores = jnp.where(mask[:, None, None, :], scores, -1e30)
    mixed = jnp.einsum("bhqk,bkhe->bqhe", jax.nn.softmax(scores), v)
    x = _norm(x + jnp.einsum("bqhe,hed->bqd", mixed, p["out"]["kernel"]) + p["out"]["bias"],
              p["norm1"])  # fmt: skip
    hidden = jax.nn.gelu(x @ p["up"]["kernel"] + p["up"]["bias"], approximate=False)
    return _norm(x + hidden @ p["down"]["kernel"] + p["down"]["bias"], p["norm2"])


def loss(params: dict[str, Any], batch: dict[str, jax.Array]) -> jax.Array:
    """Mean cross-entropy of the pooled first token; tokens int32[B, T], mask bool[B, T]."""
    x = _norm(params["word"][batch["tokens"]] + params["position"], params["norm"])
    layers = params["layers"]
    if isinstance(layers, list):
        for layer in layers:
            x = _block(x, layer, batch["mask"])
    else:
        x, _ = lax.scan(lambda x, p: (_block(x, p, batch["mask"]), None), x, layers)
    pooled = jnp.tanh(x[:, 0] @ params["pool"]["kernel"] + params["pool"]["bias"])
    logits = pooled @ params["head"]["kernel"] + params["head"]["bias"]
    log_probabilities = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(log_probabilities, batch["label"][:, None], -1).mean()
