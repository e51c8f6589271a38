"""Configuration and shapes of a local folder, without its weights."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from zojax.models._config_file import parse_file, read_content, read_file
from zojax.models._folder import Bind, check_dtype, filled, open_model, quantised_by
from zojax.models._read import check_shapes, entry_shapes
from zojax.models._tensors import has_weights
from zojax.models.config import ModelConfig
from zojax.models.functional import abstract, functional


def read_config(path: str | os.PathLike[str]) -> ModelConfig:
    """Read the configuration of a local model; its weights need not be there.

    Args:
        path: Folder with ``config.json``, or such a file.

    Returns:
        The configuration, with the dtype that it names.

    Raises:
        FileNotFoundError: If there is no such folder or file.
        ValueError: If it is damaged, or the architecture is not supported.
    """
    path = Path(path)
    if path.is_file():
        return parse_file(path, read_file(path))
    return parse_file(path / "config.json", read_content(path))


def abstract_params(
    folder: str | os.PathLike[str], dtype: Any = None
) -> tuple[ModelConfig, Bind, dict[str, Any]]:
    """The shapes of what ``load_params`` gives, for ``zojax.plan``; no weight is read.

    They come from ``config.json`` and the headers of the safetensors files; from the first alone if
    the folder has no weights and is not quantised. What only values show is not checked: the order
    of the rows of a GPTQ folder, and tensors that the config does not ask for.

    Args:
        folder: As for ``load_params``: dense, or quantised by zojax, GPTQ or AWQ.
        dtype: As for ``load_params``.

    Returns:
        As ``load_params``, with ``jax.ShapeDtypeStruct`` for arrays.

    Raises:
        FileNotFoundError: As ``load_params``.
        ValueError: As ``load_params``.
    """
    folder = Path(folder)
    check_dtype(dtype)
    if quantised_by(folder) is None and not has_weights(folder):
        config = read_config(folder)
        if dtype is not None:
            config = dataclasses.replace(config, dtype=jnp.dtype(dtype).name)
        return config, *functional(abstract(config))
    opened = open_model(folder)
    check_shapes(opened.source, opened.params, opened.plan)
    return filled(opened, lambda entry: entry_shapes(opened.source, entry, opened.params, dtype))
