"""The same in plain JAX: a dense weight at a time."""

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels._tile import numbers, round_to

_UNROLLED = 4


def perturbed_matmul_reference(
    x: jax.Array,
    w: jax.Array,
    key_words: jax.Array,
    coefficient: jax.Array,
    address: jax.Array,
    *,
    distribution: str,
    transposed: bool,
    out_dtype,
) -> jax.Array:
    """`x[p, s] @ (w + coefficient[p, s] Z_p)`, one perturbed weight after the other.

    Arguments as for `perturbed_matmul`, with `address` the uint32[2] of (row, col).
    """

    def of_query(x, moved):
        dimensions = (((1,), (1 if transposed else 0,)), ((), ()))
        return lax.dot_general(x, moved, dimensions, preferred_element_type=jnp.float32)

    def of_direction(args):
        x, words, coefficient = args
        shape = w.shape[0], w.shape[1]
        z = numbers(words[0], words[1], address[0], address[1], shape, distribution)

        def of_coefficient(args):
            x, c = args
            return of_query(x, round_to(w.astype(jnp.float32) + c * z, w.dtype)).astype(out_dtype)

        return _map(of_coefficient, (x, coefficient))

    return _map(of_direction, (x, key_words, coefficient))


def _map(fn, args) -> jax.Array:
    """A few unrolled, so that XLA fuses the noise into each weight; more in a loop."""
    count = args[0].shape[0]
    if count > _UNROLLED:
        return lax.map(fn, args)
    return jnp.stack([fn(jax.tree.map(lambda a, i=i: a[i], args)) for i in range(count)])
