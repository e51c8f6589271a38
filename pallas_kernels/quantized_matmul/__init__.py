"""Products with quantised weights that are decoded tile by tile and never stored dense."""

from pallas_kernels._gpu_tiles import GpuBlocks
from pallas_kernels.quantized_matmul.api import quantized_matmul
from pallas_kernels.quantized_matmul.config import QuantizedTpuBlocks, select
from pallas_kernels.quantized_matmul.reference import decode, quantized_matmul_reference

__all__ = [
    "GpuBlocks",
    "QuantizedTpuBlocks",
    "decode",
    "quantized_matmul",
    "quantized_matmul_reference",
    "select",
]
