"""Reading and writing of safetensors files, memory-mapped and tensor by tensor.

The format: eight bytes of header length, a JSON header of dtypes, shapes and byte ranges, data.
Reference: https://github.com/huggingface/safetensors
"""

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_WEIGHTS = "model.safetensors"
_INDEX = f"{_WEIGHTS}.index.json"


class Tensor(NamedTuple):
    """Where a tensor lies: its file, dtype name, shape and first byte."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def read(self) -> np.ndarray:
        """Map the tensor into memory, read-only.

        Raises:
            ValueError: If the dtype is not one that can be read.
        """
        if self.dtype not in _DTYPES:
            raise ValueError(
                f"{self.file} holds a tensor of dtype {self.dtype}, which is not supported; "
                f"convert it to one of {sorted(_DTYPES)}."
            )
        if 0 in self.shape:
            return np.zeros(self.shape, _DTYPES[self.dtype])
        return np.memmap(self.file, _DTYPES[self.dtype], "r", self.offset, self.shape)

    def struct(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype, as JAX would hold it; nothing is read."""
        dtype = jax.dtypes.canonicalize_dtype(_DTYPES[self.dtype])
        return jax.ShapeDtypeStruct(self.shape, dtype)


def has_weights(folder: Path) -> bool:
    """Whether there is a file of weights, or an index of shards, for `open_folder`."""
    return any((folder / name).exists() for name in (_WEIGHTS, _INDEX))


def open_folder(folder: Path) -> dict[str, Tensor]:
    """Find all tensors of a model folder, in one file or in shards.

    Args:
        folder: Folder with ``model.safetensors`` or ``model.safetensors.index.json``.

    Returns:
        Tensors by name.

    Raises:
        FileNotFoundError: If there is neither file, or a shard is missing.
        ValueError: If a file is damaged, or a shard lacks a tensor of the index.
    """
    index = folder / _INDEX
    if (folder / _WEIGHTS).exists():
        return open_file(folder / _WEIGHTS)
    if not index.exists():
        found = sorted(path.name for path in folder.iterdir())
        raise FileNotFoundError(
            f"{folder} has no {_WEIGHTS} and no {index.name}; found {found}. Convert other weight "
            "formats to safetensors first."
        )
    try:
        shards: dict[str, str] = json.loads(index.read_text())["weight_map"]
        names = sorted(set(shards.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{index} is not a safetensors index with a 'weight_map'; download it again."
        ) from error
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise FileNotFoundError(
            f"{index} lists {len(names)} shards, of which {missing} are not in the folder; "
            "download them."
        )
    tensors: dict[str, Tensor] = {}
    for name in names:
        tensors |= open_file(folder / name)
    for name, file in shards.items():
        if name not in tensors:
            raise ValueError(f"{index} promises {name!r} in {file}, which does not hold it.")
    return tensors


def open_file(file: Path) -> dict[str, Tensor]:
    """Read the header of a safetensors file.

    Args:
        file: The file.

    Returns:
        Tensors by name.

    Raises:
        ValueError: If the file is truncated or not a safetensors file.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = int.from_bytes(start, "little")
        if start.startswith(b"version"):
            raise ValueError(f"{file} is a Git LFS pointer, not the weights; run `git lfs pull`.")
        foreign = f"{file} is not a safetensors file, or is damaged: "
        if len(start) < 8:
            raise ValueError(f"{foreign}it has {size} bytes, fewer than a header has.")
        if length > size - 8:
            raise ValueError(
                f"{foreign}it announces a header of {length} bytes and has {size} bytes in all; "
                "download it again."
            )
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            tensors = {name: _entry(file, 8 + length, entry) for name, entry in header.items()}
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"{foreign}its header is unreadable ({error}).") from error
    if 8 + length + end != size:
        raise ValueError(
            f"{file} is truncated or damaged: its header announces {8 + length + end} bytes and "
            f"the file has {size}; download it again."
        )
    return tensors


def _entry(file: Path, start: int, entry: Mapping[str, Any]) -> Tensor:
    name, shape = entry["dtype"], tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if name in _DTYPES and math.prod(shape) * _DTYPES[name].itemsize != end - begin:
        raise ValueError(f"{end - begin} bytes for a tensor {name}{list(shape)}")
    return Tensor(file, name, shape, start + begin)


def write_file(
    file: Path,
    layout: Iterable[tuple[str, np.dtype, tuple[int, ...]]],
    tensors: Iterator[np.ndarray],
) -> None:
    """Write a safetensors file without holding all tensors at once.

    Args:
        file: The file.
        layout: Name, dtype and shape of every tensor; wide dtypes first keep all data aligned.
        tensors: The tensors, in that order.

    Raises:
        ValueError: If a dtype cannot be written.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, dtype, shape in layout:
        if dtype not in _NAMES:
            raise ValueError(f"{name} has dtype {dtype}, which a safetensors file cannot hold.")
        end = offset + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little"))
        stream.write(text)
        for tensor in tensors:
            # Through bytes: the dtypes of ml_dtypes have no buffer protocol.
            stream.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
        stream.flush()
        os.fsync(stream.fileno())


def modern_name(name: str) -> str:
    """Rename ``LayerNorm.gamma`` and ``.beta``, as in the oldest BERT files, to weight and bias."""
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
