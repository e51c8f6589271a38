"""Counter-based noise, made tile by tile."""

from pallas_kernels.counter_noise.api import counter_noise
from pallas_kernels.counter_noise.reference import counter_noise_reference

__all__ = ["counter_noise", "counter_noise_reference"]
