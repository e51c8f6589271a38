"""Updates along many directions in one pass: `w + sum_s c[s] Z_s`, without a kernel."""

from pallas_kernels.perturbed_update.api import perturbed_update

__all__ = ["perturbed_update"]
