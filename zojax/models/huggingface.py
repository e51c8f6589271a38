"""Import and export of local Hugging Face folders."""

import dataclasses
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zojax.models._config_json import parse_config, write_config
from zojax.models._names import Entry, entries, ignored
from zojax.models._tensors import Tensor, modern_name, open_folder, write_file
from zojax.models.config import ModelConfig
from zojax.models.decoder import Decoder
from zojax.models.encoder import Encoder
from zojax.models.functional import abstract

_COMPANIONS = (
    "tok*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "spiece.model",
    "generation_config.json",
)


def load(folder: str | os.PathLike[str], dtype: Any = None) -> Decoder | Encoder:
    """Load a model from a local Hugging Face folder.

    The weights are memory-mapped and copied tensor by tensor, so the model is held once.

    Args:
        folder: Folder with ``config.json`` and ``model.safetensors``, or shards and their index.
        dtype: Dtype of the parameters; None keeps the stored one.

    Returns:
        A ``Decoder`` or an ``Encoder``. The pooler and other heads of an encoder are dropped.

    Raises:
        FileNotFoundError: If the folder or a file in it is missing.
        ValueError: If the architecture is not supported, a file is damaged, or its tensors are not
            those of the config, or ``dtype`` is not floating.
    """
    folder = Path(folder)
    if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype {jnp.dtype(dtype).name} cannot hold weights; use a floating one.")
    config = _read_config(folder)
    stored = {modern_name(name): tensor for name, tensor in open_folder(folder).items()}
    graph, state = nnx.split(abstract(config))
    params = nnx.to_pure_dict(state)
    plan = entries(config.family, params, stored)
    _check(folder, config, params, plan, stored)
    for entry in plan:
        for path, value in zip(entry.paths, _read(entry, stored, config, dtype), strict=True):
            _get(params, path[:-1])[path[-1]] = value
    actual = params["embedding"]["embedding"].dtype.name
    if actual != config.dtype:
        graph = nnx.graphdef(abstract(dataclasses.replace(config, dtype=actual)))
    return nnx.merge(graph, params)


def save(
    model: Decoder | Encoder,
    folder: str | os.PathLike[str],
    source: str | os.PathLike[str] | None = None,
) -> None:
    """Write a model as a Hugging Face folder that ``load`` and transformers read.

    Everything is written to a temporary folder beside ``folder`` and then renamed. Files of the
    same name in an existing folder are replaced one by one; others stay.

    Args:
        model: The model; its parameters are written in their dtype, bit for bit.
        folder: Where to write ``config.json`` and ``model.safetensors``.
        source: Folder to copy the tokenizer and ``generation_config.json`` from.

    Raises:
        FileNotFoundError: If ``source`` is not a folder.
        FileExistsError: If ``folder`` is a file or holds a sharded model.
    """
    folder = Path(folder)
    if source is not None and not Path(source).is_dir():
        raise FileNotFoundError(f"The source of the tokenizer, {source}, is not a folder.")
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; choose another folder to save to.")
    if (folder / "model.safetensors.index.json").exists():
        raise FileExistsError(
            f"{folder} holds a sharded model, whose shards would stay; choose another folder."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as beside:
        written = Path(beside) / folder.name
        written.mkdir()
        _write(model, written)
        for pattern in _COMPANIONS if source is not None else ():
            for file in Path(source or "").glob(pattern):
                if file.is_file():
                    shutil.copyfile(file, written / file.name)
        if folder.exists():
            for file in written.iterdir():
                os.replace(file, folder / file.name)
        else:
            os.rename(written, folder)


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
    return _read_file(path) if path.is_file() else _read_config(path)


def _read_config(folder: Path) -> ModelConfig:
    file = folder / "config.json"
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder; models are loaded from local folders only."
        )
    if not file.exists():
        found = sorted(path.name for path in folder.iterdir())
        raise FileNotFoundError(f"{folder} has no config.json; found {found}.")
    return _read_file(file)


def _read_file(file: Path) -> ModelConfig:
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a JSON {type(content).__name__}; expected an object.")
    try:
        return parse_config(content)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _check(
    folder: Path,
    config: ModelConfig,
    params: Mapping[str, Any],
    plan: list[Entry],
    stored: Mapping[str, Tensor],
) -> None:
    expected: dict[str, tuple[int, ...]] = {}
    for entry in plan:
        shape = _stored_shape(entry, params)
        layers = config.num_layers if entry.stacked else 1
        expected |= {entry.name.format(i): shape for i in range(layers)}
    missing = [name for name in expected if name not in stored]
    if missing:
        hint = ""
        if missing == ["lm_head.weight"]:
            hint = " If the head is the token embedding, set tie_word_embeddings to true."
        raise ValueError(
            f"{folder} lacks {len(missing)} tensors that its config.json asks for: "
            f"{_some(missing)}.{hint}"
        )
    for name, shape in expected.items():
        tensor = stored[name]
        if tensor.shape != shape:
            hint = ""
            if name == plan[0].name and tensor.shape[1:] == shape[1:]:
                hint = f" config.json says vocab_size={config.vocab_size}; correct it."
            raise ValueError(
                f"{tensor.file}: {name} has shape {list(tensor.shape)}; config.json asks for "
                f"{list(shape)}.{hint}"
            )
        if not tensor.dtype.startswith(("F", "BF")):
            raise ValueError(
                f"{tensor.file}: {name} has dtype {tensor.dtype}; expected floating point. "
                "Quantised folders are not supported; save the model dequantised."
            )
    extra = [n for n in stored if n not in expected and not ignored(config.family, n)]
    if config.causal and config.tie_embeddings and "lm_head.weight" in extra:
        extra.remove("lm_head.weight")
        if not np.array_equal(stored["lm_head.weight"].read(), stored[plan[0].name].read()):
            raise ValueError(
                f"{folder}: config.json says that the head is the token embedding, but "
                f"lm_head.weight differs from {plan[0].name}; set tie_word_embeddings to false "
                "to use it, or remove it."
            )
    if extra:
        raise ValueError(
            f"{folder} holds {len(extra)} tensors that a {config.family} model with its "
            f"config.json (num_hidden_layers={config.num_layers}) does not have: {_some(extra)}. "
            "Correct the config or remove them."
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _get(params: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        params = params[key]
    return params


def _stored_shape(entry: Entry, params: Mapping[str, Any]) -> tuple[int, ...]:
    shapes = [_get(params, path).shape[entry.stacked :] for path in entry.paths]
    shape = (*shapes[0][:-1], sum(shape[-1] for shape in shapes))
    return shape[::-1] if entry.transposed else shape


def _read(
    entry: Entry, stored: Mapping[str, Tensor], config: ModelConfig, dtype: Any
) -> Iterator[jax.Array]:
    """Yield the parameters of an entry, one after the other, each filled layer by layer."""
    layers = config.num_layers if entry.stacked else 1
    tensors = [stored[entry.name.format(i)].read() for i in range(layers)]
    if dtype is None:
        kinds = {jax.dtypes.canonicalize_dtype(tensor.dtype) for tensor in tensors}
        dtype = functools.reduce(jnp.promote_types, kinds)
    target = jnp.dtype(dtype)
    for part in range(len(entry.paths)):
        pieces = [_piece(tensor, entry, part) for tensor in tensors]
        leaf = np.empty((layers, *pieces[0].shape), target)
        for i, piece in enumerate(pieces):
            leaf[i] = piece
        yield jnp.asarray(leaf if entry.stacked else leaf[0])


def _piece(tensor: np.ndarray, entry: Entry, part: int) -> np.ndarray:
    ours = tensor.T if entry.transposed else tensor
    # Fused parts are equally wide: GPT-2 has as many key heads as query heads.
    width = ours.shape[-1] // len(entry.paths)
    return ours[..., part * width : (part + 1) * width]


def _write(model: Decoder | Encoder, folder: Path) -> None:
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    dtype = params["embedding"]["embedding"].dtype.name
    content = write_config(dataclasses.replace(model.config, dtype=dtype))
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n")
    plan = entries(model.config.family, params)
    plan.sort(key=lambda entry: -_get(params, entry.paths[0]).dtype.itemsize)
    layers = model.config.num_layers

    def names(entry: Entry) -> list[str]:
        return [entry.name.format(i) for i in range(layers if entry.stacked else 1)]

    layout = [
        (name, np.dtype(_get(params, entry.paths[0]).dtype), _stored_shape(entry, params))
        for entry in plan
        for name in names(entry)
    ]

    def tensors() -> Iterator[np.ndarray]:
        for entry in plan:
            parts = [np.asarray(_get(params, path)) for path in entry.paths]
            for i in range(len(names(entry))):
                ours = np.concatenate([p[i] if entry.stacked else p for p in parts], axis=-1)
                yield ours.T if entry.transposed else ours

    write_file(folder / "model.safetensors", layout, tensors())
