"""Noise and updates on a GPU are the bits of the CPU, and of the golden vectors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax
from zojax import noise
from zojax.directions import combine
from zojax.virtual import Noise, VirtualArray

pytestmark = pytest.mark.device

# with the compiler's full effort, whatever the suite is run with
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})

_M = 2**32 - 1
GOLDEN = [
    ((0, 0), 0, 0, 0x3A5C57A3),
    ((1, 2), 0, 1, 0xAC95ED6E),
    ((42, 0), 1000, 70000, 0xEFB913F6),
    ((_M, 0x12345678), _M, _M, 0xF7DAEEC7),
]
# bits, sign, sum of nibbles, normal
VALUES = [
    (0x3A5C57A3, 1.0, -5.0, -0.94257605),
    (0xF7DAEEC7, -1.0, 32.0, 0.23193589),
    (0x00000000, 1.0, -60.0, 4.85458579),
    (0x00008000, 1.0, -52.0, -4.85458579),
    (0xFFFFFFFF, -1.0, 60.0, 0.00390626),
]
SHAPES = [(1000, 1003), (6, 100, 257), (100_000,), ()]
INTEGERS = ["rademacher", "nibble_sum"]


def _on(device, fn, *args):
    """The result of a function compiled for a device, as numpy arrays."""
    args = jax.device_put(args, device)
    out = _jit(fn)(*args)
    assert all(x.devices() == {device} for x in jax.tree.leaves(out))
    return jax.tree.map(np.asarray, out)


def _words(i: int) -> np.ndarray:
    return np.array([i, 2**31 + i], np.uint32)


def test_golden_bits(gpu):
    keys, rows, cols, expected = (np.array(x, np.uint32) for x in zip(*GOLDEN, strict=True))
    found = _on(gpu, jax.vmap(noise.bits), keys, rows, cols)
    np.testing.assert_array_equal(found, expected)


def test_golden_values(gpu):
    bits, sign, integer, normal = zip(*VALUES, strict=True)
    found = _on(
        gpu,
        lambda b: (noise.rademacher(b), noise.nibble_sum(b), noise.gaussian(b)),
        np.array(bits, np.uint32),
    )
    np.testing.assert_array_equal(found[0], np.array(sign, np.float32))
    np.testing.assert_array_equal(found[1], np.array(integer, np.float32))
    np.testing.assert_allclose(found[2], np.array(normal), rtol=0, atol=2e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_are_those_of_the_cpu(shape, gpu, cpu):
    def values(key):
        bits = noise.leaf_bits(key, shape)
        return bits, noise.rademacher(bits), noise.nibble_sum(bits), noise.gaussian(bits)

    found, expected = (_on(device, values, _words(3)) for device in (gpu, cpu))
    for a, b in zip(found[:3], expected[:3], strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(found[3], expected[3], rtol=0, atol=2e-6)


def test_stacked_bits_are_those_of_each_leaf_on_the_cpu(gpu, cpu):
    keys = np.stack([_words(i) for i in range(5)])
    found = _on(gpu, lambda k: noise.stacked_bits(k, 70, 300), keys)
    expected = [_on(cpu, lambda k: noise.leaf_bits(k, (70, 300)), k) for k in keys]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("distribution", INTEGERS)
def test_perturbed_weights_are_those_of_the_cpu(distribution, dtype, gpu, cpu):
    w = np.random.default_rng(0).standard_normal((300, 700), np.float32).astype(dtype)

    def moved(w, key, scale):
        term = Noise.of_leaf(key, 1.0, distribution, w.shape).scaled(scale)
        return VirtualArray(w).plus(term).materialize()

    for scale in (1.0, -1e-3, 3.3e-4):
        found, expected = (_on(d, moved, w, _words(1), np.float32(scale)) for d in (gpu, cpu))
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("count", [1, 5, 20])
@pytest.mark.parametrize("direction", [zojax.rademacher(), zojax.integer_normal()],
                         ids=lambda d: d.name)  # fmt: skip
def test_updates_are_those_of_the_cpu(direction, count, dtype, gpu, cpu):
    """Coefficients with the step size in them: what a replayed journal applies."""
    draw = np.random.default_rng(0)
    params = {
        "stack": draw.standard_normal((3, 40, 130), np.float32).astype(dtype),
        "vector": draw.standard_normal(257, np.float32).astype(dtype),
    }
    keys = np.stack([_words(i) for i in range(count)])
    coefficients = (1e-3 * draw.standard_normal(count)).astype(np.float32)

    def update(params, keys, coefficients, key):
        updates = combine(direction, keys, coefficients, params)
        return zojax.apply_updates(params, updates, key=key)

    found, expected = (
        _on(device, update, params, keys, coefficients, _words(9)) for device in (gpu, cpu)
    )
    assert not np.array_equal(expected["stack"], params["stack"])
    for name in params:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
