"""Decoders and encoders in Flax, and their import and export as Hugging Face folders."""

from zojax.models._config_json import parse_config
from zojax.models._known import KNOWN, known_config
from zojax.models.config import ModelConfig
from zojax.models.decoder import Decoder
from zojax.models.encoder import Encoder
from zojax.models.functional import abstract, functional
from zojax.models.huggingface import load, load_params, save, save_params
from zojax.models.prefix import with_prefix
from zojax.models.shapes import abstract_params, read_config

__all__ = [
    "KNOWN",
    "Decoder",
    "Encoder",
    "ModelConfig",
    "abstract",
    "abstract_params",
    "functional",
    "known_config",
    "load",
    "load_params",
    "parse_config",
    "read_config",
    "save",
    "save_params",
    "with_prefix",
]
