"""The model below a run: how it is quantised, and how an adapter finds the same one again."""

import contextlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zojax import models, training
from zojax.quantization import is_weight
from zojax.training import Adapter
from zojax.virtual import is_virtual

Params = dict[str, Any]


class Base(NamedTuple):
    """How the matrices of a model are quantised while it is read.

    Attributes:
        format: as for `zojax.quantize`; None for as they are stored.
        group_size: entries that share a scale.
        embeddings: whether the token embedding and the output layer are quantised too.
        scores: file of scores that weigh a codebook, or None.
    """

    format: str | None = None
    group_size: int = 64
    embeddings: bool = False
    scores: Path | None = None


def load(folder: Path, dtype: str, base: Base, exclude: Any = None, observe: Any = None):
    """`models.load_params` with a base; `exclude` as in `zojax.quantize`."""
    kind = None if dtype == "stored" else jnp.dtype(dtype)
    weights = None
    if base.scores is not None:
        with on_host():
            dense = models.load_params(folder, kind)[2]
            weights = jax.tree.map(np.asarray, training.load_scores(base.scores, dense))
        del dense
    return models.load_params(
        folder,
        kind,
        base.format,
        group_size=base.group_size,
        where=with_embeddings if base.embeddings else None,
        exclude=exclude,
        weights=weights,
        observe=observe,
    )


def with_embeddings(path: str) -> bool:
    """Whether a path of a model is of a matrix, its token embedding or its output layer."""
    return is_weight(path) or path in ("embedding/embedding", "head/kernel")


def on_host() -> contextlib.AbstractContextManager:
    """New arrays in the host's memory, if JAX has it as a device."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return contextlib.nullcontext()


def is_quantised(params: Any) -> bool:
    """Whether some leaf is."""
    return any(map(is_virtual, _leaves(params)))


def count(params: Any) -> int:
    """Number of parameters, quantised ones included."""
    return sum(leaf.size for leaf in _leaves(params))


def nbytes(params: Any) -> int:
    """Bytes that the parameters take as they are."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))


def _leaves(params: Any) -> list[Any]:
    return jax.tree.leaves(params, is_leaf=is_virtual)


def read_adapter(path: Path) -> Adapter:
    """An adapter by its file, or by the output folder of its run."""
    return training.load_adapter(path / "adapter.safetensors" if path.is_dir() else path)


def base_of_adapter(adapter: Adapter, scores: Path | None) -> tuple[Base, str, Any]:
    """The base, the dtype and the excluded entries of the run that an adapter is of.

    Raises:
        ValueError: if the run's codebooks were weighed by scores and none are given.
    """
    manifest = adapter.metadata.get("manifest", {})
    name = manifest.get("base", "none")
    dtype = manifest.get("dtype", "stored")
    if name == "none":
        return Base(), dtype, None
    weighed = name == "codebook" and manifest.get("scores") is not None
    if weighed and scores is None:
        raise ValueError(
            f"the run's codebooks were weighed by the scores {manifest['scores']}; give the file "
            "with --scores"
        )
    index: Params = {}
    for path, parts in adapter.leaves.items():
        if "index" in parts:
            *parents, last = path.split("/")
            node = index
            for key in parents:
                node = node.setdefault(key, {})
            node[last] = parts["index"]
    embeddings = manifest["quantize_embeddings"]
    base = Base(name, manifest["group_size"], embeddings, scores if weighed else None)
    return base, dtype, index or None


def check_base(adapter: Adapter, params: Any, path: Path, model: Path) -> None:
    """Raise `ValueError` unless the parameters are those that an adapter was made on."""
    found, base = training.fingerprint(params), adapter.metadata.get("base")
    if base != found:
        raise ValueError(
            f"{path}: the adapter is of the model {base}, {model} is {found}; give the model it "
            "was made with, the scores of its codebooks if it had some, and a machine of the same "
            "kind if it is quantised"
        )
