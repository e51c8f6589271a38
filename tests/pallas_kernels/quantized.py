"""Problems of `quantized_matmul` with their weights in float64, from the definition."""

import jax.numpy as jnp
import numpy as np

import zojax
from tests.pallas_kernels import oracle

NF4 = zojax.quantization._formats.FORMATS["nf4"].levels
INT4 = tuple(range(-8, 8))


def make(case, seed=0):
    """Arguments, those by name, and the weights of each query in float64 from their definition."""
    name, queries, rows, k, n, group, dtype, has_zeros = case
    draw = np.random.default_rng(seed)
    x = draw.standard_normal((queries, rows, k)).astype(jnp.dtype(dtype))
    groups, length = k // group, -(-k // 2)
    scales = draw.uniform(0.5, 2.0, (queries, groups, n)).astype(jnp.bfloat16)
    if name == "int8":
        codes = draw.integers(-128, 128, (k, n)).astype(np.int8)
        number, more = codes.astype(np.float64), {}
    else:
        codes = draw.integers(0, 256, (length, n)).astype(np.uint8)
        half = 64 if k % 128 == 0 else length
        at = np.arange(k)
        byte = codes[at // (2 * half) * half + at % half]
        four = np.where((at % (2 * half) < half)[:, None], byte & 15, byte >> 4).astype(int)
        if has_zeros:
            zeros = draw.integers(0, 16, (groups, n)).astype(np.int8)
            number, more = four - np.repeat(zeros.astype(float), group, 0), {"zeros": zeros}
        elif name == "codebook":
            table = np.sort(draw.standard_normal((16, n)), 0).astype(np.float32)
            number, more = np.take_along_axis(table, four, 0).astype(float), {"table": table}
        else:
            levels = NF4 if name == "nf4" else INT4
            number = np.array(levels, np.float32)[four].astype(float)
            more = {"levels": levels}
    wide = np.repeat(scales.astype(np.float64), group, 1) * number
    return (x, codes, scales), more, oracle.rounded(wide, x.dtype)


def assert_products(found, x, weights, extra=0.0):
    wide = x.astype(np.float64)
    bound = (x.shape[2] + 1) * 2.0**-24 * (abs(wide) @ abs(weights)) + extra
    expected = wide @ weights
    bound = bound + abs(expected) * float(jnp.finfo(found.dtype).eps) / 2
    oracle.assert_within(found, expected, bound)
