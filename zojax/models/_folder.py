"""What a folder holds, before any of its tensors is read."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from zojax.models._config_file import parse_file, read_content
from zojax.models._names import Entry, entries
from zojax.models._packed import parse_packing
from zojax.models._quantized_layout import parse_layout
from zojax.models._read import Source, get
from zojax.models._tensors import modern_name, open_folder
from zojax.models.config import ModelConfig
from zojax.models.decoder import Decoder
from zojax.models.encoder import Encoder
from zojax.models.functional import abstract, functional

Bind = Callable[[dict[str, Any]], Decoder | Encoder]


class Opened(NamedTuple):
    """A folder whose headers have been read.

    Attributes:
        source: Its tensors.
        bind: As of ``functional``, for the dtype of the config.
        params: Shapes of the parameters that its config asks for.
        plan: Which tensors they come from.
    """

    source: Source
    bind: Bind
    params: dict[str, Any]
    plan: list[Entry]


def quantised_by(folder: Path) -> Any:
    """The ``quant_method`` of a folder, or what stands in its place; None if it is dense."""
    about = read_content(folder).get("quantization_config")
    return about.get("quant_method") if isinstance(about, dict) else about


def check_dtype(dtype: Any) -> None:
    """Raise ``ValueError`` unless a dtype is floating or None."""
    if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype {jnp.dtype(dtype).name} cannot hold weights; use a floating one.")


def open_model(folder: Path) -> Opened:
    """Read the config and the headers of a folder.

    Raises:
        FileNotFoundError: If there is no such folder or no weights in it.
        ValueError: If a file is damaged, or the folder is quantised in a layout that is not read.
    """
    file, content = folder / "config.json", read_content(folder)
    config = parse_file(file, content)
    about = content.get("quantization_config")
    stored = {modern_name(name): tensor for name, tensor in open_folder(folder).items()}
    if about is None:
        source = Source(folder, config, stored)
    elif not isinstance(about, dict):
        raise ValueError(f"{file}: quantization_config is no JSON object.")
    elif about.get("quant_method") == "zojax":
        source = Source(folder, config, stored, own=parse_layout(about, file))
    else:
        source = Source(folder, config, stored, packing=parse_packing(about, file))
    bind, params = functional(abstract(config))
    return Opened(source, bind, params, entries(config.family, params, stored))


def filled(opened: Opened, leaves: Callable[[Entry], Any]) -> tuple[ModelConfig, Bind, dict]:
    """Configuration, ``bind`` and parameters, of what a function yields for each entry."""
    config, bind, params = opened.source.config, opened.bind, opened.params
    for entry in opened.plan:
        for path, value in zip(entry.paths, leaves(entry), strict=True):
            get(params, path[:-1])[path[-1]] = value
    actual = params["embedding"]["embedding"].dtype.name
    if actual != config.dtype:
        config = dataclasses.replace(config, dtype=actual)
        bind, _ = functional(abstract(config))
    return config, bind, params
