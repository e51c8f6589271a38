"""Kernels against plain JAX on the device that is there, over the shapes of Llama 2 7B.

Milliseconds of the products of one weight in bfloat16 with M rows a sign, several weights in turn,
more than a cache holds, in one program: "two" bare products, one for each sign; "one", a bare
product of 2 M rows, so that the weight is read once; "xla", perturbed whole for each sign; "fused",
the kernel, with each distribution; "low_rank"; "in_place", two bare products and three sweeps of
the weight, as MeZO's loop takes them. Then updates as GB/s, the array counted read and written
once, and products with 4-bit weights against bare ones of M rows.

`--tune` times the block sizes of the kernels and stores the fastest, with plain JAX's time, where
the library looks for them (`pallas_kernels/_autotune.py`): the rules follow that. `--compile tpu`
times nothing and compiles the kernels for TPUs that are not there (`kernels_compile`). On a CPU,
`--small` alone makes sense: the TPU kernel in Pallas' interpreter, which shows that this runs.
"""

import functools
import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import _autotune
from pallas_kernels.perturbed_matmul import perturbed_matmul
from pallas_kernels.perturbed_matmul.config import gpu_candidates, tpu_candidates
from pallas_kernels.perturbed_update import perturbed_update
from pallas_kernels.quantized_matmul import quantized_matmul
from pallas_kernels.quantized_matmul.config import gpu_candidates as quantized_gpu_candidates
from pallas_kernels.quantized_matmul.config import kind_of
from tests.benchmarks import kernels_compile
from tests.benchmarks.device_layers import SHAPES, low_rank, seconds
from tests.benchmarks.table import finish, parse, show
from zojax import noise

ROWS = (16, 128, 256, 512, 4096)
SEEDS = (1, 4, 16)
DISTRIBUTIONS = ("rademacher", "nibble_sum", "gaussian")
MU = 2.0**-10
LEVELS = {"int4": tuple(range(-8, 8)), "nf4": tuple(i**3 / 512 for i in range(-8, 8))}


def two(ws, x, key):
    del key
    return [[x[0] @ w, x[1] @ w] for w in ws]


def one(ws, x, key):
    del key
    return [x.reshape(-1, x.shape[-1]) @ w for w in ws]


def perturbed(ws, x, key, distribution: str, **how):
    """Both signs along one direction for each weight."""
    signs = MU * jnp.array([[1.0, -1.0]])
    # traced once for all weights
    product = jax.jit(functools.partial(perturbed_matmul, distribution=distribution, **how))
    return [product(x[None], w, noise.fold_in(key, i)[None], signs) for i, w in enumerate(ws)]


def sweep(ws, key, scale):
    """MeZO's step along one direction, rounded to nearest."""
    return [
        perturbed_update(w, noise.fold_in(key, i)[None], scale[None], distribution="rademacher")
        for i, w in enumerate(ws)
    ]


def update(w, keys, coefficients, key, distribution: str, rounded: bool):
    return perturbed_update(
        w, keys, coefficients, distribution=distribution, rounding_key=key if rounded else None
    )


def quantized(weights, x, levels, **how):
    product = jax.jit(functools.partial(quantized_matmul, levels=levels, **how))
    return [product(x[:1], *w) for w in weights]


def kernel_of_device() -> dict[str, Any]:
    """How the kernel of this device is asked for; in the interpreter on a CPU."""
    platform = _autotune.platform_of(_autotune.device_kind())
    if platform == "cpu":
        return {"implementation": "tpu", "interpret": True}
    return {"implementation": platform}


def compile_all(jobs: dict[Any, tuple[Callable, tuple, tuple]], threads: int) -> dict[Any, Any]:
    """Compiled programs by name, from (function, donated arguments, abstract arguments)."""
    found, futures = {}, {}
    with ThreadPoolExecutor(threads) as pool:
        for name, (fn, donated, args) in jobs.items():
            try:
                lowered = jax.jit(fn, donate_argnums=donated).lower(*args)
                futures[name] = pool.submit(lowered.compile)
            except Exception as error:
                print(name, type(error).__name__, str(error)[:300], flush=True)
        for name, future in futures.items():
            if error := future.exception():
                print(name, type(error).__name__, str(error)[:300], flush=True)
            else:
                found[name] = future.result()
    return found


def product_programs(shape, count: int, rows: int) -> dict[str, tuple]:
    """What is timed for one shape: name to (function, donated arguments, abstract arguments)."""
    ws = [jax.ShapeDtypeStruct(shape, jnp.bfloat16)] * count
    x = jax.ShapeDtypeStruct((2, rows, shape[0]), jnp.bfloat16)
    key = jax.ShapeDtypeStruct((2,), jnp.uint32)
    kernel = kernel_of_device()
    fns: dict[str, Callable] = {"two": two, "one": one, "low_rank": low_rank}
    fns["xla"] = functools.partial(perturbed, distribution="rademacher", implementation="xla")
    for name in DISTRIBUTIONS:
        fns[f"fused {name}"] = functools.partial(perturbed, distribution=name, **kernel)
    programs = {name: (fn, (), (ws, x, key)) for name, fn in fns.items()}
    scale = jax.ShapeDtypeStruct((), jnp.float32)
    packed = [
        (
            jax.ShapeDtypeStruct((shape[0] // 2, shape[1]), jnp.uint8),
            jax.ShapeDtypeStruct((shape[0] // 64, shape[1]), jnp.bfloat16),
        )
    ] * count
    for name, levels in LEVELS.items():
        for how in ({"implementation": "xla"}, kernel):
            fn = functools.partial(quantized, levels=levels, **how)
            label = "xla" if how["implementation"] == "xla" else "kernel"
            programs[f"{name} {label}"] = (fn, (), (packed, x))
    programs["bare"] = (lambda ws, x: [x[0] @ w for w in ws], (), (ws, x))
    return programs | {"sweep": (sweep, (0,), (ws, key, scale))}


def draw(shape: tuple[int, ...], seed: int, dtype=jnp.bfloat16) -> jax.Array:
    """Numbers of variance 0.02^2, or random bytes."""

    @jax.jit
    def make(key):
        bits = noise.leaf_bits(key, shape)
        return (bits >> 24).astype(dtype) if dtype == jnp.uint8 else 0.02 * noise.gaussian(bits)

    return make(noise.fold_in(jnp.array([1, 2], jnp.uint32), seed)).astype(dtype)


def time_products(shape, count: int, all_rows, args, record: Callable) -> None:
    held = {"ws": [draw(shape, i) for i in range(count)]}
    half, groups = (shape[0] // 2, shape[1]), (shape[0] // 64, shape[1])
    packed = [
        (draw(half, i, jnp.uint8), jnp.full(groups, 0.005, jnp.bfloat16)) for i in range(count)
    ]
    key, scale = jnp.array([1, 2], jnp.uint32), jnp.float32(MU)
    for rows in all_rows:
        compiled = compile_all(product_programs(shape, count, rows), args.threads)
        x = draw((2, rows, shape[0]), 99)

        def in_place(compiled=compiled, x=x):
            for signs in (1.0, -2.0):
                held["ws"] = compiled["sweep"](held["ws"], key, signs * scale)
                out = compiled["bare"](held["ws"], x)
            held["ws"] = compiled["sweep"](held["ws"], key, scale)
            return out

        calls: dict[str, Callable] = {}
        for name, run in compiled.items():
            if name.startswith(tuple(LEVELS)):
                calls[name] = functools.partial(run, packed, x)
            elif name == "bare":
                calls[name] = lambda run=run, x=x: run(held["ws"], x)
            elif name != "sweep":
                calls[name] = lambda run=run, x=x: run(held["ws"], x, key)
        calls |= {"in_place": in_place} if {"sweep", "bare"} <= set(compiled) else {}
        enqueued = 1 if args.small else max(3, min(30, 2**14 // max(rows, 256)))
        for name, call in calls.items():
            found = [1e3 * s / count for s in seconds(call, enqueued, args.repetitions)]
            ms = statistics.median(found)
            spread = [min(found), max(found)]
            record({"shape": shape, "rows": rows, "name": name, "ms": ms, "spread": spread})


def time_updates(shape: tuple[int, int], args, record: Callable) -> None:
    held, num_bytes = {"w": draw(shape, 0)}, 4 * shape[0] * shape[1]
    w, key = jax.ShapeDtypeStruct(shape, jnp.bfloat16), jax.ShapeDtypeStruct((2,), jnp.uint32)
    jobs: dict[Any, tuple] = {("copy", 0): (jnp.copy, (), (w,))}
    for seeds in SEEDS[:1] if args.small else SEEDS:
        keys = jax.ShapeDtypeStruct((seeds, 2), jnp.uint32)
        inputs = (w, keys, jax.ShapeDtypeStruct((seeds,), jnp.float32), key)
        for name in DISTRIBUTIONS:
            for rounded in (False, True):
                fn = functools.partial(update, distribution=name, rounded=rounded)
                how = f"{name}, {'stochastic' if rounded else 'nearest'}"
                jobs[how, seeds] = (fn, (0,), inputs)
    for (name, seeds), run in compile_all(jobs, args.threads).items():
        keys = noise.fold_in(jnp.array([1, 2], jnp.uint32), jnp.arange(max(1, seeds)))
        coefficients = jnp.full(max(1, seeds), 2.0**-16, jnp.float32)

        def call(run=run, seeds=seeds, keys=keys, coefficients=coefficients):
            if not seeds:
                return run(held["w"])
            held["w"] = run(held["w"], keys, coefficients, keys[0])
            return held["w"]

        found = seconds(call, 1 if args.small else 10, args.repetitions)
        rates = sorted(num_bytes / s / 1e9 for s in found)
        info = {"name": name, "seeds": seeds, "GB/s": statistics.median(rates)}
        record(info | {"spread": [rates[0], rates[-1]]})


def tune(shapes: dict, all_rows, args) -> list[Path]:
    """Times block sizes of this device's kernels and plain JAX, and stores the fastest."""
    found = {"perturbed_matmul": [], "quantized_matmul": []}
    for (k, n), count in shapes.items():
        ws = [draw((k, n), i) for i in range(count)]
        packed = [
            (draw((k // 2, n), i, jnp.uint8), jnp.full((k // 64, n), 0.005, jnp.bfloat16))
            for i in range(count)
        ]
        for rows in all_rows:
            x, key = draw((2, rows, k), 99), jnp.array([1, 2], jnp.uint32)
            problems = [
                *(("perturbed_matmul", name, (ws, x, key)) for name in DISTRIBUTIONS),
                *(("quantized_matmul", name, (packed, x)) for name in LEVELS),
            ]
            for operation, kind, inputs in problems:
                tries = candidates(operation, kind, inputs, bool(args.small))
                if operation == "quantized_matmul":
                    kind = kind_of(packed[0][0], LEVELS[kind])
                ms, config = _autotune.fastest(tries, inputs, args.repetitions, args.threads)
                ms = {who: took / count for who, took in ms.items()}
                entry = _autotune.Entry(rows, k, n, "bfloat16", kind, ms, config)
                found[operation].append(entry)
                print(operation, json.dumps(entry._asdict()), flush=True)
        device = _autotune.device_kind()
        paths = [_autotune.store(name, device, entries) for name, entries in found.items()]
    return paths


def candidates(operation: str, kind: str, inputs: tuple, is_small: bool) -> dict[str, list]:
    """Plain JAX, and this device's kernel with each of its block sizes."""
    how = kernel_of_device()
    name, (_, rows, k) = how["implementation"], inputs[1].shape
    n = inputs[0][0][0].shape[-1] if operation == "quantized_matmul" else inputs[0][0].shape[1]
    if operation == "perturbed_matmul":
        of = functools.partial(perturbed, distribution=kind)
        blocks: list = (
            gpu_candidates(1, 2, rows, k, n)
            if name == "gpu"
            else tpu_candidates(1, 2, rows, k, n, 2, 2)
        )
    else:
        of = functools.partial(quantized, levels=LEVELS[kind])
        blocks = [None] if name == "tpu" else quantized_gpu_candidates(1, rows, k, n, k // 64, 4)
    # a tile is perturbed or decoded again for each tile of rows, which no search makes up for
    blocks = blocks[:1] if is_small or rows > 512 else blocks

    def lower(**how):
        return lambda: jax.jit(functools.partial(of, **how)).lower(*inputs)

    return {
        "xla": [(None, lower(implementation="xla"))],
        name: [(b, lower(**how, config=b)) for b in blocks],
    }


def main() -> None:
    def add(parser):
        parser.add_argument("--compile", choices=["tpu"], help="compile for devices not there")
        parser.add_argument("--tune", action="store_true", help="store the fastest block sizes")
        parser.add_argument("--rows", type=int, nargs="+", help=f"by default {ROWS}")
        parser.add_argument("--repetitions", type=int, default=5)
        parser.add_argument("--threads", type=int, default=8, help="that compile")
        parser.add_argument("--out", type=Path, help="file of results, written as they come")

    args = parse(__doc__ or "", add)
    if args.compile:
        names = list(kernels_compile.PROBLEMS)
        return finish(args, kernels_compile.compile_all(names[:2] if args.small else names))
    shapes = {(128, 256): 1} if args.small else SHAPES
    all_rows = args.rows or ((16,) if args.small else ROWS)
    if args.tune:
        print("stored in", *tune(shapes, all_rows, args), flush=True)
        return None
    device = jax.devices()[0].device_kind
    result: dict[str, Any] = {"device": device, "jax": jax.__version__}
    result |= {"date": time.strftime("%Y-%m-%d"), "products": [], "updates": []}

    def record(kind, info):
        result[kind].append(info)
        if args.out:
            args.out.write_text(json.dumps(result))

    time_updates((128, 256) if args.small else (8 * 4096, 11008), args,
                 functools.partial(record, "updates"))  # fmt: skip
    for shape, count in shapes.items():
        time_products(shape, count, all_rows, args, functools.partial(record, "products"))
    show(
        [[f"{p['shape'][0]}x{p['shape'][1]} {p['rows']}", p["name"], p["ms"], *p["spread"]]
         for p in result["products"]],
        ["weight, rows", "name", "ms", "least", "most"],
    )  # fmt: skip
    show(
        [[u["name"], u["seeds"], u["GB/s"], *u["spread"]] for u in result["updates"]],
        ["update", "seeds", "GB/s", "least", "most"],
    )
    finish(args, result)


if __name__ == "__main__":
    main()
