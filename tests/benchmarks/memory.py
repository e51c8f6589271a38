"""Temporaries of a training step over temporaries of the forward pass it contains.

A step here is a two-sided estimate and its SGD update, compiled for this machine with the
parameters donated; the figures are `compile().memory_analysis()`, so nothing is run. Beside the
directions stands `params + mu * z` with `jax.random.normal`, the same step in plain JAX.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import zojax
from tests.benchmarks import gpt
from tests.benchmarks.table import finish, parse, show

DIRECTIONS = {
    "low_rank": lambda: zojax.low_rank(1),
    "rademacher": zojax.rademacher,
    "gaussian": zojax.gaussian,
}
_MU, _RATE = 1e-3, 1e-4


def step(loss: Callable, direction: zojax.Direction) -> Callable:
    """One step of MeZO through the public API."""
    grad = zojax.value_and_grad(loss, zojax.mezo(mu=_MU, direction=direction))

    def run(params, key, tokens):
        value, grads = grad(key, params, tokens)
        return jax.tree.map(lambda p, g: p - _RATE * g, params, grads), value

    return run


def plain_step(loss: Callable) -> Callable:
    """The same step as a JAX user writes it today."""

    def run(params, key, tokens):
        leaves, tree = jax.tree.flatten(params)
        keys = jax.random.split(key, len(leaves))
        z = jax.tree.unflatten(
            tree, [jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
        )
        plus = loss(jax.tree.map(lambda p, z: p + _MU * z, params, z), tokens)
        minus = loss(jax.tree.map(lambda p, z: p - _MU * z, params, z), tokens)
        coefficient = (plus - minus) / (2 * _MU)
        params = jax.tree.map(lambda p, z: p - _RATE * coefficient * z, params, z)
        return params, (plus + minus) / 2

    return run


def temporaries(fn: Callable, *args: Any, donate: tuple[int, ...] = ()) -> int:
    """Bytes of temporaries of a compiled function."""
    compiled = jax.jit(fn, donate_argnums=donate).lower(*args).compile()
    return int(compiled.memory_analysis().temp_size_in_bytes)


def ratios(shape: gpt.Shape, scanned: bool, names: tuple[str, ...]) -> dict[str, float]:
    """Temporaries of each step over those of the forward."""
    params = gpt.parameters(shape, scanned)
    tokens = jax.ShapeDtypeStruct((shape.batch, shape.length), jnp.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    loss = functools.partial(gpt.loss, heads=shape.heads)
    forward = temporaries(loss, params, tokens)
    steps = {name: step(loss, DIRECTIONS[name]()) for name in names}
    steps["plain_jax"] = plain_step(loss)
    return {
        name: temporaries(fn, params, key, tokens, donate=(0,)) / forward
        for name, fn in steps.items()
    }


def main() -> None:
    args = parse(__doc__ or "")
    scanned = gpt.Shape()
    unrolled = gpt.Shape(layers=2) if args.small else gpt.Shape()
    result = {
        "gpt_scan": ratios(scanned, scanned=True, names=tuple(DIRECTIONS)),
        # dense directions of an unrolled model take minutes to compile on CPU
        "gpt_unrolled": ratios(unrolled, scanned=False, names=("low_rank",)),
    }
    header = ["temporaries, step / forward", *result["gpt_scan"]]
    show([[name, *(row.get(h, "-") for h in header[1:])] for name, row in result.items()], header)
    finish(args, result)


if __name__ == "__main__":
    main()
