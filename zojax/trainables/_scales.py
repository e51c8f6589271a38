"""Trainables of quantised weights: what is continuous in them."""

from dataclasses import replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.core import Tracer

from zojax.quantization import Quantized
from zojax.trainables._split import Split
from zojax.trainables._tree import Flat, flatten
from zojax.virtual import is_virtual

_LEAST = 1e-7


def scales(params: Any, positive: Literal["clamp", "exp"] = "clamp") -> Split:
    """The scales of quantised weights move, their codes do not (QZO).

    With `zojax.qzo`, SGD and `theta = jax.tree.map(lambda s: jnp.maximum(s, 1e-7), theta)` after
    each step this is the paper's rule `s <- max(s - lr clip(c) z, 1e-7)`. Without the last a scale
    that a step took below 1e-7 counts as 1e-7 in the loss until it comes back. The paper does not
    clamp while it perturbs; here a scale below `mu |z|` is clamped then too.

    Args:
        params: tree with quantised leaves, as `zojax.quantize` gives.
        positive: how scales stay positive: "clamp", `max(s, 1e-7)`; or "exp", where their
            logarithms are trained, and mu and the step size are relative.

    Returns:
        A `Split`: trainable float32 scales (or logarithms) of each quantised leaf, None elsewhere;
        frozen `params`. "exp" changes scales by a rounding, and those below 1e-7 to that.

    Raises:
        ValueError: if no leaf is quantised, or a scale is negative or NaN.

    Reference: Shang et al., Fine-tuning quantized neural networks with zeroth-order optimization
    (QZO), 2025.
    """
    if positive not in ("clamp", "exp"):
        raise ValueError(f'positive must be "clamp" or "exp", found {positive!r}')
    flat = flatten(params)
    bases, trainable = _quantised(flat), []
    for name, base in zip(flat.names, bases, strict=True):
        if base is None:
            trainable.append(None)
            continue
        # a copy, as a training loop may donate it while the frozen part holds the scales
        wide = jnp.array(base.scales, jnp.float32)
        if not isinstance(wide, Tracer) and not bool(jnp.all(wide >= 0)):
            raise ValueError(f"leaf {name} has a scale that is negative or NaN; expected positive")
        trainable.append(jnp.log(jnp.maximum(wide, _LEAST)) if positive == "exp" else wide)

    def merge(trainable, frozen):
        def put(base: Quantized, values):
            values = jnp.exp(values) if positive == "exp" else jnp.maximum(values, _LEAST)
            return base.with_scales(values)

        return _merged(trainable, frozen, put)

    return Split(jax.tree.unflatten(flat.structure, trainable), params, merge)


def codebook(params: Any) -> Split:
    """The levels of codebooks move, the codes and scales do not.

    Args:
        params: tree with leaves quantised in the format "codebook".

    Returns:
        A `Split`: trainable float32 tables, 16 levels a channel, in units of the channel's scale;
        None for other leaves; frozen `params`.

    Raises:
        ValueError: if no leaf has a codebook.

    Reference: Shang et al., Fine-tuning quantized neural networks with zeroth-order optimization
    (QZO), 2025; Liu et al., VPTQ, 2024.
    """
    flat = flatten(params)
    tables = [
        None if base is None or base.table is None else jnp.array(base.table, jnp.float32)
        for base in _quantised(flat)
    ]
    if all(table is None for table in tables):
        raise ValueError('no leaf has a codebook; quantise with zojax.quantize(tree, "codebook")')

    def merge(trainable, frozen):
        return _merged(trainable, frozen, lambda base, values: base.with_table(values))

    return Split(jax.tree.unflatten(flat.structure, tables), params, merge)


def _quantised(flat: Flat) -> list[Quantized | None]:
    found = [
        leaf.base if is_virtual(leaf) and isinstance(leaf.base, Quantized) else None
        for leaf in flat.leaves
    ]
    if all(base is None for base in found):
        raise ValueError(
            f"no leaf is quantised; the leaves are {', '.join(flat.names[:8])}: quantise them with "
            "zojax.quantize first"
        )
    return found


def _merged(trainable: Any, frozen: Any, put) -> Any:
    flat = flatten(frozen)
    leaves = [
        leaf if values is None else replace(leaf, base=put(leaf.base, values))
        for leaf, values in zip(flat.leaves, flat.like(trainable, "trainables"), strict=True)
    ]
    return jax.tree.unflatten(flat.structure, leaves)
