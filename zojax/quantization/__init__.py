"""Quantised weights: a few bits and a scale, as the base of a virtual array."""

from zojax.quantization._formats import Format
from zojax.quantization._quantize import is_weight, quantize
from zojax.quantization._quantized import Quantized

__all__ = ["Format", "Quantized", "is_weight", "quantize"]
