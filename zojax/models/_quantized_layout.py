"""Our own folders of quantised models: which arrays are written, and how they are read."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zojax.models._tensors import Tensor
from zojax.quantization import Quantized
from zojax.quantization._formats import find_format
from zojax.virtual import Entries, VirtualArray

_METHOD, _VERSION = "zojax", 1
_DTYPES = {"zeros": ("I8",), "table": ("F32",), "index": ("I32",)}
_FLOATING = ("F32", "F16", "BF16")


def parts_of(name: str, leaf: VirtualArray) -> dict[str, np.ndarray]:
    """The arrays of a quantised leaf by the name of its part.

    Raises:
        ValueError: If the leaf is another formula.
    """
    base = leaf.base
    if not isinstance(base, Quantized) or base.views or leaf.terms:
        raise ValueError(
            f"leaf {name} is a formula other than quantised weights and replaced entries; make it "
            "dense with zojax.virtual.materialize before it is saved"
        )
    arrays = {n: getattr(base, n) for n in ("codes", "scales", "zeros", "table")}
    if leaf.entries is not None:
        arrays |= {"values": leaf.entries.values, "index": leaf.entries.index}
    return {n: np.asarray(x) for n, x in arrays.items() if x is not None}


def describe(leaves: Mapping[str, VirtualArray]) -> dict[str, Any]:
    """The ``quantization_config`` of quantised leaves by name."""
    tensors = {}
    for name, leaf in leaves.items():
        base: Any = leaf.base
        tensors[name] = {
            "format": base.format,
            "length": base.length,
            "group_size": base.group_size,
            "axis": base.axis,
            "dtype": jnp.dtype(base.decoded).name,
        }
    return {"quant_method": _METHOD, "version": _VERSION, "tensors": tensors}


def parse_layout(about: Mapping[str, Any], file: Path) -> dict[str, dict[str, Any]]:
    """The descriptions of quantised tensors by name.

    Raises:
        ValueError: If a newer version wrote them, or they are damaged.
    """
    if about.get("version") != _VERSION:
        raise ValueError(
            f"{file}: the quantised layout has version {about.get('version')!r}, this zojax reads "
            f"{_VERSION}; use the version that wrote it, or quantise the model again."
        )
    tensors = about.get("tensors")
    keys = {"format", "length", "group_size", "axis", "dtype"}
    if not isinstance(tensors, dict) or not all(keys <= set(t) for t in tensors.values()):
        raise ValueError(f"{file}: quantization_config lacks the descriptions of its tensors.")
    return tensors


def expected_shapes(
    about: Mapping[str, Any], shape: tuple[int, ...], has: set[str]
) -> dict[str, tuple[int, ...]]:
    """Part to the shape that it must have, of a tensor of a shape."""
    at, length = about["axis"] % len(shape), about["length"]

    def with_axis(n: int) -> tuple[int, ...]:
        return (*shape[:at], n, *shape[at + 1 :])

    if shape[at] != length:
        raise ValueError(f"has length {length} along axis {about['axis']} of {list(shape)}")
    groups = with_axis(length // about["group_size"])
    is_bytes = find_format(about["format"]).bits == 8
    found = {"codes": with_axis(length if is_bytes else -(-length // 2)), "scales": groups}
    if about["format"] == "codebook":
        found["table"] = with_axis(16)
    return found | ({"zeros": groups} if "zeros" in has else {})


def read_leaf(
    name: str,
    about: Mapping[str, Any],
    shape: tuple[int, ...],
    stored: Mapping[str, Tensor],
    file: Path,
    dtype: Any,
    read: Callable[[Tensor], Any],
) -> VirtualArray:
    """A quantised leaf, of arrays or of what else a function makes of their tensors.

    Raises:
        ValueError: If a part is missing, or of another shape or dtype.
    """
    pattern = re.compile(re.escape(name) + r"\.(codes|scales|zeros|table|values|index)$")
    parts = {m[1]: stored[m[0]] for m in map(pattern.match, stored) if m}
    try:
        shapes = expected_shapes(about, shape, set(parts))
    except ValueError as error:
        raise ValueError(f"{file}: {name} {error}; it is of another model.") from error
    for part, expected in shapes.items():
        tensor, dtypes = parts.get(part), _DTYPES.get(part, _FLOATING)
        if part == "codes":
            dtypes = ("I8",) if about["format"] == "int8" else ("U8",)
        if tensor is None:
            raise ValueError(f"{file.parent} lacks {name}.{part}, which its config.json promises.")
        if tensor.shape != expected or tensor.dtype not in dtypes:
            raise ValueError(
                f"{tensor.file}: {name}.{part} is {tensor.dtype}{list(tensor.shape)}; expected "
                f"{' or '.join(dtypes)}{list(expected)}."
            )
    arrays = {part: read(tensor) for part, tensor in parts.items()}
    base = Quantized(
        arrays["codes"],
        arrays["scales"],
        arrays.get("zeros"),
        arrays.get("table"),
        about["format"],
        about["length"],
        about["axis"],
        jnp.dtype(about["dtype"] if dtype is None else dtype),
    )
    entries = None
    if "values" in arrays:
        entries = Entries(arrays["values"], arrays["index"], shape)
    path = tuple(jax.tree_util.DictKey(key) for key in name.split("."))
    return VirtualArray(base, entries, name=jax.tree_util.keystr(path))
