"""A small residual conv net written the ordinary way, for the benchmarks: it knows no zojax."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Shape(NamedTuple):
    """Sizes of the model and of the batch it is asked on."""

    widths: tuple[int, ...] = (64, 128, 256)
    blocks: int = 2
    classes: int = 10
    batch: int = 32
    size: int = 32


def parameters(shape: Shape) -> dict[str, Any]:
    """Abstract parameters, kernels as HWIO; 2.8 million with the default sizes."""

    def leaf(*sizes):
        return jax.ShapeDtypeStruct(sizes, jnp.float32)

    def conv(size, inputs, outputs):
        return {
            "kernel": leaf(size, size, inputs, outputs),
            "scale": leaf(outputs),
            "bias": leaf(outputs),
        }

    def block(inputs, outputs):
        first = {"conv1": conv(3, inputs, outputs), "conv2": conv(3, outputs, outputs)}
        return first if inputs == outputs else first | {"skip": conv(1, inputs, outputs)}

    inputs = (shape.widths[0], *shape.widths[:-1])
    return {
        "stem": conv(3, 3, shape.widths[0]),
        "stages": [
            [block(i, o), *[block(o, o) for _ in range(shape.blocks - 1)]]
            for i, o in zip(inputs, shape.widths, strict=True)
        ],
        "head": {"kernel": leaf(shape.widths[-1], shape.classes), "bias": leaf(shape.classes)},
    }


def batch(shape: Shape) -> dict[str, jax.ShapeDtypeStruct]:
    """Abstract images and labels."""
    return {
        "image": jax.ShapeDtypeStruct((shape.batch, shape.size, shape.size, 3), jnp.float32),
        "label": jax.ShapeDtypeStruct((shape.batch,), jnp.int32),
    }


def _conv(x, p, stride=1):
    """Convolution, normalised over each image's positions and channels."""
    x = lax.conv_general_dilated(
        x, p["kernel"], (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = x - x.mean((1, 2, 3), keepdims=True)
    x = x * lax.rsqrt(jnp.square(x).mean((1, 2, 3), keepdims=True) + 1e-5)
    return x * (1 + p["scale"]) + p["bias"]


def _block(x, p, stride):
    y = _conv(jax.nn.relu(_conv(x, p["conv1"], stride)), p["conv2"])
    return jax.nn.relu(y + (_conv(x, p["skip"], stride) if "skip" in p else x))


def loss(params: dict[str, Any], batch: dict[str, jax.Array]) -> jax.Array:
    """Mean cross-entropy; image float32[B, H, W, 3], label int32[B]."""
    x = jax.nn.relu(_conv(batch["image"], params["stem"]))
    for i, stage in enumerate(params["stages"]):
        for j, block in enumerate(stage):
            x = _block(x, block, stride=2 if i > 0 and j == 0 else 1)
    logits = x.mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]
    log_probabilities = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(log_probabilities, batch["label"][:, None], -1).mean()
