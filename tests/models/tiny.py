"""Tiny models of every family, with weights that follow from the names of their tensors."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

LENGTH = 9
FIXTURE = Path(__file__).with_name("expected.npz")
# Every how-manieth output column the fixture keeps.
STRIDE = 4

_ROTARY = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_OPT = {
    "model_type": "opt",
    "vocab_size": 61,
    "hidden_size": 32,
    "ffn_dim": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 20,
    "activation_function": "relu",
}
_GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 61,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 20,
    "n_inner": None,
    "activation_function": "gelu_new",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ENCODER = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 20,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
}


def _v5(theta: float, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default"} | more | {"rope_theta": theta}}


# The content of config.json, in the spellings of transformers 4 and 5 in turn.
CASES: dict[str, dict[str, Any]] = {
    "llama": _ROTARY
    | _v5(300.0)
    | {"model_type": "llama", "head_dim": 12, "attention_bias": True, "mlp_bias": True},
    "llama_llama3": _ROTARY
    | {
        "model_type": "llama",
        "tie_word_embeddings": True,
        "rope_theta": 200.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "llama_linear": _ROTARY
    | {
        "model_type": "llama",
        "num_key_value_heads": 4,
        "rope_theta": 500.0,
        "rope_scaling": {"type": "linear", "factor": 2.5},
    },
    "mistral": _ROTARY
    | {"model_type": "mistral", "head_dim": 12, "sliding_window": 4, "rope_theta": 700.0},
    "qwen2": _ROTARY | _v5(900.0) | {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2_window": _ROTARY
    | {
        "model_type": "qwen2",
        "num_hidden_layers": 3,
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 1,
        "rope_theta": 900.0,
    },
    "qwen3": _ROTARY | _v5(800.0) | {"model_type": "qwen3", "head_dim": 12, "attention_bias": True},
    "gemma": _ROTARY
    | _v5(600.0)
    | {
        "model_type": "gemma",
        "head_dim": 12,
        "num_key_value_heads": 1,
        "hidden_act": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
    },
    "opt": _OPT,
    "opt_350m": _OPT | {"word_embed_proj_dim": 16, "do_layer_norm_before": False},
    "gpt2": _GPT2,
    "gpt2_untied": _GPT2 | {"n_inner": 40, "tie_word_embeddings": False},
    "bert": _ENCODER | {"model_type": "bert", "pad_token_id": 0},
    "roberta": _ENCODER | {"model_type": "roberta", "pad_token_id": 1},
}
DECODERS = [name for name in CASES if name not in ("bert", "roberta")]


def inputs(case: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and mask of three rows: full, padded on the right, padded on the left."""
    mask = np.ones((3, LENGTH), bool)
    mask[1, -3:] = False
    mask[2, :4] = False
    tokens = 3 + (np.arange(3 * LENGTH).reshape(3, LENGTH) * 17 + len(case)) % 58
    return np.where(mask, tokens, CASES[case].get("pad_token_id", 1)).astype(np.int32), mask


def weight(case: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weight of a name: uniform, seeded by the name, of a spread that keeps outputs O(1)."""
    bits = np.random.PCG64(zlib.crc32(f"{case}/{name}".encode())).random_raw(int(np.prod(shape)))
    unit = ((bits >> np.uint64(11)) * 2.0**-53 - 0.5) * 12**0.5
    if "norm" in name.lower() or ".ln_" in name or "layer_norm" in name:
        # The norms of Gemma multiply by one more than their weight.
        centre = float(name.endswith("weight") and CASES[case]["model_type"] != "gemma")
        values = centre + 0.1 * unit
    elif len(shape) == 1:
        values = 0.1 * unit
    else:
        values = 0.2 * unit
    return values.reshape(shape).astype(np.float32)


def shapes() -> dict[str, dict[str, tuple[int, ...]]]:
    """Names and shapes of the tensors of every case, as transformers has them."""
    with np.load(FIXTURE) as fixture:
        stored = json.loads(str(fixture["shapes"]))
    return {
        case: {name: tuple(shape) for name, shape in tensors.items()}
        for case, tensors in stored.items()
    }


def weights(case: str) -> dict[str, np.ndarray]:
    """All tensors of a case."""
    return {name: weight(case, name, shape) for name, shape in shapes()[case].items()}


def write_folder(
    folder: Path, tensors: dict[str, np.ndarray], config: dict[str, Any], shards: int = 1
) -> Path:
    """Write a Hugging Face folder, independently of the code under test."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    files: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[shard::shards]}
        save_file(part, folder / file)
        files |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def case_folder(folder: Path, case: str) -> Path:
    """Write the folder of a case."""
    return write_folder(folder / case, weights(case), CASES[case])
