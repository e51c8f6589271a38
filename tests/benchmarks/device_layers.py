"""Time of single products and updates of Llama 2 7B in bfloat16 on a GPU, for dispatch rules.

For each weight shape and M rows a sign: one bare product of M rows ("one"), of 2 M rows ("both"),
and both products of a perturbed weight, perturbed whole for each sign ("rademacher", "nibble_sum",
"gaussian"), both signs by hand from one draw of the noise ("pair"), and with a low-rank direction,
both signs in one product. Microseconds a weight: several weights are
used in turn, more than the cache holds, in one program, and calls are enqueued ahead.

An update is `W += sum_k c_k Z_k` of a stack of eight matrices, donated; GB/s counts it read and
written once, beside a copy of the same array. "stochastic" goes through `combine` and
`apply_updates`, "nearest" is the same sum rounded to nearest.
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

import zojax
from tests.benchmarks.steps import MU
from tests.benchmarks.table import finish, parse, show
from zojax import noise
from zojax.directions import combine
from zojax.virtual import LowRank, Noise, VirtualArray

# rows and columns of a weight, and how many are used in turn: more than 50 MB of cache holds
SHAPES = {(4096, 11008): 4, (4096, 4096): 8, (11008, 4096): 4}
ROWS = (256, 16, 4096, 128, 512)
SEEDS = (1, 4, 16)
DIRECTIONS = {
    "rademacher": zojax.rademacher,
    "nibble_sum": zojax.integer_normal,
    "gaussian": zojax.gaussian,
}


def _product(w, x):
    return x @ w


def one(ws, x, key):
    del key
    return [x[0] @ w for w in ws]


def both(ws, x, key):
    del key
    return [x.reshape(-1, x.shape[-1]) @ w for w in ws]


def perturbed(ws, x, key, distribution: str):
    out = []
    for i, w in enumerate(ws):
        term = Noise.of_leaf(noise.fold_in(key, i), MU, distribution, w.shape)
        for sign, rows in zip((1.0, -1.0), x, strict=True):
            moved = VirtualArray(w).plus(term.scaled(sign))
            out.append(zojax.virtualize(_product)(moved, rows))
    return out


def pair(ws, x, key):
    out = []
    for i, w in enumerate(ws):
        z = MU * noise.rademacher(noise.leaf_bits(noise.fold_in(key, i), w.shape))
        wide = w.astype(jnp.float32)
        moved = jnp.stack([(wide + z).astype(w.dtype), (wide - z).astype(w.dtype)])
        out.append(jnp.einsum("smk,skn->smn", x, moved))
    return out


def low_rank(ws, x, key):
    def signed(sign, rows, w, left, right):
        moved = VirtualArray(w).plus(LowRank.of_matrices(left, right, sign * MU))
        return zojax.virtualize(_product)(moved, rows)

    out = []
    for i, w in enumerate(ws):
        a, b = (
            noise.gaussian(noise.leaf_bits(noise.fold_in(key, 2 * i + j), (w.shape[j], 1)))
            for j in range(2)
        )
        ask = jax.vmap(functools.partial(signed, w=w, left=a, right=b))
        out.append(ask(jnp.array([1.0, -1.0]), x))
    return out


def stochastic(w, keys, coefficients, key, distribution: str):
    updates = combine(DIRECTIONS[distribution](), keys, coefficients, w)
    return zojax.apply_updates(w, updates, key=key)


def nearest(w, keys, coefficients, key, distribution: str):
    del key
    terms = [
        Noise.of_leaf(keys[k], 1.0, distribution, w.shape).scaled(coefficients[k])
        for k in range(keys.shape[0])
    ]
    return VirtualArray(w).plus(*terms).materialize()


def products(shape: tuple[int, int]) -> dict[str, Callable]:
    """What is timed of a weight; all distributions on one shape only."""
    some = DIRECTIONS if shape == (4096, 11008) else ["rademacher"]
    dense = {name: functools.partial(perturbed, distribution=name) for name in some}
    return {"one": one, "both": both, "low_rank": low_rank, "pair": pair, **dense}


def seconds(call: Callable, calls: int, repetitions: int) -> list[float]:
    """Seconds of one call, when `calls` of them are enqueued without waiting."""
    jax.block_until_ready(call())
    found = []
    for _ in range(repetitions):
        start = time.perf_counter()
        out = None
        for _ in range(calls):
            out = call()
        jax.block_until_ready(out)
        found.append((time.perf_counter() - start) / calls)
    return found


def compile_all(jobs: list[tuple], threads: int, limit: float) -> dict:
    """Compiled programs by name; those that are not begun within the limit are left out."""
    deadline, found = time.monotonic() + limit, {}

    def one_of(name, lowered):
        if time.monotonic() < deadline:
            found[name] = lowered.compile()

    with ThreadPoolExecutor(threads) as pool:
        futures = {}
        for name, fn, donate, args in jobs:
            if time.monotonic() > deadline:
                break
            lowered = jax.jit(fn, donate_argnums=donate).lower(*args)
            futures[name] = pool.submit(one_of, name, lowered)
    for name, future in futures.items():
        if error := future.exception():
            print(name, type(error).__name__, str(error)[:300], flush=True)
    return found


def main() -> None:
    def add(parser):
        parser.add_argument("--threads", type=int, default=8, help="that compile")
        parser.add_argument("--compile-seconds", type=float, default=1800)
        parser.add_argument("--seconds", type=float, default=3600)
        parser.add_argument("--out", type=Path, help="file of results, written as they come")

    args = parse(__doc__ or "", add)
    start = time.monotonic()
    scale = 64 if args.small else 1
    all_rows = (16,) if args.small else ROWS
    key = jnp.array([1, 2], jnp.uint32)

    def weights(shape, count):
        draw = jax.jit(
            lambda k: (0.02 * noise.gaussian(noise.leaf_bits(k, shape))).astype(jnp.bfloat16)
        )
        return [draw(noise.fold_in(key, i)) for i in range(count)]

    abstract = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.bfloat16)  # noqa: E731
    words = jax.ShapeDtypeStruct((2,), jnp.uint32)
    jobs: list[tuple] = []
    for rows in all_rows:
        for full, count in SHAPES.items():
            k, n = (s // scale for s in full)
            for name, fn in products(full).items():
                inputs = ([abstract(k, n)] * count, abstract(2, rows, k), words)
                jobs.append(((full, rows, name), fn, (), inputs))
    stack = (8, 4096 // scale, 11008 // scale)
    jobs.append((("update", 0, "copy"), jnp.copy, (), (abstract(*stack),)))
    for how in (stochastic, nearest):
        for name in DIRECTIONS:
            for seeds in SEEDS[:1] if args.small else SEEDS:
                inputs = (
                    abstract(*stack),
                    jax.ShapeDtypeStruct((seeds, 2), jnp.uint32),
                    jax.ShapeDtypeStruct((seeds,), jnp.float32),
                    words,
                )
                fn = functools.partial(how, distribution=name)
                jobs.append((("update", seeds, f"{name} {how.__name__}"), fn, 0, inputs))
    compiled = compile_all(jobs, args.threads, args.compile_seconds)
    print(
        f"{len(compiled)} of {len(jobs)} compiled in {time.monotonic() - start:.0f} s", flush=True
    )

    result: dict[str, Any] = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    result |= {"products": [], "updates": []}

    def record(kind, info):
        result[kind].append(info)
        print(json.dumps(info), flush=True)
        if args.out:
            args.out.write_text(json.dumps(result))

    def time_products(full, count):
        k, n = (s // scale for s in full)
        ws = weights((k, n), count)
        for rows in all_rows:
            bits = noise.leaf_bits(noise.fold_in(key, 99), (2, rows, k))
            x = noise.gaussian(bits).astype(jnp.bfloat16)
            for name in products(full):
                if time.monotonic() - start > args.seconds:
                    return
                if (program := compiled.get((full, rows, name))) is None:
                    continue
                calls = 2 if args.small else max(3, min(50, 2**15 // max(rows, 256)))
                found = seconds(lambda p=program, x=x: p(ws, x, key), calls, 5)
                us = [1e6 * s / count for s in found]
                info = {"shape": full, "rows": rows, "name": name}
                record(
                    "products", info | {"us": statistics.median(us), "spread": [min(us), max(us)]}
                )

    held = {"w": weights((8 * stack[1], stack[2]), 1)[0].reshape(stack)}
    num_bytes = 2 * held["w"].size * 2
    for (kind, seeds, name), program in compiled.items():
        if kind != "update":
            continue
        keys = noise.fold_in(key, jnp.arange(max(seeds, 1)))
        coefficients = jnp.full(max(seeds, 1), 1e-5, jnp.float32)

        def call(program=program, name=name, keys=keys, coefficients=coefficients):
            if name == "copy":
                return program(held["w"])
            held["w"] = program(held["w"], keys, coefficients, key)
            return held["w"]

        found = sorted(num_bytes / s / 1e9 for s in seconds(call, 2 if args.small else 10, 5))
        record("updates", {"name": name, "seeds": seeds, "GB/s": found[2], "spread": found[::4]})
    del held["w"]
    for full, count in SHAPES.items():
        time_products(full, count)

    show(
        [[f"{i['shape'][0]}x{i['shape'][1]} {i['rows']}", i["name"], i["us"], *i["spread"]]
         for i in result["products"]],
        ["weight, rows", "name", "us", "least", "most"],
    )  # fmt: skip
    show(
        [[i["name"], i["seeds"], i["GB/s"], *i["spread"]] for i in result["updates"]],
        ["update", "seeds", "GB/s", "least", "most"],
    )
    finish(args, result)


if __name__ == "__main__":
    main()
