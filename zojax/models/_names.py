"""Which tensor of a Hugging Face file is which of our parameters; one table for both ways."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

# Module names: theirs, with {} for the layer, to ours. Several of ours are fused in one of theirs.
_LLAMA = {
    "embed_tokens": "embedding",
    "layers.{}.input_layernorm": "layers.attention_norm",
    "layers.{}.self_attn.q_proj": "layers.attention.query",
    "layers.{}.self_attn.k_proj": "layers.attention.key",
    "layers.{}.self_attn.v_proj": "layers.attention.value",
    "layers.{}.self_attn.o_proj": "layers.attention.output",
    "layers.{}.self_attn.q_norm": "layers.attention.query_norm",
    "layers.{}.self_attn.k_norm": "layers.attention.key_norm",
    "layers.{}.post_attention_layernorm": "layers.mlp_norm",
    "layers.{}.mlp.gate_proj": "layers.mlp.gate",
    "layers.{}.mlp.up_proj": "layers.mlp.up",
    "layers.{}.mlp.down_proj": "layers.mlp.down",
    "norm": "final_norm",
    "lm_head": "head",
}
_OPT = {
    "embed_tokens": "embedding",
    "embed_positions": "position_embedding",
    "project_in": "project_in",
    "project_out": "project_out",
    "layers.{}.self_attn_layer_norm": "layers.attention_norm",
    "layers.{}.self_attn.q_proj": "layers.attention.query",
    "layers.{}.self_attn.k_proj": "layers.attention.key",
    "layers.{}.self_attn.v_proj": "layers.attention.value",
    "layers.{}.self_attn.out_proj": "layers.attention.output",
    "layers.{}.final_layer_norm": "layers.mlp_norm",
    "layers.{}.fc1": "layers.mlp.up",
    "layers.{}.fc2": "layers.mlp.down",
    "final_layer_norm": "final_norm",
    "lm_head": "head",
}
_GPT2 = {
    "wte": "embedding",
    "wpe": "position_embedding",
    "h.{}.ln_1": "layers.attention_norm",
    "h.{}.attn.c_attn": "layers.attention.query layers.attention.key layers.attention.value",
    "h.{}.attn.c_proj": "layers.attention.output",
    "h.{}.ln_2": "layers.mlp_norm",
    "h.{}.mlp.c_fc": "layers.mlp.up",
    "h.{}.mlp.c_proj": "layers.mlp.down",
    "ln_f": "final_norm",
    "lm_head": "head",
}
_BERT = {
    "embeddings.word_embeddings": "embedding",
    "embeddings.position_embeddings": "position_embedding",
    "embeddings.token_type_embeddings": "type_embedding",
    "embeddings.LayerNorm": "embedding_norm",
    "encoder.layer.{}.attention.self.query": "layers.attention.query",
    "encoder.layer.{}.attention.self.key": "layers.attention.key",
    "encoder.layer.{}.attention.self.value": "layers.attention.value",
    "encoder.layer.{}.attention.output.dense": "layers.attention.output",
    "encoder.layer.{}.attention.output.LayerNorm": "layers.attention_norm",
    "encoder.layer.{}.intermediate.dense": "layers.mlp.up",
    "encoder.layer.{}.output.dense": "layers.mlp.down",
    "encoder.layer.{}.output.LayerNorm": "layers.mlp_norm",
}
_LAYOUTS = {"opt": _OPT, "gpt2": _GPT2, "bert": _BERT, "roberta": _BERT}

# What may stand before a name, in the order tried; the first is written on export.
_PREFIXES = {
    "opt": ("model.decoder.", "decoder.", ""),
    "gpt2": ("transformer.", ""),
    "bert": ("", "bert."),
    "roberta": ("", "roberta."),
}

# Buffers that follow from the config, and heads on top of an encoder.
_IGNORED = re.compile(
    r"rotary_emb\.inv_freq$|\.masked_bias$|(^|\.)attn\.bias$"
    r"|(^|\.)(position_ids|token_type_ids)$|(^|\.)pooler\.|^cls\."
)
_IGNORED_ROBERTA = re.compile(r"^lm_head\.")

Path = tuple[str, ...]


class Entry(NamedTuple):
    """A tensor of theirs and the parameters of ours it holds.

    Attributes:
        name: Their name, with {} for the layer.
        paths: Paths of our parameters; several are joined along the last axis.
        stacked: Whether there is one tensor a layer.
        transposed: Whether theirs is the transpose of ours.
    """

    name: str
    paths: tuple[Path, ...]
    stacked: bool
    transposed: bool


def entries(family: str, params: Mapping[str, Any], stored: Iterable[str] = ()) -> list[Entry]:
    """Relate parameters to tensor names.

    Args:
        family: Architecture.
        params: Nested dict of parameters, of any leaves; decides which optional ones exist.
        stored: Names in the file, which decide the prefix; without any, that of an export.

    Returns:
        One entry for every tensor of the model.
    """
    layout = _LAYOUTS.get(family, _LLAMA)
    prefix = _prefix(family, next(iter(layout)), frozenset(stored))
    found = []
    for theirs, ours in layout.items():
        modules = [tuple(module.split(".")) for module in ours.split()]
        for leaf in _leaves(params, modules[0]):
            # GPT-2 keeps its linear maps, all within the layers, as [in, out].
            conv1d = family == "gpt2" and "{}" in theirs
            name = f"{theirs}.{'bias' if leaf == 'bias' else 'weight'}"
            found.append(
                Entry(
                    name=name if theirs == "lm_head" else prefix + name,
                    paths=tuple((*module, leaf) for module in modules),
                    stacked="{}" in theirs,
                    transposed=leaf == "kernel" and not conv1d,
                )
            )
    return found


def ignored(family: str, name: str) -> bool:
    """Whether a tensor carries nothing the model needs."""
    pattern = _IGNORED.search(name)
    return bool(pattern) or (family == "roberta" and bool(_IGNORED_ROBERTA.search(name)))


def _prefix(family: str, embedding: str, stored: frozenset[str]) -> str:
    prefixes = _PREFIXES.get(family, ("model.", ""))
    return next((p for p in prefixes if f"{p}{embedding}.weight" in stored), prefixes[0])


def _leaves(params: Mapping[str, Any], path: Path) -> Iterator[str]:
    node: Any = params
    for key in path:
        if key not in node:
            return
        node = node[key]
    yield from node
