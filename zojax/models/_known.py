"""The config.json of well-known models, for plans that need no weights."""

from collections.abc import Mapping
from typing import Any

from zojax.models._config_json import parse_config
from zojax.models.config import ModelConfig


def _llama(
    hidden: int, layers: int, heads: int, mlp: int, positions: int, vocab: int = 32000, **more: Any
) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": mlp,
        "max_position_embeddings": positions,
        "dtype": "bfloat16",
    } | more


def _opt(hidden: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "opt",
        "vocab_size": 50272,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "ffn_dim": 4 * hidden,
        "max_position_embeddings": 2048,
        "dtype": "float16",
    } | more


def _qwen(
    kind: str, hidden: int, layers: int, heads: int, kv_heads: int, mlp: int, **more: Any
) -> dict[str, Any]:
    return {
        "model_type": kind,
        "vocab_size": 151936,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": mlp,
        "max_position_embeddings": 32768,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    } | more


def _gemma(hidden: int, layers: int, heads: int, kv_heads: int, mlp: int) -> dict[str, Any]:
    return {
        "model_type": "gemma",
        "vocab_size": 256000,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": mlp,
        "head_dim": 256,
        "max_position_embeddings": 8192,
        "dtype": "bfloat16",
    }


def _gpt2(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "vocab_size": 50257,
        "n_embd": hidden,
        "n_layer": layers,
        "n_head": heads,
        "n_positions": 1024,
    }


def _encoder(kind: str, hidden: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": kind,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden,
    } | more


_BERT = {"vocab_size": 30522, "max_position_embeddings": 512}
_ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}

KNOWN: Mapping[str, Mapping[str, Any]] = {
    "llama-2-7b": _llama(4096, 32, 32, 11008, 4096),
    "llama-2-13b": _llama(5120, 40, 40, 13824, 4096),
    "llama-2-70b": _llama(8192, 80, 64, 28672, 4096, num_key_value_heads=8),
    "llama-3-8b": _llama(4096, 32, 32, 14336, 8192, 128256, num_key_value_heads=8, rope_theta=5e5),
    "tinyllama-1.1b": _llama(2048, 22, 32, 5632, 2048, num_key_value_heads=4),
    "mistral-7b": _llama(4096, 32, 32, 14336, 32768, model_type="mistral", num_key_value_heads=8),
    "qwen2.5-0.5b": _qwen("qwen2", 896, 24, 14, 2, 4864),
    "qwen2.5-1.5b": _qwen("qwen2", 1536, 28, 12, 2, 8960),
    "qwen2.5-7b": _qwen(
        "qwen2", 3584, 28, 28, 4, 18944, vocab_size=152064, tie_word_embeddings=False
    ),
    "qwen3-0.6b": _qwen("qwen3", 1024, 28, 16, 8, 3072),
    "qwen3-8b": _qwen("qwen3", 4096, 36, 32, 8, 12288, tie_word_embeddings=False),
    "gemma-2b": _gemma(2048, 18, 8, 1, 16384),
    "gemma-7b": _gemma(3072, 28, 16, 16, 24576),
    "opt-125m": _opt(768, 12, 12),
    "opt-350m": _opt(1024, 24, 16, word_embed_proj_dim=512, do_layer_norm_before=False),
    "opt-1.3b": _opt(2048, 24, 32),
    "opt-2.7b": _opt(2560, 32, 32),
    "opt-6.7b": _opt(4096, 32, 32),
    "opt-13b": _opt(5120, 40, 40),
    "opt-30b": _opt(7168, 48, 56),
    "opt-66b": _opt(9216, 64, 72),
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-xl": _gpt2(1600, 48, 25),
    "bert-base": _encoder("bert", 768, 12, 12, **_BERT),
    "roberta-large": _encoder("roberta", 1024, 24, 16, **_ROBERTA),
}


def known_config(name: str) -> ModelConfig:
    """The configuration of a well-known model; sizes and dtype only, no weights.

    Args:
        name: such as "llama-2-7b"; case does not matter.

    Returns:
        Its `ModelConfig`.

    Raises:
        ValueError: if it is not known; lists those that are.

    >>> from zojax import models
    >>> models.known_config("opt-13b").num_layers
    40
    """
    if name.lower() not in KNOWN:
        raise ValueError(
            f"config {name!r} is not known; give the path of a config.json or one of "
            f"{', '.join(KNOWN)}"
        )
    return parse_config(KNOWN[name.lower()])
