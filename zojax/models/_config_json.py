"""Reading and writing of a Hugging Face ``config.json``."""

from collections.abc import Mapping
from typing import Any

from zojax.models._families import family
from zojax.models._rope import parse_rope, write_rope
from zojax.models.config import ModelConfig


def parse_config(config: Mapping[str, Any]) -> ModelConfig:
    """Read a Hugging Face ``config.json``, in the spelling of transformers 4 or 5.

    Args:
        config: The parsed file.

    Returns:
        The same model as a ``ModelConfig``.

    Raises:
        ValueError: If the architecture, or a variant of it, is not supported, or a key is missing.
    """
    if "model_type" not in config:
        raise ValueError(
            "The config has no 'model_type'; expected a Hugging Face config.json, found the keys "
            f"{sorted(config)}."
        )
    name = config["model_type"]
    table = family(name)
    for key, supported in table.only.items():
        # A missing key or null means the default, which is the supported value.
        if config.get(key, supported) not in (supported, None):
            raise ValueError(
                f"{name} with {key}={config[key]!r} is not supported, only {key}={supported!r}."
            )
    fields: dict[str, Any] = dict(table.fixed)
    for field, key in table.keys.items():
        if key not in config and key not in table.defaults:
            raise ValueError(f"The config of a {name} model has no {key!r}; add it to config.json.")
        fields[field] = config.get(key, table.defaults.get(key))
    _derive_sizes(fields)
    if isinstance(fields["eos_token_id"], list):
        fields["eos_token_id"] = tuple(fields["eos_token_id"])
    if fields.get("rotary", True):
        fields["rope_theta"], fields["rope_scaling"] = parse_rope(config)
    fields["dtype"] = config.get("dtype") or config.get("torch_dtype") or "float32"
    _ADJUST.get(name, lambda config, fields: None)(config, fields)
    return ModelConfig(family=name, **fields)


def _derive_sizes(fields: dict[str, Any]) -> None:
    """Fill in the sizes that a config.json may leave to others."""
    hidden, heads = fields["hidden_size"], fields["num_heads"]
    if fields.get("num_kv_heads") is None:
        fields["num_kv_heads"] = heads
    if fields.get("head_dim") is None:
        if hidden % heads:
            raise ValueError(
                f"hidden_size {hidden} is not a multiple of the {heads} attention heads, and the "
                "config has no head_dim."
            )
        fields["head_dim"] = hidden // heads
    if fields["intermediate_size"] is None:
        fields["intermediate_size"] = 4 * hidden


def _adjust_gemma(config: Mapping[str, Any], fields: dict[str, Any]) -> None:
    fields["embedding_scale"] = fields["hidden_size"] ** 0.5
    # The first releases say "gelu" and were trained with its tanh approximation.
    if fields["activation"] == "gelu":
        fields["activation"] = "gelu_pytorch_tanh"
    fields["activation"] = config.get("hidden_activation") or fields["activation"]


def _adjust_opt(config: Mapping[str, Any], fields: dict[str, Any]) -> None:
    removed = config.get("_remove_final_layer_norm", False)
    fields["final_norm"] = fields["norm_first"] and not removed
    if fields["embedding_size"] == fields["hidden_size"]:
        fields["embedding_size"] = None


def _adjust_roberta(config: Mapping[str, Any], fields: dict[str, Any]) -> None:
    if not isinstance(fields["pad_token_id"], int):
        raise ValueError("A roberta model needs a pad_token_id; its positions start after it.")
    fields["position_offset"] = fields["pad_token_id"] + 1
    fields["max_positions"] -= fields["position_offset"]


def _adjust_qwen(config: Mapping[str, Any], fields: dict[str, Any]) -> None:
    if not config.get("use_sliding_window", False):
        return
    fields["sliding_window"] = config.get("sliding_window", 4096)
    layers = fields["num_layers"]
    first = min(config.get("max_window_layers", 28), layers)
    types = config.get("layer_types")
    if types is not None:
        first = types.index("sliding_attention") if "sliding_attention" in types else layers
        expected = ["full_attention"] * first + ["sliding_attention"] * (layers - first)
        if types != expected:
            raise ValueError(
                f"layer_types {types} is not supported: only full attention in the first layers "
                f"and sliding attention in all later ones, {layers} in all."
            )
    fields["first_window_layer"] = first


_ADJUST = {
    "gemma": _adjust_gemma,
    "opt": _adjust_opt,
    "roberta": _adjust_roberta,
    "qwen2": _adjust_qwen,
    "qwen3": _adjust_qwen,
}


def write_config(config: ModelConfig) -> dict[str, Any]:
    """Write a ``config.json`` that transformers 4 and 5 and ``parse_config`` read.

    Args:
        config: A configuration.

    Returns:
        The content of the file. Keys that do not change the forward pass, such as dropout rates,
        are left to the defaults of the architecture.
    """
    table = family(config.family)
    written: dict[str, Any] = {"model_type": config.family, "architectures": [table.architecture]}
    written |= table.only
    for field, key in table.keys.items():
        value = getattr(config, field)
        written[key] = list(value) if isinstance(value, tuple) else value
    if config.rotary:
        written |= write_rope(config.rope_theta, config.rope_scaling)
    if config.family == "roberta":
        written["max_position_embeddings"] += config.position_offset
    elif config.family == "opt":
        written["word_embed_proj_dim"] = config.embedding_size or config.hidden_size
        written["_remove_final_layer_norm"] = config.norm_first and not config.final_norm
    elif config.family == "gemma":
        written["hidden_activation"] = config.activation
    elif config.family in ("qwen2", "qwen3") and config.sliding_window is not None:
        written["use_sliding_window"] = True
        written["sliding_window"] = config.sliding_window
        written["max_window_layers"] = config.first_window_layer
    return written | {"dtype": config.dtype, "torch_dtype": config.dtype}
