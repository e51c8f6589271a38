"""The tiny models in transformers; needs torch, so import it only where that is there."""

from pathlib import Path
from typing import Any

import numpy as np

from tests.models import tiny


def build(case: str) -> Any:
    """A transformers model of a case with our weights."""
    import torch
    import transformers

    config = dict(tiny.CASES[case])
    config = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
    model = auto(case).from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            value = tiny.weight(case, name, tuple(parameter.shape))
            parameter.copy_(torch.from_numpy(value))
    return model.eval()


def load(case: str, folder: Path, dtype: str = "float32") -> tuple[Any, list[str]]:
    """Load a folder with transformers; gives the names it misses as well."""
    model, info = auto(case).from_pretrained(
        folder, attn_implementation="eager", dtype=dtype, output_loading_info=True
    )
    assert not info["unexpected_keys"] and not info["mismatched_keys"], info
    return model.eval(), sorted(info["missing_keys"])


def auto(case: str) -> Any:
    import transformers

    decoder = case in tiny.DECODERS
    return transformers.AutoModelForCausalLM if decoder else transformers.AutoModel


def outputs(case: str, model: Any) -> np.ndarray:
    """Logits, or the hidden states of an encoder, float32[3, T, .]."""
    import torch

    tokens, mask = tiny.inputs(case)
    arguments = {
        "input_ids": torch.from_numpy(tokens).long(),
        "attention_mask": torch.from_numpy(mask).long(),
    }
    if case in tiny.DECODERS:
        # Without a cache the decoders but OPT count padding as well, unless told the positions.
        positions = np.where(mask, np.cumsum(mask, axis=1) - 1, 0 if "opt" not in case else -1)
        arguments["position_ids"] = torch.from_numpy(positions).long()
        arguments["use_cache"] = False
    with torch.no_grad():
        result = model(**arguments)
    out = result.logits if case in tiny.DECODERS else result.last_hidden_state
    return out.float().numpy()
