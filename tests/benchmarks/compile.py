"""Compile time of an unrolled model's estimate over that of its forward pass.

The model is the GPT-like one with 32 layers that are not scanned, width 256 unless `--width` says
another; "sparse" moves a thousandth of every matrix, the others all parameters. An estimate is
two-sided, and with `--steps` an SGD update follows it. CPU seconds of compilation, tracing apart;
each program is compiled afresh, in turn. The last columns are the operations of the optimised
program and the megabytes of its temporaries.
With `--instructions` instructions are counted instead, by valgrind, which must be installed: a
busy machine changes them little. That takes twenty minutes on two cores.
"""

import functools
import itertools
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp

import zojax
from tests.benchmarks import gpt
from tests.benchmarks.steps import (
    DIRECTIONS,
    abstract,
    initialize,
    sensitive,
    sparse_step,
    step,
)
from tests.benchmarks.table import finish, parse, show

NAMES = ("forward", "low_rank", "sparse", "rademacher", "gaussian")
STAGES = ("trace", "compile")


def seconds(fn, *args) -> tuple[float, ...]:
    """CPU seconds of tracing, of compilation; operations; megabytes of temporaries."""
    jax.clear_caches()
    start = time.process_time()
    lowered = fn.lower(*args)
    traced = time.process_time()
    compiled = lowered.compile()
    done = time.process_time()
    memory = compiled.memory_analysis().temp_size_in_bytes / 1e6
    return traced - start, done - traced, compiled.as_text().count(" = "), memory


def instructions(layers: int, width: int, steps: bool, name: str, stage: str) -> float:
    """Billions of instructions of one stage, counted by valgrind in a process of its own."""
    command = ["valgrind", "--tool=callgrind", "--instr-atstart=no",
               "--callgrind-out-file=/dev/null", sys.executable, "-m", __spec__.name,
               "--layers", str(layers), "--width", str(width), "--only", name,
               "--stage", stage, *["--steps"] * steps]  # fmt: skip
    done = subprocess.run(
        command, check=True, capture_output=True, text=True,
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )  # fmt: skip
    found = re.search(r"Collected : (\d+)", done.stderr)
    assert found is not None, done.stderr
    return int(found[1]) / 1e9


def program(name: str, layers: int, width: int, steps: bool) -> tuple:
    """(jitted function, arguments) of the forward pass, or of an estimate or a step."""
    shape = gpt.Shape(layers=layers, width=width, vocabulary=1024)
    params, tokens = gpt.parameters(shape, scanned=False), gpt.batch(shape)
    loss: Callable = functools.partial(gpt.loss, heads=shape.heads)
    if name == "forward":
        return jax.jit(loss), params, tokens
    key, moving, batch = jax.eval_shape(lambda: jax.random.key(0)), params, (tokens,)
    if name == "sparse":
        theta, frozen, merge = sensitive(initialize(0, params))
        moving, batch = abstract(theta), (abstract(frozen), tokens)
        if steps:
            return jax.jit(sparse_step(loss, merge), donate_argnums=0), moving, key, *batch
        whole, direction = loss, zojax.gaussian()

        def loss(theta, frozen, tokens):
            return zojax.virtualize(whole)(merge(theta, frozen), tokens)

    else:
        direction = DIRECTIONS[name]()
        if steps:
            return jax.jit(step(loss, direction), donate_argnums=0), moving, key, *batch
    ask = zojax.estimate(loss, zojax.mezo(direction=direction))
    return jax.jit(lambda *args: jnp.sum(ask(*args).coefficients)), key, moving, *batch


def only(layers: int, width: int, steps: bool, name: str, stage: str) -> None:
    """One stage of one program, for valgrind to count; ends the process."""

    def count() -> None:
        command = ["callgrind_control", "--instr=on", str(os.getpid())]
        subprocess.run(command, check=True, capture_output=True)

    fn, *args = program(name, layers, width, steps)
    if stage == "trace":
        count()
    lowered = fn.lower(*args)
    if stage == "compile":
        count()
        lowered.compile()
    os._exit(0)  # what an interpreter does at its end does not count


def main() -> None:
    def add(parser):
        parser.add_argument("--repetitions", type=int, default=3)
        parser.add_argument("--layers", type=int, default=32)
        parser.add_argument("--width", type=int, default=256)
        parser.add_argument("--steps", action="store_true", help="with the update")
        parser.add_argument("--instructions", action="store_true")
        parser.add_argument("--only", choices=NAMES)
        parser.add_argument("--stage", choices=STAGES)

    args = parse(__doc__ or "", add)
    if args.only:
        return only(args.layers, args.width, args.steps, args.only, args.stage)
    layers, repetitions = (4, 1) if args.small else (args.layers, args.repetitions)
    found: dict[str, list[tuple[float, ...]]] = {}
    if args.instructions:
        unit = "G"
        cases = list(itertools.product(NAMES, STAGES))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            of = functools.partial(instructions, layers, args.width, args.steps)
            counts = list(pool.map(lambda case: of(*case), cases))
        pairs = zip(counts[::2], counts[1::2], strict=True)
        found = {name: [pair] for name, pair in zip(NAMES, pairs, strict=True)}
    else:
        unit = "s"
        made = {name: program(name, layers, args.width, args.steps) for name in NAMES}
        for _ in range(repetitions):
            for name, (fn, *inputs) in made.items():
                found.setdefault(name, []).append(seconds(fn, *inputs))
    rows, result = [], {}
    medians = {
        name: [statistics.median(t) for t in zip(*times, strict=True)]
        for name, times in found.items()
    }
    forward = medians["forward"]
    for name, (trace, compiled, *sizes) in medians.items():
        ratio, both = compiled / forward[1], (trace + compiled) / sum(forward[:2])
        result[name] = {"trace": trace, "compile": compiled, "ratio": ratio, "both": both}
        result[name] |= dict(zip(("operations", "temporaries"), sizes, strict=False))
        rows.append([name, trace, compiled, ratio, both, *sizes])
    head = [f"trace {unit}", f"compile {unit}", "compile / forward's", "both / forward's"]
    head += [] if args.instructions else ["operations", "temporaries MB"]
    show(rows, [f"{layers} layers of {args.width}", *head])
    finish(args, result)


if __name__ == "__main__":
    main()
