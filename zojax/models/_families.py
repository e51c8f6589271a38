"""The architectures we know, as tables read both on import and on export."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Family(NamedTuple):
    """How one architecture is written in a config.json; read in both directions.

    Attributes:
        architecture: Name of the class that transformers loads our export with.
        keys: Our field to its key in config.json.
        defaults: Values of keys that a config.json may leave out.
        fixed: Our fields that the architecture decides.
        only: Keys whose other values are not supported, with the one value that is.
    """

    architecture: str
    keys: Mapping[str, str]
    defaults: Mapping[str, Any]
    fixed: Mapping[str, Any]
    only: Mapping[str, Any]


_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "activation": "hidden_act",
    "tie_embeddings": "tie_word_embeddings",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "pad_token_id",
}
_ROTARY = _KEYS | {
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "norm_eps": "rms_norm_eps",
}
_ROTARY_DEFAULTS = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "num_key_value_heads": None,
    "head_dim": None,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_BIAS = {"qkv_bias": "attention_bias", "output_bias": "attention_bias"}
_LAYER_NORM = {"rms_norm": False, "rotary": False, "gated_mlp": False}
_ALL_BIASES = {"qkv_bias": True, "output_bias": True, "mlp_bias": True}
_ENCODER_KEYS = _KEYS | {"norm_eps": "layer_norm_eps", "type_vocab_size": "type_vocab_size"}
_ENCODER_DEFAULTS = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
_ENCODER = (
    _LAYER_NORM
    | _ALL_BIASES
    | {"causal": False, "norm_first": False, "final_norm": False, "embedding_norm": True}
)
_ENCODER_ONLY = {
    "is_decoder": False,
    "add_cross_attention": False,
    "position_embedding_type": "absolute",
}

FAMILIES: Mapping[str, Family] = {
    "llama": Family(
        "LlamaForCausalLM",
        _ROTARY | _BIAS | {"mlp_bias": "mlp_bias"},
        _ROTARY_DEFAULTS | {"bos_token_id": 1, "eos_token_id": 2},
        {},
        {},
    ),
    "mistral": Family(
        "MistralForCausalLM",
        _ROTARY | {"sliding_window": "sliding_window"},
        _ROTARY_DEFAULTS
        | {"num_key_value_heads": 8, "sliding_window": 4096, "bos_token_id": 1, "eos_token_id": 2},
        {},
        {},
    ),
    "qwen2": Family("Qwen2ForCausalLM", _ROTARY, _ROTARY_DEFAULTS, {"qkv_bias": True}, {}),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        _ROTARY | _BIAS,
        _ROTARY_DEFAULTS | {"head_dim": 128},
        {"qk_norm": True},
        {},
    ),
    "gemma": Family(
        "GemmaForCausalLM",
        _ROTARY | _BIAS,
        _ROTARY_DEFAULTS
        | {
            "hidden_act": "gelu_pytorch_tanh",
            "head_dim": 256,
            "tie_word_embeddings": True,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "bos_token_id": 2,
        },
        {"norm_offset": 1.0},
        {"use_bidirectional_attention": False},
    ),
    "opt": Family(
        "OPTForCausalLM",
        _KEYS
        | {
            "intermediate_size": "ffn_dim",
            "activation": "activation_function",
            "norm_first": "do_layer_norm_before",
            "embedding_size": "word_embed_proj_dim",
            "qkv_bias": "enable_bias",
            "output_bias": "enable_bias",
            "mlp_bias": "enable_bias",
        },
        {
            "activation_function": "relu",
            "do_layer_norm_before": True,
            "word_embed_proj_dim": None,
            "enable_bias": True,
            "tie_word_embeddings": True,
            "bos_token_id": 2,
            "eos_token_id": 2,
            "pad_token_id": 1,
        },
        _LAYER_NORM | {"norm_eps": 1e-5, "position_offset": 2},
        {"layer_norm_elementwise_affine": True},
    ),
    "gpt2": Family(
        "GPT2LMHeadModel",
        _KEYS
        | {
            "hidden_size": "n_embd",
            "num_layers": "n_layer",
            "num_heads": "n_head",
            "intermediate_size": "n_inner",
            "max_positions": "n_positions",
            "activation": "activation_function",
            "norm_eps": "layer_norm_epsilon",
        },
        {
            "n_inner": None,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
            "tie_word_embeddings": True,
            "bos_token_id": 50256,
            "eos_token_id": 50256,
            "pad_token_id": None,
        },
        _LAYER_NORM | _ALL_BIASES,
        {
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        },
    ),
    "bert": Family(
        "BertModel",
        _ENCODER_KEYS,
        _ENCODER_DEFAULTS,
        _ENCODER | {"positions_skip_padding": False},
        _ENCODER_ONLY,
    ),
    "roberta": Family(
        "RobertaModel",
        _ENCODER_KEYS,
        _ENCODER_DEFAULTS | {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
        _ENCODER,
        _ENCODER_ONLY,
    ),
}


def family(name: str) -> Family:
    """Look up an architecture by its ``model_type``; raises ValueError if it is not supported."""
    if name not in FAMILIES:
        raise ValueError(
            f"Architecture {name!r} is not supported; the supported ones are {sorted(FAMILIES)}."
        )
    return FAMILIES[name]
