"""A byte-level tokenizer with a few whole words, and tiny random models."""

import jax
import numpy as np
import pytest
from flax import nnx
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers import models as tokenizer_models

import zojax.models as models

WORDS = ["Ġstory", "Ġmovie", "Ġthis", "Ġis", "Ġa", "Ġthe", "Ġso", "Ġhe", "Ġran", "Ġfell", "fell"]


def make_tokenizer(bos: bool = False, eos: bool = False, words: list[str] = WORDS) -> Tokenizer:
    """Bytes, and merges that build each word from left to right."""
    vocabulary = {"<s>": 0, "</s>": 1}
    for symbol in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[symbol] = len(vocabulary)
    merges = []
    for word in words:
        for end in range(2, len(word) + 1):
            merge = (word[: end - 1], word[end - 1])
            if merge not in merges:
                merges.append(merge)
                vocabulary.setdefault(word[:end], len(vocabulary))
    tokenizer = Tokenizer(tokenizer_models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    if bos or eos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=("<s> " if bos else "") + "$A" + (" </s>" if eos else ""),
            special_tokens=[("<s>", 0), ("</s>", 1)],
        )
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def bos_tokenizer():
    return make_tokenizer(bos=True)


@pytest.fixture(scope="session")
def wrapping_tokenizer():
    return make_tokenizer(bos=True, eos=True)


def _tiny(model_type: str, vocab_size: int) -> models.ModelConfig:
    return models.parse_config(
        {
            "model_type": model_type,
            "vocab_size": vocab_size,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": 128,
        }
    )


def _functional(model):
    bind, params = models.functional(model)
    rng = np.random.default_rng(0)
    # Random weights of the size that makes outputs differ between inputs.
    return bind, jax.tree.map(
        lambda x: x + (0.3 * rng.standard_normal(x.shape)).astype(x.dtype), params
    )


@pytest.fixture(scope="session")
def decoder(tokenizer):
    config = _tiny("llama", tokenizer.get_vocab_size())
    return _functional(models.Decoder(config, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="session")
def encoder(tokenizer):
    config = _tiny("bert", tokenizer.get_vocab_size())
    return _functional(models.Encoder(config, rngs=nnx.Rngs(0)))
