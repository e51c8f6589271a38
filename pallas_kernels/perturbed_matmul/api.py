"""What a caller sees."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from pallas_kernels._tile import Distribution, address_of, check_distribution, check_words
from pallas_kernels.perturbed_matmul.config import GpuBlocks, TpuBlocks, select
from pallas_kernels.perturbed_matmul.reference import perturbed_matmul_reference

IMPLEMENTATIONS = ("xla", "tpu", "gpu")


def perturbed_matmul(
    x: jax.Array,
    w: jax.Array,
    key_words: jax.Array,
    coefficient: jax.Array,
    *,
    row: jax.Array | int = 0,
    col: jax.Array | int = 0,
    distribution: Distribution,
    transposed: bool = False,
    out_dtype: Any = None,
    implementation: str | None = None,
    config: Any = None,
    interpret: Any = False,
) -> jax.Array:
    """Products with one weight, perturbed along P directions for S queries of each.

    `out[p, s] = x[p, s] @ round(w + coefficient[p, s] * Z_p)` with
    `Z_p[i, j] = distribution(bits(key_words[p], row + i, col + j))`, summed in float32. The kernels
    read a tile of w once for all queries, make its noise there, and store no perturbed weight.

    Under `jax.vmap` with one w and one key, batched x make more rows, batched coefficients more
    queries; batched keys make more directions; batched w, row or col are taken one after the other.

    Args:
        x: float32 or bfloat16 [P, S, M, K].
        w: [K, N] of the dtype of x; [N, K] if `transposed`. Its perturbed values are rounded to
            that dtype before the product.
        key_words: uint32 [P, 2], as from `zojax.noise.words`.
        coefficient: float32 [P, S], what the noise is multiplied by. Where it was rounded by
            `zojax.noise.round_coefficient` and the noise is integers, the perturbed values are the
            same bits in every implementation.
        row: uint32 address of the first row of w in its leaf; may be traced.
        col: uint32 address of the first column; may be traced. Rows and columns are those of the
            array that is passed, so those of [N, K] if `transposed`.
        distribution: "rademacher", "nibble_sum" or "gaussian", as in `zojax.noise`; not scaled, so
            nibble sums have variance 170.
        transposed: static; whether w is [N, K].
        out_dtype: of the result; by default that of x.
        implementation: "xla" (plain JAX), "tpu" or "gpu" (Pallas kernels for TPUs and for Hopper
            GPUs); None lets `select` choose from what was measured on this kind of device.
        config: block sizes of that implementation, such as `TpuBlocks`; None for its own choice.
        interpret: run a kernel in Pallas' interpreter, for tests without the device.

    Returns:
        [P, S, M, N].

    Raises:
        ValueError: if shapes do not fit, or the distribution or implementation is unknown.
        TypeError: if dtypes are others than those above.
    """
    _check(x, w, key_words, coefficient, distribution, transposed)
    static: dict[str, Any] = {"distribution": distribution, "transposed": transposed}
    static["out_dtype"] = jnp.dtype(x.dtype if out_dtype is None else out_dtype)
    if implementation is None:
        if config is not None:
            raise ValueError(f"config={config} is of one implementation: name it")
        kernel = partial(_chosen, static=static, interpret=interpret)
    else:
        kernel = _implementation(implementation, static, config, interpret)
    return _batched(kernel)(x, w, key_words, coefficient, address_of(row, col))


def _chosen(x, w, *rest, static: dict[str, Any], interpret):
    """By the rules, for the sizes that `jax.vmap` made of the caller's."""
    k, n = w.shape[::-1] if static["transposed"] else w.shape
    distribution = static["distribution"]
    choice = select(rows=x.shape[2], k=k, n=n, dtype=x.dtype, distribution=distribution)
    kernel = _implementation(choice.implementation, static, choice.config, interpret)
    if choice.implementation == "xla":
        return kernel(x, w, *rest)
    # what is placed on a CPU beside the device stays right
    platform = {"tpu": "tpu", "gpu": "cuda"}[choice.implementation]
    reference = _implementation("xla", static, None, False)
    return lax.platform_dependent(x, w, *rest, default=reference, **{platform: kernel})


def _implementation(name: str, static: dict[str, Any], config, interpret):
    if name == "xla":
        if config is not None:
            raise ValueError(f"the xla implementation has no block sizes, found config={config}")
        return partial(perturbed_matmul_reference, **static)
    if name == "tpu":
        from pallas_kernels.perturbed_matmul.tpu import perturbed_matmul_tpu

        blocks = TpuBlocks(**config) if isinstance(config, dict) else config
        return partial(perturbed_matmul_tpu, **static, config=blocks, interpret=interpret)
    if name == "gpu":
        from pallas_kernels.perturbed_matmul.gpu import perturbed_matmul_gpu

        blocks = GpuBlocks(**config) if isinstance(config, dict) else config
        return partial(perturbed_matmul_gpu, **static, config=blocks, interpret=interpret)
    raise ValueError(
        f"implementation must be one of {', '.join(IMPLEMENTATIONS)} or None, found {name!r}"
    )


def _batched(fn):
    """`fn(x, w, key_words, coefficient, address)` with its rules for vmap."""

    @custom_vmap
    def call(x, w, key_words, coefficient, address):
        return fn(x, w, key_words, coefficient, address)

    @call.def_vmap
    def rule(size, in_batched, x, w, key_words, coefficient, address):
        x_in, w_in, key_in, coefficient_in, address_in = in_batched
        if w_in or address_in:
            args = (x, w, key_words, coefficient, address)
            moving = [a for a, b in zip(args, in_batched, strict=True) if b]

            def one(moving):
                rest = iter(moving)
                return call(*[
                    next(rest) if b else a for a, b in zip(args, in_batched, strict=True)
                ])  # fmt: skip

            return lax.map(one, moving), True
        if not key_in and not coefficient_in:
            b, p, s, m, k = x.shape
            wide = jnp.moveaxis(x, 0, 2).reshape(p, s, b * m, k)
            out = call(wide, w, key_words, coefficient, address)
            return jnp.moveaxis(out.reshape(p, s, b, m, -1), 2, 0), True
        x = x if x_in else jnp.broadcast_to(x, (size, *x.shape))
        if not coefficient_in:
            coefficient = jnp.broadcast_to(coefficient, (size, *coefficient.shape))
        b, p, s, m, k = x.shape
        if key_in:
            out = call(
                x.reshape(b * p, s, m, k), w, key_words.reshape(b * p, 2),
                coefficient.reshape(b * p, s), address,
            )  # fmt: skip
            return out.reshape(b, p, s, m, -1), True
        out = call(
            jnp.moveaxis(x, 0, 1).reshape(p, b * s, m, k), w, key_words,
            jnp.moveaxis(coefficient, 0, 1).reshape(p, b * s), address,
        )  # fmt: skip
        return jnp.moveaxis(out.reshape(p, b, s, m, -1), 1, 0), True

    return call


def _check(x, w, key_words, coefficient, distribution, transposed) -> None:
    check_distribution(distribution)
    if x.ndim != 4 or w.ndim != 2:
        raise ValueError(
            f"x must be [P, S, M, K] and w two-dimensional, found {x.shape} and {w.shape}"
        )
    if x.shape[3] != w.shape[1 if transposed else 0]:
        kind = "[N, K], as it is transposed" if transposed else "[K, N]"
        raise ValueError(f"w must be {kind}, with K = {x.shape[3]} of x, found {w.shape}")
    if 0 in x.shape or 0 in w.shape:
        raise ValueError(f"no size may be zero, found x {x.shape} and w {w.shape}")
    if x.dtype != w.dtype or x.dtype not in (jnp.float32, jnp.bfloat16):
        raise TypeError(
            f"x and w must both be float32 or both bfloat16, found {x.dtype} and {w.dtype}; cast "
            "one of them"
        )
    check_words("key_words", key_words, (x.shape[0], 2))
    if coefficient.shape != x.shape[:2] or coefficient.dtype != jnp.float32:
        raise TypeError(
            f"coefficient must be float32{list(x.shape[:2])}, one for each direction and query of "
            f"x, found {coefficient.dtype}{list(coefficient.shape)}"
        )
