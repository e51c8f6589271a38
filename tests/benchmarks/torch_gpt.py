"""The scanned model of `gpt` in PyTorch, and MeZO as its reference code does it: in place.

torch is imported where it is used: the module can be collected where it is not installed.
"""

from collections.abc import Callable
from typing import Any

import numpy as np


def parameters(params: Any) -> Any:
    """Copies of the stacked parameters of `gpt`, a list of layers, as torch tensors."""
    import torch

    def copy(x):
        return torch.from_numpy(np.array(x))

    stacked = {name: np.asarray(leaf) for name, leaf in params["layers"].items()}
    count = len(stacked["norm1"])
    return {
        "embedding": copy(params["embedding"]),
        "position": copy(params["position"]),
        "layers": [{name: copy(leaf[i]) for name, leaf in stacked.items()} for i in range(count)],
        "norm": copy(params["norm"]),
    }


def leaves(params: Any) -> list:
    """All tensors."""
    layers = [leaf for layer in params["layers"] for leaf in layer.values()]
    return [params["embedding"], params["position"], *layers, params["norm"]]


def loss(params: Any, tokens: Any, heads: int) -> Any:
    """Mean next-token cross-entropy; tokens int64[B, T]."""
    from torch.nn import functional as F  # noqa: N812

    def norm(x, scale):
        return F.layer_norm(x, x.shape[-1:], weight=1 + scale)

    b, t = tokens.shape
    x = F.embedding(tokens, params["embedding"]) + params["position"]
    for p in params["layers"]:
        q, k, v = (
            a.reshape(b, t, heads, -1).transpose(1, 2)
            for a in (norm(x, p["norm1"]) @ p["qkv"]).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + mixed.transpose(1, 2).reshape(b, t, -1) @ p["out"]
        hidden = norm(x, p["norm2"]) @ p["up"] + p["up_bias"]
        x = x + F.gelu(hidden, approximate="tanh") @ p["down"]
    logits = norm(x, params["norm"]) @ params["embedding"].T
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def mezo_step(params: Any, ask: Callable[[], Any], seed: int, mu: float, rate: float) -> float:
    """+mu, -2 mu, +mu, then the update; each time with the noise made anew from the seed."""
    import torch

    generator = torch.Generator()

    def move(scale: float) -> None:
        generator.manual_seed(seed)
        for p in leaves(params):
            p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype), alpha=scale)

    with torch.no_grad():
        move(mu)
        plus = float(ask())
        move(-2 * mu)
        minus = float(ask())
        move(mu)
        move(-rate * (plus - minus) / (2 * mu))
    return (plus + minus) / 2
