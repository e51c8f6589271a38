"""What the suites of the kernels run on: one list, in which every implementation has its entry.

A kernel runs here in Pallas' interpreter, in tiles so small that each problem has several.
"""

from typing import Any

from pallas_kernels.perturbed_matmul import TpuBlocks
from pallas_kernels.quantized_matmul import QuantizedTpuBlocks

# name: arguments of `perturbed_matmul`
PERTURBED: dict[str, dict[str, Any]] = {
    "xla": {"implementation": "xla"},
    "tpu": {"implementation": "tpu", "interpret": True, "config": TpuBlocks(8, 128, 128, 1)},
}

# name: arguments of `quantized_matmul`
QUANTIZED: dict[str, dict[str, Any]] = {
    "xla": {"implementation": "xla"},
    "tpu": {"implementation": "tpu", "interpret": True, "config": QuantizedTpuBlocks(8, 128, 128)},
}
