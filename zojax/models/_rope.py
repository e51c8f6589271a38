"""Rotary position embeddings."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class RopeScaling(NamedTuple):
    """A change of the rotary frequencies for long contexts.

    Attributes:
        rope_type: ``"linear"`` or ``"llama3"``.
        factor: What low frequencies are divided by.
        low_freq_factor: llama3 only: waves longer than ``original / low`` are fully scaled.
        high_freq_factor: llama3 only: waves shorter than ``original / high`` are kept.
        original_max_positions: llama3 only: context length before scaling.
    """

    rope_type: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_max_positions: int = 0


def parse_rope(config: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Read rope_theta and scaling from ``rope_parameters`` (v5) or ``rope_scaling`` (v4).

    Args:
        config: A Hugging Face config.json.

    Returns:
        The base of the frequencies and their scaling, if any.

    Raises:
        ValueError: If the rope type is not supported or lacks a key.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    # Both formats define 10000 as the base of a config that names none.
    theta = float(rope.get("rope_theta", config.get("rope_theta", 10000.0)))
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    fraction = rope.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if fraction not in (None, 1.0):
        raise ValueError(
            f"partial_rotary_factor={fraction} is not supported; only fully rotary heads are."
        )
    if any(isinstance(value, Mapping) for value in rope.values()):
        raise ValueError(f"Rope parameters that differ between layers are not supported: {rope}.")
    if rope_type == "default":
        return theta, None
    names = {"factor": "factor"}
    if rope_type == "llama3":
        names |= {
            "low_freq_factor": "low_freq_factor",
            "high_freq_factor": "high_freq_factor",
            "original_max_positions": "original_max_position_embeddings",
        }
    elif rope_type != "linear":
        raise ValueError(
            f"rope_type {rope_type!r} is not supported; the supported ones are 'default', "
            "'linear' and 'llama3'."
        )
    missing = sorted(key for key in names.values() if key not in rope)
    if missing:
        raise ValueError(f"rope_type {rope_type!r} needs {missing}; found only {sorted(rope)}.")
    return theta, RopeScaling(rope_type, **{field: rope[key] for field, key in names.items()})


def write_rope(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """Write the rotary keys of a config.json in the spellings of transformers 4 and 5."""
    if scaling is None:
        parameters: dict[str, Any] = {"rope_type": "default"}
    else:
        parameters = {"rope_type": scaling.rope_type, "factor": scaling.factor}
        if scaling.rope_type == "llama3":
            parameters |= {
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_max_positions,
            }
    return {
        "rope_theta": theta,
        "rope_scaling": None if scaling is None else parameters,
        "rope_parameters": parameters | {"rope_theta": theta},
    }


def frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> np.ndarray:
    """Angle per position of each pair of coordinates.

    ``f_i = theta^(-2i / head_dim)``, scaled.

    Args:
        head_dim: Width of a head.
        theta: Base of the frequencies.
        scaling: Change for long contexts.

    Returns:
        Frequencies, ``float32[head_dim / 2]``.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    base = np.float32(1) / np.float32(theta) ** exponents
    if scaling is None:
        return base
    scaled = base / np.float32(scaling.factor)
    if scaling.rope_type == "linear":
        return scaled
    # llama3: short waves kept, long waves scaled, a linear blend in the frequency between.
    periods = np.float32(scaling.original_max_positions / (2 * math.pi)) * base
    low, high = np.float32(scaling.low_freq_factor), np.float32(scaling.high_freq_factor)
    keep = np.clip((periods - low) / (high - low), np.float32(0), np.float32(1))
    return (1 - keep) * scaled + keep * base


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate the coordinate pairs ``(i, i + head_dim / 2)`` of every head, in float32.

    Args:
        x: Heads, ``[B, T, H, head_dim]``.
        cos: Cosines, ``float32[B, T, 1, head_dim / 2]``.
        sin: Sines, ``float32[B, T, 1, head_dim / 2]``.

    Returns:
        Rotated heads, of the shape and dtype of ``x``.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)
    return rotated.astype(x.dtype)
