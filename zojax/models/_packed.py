"""Tensors of 4 bits as GPTQ and AWQ write them: eight codes in an int32."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from zojax.models._tensors import Tensor
from zojax.quantization import Quantized
from zojax.quantization._packing import pack

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the column of each nibble, lowest first
_READ = "gptq (checkpoint_format gptq or gptq_v2), awq (version gemm), both of 4 bits, and zojax"


class Packing(NamedTuple):
    """How the packed tensors of a folder are to be understood.

    Attributes:
        method: "gptq" or "awq".
        group_size: rows that share a scale; -1 for all.
        zero_shift: what is added to every stored zero of a word, with carries between them.
        symmetric: whether every zero is 8.
        by_activation: whether the rows of a group are those that ``g_idx`` says.
    """

    method: str
    group_size: int
    zero_shift: int
    symmetric: bool
    by_activation: bool


def parse_packing(about: Mapping[str, Any], file: Path) -> Packing:
    """Read the ``quantization_config`` of a GPTQ or AWQ folder.

    Raises:
        ValueError: If the layout is another one; says what was found and which are read.
    """

    def refuse(found: str) -> ValueError:
        return ValueError(
            f"{file}: quantization_config has {found}, a layout that is not read; read are "
            f"{_READ}. Use the dense model and quantise it with zojax."
        )

    method = about.get("quant_method")
    if method not in ("gptq", "awq"):
        raise refuse(f"quant_method={method!r}")
    bits = about.get("bits", about.get("w_bit"))
    if bits != 4:
        raise refuse(f"bits={bits!r}")
    if about.get("pack_dtype", "int32") != "int32":
        raise refuse(f"pack_dtype={about['pack_dtype']!r}")
    if about.get("dynamic"):
        raise refuse("dynamic, other settings for some modules,")
    group_size = about.get("group_size", about.get("q_group_size", 128))
    if not isinstance(group_size, int) or (group_size < 1 and group_size != -1):
        raise refuse(f"group_size={group_size!r}")
    if method == "awq":
        version = str(about.get("version", "gemm")).lower()
        if version != "gemm":
            raise refuse(f"version={version!r}")
        return Packing(method, group_size, 0, False, False)
    layout = about.get("checkpoint_format") or about.get("format") or "gptq"
    if layout not in ("gptq", "gptq_v2") or about.get("is_marlin_format"):
        raise refuse(f"checkpoint_format={layout!r}")
    shift = 0 if layout == "gptq_v2" else 0x11111111
    flags = (bool(about.get(name, False)) for name in ("sym", "desc_act"))
    return Packing(method, group_size, shift, *flags)


def expected_tensors(
    stem: str, rows: int, columns: int, packing: Packing
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what holds one matrix of shape [rows, columns].

    Raises:
        ValueError: If the packing does not divide the matrix.
    """
    size = rows if packing.group_size == -1 else packing.group_size
    if rows % size or rows % 8 or columns % 8:
        raise ValueError(
            f"{stem} is a matrix [{rows}, {columns}], which cannot be packed by eights in groups "
            f"of {size}: the config is of another model."
        )
    packed = (rows // 8, columns) if packing.method == "gptq" else (rows, columns // 8)
    return {
        f"{stem}.qweight": packed,
        f"{stem}.qzeros": (rows // size, columns // 8),
        f"{stem}.scales": (rows // size, columns),
    }


def read_packed(stem: str, stored: Mapping[str, Tensor], packing: Packing, dtype: Any) -> Quantized:
    """One matrix, its arrays on the host.

    ``w[k, n] = (q[k, n] - zero[g(k), n]) * scale[g(k), n]``, [in, out] as we have it. A word of
    codes holds eight rows in GPTQ and eight columns, in an order of its own, in AWQ; a word of
    zeros eight columns in both. The zeros of gptq, not of gptq_v2, are stored less one, taken from
    all eight of a word at once, so that a zero of 0 borrows from the next.

    Args:
        stem: Name without ``.qweight``.
        stored: Tensors of the folder.
        packing: How they are to be understood.
        dtype: Of the decoded matrix.

    Raises:
        ValueError: If the rows are ordered by activation (desc_act) across groups.
    """
    qweight, qzeros, scales = (
        stored[f"{stem}.{name}"].read() for name in ("qweight", "qzeros", "scales")
    )
    if packing.method == "gptq":
        rows = qweight.shape[0] * 8
        codes = _nibbles(qweight.T).T
        _check_order(stem, stored, rows, rows // scales.shape[0], packing.by_activation)
        # symmetric files of some writers say gptq and mean gptq_v2
        is_plain = packing.symmetric and bool((_nibbles(qzeros) == 8).all())
        shift = np.uint32(0 if is_plain else packing.zero_shift)
        zeros = _nibbles((qzeros.view(np.uint32) + shift).view(np.int32))
    else:
        zeros = _nibbles(qzeros)
        place = np.argsort(_AWQ_ORDER)
        codes, zeros = (
            x.reshape(len(x), -1, 8)[..., place].reshape(len(x), -1)
            for x in (_nibbles(qweight), zeros)
        )
    packed = np.asarray(pack(jnp.asarray(codes.astype(np.uint8)), -2))
    zeros = zeros.astype(np.int8)
    codes_, scales_, zeros_ = (cast(jax.Array, x) for x in (packed, np.asarray(scales), zeros))
    return Quantized(codes_, scales_, zeros_, None, "int4", codes.shape[0], -2, jnp.dtype(dtype))


def packed_shapes(
    stem: str, stored: Mapping[str, Tensor], packing: Packing, dtype: Any
) -> Quantized:
    """The shapes of what `read_packed` gives, from the headers alone."""
    scales = stored[f"{stem}.scales"].struct()
    shape = stored[f"{stem}.qweight"].shape
    rows = shape[0] * 8 if packing.method == "gptq" else shape[0]
    codes = jax.ShapeDtypeStruct((rows // 2, scales.shape[1]), jnp.uint8)
    zeros = jax.ShapeDtypeStruct(scales.shape, jnp.int8)
    kind = scales.dtype if dtype is None else jnp.dtype(dtype)
    codes_, scales_, zeros_ = (cast(jax.Array, x) for x in (codes, scales, zeros))
    return Quantized(codes_, scales_, zeros_, None, "int4", rows, -2, kind)


def _nibbles(words: np.ndarray) -> np.ndarray:
    """int32[a, b] to its eight nibbles, lowest first: int32[a, 8 b]."""
    shifts = np.arange(0, 32, 4, dtype=np.int32)
    return ((words[..., None] >> shifts) & 15).reshape(words.shape[0], -1)


def _check_order(
    stem: str, stored: Mapping[str, Tensor], rows: int, size: int, by_activation: bool
) -> None:
    tensor = stored.get(f"{stem}.g_idx")
    if tensor is None and by_activation:
        file = stored[f"{stem}.qweight"].file
        raise ValueError(
            f"{file}: desc_act is true and there is no {stem}.g_idx, which says the group of each "
            "row; without it the folder cannot be read."
        )
    if tensor is None:
        return
    order = tensor.read()
    if order.shape != (rows,) or not np.array_equal(order, np.arange(rows) // size):
        raise ValueError(
            f"{tensor.file}: the rows of {stem} are in groups by activation (desc_act, act-order; "
            f"{stem}.g_idx is not row // {size}), which is not read; use a folder made with "
            "desc_act=false, or the dense model."
        )
