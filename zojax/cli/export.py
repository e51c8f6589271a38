"""The command `export`, as a function of its configuration."""

from dataclasses import fields
from typing import Any

import jax

from zojax import models
from zojax.cli import base, build
from zojax.cli.config import Export, TaskConfig
from zojax.cli.quantize import check_output
from zojax.quantization import Quantized
from zojax.virtual import is_virtual


def export(config: Export) -> dict[str, Any]:
    """Write the model that a run came to.

    Args:
        config: which run, and where to.

    Returns:
        {"bytes", "adapter_bytes", "head", "out"}; "head" says whether a head of an
        encoder was left out, which no such folder has a place for.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: on bad input; nothing is half-written.
    """
    check_output(config.out)
    adapter = base.read_adapter(config.run)
    settings = adapter.metadata.get("manifest", {}).get("task")
    if settings is None:
        raise ValueError(f"{config.run}: the adapter does not say of which task it is")
    known = {field.name for field in fields(TaskConfig)}
    task = TaskConfig(**{k: _plain(v) for k, v in settings.items() if k in known})
    template = build.template_of(task)
    loaded, params, _ = build.load_tuned(config.model, config.run, task, template, config.scores)
    if loaded.is_encoder:
        params = params["encoder"]
    if config.quantized and not base.is_quantised(loaded.params):
        raise ValueError("the run's base is dense: leave quantized out")
    params = jax.tree.map(
        lambda leaf: _exported(leaf, config.quantized), params, is_leaf=is_virtual
    )
    models.save_params(models.read_config(config.model), params, config.out, config.model)
    file = config.run / "adapter.safetensors" if config.run.is_dir() else config.run
    return {
        "bytes": (config.out / "model.safetensors").stat().st_size,
        "adapter_bytes": file.stat().st_size,
        "head": "left out, it is in the adapter" if loaded.is_encoder else "written",
        "out": str(config.out),
    }


def _exported(leaf: Any, quantized: bool) -> Any:
    if not is_virtual(leaf):
        return leaf
    if not quantized or not isinstance(leaf.base, Quantized):
        return leaf.materialize()
    if leaf.terms:
        raise ValueError(
            f"leaf {leaf.name} has a low-rank term, which no quantised folder can hold: leave "
            "quantized out, or keep base and adapter"
        )
    return leaf


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
