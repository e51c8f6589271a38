"""Configurations: the spellings of config.json, what is derived, what is refused."""

import dataclasses

import pytest

import zojax.models as models
from tests.models import tiny
from zojax.models._config_json import write_config

V4_AND_V5 = {
    "plain": (
        {"rope_theta": 1e6, "torch_dtype": "bfloat16"},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "dtype": "bfloat16"},
    ),
    "linear": (
        {"rope_theta": 5e3, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e3}},
    ),
    "llama3": (
        {
            "rope_theta": 5e5,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        },
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
                "rope_theta": 5e5,
            }
        },
    ),
    "unnamed base": ({}, {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
}


def _llama(**changes):
    config = {k: v for k, v in tiny.CASES["llama"].items() if not k.startswith("rope")}
    return config | changes


def _without(case, *keys):
    return {k: v for k, v in tiny.CASES[case].items() if k not in keys}


@pytest.mark.parametrize("spelling", V4_AND_V5)
def test_spellings_of_transformers_4_and_5_parse_alike(spelling):
    old, new = V4_AND_V5[spelling]
    assert models.parse_config(_llama(**old)) == models.parse_config(_llama(**new))


def test_rope_theta_is_that_of_the_config():
    old, new = V4_AND_V5["plain"]
    assert models.parse_config(_llama(**old)).rope_theta == 1e6
    assert models.parse_config(_llama(**new)).rope_theta == 1e6


@pytest.mark.parametrize("case", tiny.CASES)
def test_written_config_parses_to_the_same(case):
    config = dataclasses.replace(models.parse_config(tiny.CASES[case]), dtype="bfloat16")
    assert models.parse_config(write_config(config)) == config


@pytest.mark.parametrize("case", tiny.CASES)
def test_configs_are_hashable(case):
    # They are static fields of modules, so jit hashes them.
    config = models.parse_config(tiny.CASES[case] | {"eos_token_id": [1, 2]})
    assert config.eos_token_id == (1, 2)
    assert hash(config) == hash(dataclasses.replace(config))


def test_derived_sizes():
    config = models.parse_config(
        _without("llama", "head_dim", "num_key_value_heads", "rope_parameters")
    )
    assert (config.num_kv_heads, config.head_dim) == (4, 8)
    assert models.parse_config(tiny.CASES["gpt2"]).intermediate_size == 4 * 32
    # The table of a RoBERTa has its first rows at padding_idx and below.
    assert models.parse_config(tiny.CASES["roberta"]).max_positions == 20 - 2
    assert models.parse_config(tiny.CASES["opt_350m"]).embedding_size == 16
    assert not models.parse_config(tiny.CASES["opt_350m"]).final_norm


def test_sliding_window_defaults():
    mistral = _without("mistral", "sliding_window")
    assert models.parse_config(mistral).sliding_window == 4096
    assert models.parse_config(mistral | {"sliding_window": None}).sliding_window is None
    qwen2 = tiny.CASES["qwen2"] | {"sliding_window": 4}
    assert models.parse_config(qwen2).sliding_window is None


def test_layer_types_name_the_first_windowed_layer():
    window = tiny.CASES["qwen2_window"]
    types = ["full_attention", "full_attention", "sliding_attention"]
    assert models.parse_config(window | {"layer_types": types}).first_window_layer == 2
    with pytest.raises(ValueError, match="layer_types .* is not supported"):
        models.parse_config(window | {"layer_types": types[::-1]})


def test_gelu_of_the_first_gemmas_is_the_tanh_approximation():
    gemma = tiny.CASES["gemma"] | {"hidden_act": "gelu", "hidden_activation": None}
    assert models.parse_config(gemma).activation == "gelu_pytorch_tanh"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"vocab_size": 3}, "no 'model_type'"),
        (_llama(model_type="mamba"), r"'mamba' is not supported.*'bert'.*'roberta'"),
        (_without("llama", "vocab_size"), "llama model has no 'vocab_size'"),
        (_llama(rope_scaling={"rope_type": "yarn", "factor": 2.0}), "'yarn' is not supported"),
        (_llama(rope_scaling={"type": "dynamic", "factor": 2.0}), "'dynamic' is not supported"),
        (_llama(rope_scaling={"rope_type": "llama3", "factor": 2.0}), r"needs \['high_freq"),
        (_llama(partial_rotary_factor=0.5), "partial_rotary_factor=0.5 is not supported"),
        (_llama(rope_parameters={"full_attention": {"rope_theta": 1.0}}), "differ between layers"),
        (_llama(hidden_act="xielu"), "'xielu' is not supported; use one of .*'silu'"),
        (_llama(num_key_value_heads=3), "must divide the query heads"),
        (_llama(hidden_size="32"), "hidden_size is '32'; it must be an integer"),
        (_llama(num_hidden_layers=0), "num_layers is 0"),
        (_llama(head_dim=11), "head_dim is 11; rotary positions need an even"),
        (_without("llama", "head_dim") | {"hidden_size": 30}, "not a multiple of the 4"),
        (tiny.CASES["gpt2"] | {"add_cross_attention": True}, "add_cross_attention=True is not"),
        (tiny.CASES["bert"] | {"position_embedding_type": "relative_key"}, "relative_key"),
        (tiny.CASES["roberta"] | {"pad_token_id": None}, "needs a pad_token_id"),
    ],
)
def test_refused(config, message):
    with pytest.raises(ValueError, match=message):
        models.parse_config(config)
