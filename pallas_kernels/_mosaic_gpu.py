"""All that the kernels for Hopper GPUs use of Mosaic GPU, whose names change between releases.

Kernels are written for the interface below: blocks of warpgroups of 128 threads, of which the last
only fetches; operands in registers in the layout that the tensor cores read. What differs between
jax 0.10 and 0.12 is dealt with here and nowhere else.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

# rows of a warpgroup's product, and bytes of a swizzled row of shared memory
ROWS = 64
_SWIZZLE = 128
# registers of a thread that only fetches; the others share what it leaves
_FETCHING_REGISTERS = 40
_BLOCK, _WARPGROUP = "block", "warpgroup"

_INTERPRETER = getattr(plgpu, "InterpretGPUParams", None)
HAS_INTERPRETER = _INTERPRETER is not None


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


def swizzled(dtype) -> tuple[Any, ...]:
    """How a matrix lies in shared memory for the tensor cores: rows of 128 bytes, mixed by 8."""
    tile = (8, _SWIZZLE // jnp.dtype(dtype).itemsize)
    return (plgpu.TilingTransform(tile), plgpu.SwizzleTransform(_SWIZZLE))


def shared(shape: tuple[int, ...], dtype) -> Any:
    """Matrices in shared memory, for `run`'s `scratch`; the last two axes are swizzled."""
    return plgpu.SMEM(shape, dtype, transforms=swizzled(dtype))


def pipeline(
    step: Callable[..., Any],
    around: Callable[[Callable[[Any], Any]], None],
    operands: Sequence[tuple[Any, tuple[int, ...], int, Any]],
    *,
    steps: int,
    stages: int,
    warpgroups: int,
) -> None:
    """The steps of a sum: one warpgroup fetches `stages` blocks ahead, the others compute.

    Args:
        step: `step(i, *blocks, carry) -> carry` of references in shared memory.
        around: `around(loop)`, in the computing warpgroups, calls `loop(carry)` once.
        operands: (reference in global memory, shape of its block, axis that the steps go along,
            dtype to be swizzled for or None).
        steps: static, at least 1.
        stages: blocks of each operand in shared memory.
        warpgroups: that compute.
    """
    specs = [
        plgpu.BlockSpec(
            shape,
            lambda i, axis=axis, shape=shape: tuple(i * (a == axis) for a in range(len(shape))),
            transforms=() if dtype is None else swizzled(dtype),
        )
        for _, shape, axis, dtype in operands
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
    )(*(operand[0] for operand in operands))


def with_accumulators(fn: Callable[..., None], count: int, columns: int) -> None:
    """`fn(*sums)` with float32 sums (64, columns) of this warpgroup, zero at first."""
    pl.run_scoped(fn, *[plgpu.WGMMAAccumulatorRef((ROWS, columns), jnp.float32)] * count)


def load_left(ref, *, transposed: bool) -> jax.Array:
    """A left operand (64, k) in registers from shared memory, where it is (k, 64) if transposed."""
    if not transposed:
        return _load(ref, plgpu.Layout.WGMMA)
    read = _load(ref.transpose((1, 0)), plgpu.Layout.WGMMA_TRANSPOSED)
    return plgpu.layout_cast(read, plgpu.Layout.WGMMA)


def load_vector(ref, axis: int) -> jax.Array:
    """A vector that goes along an axis of a left operand, in registers from any memory."""
    return _load(ref, plgpu.Layout.WGMMA.reduce(1 - axis), optimized=False)


def spread(vector: jax.Array, axis: int, shape: tuple[int, int]) -> jax.Array:
    """A vector along an axis of a left operand, over the whole of it."""
    return lax.broadcast_in_dim(vector, shape, (axis,))


def iota(axis: int, shape: tuple[int, int]) -> jax.Array:
    """uint32 indices along an axis of a left operand."""
    return plgpu.broadcasted_iota(jnp.uint32, shape, axis, layout=plgpu.Layout.WGMMA)


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


def wait_stored() -> None:
    """Until all copies have left shared memory."""
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def _load(ref, layout, optimized: bool = True) -> jax.Array:
    load: Any = plgpu.load
    index = () if jax.__version_info__ >= (0, 12) else ((),)
    return load(ref, *index, layout=layout, optimized=optimized)
