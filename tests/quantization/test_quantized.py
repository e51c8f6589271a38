"""Quantised leaves in functions: equal to their dense values, and never dense as a whole."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax
from zojax.quantization import Quantized
from zojax.virtual import Entries, VirtualArray, materialize

FORMATS = ["int8", "int4", "nf4", "codebook"]


def normal(*shape, seed=0, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


@functools.cache
@functools.cache
def quantized(shape, format, axis=-2, dtype=jnp.float32, group=16) -> VirtualArray:
    w = normal(*shape, dtype=dtype)
    tree = zojax.quantize([w], format, group_size=group, where=lambda _: True, axis=axis)
    return tree[0]


def with_zeros(array: VirtualArray) -> Quantized:
    """As files of other quantisers have it: codes that stand for zero."""
    base = array.base
    zeros = jax.random.randint(jax.random.key(5), base.scales.shape, 0, 16).astype(jnp.int8)
    return Quantized(
        base.codes, base.scales, zeros, None, "int4", base.length, base.axis, base.decoded
    )


def test_zeros_shift_the_codes():
    q = with_zeros(quantized((64, 8), "int4"))
    plain = Quantized(q.codes, q.scales, None, None, "int4", 64, -2, q.decoded).materialize()
    shift = (np.repeat(q.zeros, 16, 0) - 8) * np.repeat(np.asarray(q.scales, np.float32), 16, 0)
    np.testing.assert_allclose(q.materialize(), plain - shift, rtol=0, atol=1e-5)


VIEWS = {
    "transpose": lambda w: w.transpose((1, 0, 2)),
    "transpose twice": lambda w: w.transpose((1, 0, 2)).transpose((2, 1, 0)),
    "layer": lambda w: w.index(1),
    "layer, transposed": lambda w: w.index(1).transpose((1, 0)),
    "layer of a transpose": lambda w: w.transpose((0, 2, 1)).index(1),
    "split": lambda w: w.reshape((2, 64, 2, 24)),
    "merge": lambda w: w.reshape((128, 48)),
    "strided columns": lambda w: w.slice((0, 0, 5), (2, 64, 20), (1, 1, 2)),
    "rows": lambda w: w.slice((0, 3, 0), (2, 33, 48)),
    "rows and columns": lambda w: w.slice((1, 3, 4), (1, 33, 7)),
    "part": lambda w: w.part(2, jnp.int32(7), 16),
    "part of a layer": lambda w: w.index(0).part(1, jnp.int32(7), 16),
    "cast": lambda w: w.astype(jnp.bfloat16),
    "cast and layer": lambda w: w.astype(jnp.bfloat16).index(1),
    "spread": lambda w: w.broadcast((3, 2, 64, 48), (1, 2, 3)),
}


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("format,axis", [("nf4", -2), ("nf4", -1), ("int8", -2), ("codebook", -1)])
def test_views_are_those_of_the_dense_array(name, format, axis):
    @jax.jit
    def seen(w):
        found, expected = VIEWS[name](w), VIEWS[name](VirtualArray(w.materialize()))
        if found is None:  # a dynamic part within the groups
            assert axis == -1 and name.startswith("part")
            return 0, 0
        assert found.shape == expected.shape and found.dtype == expected.dtype
        return found.materialize(), expected.materialize()

    np.testing.assert_array_equal(*seen(quantized((2, 64, 48), format, axis)))


@pytest.mark.parametrize("format,axis", [("int8", -1), ("int4", -2), ("nf4", -1), ("codebook", -2)])
@pytest.mark.parametrize("rows_of", [0, 1])
def test_rows_are_decoded_alone(format, axis, rows_of):
    w = quantized((128, 48), format, axis)
    bases = [w.base, with_zeros(w)] if format == "int4" else [w.base]
    index = jnp.array([[3, 3, 47], [0, 12, 40]])
    for base in bases:
        whole, found, turned = jax.jit(
            lambda b: (
                b.materialize(), b.rows(index, rows_of),
                b.transpose((1, 0)).rows(index, 1 - rows_of),
            )
        )(base)  # fmt: skip
        expected = np.moveaxis(np.asarray(whole), rows_of, 0)[np.asarray(index)]
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(turned, expected)


def model(params, tokens):
    """A tied embedding, scanned layers whose heads are split, and a gate that is unrolled."""
    x = params["embedding"][tokens]

    def layer(x, p):
        heads = jnp.einsum("btd,dhe->bthe", x, p["in"].reshape(32, 4, 16))
        return x + jnp.tanh(heads.reshape(*x.shape[:2], 64)) @ p["out"], None

    x, _ = jax.lax.scan(layer, x, params["layers"])
    x = x * jax.nn.sigmoid(x @ params["gate"])
    return x @ params["embedding"].T


@functools.cache
def parameters(format, dtype=jnp.float32):
    params = {
        "embedding": normal(40, 32, seed=1, dtype=dtype),
        "layers": {
            "in": normal(3, 32, 64, seed=2, dtype=dtype) / 8,
            "out": normal(3, 64, 32, seed=3, dtype=dtype) / 8,
        },
        "gate": normal(32, 32, seed=4, dtype=dtype) / 8,
    }
    return zojax.quantize(params, format, group_size=16, where=lambda _: True)


@pytest.mark.parametrize(
    "format,dtype",
    [
        ("int8", jnp.float32),
        pytest.param("int4", jnp.bfloat16, marks=pytest.mark.slow),
        ("nf4", jnp.float32),
        pytest.param("codebook", jnp.bfloat16, marks=pytest.mark.slow),
    ],
)
def test_a_model_takes_quantised_leaves(format, dtype):
    params = parameters(format, dtype)
    assert params["embedding"].base.axis == -1
    tokens = jnp.array([[1, 5, 39], [0, 2, 2]])
    found = jax.jit(zojax.virtualize(model, on_fallback="error"))(params, tokens)
    expected = jax.jit(model)(materialize(params), tokens)
    # the same products of the same numbers, perhaps tiled otherwise
    tolerance = float(jnp.finfo(dtype).eps) * 64 * float(jnp.abs(expected).max())
    assert float(jnp.abs(found - expected).max()) <= tolerance


@pytest.mark.parametrize("format", ["int8", "nf4"])
def test_queries_share_the_codes(format):
    """Estimates with quantised frozen weights equal those of the dense values."""
    params = parameters(format)
    dense = jax.tree.map(VirtualArray, materialize(params))
    index = jnp.array([3, 100, 900])
    tokens = jnp.array([[1, 5, 39], [0, 2, 2]])

    def loss(params):
        logits = model(params, tokens)
        return jnp.mean(jax.nn.logsumexp(logits, -1) - logits[..., 0])

    def merge(theta, frozen):
        gate = replace(frozen["gate"], entries=Entries(theta, index, (32, 32)))
        return {**frozen, "gate": gate}

    for batch_size in (1, 4):
        estimator = zojax.mezo(2**-6, num_samples=2, batch_size=batch_size)
        ask = jax.jit(zojax.estimate(lambda t, f: zojax.virtualize(loss)(merge(t, f)), estimator))
        key = jax.random.key(3)
        found, expected = ask(key, jnp.zeros(3), params), ask(key, jnp.zeros(3), dense)
        # losses to some roundings of float32; the quotient divides by 2 mu
        bound = 64 * 2**-24 * float(expected.losses.plus.max())
        for a, b in zip(found.losses[1:3], expected.losses[1:3], strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=bound)
        np.testing.assert_allclose(
            found.coefficients, expected.coefficients, rtol=0, atol=bound * 2**6
        )


def test_no_matrix_is_dense_beside_the_one_in_use():
    """A forward over 8 quantised layers stores one of them, and its codes a byte each."""
    layers, width = 8, 512
    shapes = [jax.ShapeDtypeStruct((width, width), jnp.float32)] * layers

    def forward(params, x):
        for w in params:
            x = jnp.tanh(x @ w)
        return x

    params = jax.eval_shape(lambda p: zojax.quantize(p, "nf4", where=lambda _: True), shapes)
    x = jax.ShapeDtypeStruct((16, width), jnp.float32)

    def temporaries(fn, *args):
        return jax.jit(fn).lower(*args).compile().memory_analysis().temp_size_in_bytes

    found = temporaries(zojax.virtualize(forward), params, x)
    plain = temporaries(forward, shapes, x)
    assert found <= plain + width * width * (4 + 1)


def test_a_cast_beyond_the_decoded_dtype_keeps_its_rounding():
    w = quantized((64, 8), "nf4", dtype=jnp.bfloat16)
    np.testing.assert_array_equal(
        w.astype(jnp.float32).materialize(), w.materialize().astype(jnp.float32)
    )


def test_parts_must_keep_their_shapes():
    q = quantized((64, 8), "codebook").base
    with pytest.raises(ValueError, match=r"the scales have shape \(1, 8\), found \(8, 1\)"):
        q.with_scales(q.scales.T)
    with pytest.raises(ValueError, match="format nf4 has no table"):
        quantized((64, 8), "nf4").base.with_table(q.table)
