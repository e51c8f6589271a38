"""All that the kernels for Hopper GPUs use of Mosaic GPU, whose names change between releases.

Kernels are written for the interface below: blocks of warpgroups of 128 threads, of which the last
only fetches; operands in registers in the layout that the tensor cores read. What differs between
jax 0.10 and 0.12 is dealt with here and nowhere else.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm

# rows of a warpgroup's product, and bytes of a row of shared memory that are mixed, at most
ROWS = 64
_SWIZZLE = 128
_THREADS = 128
# registers of a thread that only fetches; the others share what it leaves
_FETCHING_REGISTERS = 40
_BLOCK, _WARPGROUP = "block", "warpgroup"

_INTERPRETER = getattr(plgpu, "InterpretGPUParams", None)
HAS_INTERPRETER = _INTERPRETER is not None
# needed in jax 0.10, deprecated in 0.11, gone in 0.12
_index = inspect.signature(plgpu.load).parameters.get("idx")
_INDEX = ((),) if _index is not None and _index.default is inspect.Parameter.empty else ()


def block_index() -> jax.Array:
    """int32 index of this block."""
    return lax.axis_index(_BLOCK)


def warpgroup_index() -> jax.Array:
    """int32 index of this warpgroup in its block."""
    return lax.axis_index(_WARPGROUP)


def run(
    body: Callable[..., None],
    *args: jax.Array,
    name: str,
    out: jax.ShapeDtypeStruct,
    blocks: int,
    warpgroups: int,
    scratch: Sequence[Any],
    interpret: Any,
) -> jax.Array:
    """One kernel: `body(*args, out, *scratch)` of references, in each block and warpgroup.

    Args:
        body: of references in global memory, then those of `scratch` in shared memory.
        *args: arrays.
        name: of the kernel, for profiles.
        out: shape and dtype of the result.
        blocks: how many.
        warpgroups: that compute, in a block; one more fetches.
        scratch: as from `shared`.
        interpret: True for jax's interpreter, which simulates all but layouts and registers.

    Raises:
        NotImplementedError: if this jax has no interpreter for GPU kernels.
        RuntimeError: if the interpreter would have too few threads, and wait for ever.
    """
    if interpret and _INTERPRETER is None:
        raise NotImplementedError(
            f"jax {jax.__version__} has no interpreter for GPU kernels, jax 0.12 has; pass "
            "interpret=False, or implementation='xla' for the same numbers"
        )
    if interpret and jax.local_device_count("cpu") < warpgroups + 2:
        raise RuntimeError(
            f"the interpreter runs {warpgroups + 1} warpgroups on threads of as many CPU devices, "
            f"found {jax.local_device_count('cpu')} devices; set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={warpgroups + 2} or more"
        )
    kernel = plgpu.kernel(
        body,
        out_type=out,
        scratch_types=list(scratch),
        grid=(blocks,),
        grid_names=(_BLOCK,),
        num_threads=warpgroups + 1,
        thread_name=_WARPGROUP,
        kernel_name=name,
        interpret=_INTERPRETER() if interpret and _INTERPRETER is not None else None,
        # layouts are named here, not inferred; log and division as exact as elsewhere
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Lane, approx_math=False
        ),
    )
    return kernel(*args)


def swizzled(dtype, columns: int | None = None) -> tuple[Any, ...]:
    """How a matrix lies in shared memory for the tensor cores: rows of 128 bytes, mixed by 8.

    Args:
        dtype: of the matrix.
        columns: of a row, 32 to 128 bytes; by default 128 bytes.
    """
    item = jnp.dtype(dtype).itemsize
    columns = _SWIZZLE // item if columns is None else columns
    return (plgpu.TilingTransform((8, columns)), plgpu.SwizzleTransform(columns * item))


def shared(shape: tuple[int, ...], dtype, columns: int | None = None) -> Any:
    """Matrices in shared memory, for `run`'s `scratch`; the last two axes are `swizzled`."""
    return plgpu.SMEM(shape, dtype, transforms=swizzled(dtype, columns))


class Fetched(NamedTuple):
    """What `pipeline` fetches.

    Attributes:
        ref: in global memory.
        block: shape of what a step needs.
        axis: that the steps go along.
        transforms: of the block in shared memory, as from `swizzled`.
        index: block of a step; by default the step itself.
    """

    ref: Any
    block: tuple[int, ...]
    axis: int
    transforms: tuple[Any, ...] = ()
    index: Callable[[Any], Any] = lambda i: i


def pipeline(
    step: Callable[..., Any],
    around: Callable[[Callable[[Any], Any]], None],
    operands: Sequence[Fetched],
    *,
    steps: int,
    stages: int,
    warpgroups: int,
) -> None:
    """The steps of a sum: one warpgroup fetches `stages` blocks ahead, the others compute.

    Args:
        step: `step(i, *blocks, carry) -> carry` of references in shared memory.
        around: `around(loop)`, in the computing warpgroups, calls `loop(carry)` once.
        operands: what is fetched.
        steps: static, at least 1.
        stages: blocks of each operand in shared memory.
        warpgroups: that compute.
    """

    def place(i, operand):
        return tuple(operand.index(i) * (a == operand.axis) for a in range(len(operand.block)))

    specs = [
        plgpu.BlockSpec(o.block, partial(place, operand=o), transforms=o.transforms)
        for o in operands
    ]
    plgpu.emit_pipeline_warp_specialized(
        lambda indices, *args: step(indices[0], *args),
        grid=(steps,),
        memory_registers=_FETCHING_REGISTERS,
        in_specs=specs,
        wg_axis=_WARPGROUP,
        num_compute_wgs=warpgroups,
        max_concurrent_steps=stages,
        compute_context=around,
    )(*(o.ref for o in operands))


def with_accumulators(fn: Callable[..., None], count: int, columns: int) -> None:
    """`fn(*sums)` with float32 sums (64, columns) of this warpgroup, zero at first."""
    pl.run_scoped(fn, *[plgpu.WGMMAAccumulatorRef((ROWS, columns), jnp.float32)] * count)


def load_left(ref, *, transposed: bool, dtype=None) -> jax.Array:
    """A left operand (64, k) in registers from shared memory, where it is (k, 64) if transposed.

    Args:
        ref: swizzled.
        transposed: how it lies there.
        dtype: of 16 or 32 bits, to which what is transposed and has 8 is converted.
    """
    if not transposed:
        return _load(ref, plgpu.Layout.WGMMA)
    read = _load(ref.transpose((1, 0)), plgpu.Layout.WGMMA_TRANSPOSED)
    return plgpu.layout_cast(read if dtype is None else read.astype(dtype), plgpu.Layout.WGMMA)


def load_vector(ref, axis: int) -> jax.Array:
    """A vector that goes along an axis of a left operand, in registers from any memory."""
    return _load(ref, plgpu.Layout.WGMMA.reduce(1 - axis), optimized=False)


def spread(vector: jax.Array, axis: int, shape: tuple[int, int]) -> jax.Array:
    """A vector along an axis of a left operand, over the whole of it."""
    return lax.broadcast_in_dim(vector, shape, (axis,))


def iota(axis: int, shape: tuple[int, int]) -> jax.Array:
    """uint32 indices along an axis of a left operand."""
    return plgpu.broadcasted_iota(jnp.uint32, shape, axis, layout=plgpu.Layout.WGMMA)


def load_of_lanes(ref) -> jax.Array:
    """What `look_up` reads: number i % 128 of a vector of 128 in registers of thread i."""
    return _load(ref, plgpu.Layout.WG_STRIDED((_THREADS,), 1), optimized=False)


def look_up(table: jax.Array, indices: jax.Array, *, first_bit: int, interpret: bool) -> jax.Array:
    """float32 `table[(indices >> first_bit) & 15]`, one instruction a number between lanes.

    Args:
        table: float32 [128] of `load_of_lanes`, 16 numbers, repeated.
        indices: uint16 left operand.
        first_bit: of the four that are the index.
        interpret: whether this is jax's interpreter.
    """
    if interpret:
        return table[(indices >> jnp.uint16(first_bit)) & jnp.uint16(15)]
    layout = plgpu.Layout.WGMMA
    of_lanes = plgpu.Layout.WG_STRIDED((_THREADS,), 1)
    out = plgpu.ShapeDtypeStruct(indices.shape, jnp.float32, layout)

    def shuffle(_, table, indices):
        i32, f32 = ir.IntegerType.get_signless(32), ir.F32Type.get()
        pair = ir.VectorType.get((2,), f32)
        (own,) = table.registers.flat
        own = llvm.bitcast(f32, own)
        registers = np.empty_like(indices.registers)
        for at, register in np.ndenumerate(indices.registers):
            word = llvm.bitcast(i32, register)
            both = llvm.mlir_undef(pair)
            for i in range(2):
                by = arith.constant(i32, ir.IntegerAttr.get(i32, 16 * i + first_bit))
                # the 16 lanes of each half of a warp hold all; bits above the fourth do not count
                number: Any = llvm.inline_asm(
                    f32, [own, arith.shrui(word, by)],
                    "shfl.sync.idx.b32 $0, $1, $2, 0x100f, 0xffffffff;", "=f,f,r",
                    has_side_effects=True,
                )  # fmt: skip
                place = arith.constant(i32, ir.IntegerAttr.get(i32, i))
                both = llvm.insertelement(both, number, place)
            registers[at] = both
        return type(indices)(_registers=registers, _layout=indices.layout, _is_signed=None)

    inline: Any = plgpu.inline_mgpu(arg_types=(of_lanes, layout), return_type=out)
    return inline(shuffle)(table, indices)


def multiply(total, left: jax.Array, right, staging=None) -> None:
    """Starts `total += left @ right`; `wait` ends it.

    Args:
        total: of `with_accumulators`.
        left: (64, k) in registers.
        right: (k, columns) in shared memory.
        staging: shared memory (64, k) for the interpreter, which reads no registers; else None.
    """
    if staging is not None:
        staging[...] = left
        plgpu.commit_smem()
    plgpu.wgmma(total, left if staging is None else staging, right)


def wait() -> None:
    """Until all that `multiply` started is done."""
    plgpu.wgmma_wait(0)


def store_transposed(value: jax.Array, shared_ref, out_ref) -> None:
    """Starts a copy of `value.T` to global memory, once the one before has left shared memory.

    Args:
        value: (64, rows) of a sum, of 16 or 32 bits.
        shared_ref: (rows, 64) of this warpgroup, of that dtype.
        out_ref: (rows, 64) in global memory; what is beyond its end is dropped.
    """
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    shared_ref.transpose((1, 0))[...] = plgpu.layout_cast(value, plgpu.Layout.WGMMA_TRANSPOSED)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(shared_ref, out_ref)


def store_sums(sums: Sequence[Any], queries: Sequence[Any], out, at_m, columns, shared_ref) -> None:
    """Each query's sum to its tile of the result, transposed; waits for shared memory.

    Args:
        sums: of `with_accumulators`, (64, rows) each.
        queries: index of each sum's query.
        out: [S, M, N] in global memory.
        at_m: first row of the tile.
        columns: slice of 64 columns.
        shared_ref: (height, 64) of this warpgroup, of the dtype of `out`; height divides rows.
    """
    height = shared_ref.shape[0]
    for s, total in zip(queries, sums, strict=True):
        value = total[...].astype(out.dtype)
        for i in range(0, value.shape[1], height):
            to = out.at[s, pl.ds(at_m + i, height), columns]
            store_transposed(value[:, i : i + height], shared_ref, to)
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def _load(ref, layout, optimized: bool = True) -> jax.Array:
    load: Any = plgpu.load
    return load(ref, *_INDEX, layout=layout, optimized=optimized)
