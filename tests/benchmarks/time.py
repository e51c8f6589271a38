"""Time of a training step over the time of two forward passes.

A step is a two-sided estimate and its SGD update, on the model of `gpt`, of 12 layers unless
`--layers` says another number, scanned unless `--unrolled` is given, compiled once, with whatever
moves donated and threaded through. All run in one process, interleaved: a repetition times two
forward passes and then one step of each kind, in an order that rotates; a ratio is of two times of
one repetition. "sparse" moves a thousandth of every matrix, the others all parameters; "plain_jax"
is `params + mu * z` with `jax.random.normal`.

`--torch` adds the same model in PyTorch, with the loop of MeZO: parameters are moved in place by
+mu, -2 mu and +mu, and noise is made anew from a seed each time. "torch" is over PyTorch's own two
forward passes, "torch_over_jax" over those of JAX.
"""

import functools
import importlib.util
import os
import statistics
from collections.abc import Callable
from time import perf_counter

import jax
import jax.numpy as jnp
import numpy as np

from tests.benchmarks import gpt, torch_gpt
from tests.benchmarks.steps import (
    DIRECTIONS,
    MU,
    RATE,
    initialize,
    plain_step,
    sensitive,
    sparse_step,
    step,
)
from tests.benchmarks.table import finish, parse, show

FORWARD = "two forwards"
TORCH_FORWARD = "torch, two forwards"


def stepper(fn: Callable, moving, *frozen) -> Callable[[int], None]:
    """One step a call, on parameters that it keeps; `fn` is `(moving, key, *frozen)`."""
    # a copy of its own, as donated buffers are gone after the first step
    state = jax.tree.map(jnp.array, moving)
    key = jax.random.key(0)
    compiled = jax.jit(
        lambda moving, i, *frozen: fn(moving, jax.random.fold_in(key, i), *frozen), donate_argnums=0
    )

    def run(i: int) -> None:
        nonlocal state
        state, loss = jax.block_until_ready(compiled(state, jnp.uint32(i), *frozen))
        if not np.isfinite(loss):
            raise FloatingPointError(f"the loss of step {i} is {loss}")

    return run


def jax_runs(shape: gpt.Shape, params, tokens: jax.Array) -> dict[str, Callable[[int], None]]:
    """What to time, by name, the forward passes first."""
    loss = functools.partial(gpt.loss, heads=shape.heads)
    forward = jax.jit(loss)

    def two_forwards(i: int) -> None:
        for _ in range(2):
            forward(params, tokens).block_until_ready()

    theta, frozen, merge = sensitive(params)
    dense = {name: step(loss, direction()) for name, direction in DIRECTIONS.items()}
    return {
        FORWARD: two_forwards,
        "low_rank": stepper(dense.pop("low_rank"), params, tokens),
        "sparse": stepper(sparse_step(loss, merge), theta, frozen, tokens),
        **{name: stepper(fn, params, tokens) for name, fn in dense.items()},
        "plain_jax": stepper(plain_step(loss), params, tokens),
    }


def torch_runs(shape: gpt.Shape, params, tokens: jax.Array) -> dict[str, Callable[[int], None]]:
    """The same for PyTorch, after a check that it is the same model."""
    # waiting threads must not spin on the cores that the next run needs
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    torch.set_num_threads(2)
    copied, ids = torch_gpt.parameters(params), torch.from_numpy(np.array(tokens, np.int64))
    ask = functools.partial(torch_gpt.loss, copied, ids, shape.heads)

    def two_forwards(i: int) -> None:
        with torch.no_grad():
            for _ in range(2):
                ask()

    with torch.no_grad():
        found, expected = float(ask()), float(gpt.loss(params, tokens, shape.heads))
    if abs(found - expected) > 1e-4:
        raise AssertionError(f"the loss is {found} in torch and {expected} in jax")
    return {
        TORCH_FORWARD: two_forwards,
        "torch": lambda i: torch_gpt.mezo_step(copied, ask, i, MU, RATE) and None,
    }


def interleave(runs: dict[str, Callable[[int], None]], repetitions: int) -> dict[str, list[float]]:
    """Seconds of each run; the first of `runs` opens every repetition, the others rotate."""
    first, *others = runs
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(-1, repetitions):
        turn = i % len(others)
        for name in (first, *others[turn:], *others[:turn]):
            start = perf_counter()
            runs[name](i + 1)
            if i >= 0:  # the repetition before the first compiles
                seconds[name].append(perf_counter() - start)
    return seconds


def spread(numerators: list[float], denominators: list[float]) -> dict[str, float]:
    """Ratios of times taken in the same repetition."""
    ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def main() -> None:
    def add(parser):
        parser.add_argument("--torch", action="store_true", help="add PyTorch's loop")
        parser.add_argument("--repetitions", type=int, help="default 25, 5 with --small")
        parser.add_argument("--unrolled", action="store_true", help="layers that are not scanned")
        parser.add_argument("--width", type=int, default=512)
        parser.add_argument("--layers", type=int, default=12)

    args = parse(__doc__ or "", add)
    if args.torch and args.unrolled:
        raise SystemExit("--torch copies scanned layers: leave --unrolled out")
    small = gpt.Shape(layers=2, width=256, vocabulary=2048)
    shape = small if args.small else gpt.Shape(args.layers, args.width)
    params = initialize(0, gpt.parameters(shape, scanned=not args.unrolled))
    tokens = jax.random.randint(jax.random.key(1), (shape.batch, shape.length), 0, shape.vocabulary)
    runs = jax_runs(shape, params, tokens)
    if args.torch and importlib.util.find_spec("torch"):
        runs |= torch_runs(shape, params, tokens)
    elif args.torch:
        print("torch is not installed: its loop is left out")
    seconds = interleave(runs, args.repetitions or (5 if args.small else 25))
    result = {
        name: spread(times, seconds[FORWARD])
        for name, times in seconds.items()
        if name not in (FORWARD, TORCH_FORWARD, "torch")
    }
    if "torch" in seconds:
        result["torch"] = spread(seconds["torch"], seconds[TORCH_FORWARD])
        result["torch_over_jax"] = spread(seconds["torch"], seconds[FORWARD])
    median = {name: statistics.median(times) for name, times in seconds.items()}
    show([[name, 1e3 * value] for name, value in median.items()], ["median", "ms"])
    show(
        [[name, *found.values()] for name, found in result.items()],
        ["step / two forwards", "median", "min", "max"],
    )
    finish(args, result | {"seconds": median})


if __name__ == "__main__":
    main()
