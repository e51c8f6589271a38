"""Import and export of local Hugging Face folders."""

import dataclasses
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from zojax.models._config_json import write_config
from zojax.models._folder import Bind, check_dtype, filled, open_model, quantised_by
from zojax.models._names import Entry, entries
from zojax.models._quantize import Observe, quantizer, same_shapes
from zojax.models._quantized_layout import describe, parts_of
from zojax.models._read import check, get, read_entry, stored_shape
from zojax.models._tensors import write_file
from zojax.models.config import ModelConfig
from zojax.models.decoder import Decoder
from zojax.models.encoder import Encoder
from zojax.virtual import is_virtual, materialize

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

    The weights are memory-mapped and copied leaf by leaf: the peak is the model and twice its
    largest leaf.

    Args:
        folder: Folder with ``config.json`` and ``model.safetensors``, or shards and their index.
            A quantised one is made dense; ``load_params`` keeps it as it is.
        dtype: Dtype of the parameters; None keeps the stored one.

    Returns:
        A ``Decoder`` or an ``Encoder``. The pooler and other heads of an encoder are dropped.

    Raises:
        FileNotFoundError: If the folder or a file in it is missing.
        ValueError: If the architecture is not supported, a file is damaged, or its tensors are not
            those of the config, or ``dtype`` is not floating.
    """
    _, bind, params = load_params(folder, dtype)
    return bind(materialize(params))


def load_params(
    folder: str | os.PathLike[str],
    dtype: Any = None,
    format: str | None = None,
    *,
    group_size: int = 64,
    where: Callable[[str], bool] | None = None,
    exclude: Any = None,
    weights: Any = None,
    observe: Observe | None = None,
) -> tuple[ModelConfig, Bind, dict[str, Any]]:
    """Load a model as a function and its parameters, dense or quantised.

    With a ``format`` every matrix is quantised as soon as it is read, one layer at a time, so the
    dense model is never held: the peak is the quantised model, twice its largest leaf and some
    copies of one layer's matrix. Folders that are quantised already are read as they are: ours,
    GPTQ's and AWQ's.

    Example:
        >>> config, bind, params = models.load_params("my-model", format="nf4")  # doctest: +SKIP
        >>> logits = zojax.virtualize(lambda p, x: bind(p)(x))(params, tokens)  # doctest: +SKIP

    Args:
        folder: As for ``load``.
        dtype: Dtype of the parameters, of quantised ones when decoded; None keeps the stored one.
        format: "int8", "int4", "nf4" or "codebook", as for ``zojax.quantize``; None for none.
        group_size: As for ``zojax.quantize``.
        where: Called with each path, such as ``layers/mlp/up/kernel``; what to quantise.
        exclude: Tree like the parameters, int32 positions that ``zojax.sensitive`` replaces: they
            count neither for a scale nor for a codebook. None elsewhere.
        weights: Tree like the parameters of scores, for codebooks; None elsewhere.
        observe: Called with the path, each dense matrix and what it became, for reports.

    Returns:
        The configuration; ``bind``, which gives a model with the parameters it is called with,
        inside of ``zojax.virtualize`` if they are quantised; and the parameters, as ``functional``
        gives them, with a ``VirtualArray`` over a ``Quantized`` for each quantised matrix.

    Raises:
        FileNotFoundError: As ``load``.
        ValueError: As ``load``; also if the folder is quantised in a layout that is not read, or
            is quantised already and ``format`` is given, if the group size divides not, or if
            ``exclude`` or ``weights`` are of another model.
    """
    folder = Path(folder)
    check_dtype(dtype)
    if format is not None and (method := quantised_by(folder)) is not None:
        raise ValueError(
            f"{folder} is quantised already ({method}); leave format={format!r} out, or give the "
            "dense model."
        )
    opened = open_model(folder)
    check(opened.source, opened.params, opened.plan)
    same_shapes("exclude", exclude, opened.params, 1)
    same_shapes("weights", weights, opened.params, 2)
    choose = quantizer(format, group_size, where, exclude, weights, observe)
    return filled(
        opened, lambda entry: read_entry(opened.source, entry, opened.params, dtype, choose)
    )


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
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    save_params(model.config, params, folder, source)  # pyright: ignore[reportArgumentType]


def save_params(
    config: ModelConfig,
    params: dict[str, Any],
    folder: str | os.PathLike[str],
    source: str | os.PathLike[str] | None = None,
) -> None:
    """Write parameters, quantised or dense, as a folder that ``load_params`` reads bit for bit.

    Dense parameters give a Hugging Face folder. Quantised ones are written in a layout of our own,
    which only zojax reads: ``a.b.codes``, ``.scales``, ``.zeros`` and ``.table`` for the parameter
    ``params["a"]["b"]``, ``.values`` and ``.index`` for replaced entries, and a
    ``quantization_config`` in ``config.json`` that describes them. Written whole or not at all, as
    by ``save``.

    Args:
        config: Shape of the model.
        params: As ``load_params`` gives them.
        folder: As for ``save``.
        source: As for ``save``.

    Raises:
        FileNotFoundError: As ``save``.
        FileExistsError: As ``save``.
        ValueError: If a parameter is a formula other than quantised weights.
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
        _write(config, params, written)
        for pattern in _COMPANIONS if source is not None else ():
            for file in Path(source or "").glob(pattern):
                if file.is_file():
                    shutil.copyfile(file, written / file.name)
        if folder.exists():
            for file in written.iterdir():
                os.replace(file, folder / file.name)
        else:
            os.rename(written, folder)


def _write(config: ModelConfig, params: dict[str, Any], folder: Path) -> None:
    dtype = params["embedding"]["embedding"].dtype.name
    content = write_config(dataclasses.replace(config, dtype=dtype))
    plan = entries(config.family, params)
    layers = config.num_layers
    layout: list[tuple[str, np.dtype, tuple[int, ...]]] = []
    makers: list[Callable[[], np.ndarray]] = []
    quantised: dict[str, Any] = {}

    def add(name: str, kind: Any, shape: tuple[int, ...], make: Callable[[], np.ndarray]) -> None:
        layout.append((name, np.dtype(kind), shape))
        makers.append(make)

    for entry in plan:
        leaves = [get(params, path) for path in entry.paths]
        if not any(map(is_virtual, leaves)):
            for i in range(layers if entry.stacked else 1):
                make = functools.partial(_tensor, leaves, i if entry.stacked else None, entry)
                add(entry.name.format(i), leaves[0].dtype, stored_shape(entry, params), make)
            continue
        for path, leaf in zip(entry.paths, leaves, strict=True):
            name = ".".join(path)
            if not is_virtual(leaf):
                raise ValueError(f"leaf {name} is dense and others of {entry.name} are quantised")
            quantised[name] = leaf
            for part, array in parts_of(name, leaf).items():
                add(f"{name}.{part}", array.dtype, array.shape, functools.partial(_same, array))
    if quantised:
        content["quantization_config"] = describe(quantised)
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n")
    # wide dtypes first keep all data aligned
    order = sorted(range(len(layout)), key=lambda i: -layout[i][1].itemsize)
    tensors: Iterator[np.ndarray] = (makers[i]() for i in order)
    write_file(folder / "model.safetensors", [layout[i] for i in order], tensors)


def _tensor(leaves: list[Any], layer: int | None, entry: Entry) -> np.ndarray:
    parts = [np.asarray(leaf) for leaf in leaves]
    ours = np.concatenate([p if layer is None else p[layer] for p in parts], axis=-1)
    return ours.T if entry.transposed else ours


def _same(array: np.ndarray) -> np.ndarray:
    return array
