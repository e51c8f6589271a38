"""What a caller sees."""

from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from pallas_kernels._gpu_tiles import GpuBlocks
from pallas_kernels._tile import round_to
from pallas_kernels.quantized_matmul.config import QuantizedTpuBlocks, kind_of, select
from pallas_kernels.quantized_matmul.reference import quantized_matmul_reference

IMPLEMENTATIONS = ("xla", "tpu", "gpu")


def quantized_matmul(
    x: jax.Array,
    codes: jax.Array,
    scales: jax.Array,
    *,
    levels: tuple[float, ...] | None = None,
    zeros: jax.Array | None = None,
    table: jax.Array | None = None,
    entries: tuple[jax.Array, jax.Array] | None = None,
    out_dtype: Any = None,
    implementation: str | None = None,
    config: Any = None,
    interpret: Any = False,
) -> jax.Array:
    """Products of S queries with one quantised weight, which is decoded tile by tile.

    `out[s] = x[s] @ w_s` with `w_s[k, n] = round(decode(codes[k, n]) * scales[s, k // group, n])`,
    rounded to the dtype of x, summed in float32. A kernel reads and decodes a tile of codes once
    for all queries. Noise on scales is made by the caller, as scales of each query: they are a
    small part of the weight.

    Entries replace decoded values. Plain JAX sets them in the decoded weight. A kernel takes the
    weight without them, and `x[:, row] * (value - decoded)` is added to the columns, in float32:
    the same up to rounding, but for infinite or NaN numbers at an entry, which may give NaN.

    Under `jax.vmap`, batched x make more rows, batched scales and values of entries more queries;
    anything else that is batched is taken one after the other.

    Args:
        x: float32 or bfloat16 [S, M, K].
        codes: int8 [K, N], each standing for itself; or uint8 [ceil(K / 2), N] of two 4-bit codes,
            where within each atom of 128 rows (all of them if 128 does not divide K) byte row i
            holds row i in its low half and the row half an atom later in its high half.
        scales: floating [G, N] or [S, G, N], G dividing K.
        levels: 16 floats that 4-bit codes stand for.
        zeros: int8 [G, N], subtracted from 4-bit codes, in the place of levels.
        table: float32 [16, N], levels of each column, in the place of levels.
        entries: int32 [E] distinct positions in the flat [K, N], and values [E] or [S, E]. What is
            beyond the end is padding, and is dropped.
        out_dtype: of the result; by default that of x.
        implementation: "xla" (plain JAX), "tpu" or "gpu"; None lets `select` choose from what was
            measured on this kind of device.
        config: block sizes of that implementation, such as `QuantizedTpuBlocks`; None for its own.
        interpret: run a kernel in Pallas' interpreter, for tests without the device.

    Returns:
        [S, M, N].

    Raises:
        ValueError: if shapes do not fit, not exactly one decoding is given, or the implementation
            is unknown or cannot do the problem.
        TypeError: if dtypes are others than those above.
    """
    _check(x, codes, scales, levels, zeros, table, entries)
    levels = None if levels is None else tuple(map(float, levels))
    out_dtype = jnp.dtype(x.dtype if out_dtype is None else out_dtype)
    if implementation is None and config is not None:
        raise ValueError(f"config={config} is of one implementation: name it")
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(
            f"implementation must be one of {', '.join(IMPLEMENTATIONS)} or None, found "
            f"{implementation!r}"
        )
    if implementation == "xla" and config is not None:
        raise ValueError(f"the xla implementation has no block sizes, found config={config}")
    fn = partial(
        _run, levels=levels, out_dtype=out_dtype, implementation=implementation, config=config,
        interpret=interpret,
    )  # fmt: skip
    scales = scales[None] if scales.ndim == 2 else scales
    if entries is not None:
        index, values = entries
        entries = index, values[None] if values.ndim == 1 else values
    return _batched(fn)(x, scales, entries, codes, zeros, table)


def _run(
    x, scales, entries, codes, zeros, table,
    *, levels, out_dtype, implementation, config, interpret,
):  # fmt: skip
    static = {"levels": levels, "out_dtype": out_dtype}
    reference = partial(quantized_matmul_reference, **static)
    args = (x, codes, scales, zeros, table, entries)
    if implementation == "xla":
        return reference(*args)
    kernel = partial(_kernel, **static, interpret=interpret)
    if implementation is not None:
        return kernel(*args, name=implementation, config=config)
    kind = kind_of(codes, levels, zeros, table)
    choice = select(
        rows=x.shape[1] * (x.shape[0] if scales.shape[0] == 1 else 1), k=x.shape[2],
        n=codes.shape[1], groups=scales.shape[1], bits=8 if kind == "int8" else 4, dtype=x.dtype,
        kind=kind, has_entries=entries is not None,
    )  # fmt: skip
    if choice.implementation == "xla":
        return reference(*args)
    chosen = partial(kernel, name=choice.implementation, config=choice.config)
    # what is placed on a CPU beside the device stays right
    platform = {"tpu": "tpu", "gpu": "cuda"}[choice.implementation]
    return lax.platform_dependent(*args, default=reference, **{platform: chosen})


def _kernel(
    x, codes, scales, zeros, table, entries, *, name, config, levels, out_dtype, interpret
):  # fmt: skip
    if name == "tpu":
        from pallas_kernels.quantized_matmul.tpu import quantized_matmul_tpu as kernel

        config = QuantizedTpuBlocks(**config) if isinstance(config, dict) else config
    else:
        from pallas_kernels.quantized_matmul.gpu import quantized_matmul_gpu as kernel

        config = GpuBlocks(**config) if isinstance(config, dict) else config
    shape, blocks = x.shape, cast(Any, config)
    # queries that share their scales are rows
    wide = x.reshape(1, -1, shape[2]) if scales.shape[0] == 1 else x
    out = kernel(
        wide, codes, scales, zeros, table, levels=levels, config=blocks, interpret=interpret,
        out_dtype=out_dtype if entries is None else jnp.float32,
    ).reshape(*shape[:2], -1)  # fmt: skip
    if entries is None:
        return out
    return (out + _correction(x, codes, scales, zeros, table, entries, levels)).astype(out_dtype)


def _correction(x, codes, scales, zeros, table, entries, levels) -> jax.Array:
    """float32 [S, M, N]: what entries add to the product with the decoded weight."""
    index, values = entries
    (k, n), groups = (x.shape[2], codes.shape[1]), scales.shape[1]
    row, col = index // n, index % n
    group = row // (k // groups)
    if codes.dtype == jnp.int8:
        found = codes[row, col]
    else:
        half = 64 if k % 128 == 0 else codes.shape[0]
        place = row % (2 * half)
        byte = codes[row // (2 * half) * half + place % half, col]
        found = jnp.where(place < half, byte & 15, byte >> 4)
    if codes.dtype == jnp.int8:
        number = found.astype(jnp.float32)
    elif table is not None:
        number = table.astype(jnp.float32)[found, col]
    elif zeros is not None:
        number = found.astype(jnp.float32) - zeros[group, col].astype(jnp.float32)
    else:
        number = jnp.asarray(levels, jnp.float32)[found]
    old = round_to(number * scales[:, group, col].astype(jnp.float32), x.dtype)
    new = round_to(values.astype(jnp.float32), x.dtype)
    moved = new.astype(jnp.float32) - old.astype(jnp.float32)
    moved = jnp.where(index < k * n, moved, 0.0)
    parts = x[:, :, row].astype(jnp.float32) * moved[:, None]
    zero = jnp.zeros((*x.shape[:2], n), jnp.float32)
    return zero.at[:, :, col].add(parts)


def _batched(fn):
    """`fn(x, scales, entries, codes, zeros, table)` with its rules for vmap."""

    @custom_vmap
    def call(x, scales, entries, codes, zeros, table):
        return fn(x, scales, entries, codes, zeros, table)

    @call.def_vmap
    def rule(size, in_batched, *args):
        flags = jax.tree.leaves(in_batched, is_leaf=lambda b: isinstance(b, bool))
        leaves, tree = jax.tree.flatten(args)
        x, scales, entries, *fixed = args
        x_in, scales_in, entries_in, *fixed_in = in_batched
        values_in = entries is not None and entries_in[1]
        if any(jax.tree.leaves(fixed_in)) or (entries is not None and entries_in[0]):
            moving = [a for a, b in zip(leaves, flags, strict=True) if b]

            def one(moving):
                rest = iter(moving)
                filled = [next(rest) if b else a for a, b in zip(leaves, flags, strict=True)]
                return call(*jax.tree.unflatten(tree, filled))

            return lax.map(one, moving), True
        if not scales_in and not values_in:
            b, s, m, k = x.shape
            out = call(jnp.moveaxis(x, 0, 1).reshape(s, b * m, k), scales, entries, *fixed)
            return jnp.moveaxis(out.reshape(s, b, m, -1), 1, 0), True

        def queries(array, is_batched, count):
            """[S or 1, ...] with or without a batch, to [batch * S, ...]."""
            array = array if is_batched else jnp.broadcast_to(array, (size, *array.shape))
            array = jnp.broadcast_to(array, (size, count, *array.shape[2:]))
            return array.reshape(size * count, *array.shape[2:])

        count = x.shape[1 if x_in else 0]
        x = queries(x, x_in, count)
        if scales_in or scales.shape[0] > 1:
            scales = queries(scales, scales_in, count)
        if entries is not None and (values_in or entries[1].shape[0] > 1):
            entries = entries[0], queries(entries[1], values_in, count)
        out = call(x, scales, entries, *fixed)
        return out.reshape(size, count, *out.shape[1:]), True

    return call


def _check(x, codes, scales, levels, zeros, table, entries) -> None:
    if x.ndim != 3 or codes.ndim != 2 or scales.ndim not in (2, 3):
        raise ValueError(
            "x must be [S, M, K], codes two-dimensional and scales [G, N] or [S, G, N], found "
            f"{x.shape}, {codes.shape} and {scales.shape}"
        )
    if x.dtype not in (jnp.float32, jnp.bfloat16):
        raise TypeError(f"x must be float32 or bfloat16, found {x.dtype}")
    if codes.dtype not in (jnp.int8, jnp.uint8) or not jnp.issubdtype(scales.dtype, jnp.floating):
        raise TypeError(
            f"codes must be int8 or uint8 and scales floating, found {codes.dtype} and "
            f"{scales.dtype}"
        )
    (queries, _, k), n = x.shape, codes.shape[1]
    expected = k if codes.dtype == jnp.int8 else -(-k // 2)
    if codes.shape[0] != expected or 0 in x.shape or 0 in codes.shape:
        raise ValueError(
            f"{codes.dtype} codes of {k} rows must be [{expected}, N], found {codes.shape} with x "
            f"{x.shape}"
        )
    groups = scales.shape[-2]
    if scales.shape[-1] != n or groups == 0 or k % groups:
        raise ValueError(f"scales must be [G, {n}] with G dividing {k}, found {scales.shape}")
    if scales.ndim == 3 and scales.shape[0] not in (1, queries):
        raise ValueError(f"scales of each query must be {queries}, found {scales.shape}")
    decodings = {"levels": levels, "zeros": zeros, "table": table}
    given = [name for name, value in decodings.items() if value is not None]
    if len(given) != (codes.dtype == jnp.uint8):
        wanted = "one of levels, zeros and table" if codes.dtype == jnp.uint8 else "none of them"
        raise ValueError(f"{codes.dtype} codes need {wanted}, found {', '.join(given) or 'none'}")
    shapes = {"levels": (16,), "zeros": (groups, n), "table": (16, n)}
    for name in given:
        if np.shape(decodings[name]) != shapes[name]:
            found = list(np.shape(decodings[name]))
            raise ValueError(f"{name} must be {list(shapes[name])}, found {found}")
    if entries is not None:
        index, values = entries
        if index.ndim != 1 or values.shape[-1:] != index.shape or values.ndim > 2:
            raise ValueError(
                f"entries must be positions [E] and values [E] or [S, E], found {index.shape} and "
                f"{values.shape}"
            )
        if values.ndim == 2 and values.shape[0] not in (1, queries):
            raise ValueError(f"values of each query must be {queries}, found {values.shape}")
