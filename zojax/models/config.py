"""Model configurations."""

import dataclasses

from zojax.models._activations import ACTIVATIONS
from zojax.models._families import family
from zojax.models._rope import RopeScaling

_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "intermediate_size",
    "max_positions",
)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape and variant of a transformer; families differ only in these fields.

    Attributes:
        family: Hugging Face ``model_type``, such as ``"llama"`` or ``"bert"``.
        vocab_size: Rows of the token embedding.
        hidden_size: Width of the residual stream.
        num_layers: Number of blocks.
        num_heads: Query heads.
        num_kv_heads: Key and value heads; divides ``num_heads``.
        head_dim: Width of one head.
        intermediate_size: Width of the MLP.
        max_positions: Longest sequence with a position (a limit only if positions are learned).
        norm_eps: Epsilon of every norm.
        activation: Name of the MLP activation, as in a Hugging Face config.
        causal: Whether a position sees only earlier ones.
        norm_first: Whether norms precede each sublayer (else they follow the residual sum).
        final_norm: Whether a norm follows the last block.
        embedding_norm: Whether a norm follows the embeddings.
        rms_norm: RMS norm without bias instead of layer norm.
        norm_offset: Norms multiply by ``norm_offset + scale``.
        rotary: Rotary positions instead of a learned table.
        rope_theta: Base of the rotary frequencies.
        rope_scaling: Change of the rotary frequencies for long contexts.
        position_offset: First used row of the position table.
        positions_skip_padding: Positions count real tokens only.
        type_vocab_size: Rows of the token type table; 0 for none.
        gated_mlp: ``down(act(gate(x)) * up(x))`` instead of ``down(act(up(x)))``.
        qkv_bias: Biases on query, key and value.
        output_bias: Bias on the attention output.
        mlp_bias: Biases in the MLP.
        qk_norm: RMS norm on every query and key head.
        sliding_window: Positions seen by a windowed layer, itself included; None for all.
        first_window_layer: First layer that uses the window.
        embedding_size: Width of the token embedding; None for ``hidden_size``.
        embedding_scale: Factor on the token embedding.
        tie_embeddings: The head is the transposed token embedding.
        bos_token_id: First token of a text.
        eos_token_id: Last token of a text, or several.
        pad_token_id: Padding token.
        dtype: Name of the dtype of the parameters.
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_positions: int
    norm_eps: float = 1e-5
    activation: str = "silu"
    causal: bool = True
    norm_first: bool = True
    final_norm: bool = True
    embedding_norm: bool = False
    rms_norm: bool = True
    norm_offset: float = 0.0
    rotary: bool = True
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    position_offset: int = 0
    positions_skip_padding: bool = True
    type_vocab_size: int = 0
    gated_mlp: bool = True
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    first_window_layer: int = 0
    embedding_size: int | None = None
    embedding_scale: float = 1.0
    tie_embeddings: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        family(self.family)
        for name in _SIZES:
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be an integer of at least 1.")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads is {self.num_heads} and num_kv_heads {self.num_kv_heads}; the key and "
                "value heads must divide the query heads."
            )
        if self.rotary and self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; rotary positions need an even number.")
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation {self.activation!r} is not supported; use one of {list(ACTIVATIONS)}."
            )
