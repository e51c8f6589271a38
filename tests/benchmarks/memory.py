"""Temporaries of a training step over temporaries of the forward pass it contains.

A step here is a two-sided estimate and its SGD update, compiled for this machine with whatever
moves donated; the figures are `compile().memory_analysis()`, so nothing is run. "sparse" moves a
thousandth of every matrix, the others all parameters. Beside the directions stands
`params + mu * z` with `jax.random.normal`, the same step in plain JAX.
"""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax

from tests.benchmarks import conv, encoder, gpt
from tests.benchmarks.steps import (
    DIRECTIONS,
    abstract,
    initialize,
    plain_step,
    sensitive,
    sparse_step,
    step,
)
from tests.benchmarks.table import finish, parse, show

# machine code is made last: buffers are the same at any level, and compilation takes half the time
_OPTIONS = {"xla_backend_optimization_level": 0}


class Case(NamedTuple):
    """A loss, its abstract parameters and its abstract batch."""

    loss: Callable
    params: Any
    batch: Any


def cases(small: bool) -> dict[str, Case]:
    """The models of the table."""
    scan = gpt.Shape(layers=2, width=256, vocabulary=2048) if small else gpt.Shape()
    unrolled = scan if small else gpt.Shape()
    image = conv.Shape((32,), blocks=1, size=16) if small else conv.Shape()
    text = encoder.Shape(2, 128, 4, 1024, length=64) if small else encoder.Shape()
    gpt_loss = functools.partial(gpt.loss, heads=scan.heads)
    return {
        "gpt_scan": Case(gpt_loss, gpt.parameters(scan, scanned=True), gpt.batch(scan)),
        "gpt_unrolled": Case(
            gpt_loss, gpt.parameters(unrolled, scanned=False), gpt.batch(unrolled)
        ),
        "conv": Case(conv.loss, conv.parameters(image), conv.batch(image)),
        "encoder": Case(encoder.loss, encoder.parameters(text, scanned=True), encoder.batch(text)),
    }


def temporaries(fn: Callable, *args: Any, donate: tuple[int, ...] = ()) -> int:
    """Bytes of temporaries of a compiled function."""
    compiled = jax.jit(fn, donate_argnums=donate).lower(*args).compile(compiler_options=_OPTIONS)
    return int(compiled.memory_analysis().temp_size_in_bytes)


def measure(case: Case) -> tuple[dict[str, float], dict[str, int]]:
    """(temporaries of each step over those of the forward, bytes of forward and parameters)."""
    loss, params, batch = case
    key = jax.eval_shape(lambda: jax.random.key(0))
    theta, frozen, merge = sensitive(initialize(0, params))
    dense = (params, key, batch)
    moving = {
        "low_rank": (step(loss, DIRECTIONS["low_rank"]()), *dense),
        "sparse": (sparse_step(loss, merge), abstract(theta), key, abstract(frozen), batch),
        "rademacher": (step(loss, DIRECTIONS["rademacher"]()), *dense),
        "gaussian": (step(loss, DIRECTIONS["gaussian"]()), *dense),
        "plain_jax": (plain_step(loss), *dense),
    }
    forward = temporaries(loss, params, batch)
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda fn: temporaries(*fn, donate=(0,)), moving.values())
    ratios = {name: value / forward for name, value in zip(moving, found, strict=True)}
    num_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
    return ratios, {"forward": forward, "parameters": num_bytes}


def main() -> None:
    args = parse(__doc__ or "")
    measured = {name: measure(case) for name, case in cases(args.small).items()}
    result = {name: ratios for name, (ratios, _) in measured.items()}
    header = ["temporaries, step / forward", *result["gpt_scan"], "forward MB", "parameters MB"]
    rows = [
        [name, *ratios.values(), num_bytes["forward"] / 1e6, num_bytes["parameters"] / 1e6]
        for name, (ratios, num_bytes) in measured.items()
    ]
    show(rows, header)
    finish(args, result | {"bytes": {name: b for name, (_, b) in measured.items()}})


if __name__ == "__main__":
    main()
