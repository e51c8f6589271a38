"""The adapter: what a run changed, as one small file that loads over the base model."""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from zojax.quantization import Quantized
from zojax.trainables import Split, path_name
from zojax.virtual import Entries, LowRank, VirtualArray, is_virtual

_PARTS = ("dense", "values", "index", "left", "right", "scale", "scales", "table")


class Adapter(NamedTuple):
    """Changed leaves by path.

    Attributes:
        leaves: path to its parts: {"dense"}, or any of {"values", "index"} (replaced entries),
            {"left", "right", "scale"} (a low-rank term), {"scales"} and {"table"} (of a quantised
            base).
        metadata: what the file says of itself.
    """

    leaves: Mapping[str, Mapping[str, np.ndarray]]
    metadata: Mapping[str, Any]


def make_adapter(split: Split, trainable: Any, metadata: Mapping[str, Any]) -> Adapter:
    """What distinguishes the merged parameters from the frozen ones.

    Args:
        split: of the run.
        trainable: its trainables, trained.
        metadata: JSON-serialisable.

    Returns:
        An `Adapter` with only the leaves that moved.

    Raises:
        ValueError: if a leaf changed in another way than an adapter can hold, as by `blocks`.
    """
    fixed = {id(x) for x in jax.tree.leaves(split.frozen)}
    merged = split.merge(trainable, split.frozen)
    leaves = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(merged, is_leaf=is_virtual)[0]:
        parts: dict[str, Any] = {}
        if not is_virtual(leaf):
            if id(leaf) not in fixed:
                parts["dense"] = leaf
        else:
            parts = _parts(leaf, fixed)
            held = fixed | {id(x) for x in parts.values()}
            if any(id(x) not in held for x in jax.tree.leaves(leaf)):
                raise ValueError(
                    f"leaf {path_name(path)} is a formula that an adapter cannot hold; save the "
                    "whole model"
                )
        if parts:
            leaves[path_name(path)] = {name: np.asarray(part) for name, part in parts.items()}
    return Adapter(leaves, dict(metadata))


def _parts(leaf: VirtualArray, fixed: set[int]) -> dict[str, Any]:
    parts = {}
    if isinstance(leaf.base, Quantized):
        found = {"scales": leaf.base.scales, "table": leaf.base.table}
        parts = {name: x for name, x in found.items() if x is not None and id(x) not in fixed}
    if leaf.entries is not None and id(leaf.entries.values) not in fixed:
        parts |= {"values": leaf.entries.values, "index": leaf.entries.index}
    for term in leaf.terms:
        if isinstance(term, LowRank):
            parts |= {"left": term.left, "right": term.right, "scale": term.scale}
    return parts


def save_adapter(adapter: Adapter, path: str | os.PathLike[str]) -> int:
    """Write an adapter as safetensors, whole or not at all.

    Args:
        adapter: of `make_adapter`.
        path: file; replaced if it exists.

    Returns:
        Its size in bytes.
    """
    path = Path(path)
    tensors = {
        f"{leaf}:{part}": np.ascontiguousarray(array).reshape(array.shape)
        for leaf, parts in adapter.leaves.items()
        for part, array in parts.items()
    }
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, metadata={"zojax": json.dumps(dict(adapter.metadata))})
    os.replace(partial, path)
    return path.stat().st_size


def load_adapter(path: str | os.PathLike[str]) -> Adapter:
    """Read an adapter.

    Args:
        path: file written by `save_adapter`.

    Returns:
        The `Adapter`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is truncated, or no adapter.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no adapter; a run writes adapter.safetensors")
    leaves: dict[str, dict[str, np.ndarray]] = {}
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = (file.metadata() or {}).get("zojax")
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                leaf, _, part = name.rpartition(":")
                if metadata is None or part not in _PARTS:
                    raise ValueError(f"{path}: tensor {name!r} is not of a zojax adapter")
                leaves.setdefault(leaf, {})[part] = file.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(f"{path}: truncated or not safetensors ({error})") from error
    if metadata is None:
        raise ValueError(f"{path}: no zojax metadata; expected a file of save_adapter")
    return Adapter(leaves, json.loads(metadata))


def apply_adapter(params: Any, adapter: Adapter) -> Any:
    """The base parameters with an adapter on top.

    Args:
        params: base parameters, quantised ones included.
        adapter: of a run on the same base.

    Returns:
        Tree like `params`; leaves may be virtual arrays, so wrap the function in
        `zojax.virtualize`, or make them dense with `zojax.virtual.materialize`.

    Raises:
        ValueError: if the adapter has a leaf that the parameters lack, or of another shape.
    """
    paths, tree = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_virtual)
    names = [path_name(path) for path, _ in paths]
    unknown = sorted(set(adapter.leaves) - set(names))
    if unknown:
        raise ValueError(
            f"the adapter has leaf {unknown[0]}, which the parameters lack: it is of another model"
        )
    leaves = []
    for name, (_, leaf) in zip(names, paths, strict=True):
        parts = {k: jnp.asarray(v) for k, v in adapter.leaves.get(name, {}).items()}
        leaves.append(_with_parts(name, leaf, parts) if parts else leaf)
    return jax.tree.unflatten(tree, leaves)


def _with_parts(name: str, leaf, parts: dict[str, jax.Array]):
    if "dense" in parts:
        if parts["dense"].shape != leaf.shape:
            raise ValueError(
                f"leaf {name} has shape {leaf.shape}, the adapter's has {parts['dense'].shape}"
            )
        return parts["dense"].astype(leaf.dtype)
    leaf = leaf if is_virtual(leaf) else VirtualArray(leaf, name=name)
    if "scales" in parts or "table" in parts:
        if not isinstance(leaf.base, Quantized):
            raise ValueError(
                f"leaf {name} is dense, the adapter has scales or levels of a quantised one: "
                "quantise the model as the run did"
            )
        try:
            base = leaf.base.with_scales(parts.get("scales", leaf.base.scales))
            base = base.with_table(parts["table"]) if "table" in parts else base
        except ValueError as error:
            raise ValueError(f"leaf {name} does not fit the adapter: {error}") from error
        leaf = replace(leaf, base=base)
    if "values" in parts:
        if parts["values"].shape[:-1] != leaf.shape[: parts["values"].ndim - 1]:
            raise ValueError(f"leaf {name} of shape {leaf.shape} does not fit the adapter's stack")
        leaf = replace(leaf, entries=Entries(parts["values"], parts["index"], leaf.shape))
    if "left" in parts:
        leaf = leaf.plus(LowRank(parts["left"], parts["right"], parts["scale"], leaf.shape))
    return leaf
