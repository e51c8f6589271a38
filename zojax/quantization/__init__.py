"""Quantised weights: a few bits and a scale, as the base of a virtual array."""

from zojax.quantization._compensate import compensate
from zojax.quantization._formats import Format
from zojax.quantization._quantize import is_weight, quantize
from zojax.quantization._quantized import Quantized
from zojax.quantization._step import stepped

__all__ = ["Format", "Quantized", "compensate", "is_weight", "quantize", "stepped"]
