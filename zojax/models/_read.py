"""From the tensors of a folder to parameters, one leaf at a time."""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zojax.models._names import Entry, ignored
from zojax.models._packed import Packing, expected_tensors, packed_shapes, read_packed
from zojax.models._quantized_layout import read_leaf
from zojax.models._tensors import Tensor
from zojax.models.config import ModelConfig
from zojax.quantization import Quantized
from zojax.virtual import VirtualArray

# `(path, dense layer or None) -> Quantized or None`: what a matrix is to become
Quantize = Callable[[str, int, jax.Array], Quantized]


@dataclass(frozen=True)
class Source:
    """The tensors of a folder and what they are.

    Attributes:
        folder: For messages.
        config: Of the model.
        stored: Tensors by name.
        packing: Of the tensors ``X.qweight`` and so on, if there are any.
        own: Descriptions of the tensors of our own quantised layout, by name.
    """

    folder: Path
    config: ModelConfig
    stored: Mapping[str, Tensor]
    packing: Packing | None = None
    own: Mapping[str, dict[str, Any]] = field(default_factory=dict)

    def names(self, entry: Entry) -> list[str]:
        """The names of an entry's tensors, one a layer."""
        layers = self.config.num_layers if entry.stacked else 1
        return [entry.name.format(i) for i in range(layers)]

    def is_packed(self, entry: Entry) -> bool:
        """Whether an entry is packed in 4 bits by someone else."""
        return self.packing is not None and f"{stem(self.names(entry)[0])}.qweight" in self.stored

    def is_own(self, entry: Entry) -> bool:
        """Whether an entry is quantised in our layout."""
        return ".".join(entry.paths[0]) in self.own


def stem(name: str) -> str:
    """The name of a module from that of its weight."""
    return name.removesuffix(".weight")


def get(tree: Any, path: tuple[str, ...]) -> Any:
    """A leaf of a nested dict; None where it or a branch is missing."""
    for key in path:
        tree = None if tree is None else tree.get(key)
    return tree


def stored_shape(entry: Entry, params: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape of an entry's tensor in a file."""
    shapes = [get(params, path).shape[entry.stacked :] for path in entry.paths]
    shape = (*shapes[0][:-1], sum(shape[-1] for shape in shapes))
    return shape[::-1] if entry.transposed else shape


def check(source: Source, params: Mapping[str, Any], plan: list[Entry]) -> None:
    """Raise ``ValueError`` unless the tensors are those that the config asks for, and no others."""
    _check_extra(source, plan, *check_shapes(source, params, plan))


def check_shapes(
    source: Source, params: Mapping[str, Any], plan: list[Entry]
) -> tuple[set[str], set[str]]:
    """The names of the tensors that the config asks for, and the leaves in our own layout.

    Raises:
        ValueError: If one is missing or of another shape or dtype, by the headers.
    """
    folder, config, stored = source.folder, source.config, source.stored
    expected: dict[str, tuple[int, ...]] = {}
    packed: dict[str, tuple[int, ...]] = {}
    own: set[str] = set()
    for entry in plan:
        if source.is_own(entry):
            own |= {".".join(path) for path in entry.paths}
        elif source.is_packed(entry):
            packed |= _packed_tensors(source, entry, params)
        else:
            expected |= dict.fromkeys(source.names(entry), stored_shape(entry, params))
    missing = [name for name in (*expected, *packed) if name not in stored]
    if missing:
        hint = ""
        if missing == ["lm_head.weight"]:
            hint = " If the head is the token embedding, set tie_word_embeddings to true."
        raise ValueError(
            f"{folder} lacks {len(missing)} tensors that its config.json asks for: "
            f"{some(missing)}.{hint}"
        )
    for name, shape in (expected | packed).items():
        tensor, is_packed = stored[name], name in packed
        if tensor.shape != shape:
            hint = ""
            if name == plan[0].name and tensor.shape[1:] == shape[1:]:
                hint = f" config.json says vocab_size={config.vocab_size}; correct it."
            raise ValueError(
                f"{tensor.file}: {name} has shape {list(tensor.shape)}; config.json asks for "
                f"{list(shape)}.{hint}"
            )
        if is_packed and not name.endswith(".scales"):
            if tensor.dtype != "I32":
                raise ValueError(f"{tensor.file}: {name} has dtype {tensor.dtype}; expected I32.")
        elif not tensor.dtype.startswith(("F", "BF")):
            raise ValueError(
                f"{tensor.file}: {name} has dtype {tensor.dtype}; expected floating point. "
                "Without a quantization_config that says how, quantised tensors cannot be read."
            )
    return {*expected, *packed}, own


def _packed_tensors(source: Source, entry: Entry, params) -> dict[str, tuple[int, ...]]:
    assert source.packing is not None
    if len(entry.paths) > 1 or not entry.transposed:
        raise ValueError(
            f"{source.folder}: {entry.name} is packed; of a {source.config.family} model such "
            "tensors are not read. Use the dense model and quantise it with zojax."
        )
    columns, rows = stored_shape(entry, params)
    found = {}
    for name in source.names(entry):
        try:
            found |= expected_tensors(stem(name), rows, columns, source.packing)
        except ValueError as error:
            raise ValueError(f"{source.folder}: {error}") from error
    return found


def _check_extra(source: Source, plan: list[Entry], expected: set[str], own: set[str]) -> None:
    folder, config, stored = source.folder, source.config, source.stored
    extra = [n for n in stored if n not in expected and not ignored(config.family, n)]
    extra = [n for n in extra if n.rpartition(".")[0] not in own]
    if source.packing is not None:
        # some writers give every packed module the order of its rows and a bias of zeros
        modules = {n.removesuffix(".qweight") for n in expected if n.endswith(".qweight")}
        extra = [
            n
            for n in extra
            if n.rpartition(".")[0] not in modules
            or not (n.endswith(".g_idx") or (n.endswith(".bias") and not stored[n].read().any()))
        ]
    if config.causal and config.tie_embeddings and "lm_head.weight" in extra:
        extra.remove("lm_head.weight")
        table = stored.get(plan[0].name)
        if table is None or not np.array_equal(stored["lm_head.weight"].read(), table.read()):
            raise ValueError(
                f"{folder}: config.json says that the head is the token embedding, but "
                f"lm_head.weight differs from {plan[0].name}; set tie_word_embeddings to false "
                "to use it, or remove it."
            )
    if extra:
        raise ValueError(
            f"{folder} holds {len(extra)} tensors that a {config.family} model with its "
            f"config.json (num_hidden_layers={config.num_layers}) does not have: {some(extra)}. "
            "Correct the config or remove them."
        )


def some(names: list[str]) -> str:
    """The first names of a list."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def read_entry(
    source: Source,
    entry: Entry,
    params: Mapping[str, Any],
    dtype: Any,
    quantize: Callable[[str, tuple[int, ...]], Quantize | None],
) -> Iterator[Any]:
    """Yield the parameters of an entry, one after the other, each filled layer by layer.

    Args:
        source: The folder.
        entry: Which parameters.
        params: Their shapes.
        dtype: Of the parameters; None keeps the stored one.
        quantize: Of the path and shape of a dense parameter, a function of the path, the layer and
            the layer's matrix that gives it quantised; or None to keep it dense.
    """
    names = source.names(entry)
    if source.is_own(entry):
        yield from _own(source, entry, params, dtype, lambda tensor: jnp.asarray(tensor.read()))
        return
    if source.is_packed(entry):
        assert source.packing is not None
        kind = source.stored[f"{stem(names[0])}.scales"].read().dtype if dtype is None else dtype
        parts = [read_packed(stem(name), source.stored, source.packing, kind) for name in names]
        yield _stack(entry.paths[0], entry.stacked, parts)
        return
    tensors = [source.stored[name].read() for name in names]
    target = _dtype([source.stored[name] for name in names], dtype)
    for part, path in enumerate(entry.paths):
        pieces = [_piece(tensor, entry, part) for tensor in tensors]
        small = quantize("/".join(path), get(params, path).shape)
        if small is None:
            leaf = np.empty((len(names), *pieces[0].shape), target)
            for i, piece in enumerate(pieces):
                leaf[i] = piece
            # or the copies of several leaves would be under way at once
            yield jax.block_until_ready(jnp.asarray(leaf if entry.stacked else leaf[0]))
            continue
        parts = []
        for i, piece in enumerate(pieces):
            made = small("/".join(path), i, jnp.asarray(np.asarray(piece, target)))
            parts.append(jax.tree.map(np.asarray, made))
        yield _stack(path, entry.stacked, parts)


def entry_shapes(
    source: Source, entry: Entry, params: Mapping[str, Any], dtype: Any
) -> Iterator[Any]:
    """Yield what `read_entry` does without quantising, as shapes and from the headers alone."""
    tensors = [source.stored[name] for name in source.names(entry) if name in source.stored]
    if source.is_own(entry):
        yield from _own(source, entry, params, dtype, Tensor.struct)
    elif source.is_packed(entry):
        assert source.packing is not None
        stems = [stem(name) for name in source.names(entry)]
        layers = (len(stems),) if entry.stacked else ()
        base = packed_shapes(stems[0], source.stored, source.packing, dtype)
        yield VirtualArray(
            jax.tree.map(lambda x: jax.ShapeDtypeStruct((*layers, *x.shape), x.dtype), base),
            name=_keystr(entry.paths[0]),
        )
    else:
        for path in entry.paths:
            yield jax.ShapeDtypeStruct(get(params, path).shape, _dtype(tensors, dtype))


def _own(source: Source, entry: Entry, params, dtype, read) -> Iterator[VirtualArray]:
    for path in entry.paths:
        name, file = ".".join(path), source.folder / "config.json"
        if name not in source.own:
            raise ValueError(f"{file}: {name} is dense beside quantised parts of one tensor.")
        shape = get(params, path).shape
        yield read_leaf(name, source.own[name], shape, source.stored, file, dtype, read)


def _dtype(tensors: list[Tensor], dtype: Any) -> np.dtype:
    """The one asked for, or the smallest that holds all tensors of a stack."""
    if dtype is not None:
        return jnp.dtype(dtype)
    return functools.reduce(jnp.promote_types, {tensor.struct().dtype for tensor in tensors})


def _keystr(path: tuple[str, ...]) -> str:
    return jax.tree_util.keystr(tuple(jax.tree_util.DictKey(key) for key in path))


def _stack(path: tuple[str, ...], stacked: bool, parts: list[Quantized]) -> VirtualArray:
    if stacked:
        base = jax.tree.map(lambda *layers: jnp.asarray(np.stack(layers)), *parts)
    else:
        base = jax.tree.map(jnp.asarray, parts[0])
    return VirtualArray(base, name=_keystr(path))


def _piece(tensor: np.ndarray, entry: Entry, part: int) -> np.ndarray:
    ours = tensor.T if entry.transposed else tensor
    # Fused parts are equally wide: GPT-2 has as many key heads as query heads.
    width = ours.shape[-1] // len(entry.paths)
    return ours[..., part * width : (part + 1) * width]
