"""`w + c Z` of integer noise: one rounding, the same bits however it is compiled, one fusion."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from zojax import noise
from zojax.virtual import Noise, VirtualArray

# with the compiler's full effort, contraction of products and sums included
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})

KEY = jnp.array([5, 6], jnp.uint32)
SHAPE = (16, 24, 40)
W = jnp.asarray(np.random.default_rng(0).standard_normal(SHAPE), jnp.float32)
SCALES = [1.0, -1e-3, 0.1, 3.3e-4, 7.7]
INTEGERS = {"rademacher": (noise.rademacher, 1.0), "nibble_sum": (noise.nibble_sum, 170**-0.5)}
each_distribution = pytest.mark.parametrize("distribution", list(INTEGERS))


def _moved(w, key, scale, distribution):
    term = Noise.of_leaf(key, 1.0, distribution, w.shape).scaled(scale)
    return VirtualArray(w).plus(term)


def _oracle(scale, distribution):
    """In float64, from the rule: one rounded coefficient, an exact product, one rounding."""
    integers, unit = INTEGERS[distribution]
    scale = np.float32(scale) * np.float32(unit)
    step = np.ldexp(1.0, np.frexp(scale)[1] - 14)
    coefficient = np.rint(np.float64(scale) / step) * step
    n = np.asarray(integers(noise.leaf_bits(KEY, SHAPE)), np.float64)
    return (np.asarray(W, np.float64) + coefficient * n).astype(np.float32)


@each_distribution
@pytest.mark.parametrize("scale", SCALES)
def test_eager_jitted_scanned_and_sharded_are_the_float64_oracle(scale, distribution):
    expected = _oracle(scale, distribution)

    def dense(w, key, scale):
        return _moved(w, key, scale, distribution).materialize()

    def scanned(w, key, scale):
        moved = _moved(w, key, scale, distribution)
        step = lambda c, i: (c, moved.index(i).materialize())  # noqa: E731
        return jax.lax.scan(step, None, jnp.arange(w.shape[0]))[1]

    np.testing.assert_array_equal(dense(W, KEY, scale), expected)
    np.testing.assert_array_equal(_jit(dense)(W, KEY, scale), expected)
    np.testing.assert_array_equal(_jit(lambda w, k: dense(w, k, scale))(W, KEY), expected)
    np.testing.assert_array_equal(_jit(scanned)(W, KEY, scale), expected)
    scales = jnp.array([scale, 2 * scale], jnp.float32)
    batched = _jit(jax.vmap(dense, (None, None, 0)))(W, KEY, scales)
    np.testing.assert_array_equal(batched[0], expected)
    devices = np.array(jax.devices())
    assert devices.size == 8
    for spec, grid in [(("x", None, "y"), (4, 2)), ((None, "x", None), (8, 1))]:
        mesh = Mesh(devices.reshape(grid), ("x", "y"))
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        found = _jit(dense, out_shardings=sharding)(jax.device_put(W, sharding), KEY, scale)
        assert len({str(s.index) for s in found.addressable_shards}) == 8
        np.testing.assert_array_equal(found, expected)


@each_distribution
def test_constants_among_the_factors_of_a_scale_change_no_bit(distribution):
    """XLA folds `(a * 0.3) * 0.7` into `a * 0.21`, one ulp away: not here."""

    def values(a):
        term = Noise.of_leaf(KEY, 0.3, distribution, ())
        return term.scaled(a).scaled(0.7).scaled(1 / 3).materialize()

    points = jnp.asarray(np.random.default_rng(1).standard_normal(20_000), jnp.float32)
    expected = points * jnp.float32(0.3)
    for factor in (0.7, 1 / 3):
        expected = expected * jnp.float32(factor)
    integers, unit = INTEGERS[distribution]
    expected = noise.round_coefficient(expected * jnp.float32(unit))
    expected = expected * integers(noise.bits(KEY, 0, 0))
    np.testing.assert_array_equal(_jit(jax.vmap(values))(points), expected)


@each_distribution
@pytest.mark.parametrize("shape", [(1024, 1024), (4, 256, 1024)])
def test_an_update_is_one_fusion_without_temporaries(distribution, shape):
    def update(w, key, scale):
        return _moved(w, key, scale, distribution).materialize()

    w = jax.ShapeDtypeStruct(shape, jnp.float32)
    key = jax.ShapeDtypeStruct((2,), jnp.uint32)
    scale = jax.ShapeDtypeStruct((), jnp.float32)
    compiled = _jit(update, donate_argnums=0).lower(w, key, scale).compile()
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes <= 1024
    assert memory.alias_size_in_bytes == 4 * 1024 * 1024  # in place
    instructions = re.findall(r"= \S+ ([\w-]+)\(", compiled.as_text().split("ENTRY")[1])
    assert sorted(instructions) == ["fusion", *["parameter"] * 3]


def test_sixteen_directions_are_one_fusion():
    """The sum of a step with 16 directions into donated parameters: nothing as large as a leaf."""

    def update(w, keys, scales):
        total = w
        for k in range(16):
            term = Noise.of_leaf(keys[k], 1.0, "nibble_sum", w.shape).scaled(scales[k])
            total = total + term.materialize()
        return total

    w = jax.ShapeDtypeStruct((512, 512), jnp.float32)
    keys = jax.ShapeDtypeStruct((16, 2), jnp.uint32)
    scales = jax.ShapeDtypeStruct((16,), jnp.float32)
    compiled = _jit(update, donate_argnums=0).lower(w, keys, scales).compile()
    # two words a row and direction, at most
    assert compiled.memory_analysis().temp_size_in_bytes <= 16 * 2 * 4 * 512 + 4096
