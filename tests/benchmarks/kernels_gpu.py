"""What the kernels for Hopper GPUs take of an H200, compiled without the GPU.

Of each problem: registers and spilled bytes of a thread, shared memory of a block, whether the
assembler had to serialise the tensor cores, PTX instructions for one number of w in the inner loop
(its noise, one perturbed value for each query, and a share of all else), how often its noise is
made for one direction, and the milliseconds in which an H200 issues all that for 6.6 G numbers, the
matrices of Llama 2 7B: a bound from below, as if nothing else took time. Nothing is run.

Needs the CUDA plugin of the very version of jax, and `ptxas` of CUDA: on the PATH, or in
/usr/local/cuda/bin.
"""

import functools
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, SingleDeviceSharding

from pallas_kernels.perturbed_matmul import perturbed_matmul
from pallas_kernels.perturbed_matmul.config import gpu_blocks
from tests.benchmarks.table import finish, parse, show
from zojax import planning

_NUMBERS = 6.6e9
# multiprocessors, schedulers of each, lanes, cycles a second
_LANES = 132 * 4 * 32 * 1.755e9
# numbers of w that a thread perturbs in a step
_A_STEP = 64 * 64 // 128


class Problem(NamedTuple):
    """Sizes of one `perturbed_matmul`, named as there."""

    distribution: str = "rademacher"
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
    *([Problem("gaussian")] if jax.__version_info__ >= (0, 12) else []),
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


class Compiled(NamedTuple):
    """What a kernel takes.

    Attributes:
        registers: of a thread at the start; the computing ones then take more.
        spilled: bytes of registers of a thread that went to memory.
        shared: bytes of a block; None before jax 0.12, which does not tell.
        serialised: whether the assembler made products of the tensor cores wait for each other.
        instructions: for a number of w, in PTX.
        made: times that the noise of a number is made, once for each tile of rows and queries.
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


def compiled(problem: Problem) -> Compiled:
    """Compiles one problem for an H200 and reads what the assembler said."""
    device = planning.target_device("h200")
    sharding = SingleDeviceSharding(device)
    distribution, p, s, m, k, n, transposed = problem
    args = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for shape, dtype in (
            ((p, s, m, k), jnp.bfloat16),
            ((n, k) if transposed else (k, n), jnp.bfloat16),
            ((p, 2), jnp.uint32),
            ((p, s), jnp.float32),
        )
    ]
    fn = functools.partial(
        perturbed_matmul, distribution=distribution, transposed=transposed, implementation="gpu"
    )
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
        blocks = gpu_blocks(p, s, m, k, n)
        return _read(Path(folder), s // blocks.queries * -(-m // blocks.m))


def _read(folder: Path, made: int) -> Compiled:
    (ptx,), (said,) = ([p.read_text() for p in folder.glob(f"*.{e}")] for e in ("ptx", "ptxas"))
    instructions = _loop(ptx) / _A_STEP
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
    problems = PROBLEMS[:2] if args.small else PROBLEMS
    found: dict[str, Any] = {str(problem): compiled(problem) for problem in problems}
    show([[name, *c] for name, c in found.items()], ["problem", *Compiled._fields])
    finish(args, {name: c._asdict() for name, c in found.items()})


if __name__ == "__main__":
    main()
