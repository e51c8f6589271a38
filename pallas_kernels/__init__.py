"""Pallas kernels, one folder an operation: api, reference, kernel.

They know nothing of zojax but its bit rule, `zojax.noise`. Every kernel has a plain JAX reference
that it equals.
"""
