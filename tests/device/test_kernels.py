"""The kernels on a Hopper GPU: the bits of the CPU, and float64's values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.perturbed_matmul import GpuBlocks, perturbed_matmul
from pallas_kernels.perturbed_matmul.config import gpu_problem
from pallas_kernels.quantized_matmul import quantized_matmul
from tests.pallas_kernels import oracle
from tests.pallas_kernels.quantized import assert_products, make
from zojax import noise

pytestmark = pytest.mark.device

INTEGERS = ["rademacher", "nibble_sum"]
ADDRESSES = [(0, 0), (2**32 - 10, 2**32 - 100)]
# directions, queries, rows, k, n, transposed, block sizes
CASES = {
    "one row": (1, 1, 1, 4096, 4096, False, None),
    "two signs": (2, 2, 128, 1024, 512, False, None),
    "transposed": (2, 2, 128, 1024, 512, True, None),
    "cut tiles": (1, 3, 100, 1000, 192, False, None),
    "cut tiles, transposed": (1, 3, 100, 192, 1000, True, None),
    "one warpgroup, parts of the sum": (1, 2, 30, 520, 64, False, GpuBlocks(32, 64, 2, 2, 3)),
    "many rows": (1, 2, 300, 2048, 256, False, None),
    "a tile of all registers": (1, 1, 256, 2048, 256, False, GpuBlocks(256, 128, 1, 3, 1)),
    "more parts than steps": (1, 1, 8, 128, 128, False, GpuBlocks(8, 128, 1, 2, 4)),
}


@pytest.fixture
def hopper(gpu):
    """A GPU that the kernels are for."""
    if getattr(gpu, "compute_capability", "") != "9.0":
        pytest.skip(f"the kernels are for Hopper GPUs, compute capability 9.0; found {gpu}")
    return gpu


def _make(directions, queries, rows, k, n, transposed):
    draw = np.random.default_rng(0)
    x = draw.standard_normal((directions, queries, rows, k)).astype(jnp.bfloat16)
    w = draw.standard_normal((n, k) if transposed else (k, n)).astype(jnp.bfloat16)
    words = draw.integers(0, 2**32, (directions, 2), np.uint32)
    c = np.array(noise.round_coefficient(0.1 * draw.standard_normal((directions, queries))))
    return x, w, words, c


def _run(device, args, row, col, **static):
    fn = jax.jit(functools.partial(perturbed_matmul, implementation="gpu", **static))
    address = {"row": np.uint32(row), "col": np.uint32(col)}
    out = fn(*jax.device_put(args, device), **jax.device_put(address, device))
    assert out.devices() == {device}
    return np.asarray(out)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("distribution", INTEGERS)
def test_perturbed_weights_are_the_bits_of_the_definition(distribution, transposed, hopper):
    """The product with the identity is the perturbed weight: a sum of it and zeros."""
    k, n = (320, 200) if transposed else (200, 320)
    _, w, words, c = _make(2, 2, 1, k, n, transposed)
    x = np.broadcast_to(np.eye(k, dtype=jnp.bfloat16), (2, 2, k, k))
    for row, col in ADDRESSES:
        found = _run(
            hopper, (x, w, words, c), row, col, distribution=distribution, transposed=transposed
        ).astype(np.float64)
        for p in range(2):
            for s in range(2):
                moved, _ = oracle.perturbed(w, words[p], c[p, s], row, col, distribution)
                np.testing.assert_array_equal(found[p, s], moved.T if transposed else moved)


@pytest.mark.parametrize("out_dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("distribution", [*INTEGERS, "gaussian"])
@pytest.mark.parametrize("name", CASES)
def test_products_are_those_of_float64(name, distribution, out_dtype, hopper):
    if problem := gpu_problem((64, 64), jnp.bfloat16, distribution):
        pytest.skip(problem)
    *sizes, transposed, blocks = CASES[name]
    args = _make(*sizes, transposed)
    static = {"distribution": distribution, "transposed": transposed, "out_dtype": out_dtype}
    for row, col in ADDRESSES:
        found = _run(hopper, args, row, col, config=blocks, **static)
        assert found.dtype == jnp.dtype(out_dtype)
        expected = oracle.products(*args, row, col, *static.values())
        oracle.assert_within(found, *expected)
        np.testing.assert_array_equal(found, _run(hopper, args, row, col, config=blocks, **static))


def test_what_is_not_finite_stays_where_it_is(hopper):
    x, w, words, c = _make(1, 2, 12, 1000, 192, False)
    x[0, 0, 5, 700], w[999, 190] = np.nan, np.inf
    found = _run(hopper, (x, w, words, c), 0, 0, distribution="rademacher").astype(np.float32)
    finite = np.ones(found.shape, bool)
    finite[0, 0, 5] = finite[..., 190] = False
    np.testing.assert_array_equal(np.isfinite(found), finite)


def test_it_is_batched_and_scanned_like_plain_jax(hopper):
    """Layers of a stack, each at its address, with the queries of a vmap."""
    x, _, words, c = _make(1, 2, 16, 128, 128, False)
    stack = np.random.default_rng(1).standard_normal((3, 128, 128)).astype(jnp.bfloat16)

    def last(implementation, x, c):
        def layer(x, at):
            w, row = at
            y = perturbed_matmul(
                x, w, words, c, row=row, distribution="nibble_sum", implementation=implementation
            )
            return jnp.tanh(y / 64), y

        rows = jnp.arange(3, dtype=jnp.uint32) * 128
        return jax.lax.scan(layer, x, (stack, rows))[1]

    many = jax.device_put((np.stack([x, 2 * x]), np.stack([c, -c])), hopper)
    found, expected = (
        np.asarray(jax.jit(jax.vmap(functools.partial(last, name)))(*many), np.float32)
        for name in ("gpu", "xla")
    )
    # sums in another order, rounded to bfloat16 at each of three layers
    assert np.linalg.norm(found - expected) <= 3 * 2**-8 * np.linalg.norm(expected)


# format, queries, rows, k, n, group, dtype of x, zeros; block sizes
QUANTIZED = {
    "int4": (("int4", 1, 128, 1024, 512, 128, "bfloat16", False), None),
    "int4, one row": (("int4", 1, 1, 4096, 4096, 128, "bfloat16", False), None),
    "int4 with zeros": (("int4", 2, 30, 512, 192, 64, "bfloat16", True), None),
    "nf4": (("nf4", 1, 300, 1024, 256, 64, "bfloat16", False), None),
    "nf4, groups of 32": (("nf4", 4, 16, 512, 192, 32, "bfloat16", False), None),
    "codebook": (("codebook", 2, 100, 512, 192, 512, "bfloat16", False), None),
    "int8": (("int8", 2, 64, 1024, 512, 256, "bfloat16", False), None),
    "int8, a sum that ends in a step": (("int8", 1, 17, 200, 64, 200, "bfloat16", False), None),
    "parts of the sum": (
        ("int4", 1, 30, 640, 64, 128, "bfloat16", False),
        GpuBlocks(32, 64, 1, 2, 3),
    ),
    "more parts than steps": (
        ("nf4", 1, 8, 128, 128, 128, "bfloat16", False),
        GpuBlocks(8, 128, 1, 2, 4),
    ),
}


def _run_quantized(device, args, **static):
    fn = jax.jit(functools.partial(quantized_matmul, implementation="gpu", **static))
    return np.asarray(fn(*jax.device_put(args, device)))


@pytest.mark.parametrize("name", QUANTIZED)
def test_decoded_weights_are_the_bits_of_the_definition(name, hopper):
    """The product with the identity is the decoded weight: a sum of it and zeros."""
    case, _ = QUANTIZED[name]
    (_, codes, scales), more, weights = make(case)
    eye = np.eye(weights.shape[1], dtype=jnp.bfloat16)
    x = np.broadcast_to(eye, (weights.shape[0], *eye.shape))
    found = _run_quantized(hopper, (x, codes, scales), **more)
    np.testing.assert_array_equal(found.astype(np.float64), weights)


@pytest.mark.parametrize("out_dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", QUANTIZED)
def test_products_with_decoded_weights_are_those_of_float64(name, out_dtype, hopper):
    case, blocks = QUANTIZED[name]
    args, more, weights = make(case)
    found = _run_quantized(hopper, args, config=blocks, out_dtype=jnp.dtype(out_dtype), **more)
    assert found.dtype == jnp.dtype(out_dtype)
    assert_products(found, args[0], weights)
