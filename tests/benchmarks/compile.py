"""Compile time of an unrolled model's estimate over that of its forward pass.

The model is the GPT-like one with 32 layers that are not scanned, width 256; an estimate is
two-sided. CPU seconds of compilation, tracing apart; each program is compiled afresh, in turn.
"""

import functools
import statistics
import time

import jax
import jax.numpy as jnp

import zojax
from tests.benchmarks import gpt
from tests.benchmarks.steps import DIRECTIONS
from tests.benchmarks.table import finish, parse, show


def seconds(fn, *args) -> tuple[float, float]:
    """(CPU seconds of tracing, CPU seconds of compilation)."""
    jax.clear_caches()
    start = time.process_time()
    lowered = jax.jit(fn).lower(*args)
    traced = time.process_time()
    lowered.compile()
    return traced - start, time.process_time() - traced


def main() -> None:
    def add(parser):
        parser.add_argument("--repetitions", type=int, default=3)
        parser.add_argument("--layers", type=int, default=32)

    args = parse(__doc__ or "", add)
    layers, repetitions = (4, 1) if args.small else (args.layers, args.repetitions)
    shape = gpt.Shape(layers=layers, width=256, vocabulary=1024)
    params, tokens = gpt.parameters(shape, scanned=False), gpt.batch(shape)
    loss = functools.partial(gpt.loss, heads=shape.heads)
    key = jax.eval_shape(lambda: jax.random.key(0))
    programs = {"forward": (loss, params, tokens)}
    for name, direction in DIRECTIONS.items():
        ask = zojax.estimate(loss, zojax.mezo(direction=direction()))
        programs[name] = (
            lambda k, p, t, ask=ask: jnp.sum(ask(k, p, t).coefficients),
            key,
            params,
            tokens,
        )
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for _ in range(repetitions):
        for name, program in programs.items():
            found[name].append(seconds(*program))
    rows, result = [], {}
    for name, times in found.items():
        trace, compiled = (statistics.median(t) for t in zip(*times, strict=True))
        forward = statistics.median(t for _, t in found["forward"])
        result[name] = {"trace": trace, "compile": compiled, "ratio": compiled / forward}
        rows.append([name, trace, compiled, compiled / forward])
    show(rows, [f"{layers} layers", "trace s", "compile s", "compile / forward's"])
    finish(args, result)


if __name__ == "__main__":
    main()
