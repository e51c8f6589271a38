"""Products with perturbed weights that are never stored: `x[p, s] @ (w + c[p, s] Z_p)`."""

from pallas_kernels.perturbed_matmul.api import perturbed_matmul
from pallas_kernels.perturbed_matmul.config import GpuBlocks, TpuBlocks, select
from pallas_kernels.perturbed_matmul.reference import perturbed_matmul_reference

__all__ = [
    "GpuBlocks",
    "TpuBlocks",
    "perturbed_matmul",
    "perturbed_matmul_reference",
    "select",
]
