"""Well-known configurations: their parameters are as many as their makers say; no values."""

import json

import jax
import pytest

from zojax import models

# of the published checkpoints, as their safetensors headers count them; encoders without pooler
PUBLISHED = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "tinyllama-1.1b": 1_100_048_384,
    "mistral-7b": 7_241_732_096,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-8b": 8_190_735_360,
    "gemma-2b": 2_506_172_416,
    "gemma-7b": 8_537_680_896,
    "opt-125m": 125_239_296,
    "opt-350m": 331_196_416,
    "opt-1.3b": 1_315_758_080,
    "opt-2.7b": 2_651_596_800,
    "opt-6.7b": 6_658_473_984,
    "opt-13b": 12_853_473_280,
    "opt-30b": 29_974_540_288,
    "opt-66b": 65_719_701_504,
    "gpt2": 124_439_808,
    "gpt2-xl": 1_557_611_200,
    "bert-base": 109_482_240 - 768 * 769,
    "roberta-large": 355_359_744 - 1024 * 1025,
}


def test_all_known_models_are_compared():
    assert set(models.KNOWN) == set(PUBLISHED)


@pytest.mark.parametrize("name", models.KNOWN)
def test_a_known_model_has_as_many_parameters_as_the_published_one(name):
    _, params = models.functional(models.abstract(models.known_config(name)))
    leaves = jax.tree.leaves(params)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    assert sum(leaf.size for leaf in leaves) == PUBLISHED[name]


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(
        ValueError, match="'llama-7' is not known.*config.json.*llama-2-7b.*opt-13b"
    ):
        models.known_config("llama-7")


def test_read_config_takes_a_folder_or_a_file(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(models.KNOWN["opt-125m"]))
    assert models.read_config(file) == models.read_config(tmp_path)
    assert models.read_config(file) == models.known_config("OPT-125m")
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        models.read_config(tmp_path / "nowhere")
    file.write_text("{")
    with pytest.raises(ValueError, match="config.json is not valid JSON"):
        models.read_config(file)
