"""Scores of entries as a file, tied to the model that they were found on."""

import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from zojax.trainables import path_name
from zojax.training.run_folder import fingerprint
from zojax.virtual import is_virtual

_KIND = "zojax_scores"


def save_scores(path: str | os.PathLike[str], scores: Any, params: Any) -> int:
    """Write scores as safetensors, whole or not at all.

    Args:
        path: file; replaced if it exists.
        scores: tree like `params`, None where a leaf has none, as `zojax.sensitivity` gives.
        params: the parameters that were scored; their fingerprint goes into the file.

    Returns:
        Its size in bytes.

    Raises:
        ValueError: if the scores are no tree like the parameters, or there is none.
    """
    path = Path(path)
    tensors = {}
    for (name, leaf), score in zip(*_paired(params, scores), strict=True):
        if score is None:
            continue
        if tuple(score.shape) != tuple(leaf.shape):
            raise ValueError(f"leaf {name} has shape {leaf.shape}, its score {score.shape}")
        array = np.asarray(score, np.float32)
        tensors[name] = np.ascontiguousarray(array).reshape(array.shape)
    if not tensors:
        raise ValueError(f"{path}: there is no score to save")
    partial = path.with_name(path.name + ".partial")
    try:
        save_file(tensors, partial, {_KIND: json.dumps({"fingerprint": fingerprint(params)})})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path.stat().st_size


def load_scores(path: str | os.PathLike[str], params: Any) -> Any:
    """Read scores of a model.

    Args:
        path: file written by `save_scores`.
        params: the parameters that were scored, in the same dtype and not yet quantised.

    Returns:
        Tree like `params` of float32 arrays, None for leaves without scores.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is truncated, no file of scores, or of another model.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of scores; save_scores writes one")
    names, structure = _named(params)
    try:
        with safe_open(path, framework="numpy") as file:
            about = (file.metadata() or {}).get(_KIND)
            if about is None:
                raise ValueError(f"{path}: not a file of scores; expected one of save_scores")
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: truncated or not safetensors ({error})") from error
    shapes = {name: tuple(leaf.shape) for name, leaf in names}
    for name, score in found.items():
        if shapes.get(name) != score.shape:
            raise ValueError(
                f"{path}: has scores of shape {score.shape} for leaf {name}, the parameters have "
                f"{shapes.get(name, 'no such leaf')}: the scores are of another model"
            )
    expected, here = json.loads(about)["fingerprint"], fingerprint(params)
    if expected != here:
        raise ValueError(
            f"{path}: the scores are of parameters with fingerprint {expected}, these have {here}: "
            "same shapes but other values or dtypes; load the model that was scored, or score this "
            "one"
        )
    leaves = [jnp.asarray(found[name]) if name in found else None for name, _ in names]
    return jax.tree.unflatten(structure, leaves)


def _named(params: Any) -> tuple[list[tuple[str, Any]], Any]:
    paths, structure = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_virtual)
    return [(path_name(path), leaf) for path, leaf in paths], structure


def _paired(params: Any, scores: Any) -> tuple[list[tuple[str, Any]], list]:
    names, structure = _named(params)
    try:
        return names, structure.flatten_up_to(scores)
    except ValueError as error:
        raise ValueError(f"the scores are no tree like the parameters: {error}") from error
