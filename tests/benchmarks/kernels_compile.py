"""Kernels compiled for TPUs that are not there: vector memory, and instructions of a tile.

Vector memory is what the compiler says that the kernel takes of a core. "Bundles" are the very long
instructions of the longest loop, a tile each time round: at best one a cycle, so a bound from below
on the time, not a measurement. They are of a listing that libtpu writes where `LIBTPU_INIT_ARGS`
asks for it, and 0 where it writes none.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from pallas_kernels.perturbed_matmul import perturbed_matmul
from pallas_kernels.quantized_matmul import quantized_matmul
from tests.benchmarks.table import show
from zojax.planning import missing, target_device

TARGETS = ("v5e", "v6e")


def perturbed(
    directions: int, queries: int, rows: int, k: int, n: int, dtype: str, distribution: str,
    transposed: bool = False,
) -> tuple[Callable, list[jax.ShapeDtypeStruct]]:  # fmt: skip
    """A perturbed product and its abstract arguments."""

    def run(x, w, words, coefficient, row, col):
        return perturbed_matmul(
            x, w, words, coefficient, row=row, col=col, distribution=distribution,
            transposed=transposed, implementation="tpu",
        )  # fmt: skip

    return run, [
        jax.ShapeDtypeStruct((directions, queries, rows, k), dtype),
        jax.ShapeDtypeStruct((n, k) if transposed else (k, n), dtype),
        jax.ShapeDtypeStruct((directions, 2), jnp.uint32),
        jax.ShapeDtypeStruct((directions, queries), jnp.float32),
        jax.ShapeDtypeStruct((), jnp.uint32),
        jax.ShapeDtypeStruct((), jnp.uint32),
    ]


def quantized(
    queries: int, rows: int, k: int, n: int, group: int, kind: str, shared: bool = True
) -> tuple[Callable, list[jax.ShapeDtypeStruct]]:
    """A product with a quantised weight, of levels that are no integers unless `kind` says so."""
    groups = k // group
    is_int8 = kind == "int8"
    codes = jax.ShapeDtypeStruct((k if is_int8 else k // 2, n), jnp.int8 if is_int8 else jnp.uint8)
    extra = {
        "zeros": jax.ShapeDtypeStruct((groups, n), jnp.int8),
        "table": jax.ShapeDtypeStruct((16, n), jnp.float32),
    }
    levels = {"nf4": tuple(i**3 / 512 for i in range(-8, 8)), "int4": tuple(range(-8, 8))}

    def run(x, codes, scales, *more):
        named = {kind: more[0]} if more else {"levels": levels.get(kind)}
        return quantized_matmul(x, codes, scales, **named, implementation="tpu")

    return run, [
        jax.ShapeDtypeStruct((queries, rows, k), jnp.bfloat16),
        codes,
        jax.ShapeDtypeStruct((groups, n) if shared else (queries, groups, n), jnp.bfloat16),
        *([extra[kind]] if kind in extra else []),
    ]


PROBLEMS = {
    "rademacher, 1 x 2 x 16": perturbed(1, 2, 16, 4096, 11008, "bfloat16", "rademacher"),
    "rademacher, 1 x 2 x 128": perturbed(1, 2, 128, 4096, 11008, "bfloat16", "rademacher"),
    "rademacher, 1 x 2 x 256": perturbed(1, 2, 256, 4096, 11008, "bfloat16", "rademacher"),
    "nibble_sum, 1 x 2 x 128": perturbed(1, 2, 128, 4096, 11008, "bfloat16", "nibble_sum"),
    "gaussian, 1 x 2 x 128": perturbed(1, 2, 128, 4096, 11008, "bfloat16", "gaussian"),
    "transposed, 1 x 2 x 128": perturbed(1, 2, 128, 4096, 11008, "bfloat16", "rademacher", True),
    "8 directions, 8 x 2 x 128": perturbed(8, 2, 128, 4096, 11008, "bfloat16", "rademacher"),
    "float32, 1 x 2 x 128": perturbed(1, 2, 128, 4096, 4096, "float32", "rademacher"),
    "12 queries, 1 x 12 x 4096": perturbed(1, 12, 4096, 4096, 4096, "bfloat16", "rademacher"),
    "odd, 3 x 2 x 17, 900 x 633": perturbed(3, 2, 17, 900, 633, "bfloat16", "gaussian"),
    "odd, float32, transposed": perturbed(3, 2, 17, 900, 633, "float32", "nibble_sum", True),
    "one row, one column": perturbed(1, 1, 1, 4096, 1, "bfloat16", "rademacher"),
    "nf4, 1 x 16": quantized(1, 16, 4096, 11008, 64, "nf4"),
    "int4, 1 x 16": quantized(1, 16, 4096, 11008, 64, "int4"),
    "int4, 2 x 128": quantized(2, 128, 4096, 11008, 64, "int4", shared=False),
    "int4 with zeros, 1 x 16": quantized(1, 16, 4096, 4096, 128, "zeros"),
    "codebook, 1 x 16": quantized(1, 16, 4096, 4096, 4096, "table"),
    "int8, 1 x 256": quantized(1, 256, 11008, 4096, 11008, "int8"),
}


def compile_one(target: str, name: str) -> dict[str, Any]:
    """Vector memory in bytes and bundles of a problem's kernel, compiled for a target."""
    fn, args = PROBLEMS[name]
    sharding = SingleDeviceSharding(target_device(target))
    args = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding) for a in args]
    folder = _dump_folder()
    before = set(folder.iterdir()) if folder else set()
    text = jax.jit(fn).lower(*args).compile().as_text()
    calls = [line for line in text.splitlines() if 'custom_call_target="tpu_custom_call"' in line]
    used = [re.findall(r'"used_scoped_memory_configs":\[(.*?)\]', line) for line in calls]
    sizes = [int(size) for found in used for size in re.findall(r'"size":"(\d+)"', str(found))]
    listings = [p for p in folder.iterdir() if p not in before] if folder else []
    bundles = max((_loop(p) for p in listings if p.name.endswith("-final_bundles.txt")), default=0)
    for path in listings:
        path.unlink()
    return {
        "target": target, "problem": name, "kernels": len(calls), "vmem": sum(sizes),
        "bundles": bundles,
    }  # fmt: skip


def _dump_folder() -> Path | None:
    found = re.search(r"--xla_jf_dump_to=(\S+)", os.environ.get("LIBTPU_INIT_ARGS", ""))
    return Path(found[1]) if found else None


def _loop(path: Path) -> int:
    """Bundles from the first loop's header to its exit test."""
    lines = path.read_text().splitlines()
    at = r"\s*0x([0-9a-f]+)\s"
    begins = [int(m[1], 16) for line in lines if (m := re.match(at + r"+LB", line))]
    ends = [
        int(m[1], 16) for line in lines if "loop exit test" in line and (m := re.match(at, line))
    ]
    return ends[-1] - begins[0] if begins and ends else 0


def compile_all(names: list[str]) -> list[dict[str, Any]]:
    """All problems for all targets, in a process that knows where to write the listings."""
    if reason := missing("v5e"):
        raise SystemExit(reason)
    with tempfile.TemporaryDirectory() as folder:
        arguments = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        command = [sys.executable, "-m", "tests.benchmarks.kernels_compile", *names]
        environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "LIBTPU_INIT_ARGS": arguments}
        done = subprocess.run(
            command, env=os.environ | environment, capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise SystemExit(f"compilation failed: {done.stderr[-2000:]}")
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    found = [json.loads(line) for line in lines]
    show(
        [[f["problem"], f["target"], f["vmem"] / 2**20, f["bundles"]] for f in found],
        ["kernel, P x S x M or S x M", "for", "VMEM, MiB", "bundles a tile"],
    )
    return found


if __name__ == "__main__":
    for one in sys.argv[1:]:
        for kind in TARGETS:
            print(json.dumps(compile_one(kind, one)), flush=True)
