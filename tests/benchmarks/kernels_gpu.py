"""What the kernels for Hopper GPUs take of an H200, compiled without the GPU.

Of each problem: registers and spilled bytes of a thread, shared memory of a block, whether the
assembler had to serialise the tensor cores, PTX instructions for one number of w in the inner loop
(its noise or its decoding, one value for each query, and a share of all else), how often that is
made for one direction, and the milliseconds in which an H200 issues all that for 6.6 G numbers, the
matrices of Llama 2 7B: a bound from below, as if nothing else took time. Nothing is run.

Needs the CUDA plugin of the very version of jax, and `ptxas` of CUDA: on the PATH, or in
/usr/local/cuda/bin.
"""

import functools
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, SingleDeviceSharding

from pallas_kernels._tile import Distribution
from pallas_kernels.perturbed_matmul import perturbed_matmul
from pallas_kernels.perturbed_matmul.config import GPU_DEPTH, gpu_blocks, gpu_problem
from pallas_kernels.quantized_matmul import quantized_matmul
from pallas_kernels.quantized_matmul.config import GPU_DEPTH as QUANTIZED_DEPTH
from pallas_kernels.quantized_matmul.config import gpu_blocks as quantized_gpu_blocks
from tests.benchmarks.table import finish, parse, show
from zojax import planning

_NUMBERS = 6.6e9
# multiprocessors, schedulers of each, lanes, cycles a second
_LANES = 132 * 4 * 32 * 1.755e9


class Problem(NamedTuple):
    """Sizes of one `perturbed_matmul`, named as there."""

    distribution: Distribution = "rademacher"
    p: int = 1
    s: int = 2
    m: int = 128
    k: int = 4096
    n: int = 4096
    transposed: bool = False

    def __str__(self) -> str:
        t = " transposed" if self.transposed else ""
        return f"{self.distribution} [{self.p},{self.s},{self.m},{self.k}] x {self.n}{t}"


PROBLEMS = [
    Problem(),
    Problem("nibble_sum"),
    *([] if gpu_problem((64, 64), jnp.bfloat16, "gaussian") else [Problem("gaussian")]),
    Problem(transposed=True),
    Problem(m=16),
    Problem(m=256),
    Problem(s=1, m=256),
    Problem(m=4096),
    Problem(s=8, m=16),
    Problem(p=16, s=1),
    Problem(k=11008),
    Problem(n=11008),
    Problem(n=64),
]


class Quantized(NamedTuple):
    """Sizes of one `quantized_matmul`.

    Attributes:
        kind: "int8", "int4", "nf4", "zeros" or "table".
        s: queries, with scales of their own if there are several.
        m: rows of a query.
        k: rows of the weight.
        n: columns of the weight.
        group: rows that share a scale.
        scales: dtype of the scales.
    """

    kind: str
    s: int = 1
    m: int = 128
    k: int = 4096
    n: int = 4096
    group: int = 128
    scales: str = "bfloat16"

    def __str__(self) -> str:
        sizes = f"[{self.s},{self.m},{self.k}] x {self.n}"
        return f"{self.kind} {sizes} groups of {self.group} {self.scales}"


QUANTIZED = [
    Quantized("int4"),
    Quantized("zeros"),
    Quantized("int8"),
    Quantized("nf4"),
    Quantized("table"),
    Quantized("int4", m=16),
    Quantized("int4", m=256),
    Quantized("int4", s=2),
    Quantized("int4", s=4, m=16),
    Quantized("nf4", s=2),
    Quantized("int4", group=64),
    Quantized("int4", group=32),
    Quantized("nf4", group=64, scales="float32"),
    Quantized("int4", scales="float32"),
    Quantized("int8", group=4096, scales="float32"),
]


class Compiled(NamedTuple):
    """What a kernel takes.

    Attributes:
        registers: of a thread at the start; the computing ones then take more.
        spilled: bytes of registers of a thread that went to memory.
        shared: bytes of a block; None before jax 0.12, which does not tell.
        serialised: whether the assembler made products of the tensor cores wait for each other.
        instructions: for a number of w, in PTX.
        made: times that a number is perturbed or decoded, once for each tile of rows and queries.
        milliseconds: to issue all of them for 6.6 G numbers and one direction.
    """

    registers: int
    spilled: int
    shared: int | None
    serialised: bool
    instructions: float
    made: int
    milliseconds: float


def missing() -> str:
    """Why nothing can be compiled here; empty if it can."""
    if reason := planning.missing("h200"):
        return reason
    if shutil.which("ptxas") is None and not Path("/usr/local/cuda/bin/ptxas").exists():
        return "ptxas of CUDA is neither on the PATH nor in /usr/local/cuda/bin"
    return ""


def compiled(problem: Problem | Quantized) -> Compiled:
    """Compiles one problem for an H200 and reads what the assembler said."""
    fn, shapes, made, a_step = _made(problem)
    sharding = SingleDeviceSharding(planning.target_device("h200"))
    args = [jax.ShapeDtypeStruct(*s, sharding=sharding) for s in shapes]
    described = AbstractDevice(device_kind="NVIDIA H200", num_cores=None, platform="gpu")
    mesh = AbstractMesh((1,), ("x",), axis_types=(AxisType.Auto,), abstract_device=described)
    with tempfile.TemporaryDirectory() as folder:
        dumps = {f"MOSAIC_GPU_DUMP_{name}": "1" for name in ("PTX", "PTXAS", "RESOURCES")}
        os.environ.update({"MOSAIC_GPU_DUMP_TO": folder} | dumps)
        try:
            with jax.sharding.use_abstract_mesh(mesh):
                jax.jit(fn).trace(*args).lower().compile()
        finally:
            for name in ("MOSAIC_GPU_DUMP_TO", *dumps):
                del os.environ[name]
        return _read(Path(folder), made, a_step)


def _made(problem: Problem | Quantized) -> tuple[Callable, list, int, int]:
    """Function, shapes and dtypes of arguments, times a number is made, and numbers a step."""
    if isinstance(problem, Quantized):
        return _quantized(problem)
    distribution, p, s, m, k, n, transposed = problem
    shapes = [
        ((p, s, m, k), jnp.bfloat16),
        ((n, k) if transposed else (k, n), jnp.bfloat16),
        ((p, 2), jnp.uint32),
        ((p, s), jnp.float32),
    ]
    fn = functools.partial(
        perturbed_matmul, distribution=distribution, transposed=transposed, implementation="gpu"
    )
    blocks = gpu_blocks(p, s, m, k, n)
    return fn, shapes, s // blocks.queries * -(-m // blocks.m), 64 * GPU_DEPTH // 128


def _quantized(problem: Quantized) -> tuple[Callable, list, int, int]:
    kind, s, m, k, n, group, scales = problem
    bits, groups, dtype = 8 if kind == "int8" else 4, k // group, jnp.dtype(scales)
    shapes = [
        ((s, m, k), jnp.bfloat16),
        ((k, n), jnp.int8) if bits == 8 else ((k // 2, n), jnp.uint8),
        ((s, groups, n) if s > 1 else (groups, n), dtype),
    ]
    static = {"int4": tuple(range(-8, 8)), "nf4": tuple(math.sinh(i / 8) for i in range(-8, 8))}
    more = {"zeros": ((groups, n), jnp.int8), "table": ((16, n), jnp.float32)}
    levels = static.get(kind)

    def fn(x, codes, scales, *rest):
        given = {kind: rest[0]} if rest else {"levels": levels} if levels else {}
        return quantized_matmul(x, codes, scales, **given, implementation="gpu")

    shapes += [more[kind]] if kind in more else []
    blocks = quantized_gpu_blocks(s, m, k, n, groups, bits, dtype.itemsize)
    return fn, shapes, s // blocks.queries * -(-m // blocks.m), 64 * QUANTIZED_DEPTH // 128


def _read(folder: Path, made: int, a_step: int) -> Compiled:
    (ptx,), (said,) = ([p.read_text() for p in folder.glob(f"*.{e}")] for e in ("ptx", "ptxas"))
    instructions = _loop(ptx) / a_step
    resources = "".join(p.read_text() for p in folder.glob("*.resources.txt"))
    return Compiled(
        int(_found(r"Used (\d+) registers", said)),
        int(_found(r"(\d+) bytes spill stores", said)),
        int(_found(r"smem_scratch_bytes=(\d+)", resources)) if resources else None,
        "serialized" in said,
        instructions,
        made,
        1e3 * _NUMBERS * made * instructions / _LANES,
    )


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"the assembler's report has no {pattern!r}: {text}")
    return match[1]


def _loop(ptx: str) -> int:
    """Instructions of the loop that holds the products."""
    lines = [line.strip() for line in ptx.splitlines()]
    products = [i for i, line in enumerate(lines) if "wgmma.mma_async" in line]
    labels = {line[:-1]: i for i, line in enumerate(lines) if re.fullmatch(r"\$L__BB\w+:", line)}
    for i in range(products[-1], len(lines)):
        target = re.search(r"bra(?:\.uni)?\s+(\$L__BB\w+);", lines[i])
        if target and labels[target[1]] < products[0]:
            body = lines[labels[target[1]] + 1 : i + 1]
            return sum(line[:1] not in ("", ".", "/", "$", "{", "}") for line in body)
    raise ValueError("the kernel has no loop with products")


def main() -> None:
    args = parse(__doc__ or "")
    if reason := missing():
        raise SystemExit(reason)
    problems = [*PROBLEMS[:2], *QUANTIZED[:2]] if args.small else [*PROBLEMS, *QUANTIZED]
    found: dict[str, Any] = {str(problem): compiled(problem) for problem in problems}
    show([[name, *c] for name, c in found.items()], ["problem", *Compiled._fields])
    finish(args, {name: c._asdict() for name, c in found.items()})


if __name__ == "__main__":
    main()
