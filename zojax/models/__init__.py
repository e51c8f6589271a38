"""Decoders and encoders in Flax, and their import and export as Hugging Face folders."""

from zojax.models._config_json import parse_config
from zojax.models.config import ModelConfig
from zojax.models.decoder import Decoder
from zojax.models.encoder import Encoder
from zojax.models.functional import functional
from zojax.models.huggingface import load, save

__all__ = ["Decoder", "Encoder", "ModelConfig", "functional", "load", "parse_config", "save"]
