"""Products with a virtual array: matmuls and convolutions."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from zojax.virtual._array import is_virtual
from zojax.virtual._base import is_formula
from zojax.virtual._dense import ELSEWHERE, ON_CPU, Product, dense_use, panels_of
from zojax.virtual._kernels import kernel_product
from zojax.virtual._low_rank import LowRank, summed_ranks
from zojax.virtual._report import Report

_UNROLLED_RANK = 8


def dot_general(eqn, values, report: Report):
    """x @ (base + terms): one product with the base, thin products for low-rank terms.

    Noise and entries are put into the base for this one product, and a base that is a formula is
    made dense for it; nothing dense outlives it.
    """
    if all(map(is_virtual, values)):
        report.note(eqn, 0, values[0], "at use")
        values = [values[0].materialize(), values[1]]
    side = 1 if is_virtual(values[1]) else 0
    weight, x = values[side], values[1 - side]
    thin, dense = [], []
    for term in weight.terms:
        plan = _factor_plan(eqn, term, side) if isinstance(term, LowRank) else None
        (dense if plan is None else thin).append((term, plan))
    rest = replace(weight, terms=tuple(t for t, _ in dense))
    is_dense = bool(dense) or weight.entries is not None or is_formula(weight.base)
    product = Product(eqn, side)

    def at_use(x, weight):
        return product(x, weight.after(x).materialize())

    kernel = kernel_product(eqn, side, rest, at_use, report.implementation) if is_dense else None
    report.note(eqn, side, weight, "kernel" if kernel else "at use" if is_dense else "fused")
    if kernel:
        out = kernel(x, replace(rest.undrawn(), name=""))
    elif is_dense:
        panels, large = (panels_of(product, cut) for cut in (ON_CPU, ELSEWHERE))
        has_entries = rest.entries is not None
        use = dense_use(
            product,
            panels=None if weight.name in report.whole else panels,
            large=large if has_entries or is_formula(rest.base) else None,
            flat=report.sets_flat(rest),
        )
        out = use(x, replace(rest, name=""))
    else:
        out = product(x, rest.base_after(x))
    if not thin:
        return out
    terms, plans = zip(*thin, strict=True)
    return _plus_thin(out, x, terms, plans)


@partial(jax.jit, static_argnames="plans", inline=True)
def _plus_thin(out: jax.Array, x: jax.Array, terms: tuple[LowRank, ...], plans: tuple) -> jax.Array:
    """`out + sum x @ term`; traced once for equal shapes."""
    total = out.astype(jnp.promote_types(out.dtype, jnp.float32))
    for term, plan in zip(terms, plans, strict=True):
        total = total + _thin_product(x, term, plan)
    return total.astype(out.dtype)


def _factor_plan(eqn, term: LowRank, side: int) -> tuple | None:
    """Whether the left factor is the first, and einsum letters for x . first . second.

    None where no factor holds all contracted axes.
    """
    contract, batch = eqn.params["dimension_numbers"]
    axes, batch_axes = contract[side], batch[side]
    real = [i for i in axes if term.shape[i] != 1]
    for is_left in (True, False):
        first, second = (term.left, term.right) if is_left else (term.right, term.left)
        if all(first.shape[i] != 1 for i in real) and all(second.shape[i] == 1 for i in real):
            break
    else:
        return None
    letters = iter("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    w = [next(letters) for _ in term.shape]
    x_ndim = eqn.invars[1 - side].aval.ndim
    x = [""] * x_ndim
    for w_axis, x_axis in zip(axes, contract[1 - side], strict=True):
        x[x_axis] = w[w_axis]
    for w_axis, x_axis in zip(batch_axes, batch[1 - side], strict=True):
        x[x_axis] = w[w_axis]
    x = [letter or next(letters) for letter in x]
    used = (*contract[1 - side], *batch[1 - side])
    x_free = [x[i] for i in range(x_ndim) if i not in used]
    w_free = [w[i] for i in range(len(w)) if i not in (*axes, *batch_axes)]
    shared = [w[i] for i in batch_axes]
    out = shared + (w_free + x_free if side == 0 else x_free + w_free)
    return is_left, "".join(w), "".join(x), "".join(out), next(letters)


def _thin_product(x, term: LowRank, plan):
    is_left, w, x_letters, out, r = plan
    first, second = (term.left, term.right) if is_left else (term.right, term.left)
    x_dtype = jnp.promote_types(x.dtype, jnp.float32)

    def present(factor):
        return "".join(
            c for c, n, full in zip(w, factor.shape, term.shape, strict=False) if n == full != 1
        )

    def drop_ones(factor):
        absent = [i for i, n in enumerate(factor.shape[:-1]) if n == 1]
        return lax.squeeze(factor, absent)

    w_kept = "".join(c for c, n in zip(w, term.shape, strict=True) if n != 1)
    x_kept = "".join(c for c in x_letters if c not in w or c in w_kept)
    x = lax.squeeze(x, [i for i, c in enumerate(x_letters) if c not in x_kept])
    first_letters, second_letters = present(first), present(second)
    middle = "".join(c for c in x_kept if c not in first_letters or c in out) + "".join(
        c for c in first_letters if c in out and c not in x_kept
    )
    # scaled here, in a small array, not in the operations that XLA fuses the product into
    scaled = drop_ones(first).astype(x_dtype) * term.multiplier.astype(x_dtype)
    thin = jnp.einsum(
        f"{x_kept},{first_letters}{r}->{middle}{r}", x.astype(x_dtype), _two_columns(scaled)
    )[..., : term.rank]
    second = drop_ones(second).astype(x_dtype)
    out_kept = "".join(c for c in out if c not in w or c in w_kept)
    if term.rank <= _UNROLLED_RANK and set(middle) | set(second_letters) == set(out_kept):
        # elementwise, so that XLA adds it into the base product without another buffer
        left, right = (
            _columns(factor, letters, out_kept)
            for letters, factor in ((middle, thin), (second_letters, second))
        )
        product = summed_ranks([a * b for a, b in zip(left, right, strict=True)])
    else:
        product = jnp.einsum(f"{middle}{r},{second_letters}{r}->{out_kept}", thin, second)
    ones = [i for i, c in enumerate(out) if c not in out_kept]
    return jnp.expand_dims(product, ones)


def _two_columns(factor):
    """A column of zeros beside a single one: XLA compiles each product with a vector anew on CPU,
    and calls a library for a product with a matrix."""
    if factor.shape[-1] > 1:
        return factor
    return jnp.concatenate([factor, jnp.zeros_like(factor)], -1)


def _columns(factor: jax.Array, letters: str, order: str) -> list[jax.Array]:
    """The factor's columns (its last axis), each with the axes of `order`, those absent of one."""
    sizes = dict(zip(letters, factor.shape, strict=False))
    shape = [sizes.get(c, 1) for c in order]
    places = [letters.index(c) for c in order if c in letters]
    if places != sorted(places):
        factor = lax.transpose(factor, (*places, len(places)))
    if factor.shape[-1] == 1:
        return [factor.reshape(shape)]
    return [factor[..., i].reshape(shape) for i in range(factor.shape[-1])]


def convolution(eqn, values, report: Report):
    """A convolution with (base + terms): a low-rank kernel has `rank` outputs, then a product.

    Noise, entries, and low-rank terms whose factors divide the kernel otherwise, are put into the
    base for this one use.
    """
    x, weight = values
    if not is_virtual(weight) or is_virtual(x):
        return None
    thin, dense = [], []
    for term in weight.terms:
        factors = _kernel_factors(eqn, term) if isinstance(term, LowRank) else None
        (dense if factors is None else thin).append((term, factors))
    rest = replace(weight, terms=tuple(t for t, _ in dense))
    is_dense = bool(dense) or weight.entries is not None or is_formula(weight.base)
    report.note(eqn, 1, weight, "at use" if is_dense else "fused")

    product = Product(eqn, 1)
    # XLA places the activations around noise more tightly where its use is not alone
    use = dense_use(product, alone=weight.entries is not None)
    out = use(x, rest) if is_dense else product(x, rest.base)
    if not thin:
        return out
    total = out.astype(jnp.promote_types(out.dtype, jnp.float32))
    for term, factors in thin:
        total = total + _thin_convolution(eqn, x, term, *factors)
    return total.astype(out.dtype)


def _kernel_factors(eqn, term: LowRank):
    """(kernel factor, output factor), or None where no factor is a function of the output alone."""
    p = eqn.params
    if p["feature_group_count"] != 1 or p["batch_group_count"] != 1:
        return None
    out_axis = p["dimension_numbers"].rhs_spec[0]
    for kernel, output in ((term.left, term.right), (term.right, term.left)):
        if kernel.shape[out_axis] == 1 and all(
            n == 1 for i, n in enumerate(output.shape[:-1]) if i != out_axis
        ):
            return kernel, output
    return None


def _thin_convolution(eqn, x, term: LowRank, kernel, output):
    p = eqn.params
    spec = p["dimension_numbers"]
    out_axis, feature = spec.rhs_spec[0], spec.out_spec[1]
    sizes = [*(1 if i == out_axis else n for i, n in enumerate(term.shape)), term.rank]
    kernel = jnp.broadcast_to(kernel, sizes).astype(x.dtype)
    kernel = jnp.moveaxis(jnp.squeeze(kernel, out_axis), -1, out_axis)
    thin = lax.conv_general_dilated(
        x, kernel, p["window_strides"], p["padding"], p["lhs_dilation"], p["rhs_dilation"], spec,
        precision=p["precision"],
    )  # fmt: skip
    thin = jnp.moveaxis(thin, feature, -1).astype(jnp.promote_types(x.dtype, jnp.float32))
    output = output.reshape(-1, term.rank).astype(thin.dtype) * term.multiplier
    if term.rank <= _UNROLLED_RANK:
        product = summed_ranks([thin[..., i, None] * output[:, i] for i in range(term.rank)])
    else:
        product = jnp.einsum("...r,or->...o", thin, output)
    return jnp.moveaxis(product, -1, feature)
