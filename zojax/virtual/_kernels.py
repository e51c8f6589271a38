"""Products of noisy or quantised weights by Pallas kernels, where they were measured to win."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from zojax.virtual._array import VirtualArray
from zojax.virtual._base import is_formula
from zojax.virtual._noise import Noise
from zojax.virtual._report import Implementation


class _Layout(NamedTuple):
    """A product as one of matrices: x [rows, sum] with a weight of one leaf's rows and columns."""

    free: tuple[int, ...]  # axes of the weight
    summed: tuple[int, ...]
    transposed: bool  # whether the leaf is [columns of the result, sum]


def kernel_product(
    eqn, side: int, weight: VirtualArray, plain: Callable, implementation: Implementation | None
) -> Callable | None:
    """`(x, weight) -> x @ weight` by a kernel; None where XLA's product is taken.

    Args:
        eqn: the `dot_general`.
        side: which of its inputs is the weight.
        weight: the weight, without terms that are no part of this product.
        plain: the same function without a kernel, to differentiate.
        implementation: None to choose by what was measured on this kind of device.
    """
    make = _quantized_product if is_formula(weight.base) else _noisy_product
    kernel = make(eqn, side, weight, implementation)
    if kernel is None:
        return None
    differentiable: Any = jax.custom_jvp(kernel)
    differentiable.defjvp(lambda primals, tangents: jax.jvp(plain, primals, tangents))
    return differentiable


def _noisy_product(eqn, side, weight, implementation) -> Callable | None:
    """x @ (base + noise), of a dense base."""
    # here, as the kernels import `zojax.noise`
    from pallas_kernels.perturbed_matmul import perturbed_matmul, select
    from pallas_kernels.perturbed_matmul.config import gpu_problem

    if implementation == "xla":
        return None
    layout = _layout(eqn, side, weight)
    if layout is None:
        return None
    x_aval, out_aval = eqn.invars[1 - side].aval, eqn.outvars[0].aval
    k = math.prod(weight.shape[i] for i in layout.summed)
    rows, n = x_aval.size // k, weight.size // k
    (term,) = weight.terms
    assert isinstance(term, Noise)
    distribution: Any = term.distribution
    if implementation is None:
        choice = select(rows=rows, k=k, n=n, dtype=x_aval.dtype, distribution=distribution)
        if choice.implementation == "xla":
            return None
    stored = (n, k) if layout.transposed else (k, n)
    if implementation == "gpu" and gpu_problem(stored, x_aval.dtype, distribution):
        return None
    contract, _ = eqn.params["dimension_numbers"]
    pairs = dict(zip(contract[side], contract[1 - side], strict=True))
    x_summed = [pairs[i] for i in layout.summed]
    x_free = [i for i in range(x_aval.ndim) if i not in x_summed]
    w_sizes = [weight.shape[i] for i in layout.free]
    x_sizes = [x_aval.shape[i] for i in x_free]
    order = layout.free + layout.summed if layout.transposed else layout.summed + layout.free

    def kernel(x, weight: VirtualArray):
        term: Any = weight.terms[0]
        matrix = lax.transpose(weight.base, order).reshape(stored)
        out = perturbed_matmul(
            lax.transpose(x, (*x_free, *x_summed)).reshape(1, 1, rows, k),
            matrix,
            term.key.reshape(1, 2),
            term.coefficient.reshape(1, 1),
            row=jnp.uint32(0) if term.row is None else term.row,
            col=jnp.uint32(0) if term.col is None else term.col,
            distribution=distribution,
            transposed=layout.transposed,
            out_dtype=out_aval.dtype,
            implementation=implementation,
            interpret=_interpreted(implementation),
        )
        if side == 0:
            return out.reshape(rows, n).T.reshape(*w_sizes, *x_sizes)
        return out.reshape(*x_sizes, *w_sizes)

    return kernel


def _quantized_product(eqn, side, weight, implementation) -> Callable | None:
    """x @ decoded codes, with entries that replace some or without."""
    from pallas_kernels.quantized_matmul import quantized_matmul, select
    from pallas_kernels.quantized_matmul.config import gpu_problem, kind_of, tpu_problem

    contract, batch = eqn.params["dimension_numbers"]
    x_aval = eqn.invars[1 - side].aval
    operands = getattr(weight.base, "operands", lambda: None)()
    if (
        implementation == "xla" or operands is None or weight.terms or batch[side]
        or tuple(contract[side]) != (0,) or x_aval.dtype != weight.dtype or 0 in x_aval.shape
    ):  # fmt: skip
        return None
    (k, n), (summed,) = weight.shape, contract[1 - side]
    order = [*(i for i in range(x_aval.ndim) if i != summed), summed]
    sizes = [x_aval.shape[i] for i in order[:-1]]
    groups, bits = operands["scales"].shape[0], 8 if operands["codes"].dtype == jnp.int8 else 4
    decoding = (operands[name] for name in ("codes", "levels", "zeros", "table"))
    if implementation is None:
        choice = select(
            rows=math.prod(sizes), k=k, n=n, groups=groups, bits=bits, dtype=x_aval.dtype,
            kind=kind_of(*decoding), has_entries=weight.entries is not None,
        )  # fmt: skip
        if choice.implementation == "xla":
            return None
    elif implementation == "gpu" and gpu_problem(k, n, groups, bits, x_aval.dtype):
        return None
    elif implementation == "tpu" and tpu_problem(k, groups, bits):
        return None

    def kernel(x, weight: VirtualArray):
        entries: Any = weight.entries and weight.entries.settled()
        out = quantized_matmul(
            lax.transpose(x, order).reshape(1, -1, k),
            **weight.base.operands(),
            entries=None if entries is None else (entries.index, entries.values),
            out_dtype=eqn.outvars[0].aval.dtype,
            implementation=implementation,
            interpret=_interpreted(implementation),
        )
        out = out.reshape(-1, n)
        return out.T.reshape(n, *sizes) if side == 0 else out.reshape(*sizes, n)

    return kernel


def _interpreted(implementation: Implementation | None) -> bool:
    """Whether a kernel that is asked for by name can only run in the interpreter."""
    from pallas_kernels._autotune import device_kind, platform_of

    if implementation is None or platform_of(device_kind()) != "cpu":
        return False
    if implementation == "tpu":
        return True
    from pallas_kernels._mosaic_gpu import HAS_INTERPRETER

    return HAS_INTERPRETER


def _layout(eqn, side: int, weight: VirtualArray) -> _Layout | None:
    """How the kernel sees a product; None where it is no product with noise of a leaf's rows."""
    contract, batch = eqn.params["dimension_numbers"]
    x = eqn.invars[1 - side].aval
    if (
        batch[side] or weight.entries is not None
        or len(weight.terms) != 1 or not isinstance(weight.terms[0], Noise)
        or x.dtype != weight.dtype or x.dtype not in (jnp.float32, jnp.bfloat16)
        or 0 in x.shape or 0 in weight.shape
    ):  # fmt: skip
        return None
    term = weight.terms[0]
    summed = tuple(sorted(contract[side]))
    free = tuple(i for i in range(weight.ndim) if i not in summed)
    for rows, columns, transposed in ((summed, free, False), (free, summed, True)):
        if _counts(term, rows, term.row_strides) and _counts(term, columns, term.col_strides):
            others = [term.col_strides[i] for i in rows if term.shape[i] > 1]
            others += [term.row_strides[i] for i in columns if term.shape[i] > 1]
            if not any(others):
                return _Layout(free, summed, transposed)
    return None


def _counts(term: Noise, axes: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether the axes, the last one fastest, are addressed one after the other."""
    step = 1
    for i in reversed(axes):
        if term.shape[i] > 1 and strides[i] != step:
            return False
        step *= term.shape[i]
    return True
