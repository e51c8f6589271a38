"""One pass over w: the values of float64, the bits of any layout, one fusion in place."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.perturbed_update import perturbed_update
from tests.pallas_kernels import oracle
from zojax import noise


def _make(shape, count, dtype, seed=0):
    draw = np.random.default_rng(seed)
    w = draw.standard_normal(shape).astype(jnp.dtype(dtype))
    words = draw.integers(0, 2**32, (count, 2), np.uint32)
    return w, words, np.asarray(noise.round_coefficient(1e-2 * draw.standard_normal(count)))


@pytest.mark.parametrize(
    "shape, count, dtype, distribution",
    [
        ((37, 130), 1, "float32", "rademacher"),
        ((1, 7), 4, "bfloat16", "gaussian"),
        ((9, 1), 5, "float32", "gaussian"),
        ((20, 33), 34, "float32", "rademacher"),
        ((20, 33), 3, "bfloat16", "nibble_sum"),
    ],
)
def test_values_are_those_of_float64(shape, count, dtype, distribution):
    w, words, c = _make(shape, count, dtype)
    run = jax.jit(partial(perturbed_update, distribution=distribution))
    for row, col in ((5, 70_000), (2**32 - 3, 2**32 - 4)):
        found = run(w, words, c, row=jnp.uint32(row), col=jnp.uint32(col))
        assert found.dtype == w.dtype
        terms = [
            float(x) * oracle.numbers(k, row, col, shape, distribution)
            for x, k in zip(c, words, strict=True)
        ]
        exact = w.astype(np.float64) + sum(terms)
        # each addition rounds what is there; a normal is right to 2e-6
        sizes = abs(w.astype(np.float64)) + sum(abs(t) for t in terms)
        error = count * 2.0**-24 * sizes + 2e-6 * abs(c).sum() * (distribution == "gaussian")
        low, high = (oracle.rounded(exact + e, w.dtype) for e in (-error, error))
        found = np.asarray(found).astype(np.float64)
        assert np.all((low <= found) & (found <= high))


def test_parts_are_the_bits_of_the_whole():
    w, words, c = _make((24, 30), 5, "bfloat16")
    run = jax.jit(partial(perturbed_update, distribution="nibble_sum"))
    key = np.array([3, 4], np.uint32)
    whole = np.asarray(run(w, words, c, rounding_key=key))
    for rows, cols in ((slice(0, 24, None), slice(7, 19)), (slice(5, 17), slice(0, 30))):
        part = run(
            w[rows, cols], words, c, rounding_key=key,
            row=jnp.uint32(rows.start), col=jnp.uint32(cols.start),
        )  # fmt: skip
        np.testing.assert_array_equal(part, whole[rows, cols])


def test_stochastic_rounding_is_right_on_average_and_never_further_than_a_step():
    w = np.full((400, 500), 1.0, jnp.bfloat16)
    words, c = np.array([[1, 2]], np.uint32), noise.round_coefficient(jnp.array([1e-3]))
    key = np.array([5, 6], np.uint32)
    run = jax.jit(partial(perturbed_update, distribution="rademacher"))
    found = run(w, words, c, rounding_key=key)
    moved = np.asarray(found).astype(np.float64) - 1
    signs = oracle.numbers(words[0], 0, 0, w.shape, "rademacher")
    # bfloat16 has steps of 2**-7 above one and of 2**-8 below
    assert set(np.unique(moved[signs > 0])) == {0.0, 2.0**-7}
    assert set(np.unique(moved[signs < 0])) == {0.0, -(2.0**-8)}
    for sign, step in ((1, 2.0**-7), (-1, -(2.0**-8))):
        share, exact = (moved[signs == sign] != 0).mean(), sign * float(c[0]) / step
        deviation = (exact * (1 - exact) / (signs == sign).sum()) ** 0.5
        assert abs(share - exact) < 5 * deviation


def test_nan_and_infinity_pass():
    w = np.array([[np.nan, np.inf, -np.inf, 1.0]], jnp.bfloat16)
    words, c = np.array([[1, 2]], np.uint32), np.array([0.5], np.float32)
    for key in (None, np.array([5, 6], np.uint32)):
        run = jax.jit(partial(perturbed_update, distribution="rademacher"))
        found = run(w, words, c, rounding_key=key)
        found = np.asarray(found).astype(float)[0]
        assert np.isnan(found[0]) and found[1] == np.inf and found[2] == -np.inf
        assert found[3] in (0.5, 1.5)


def fusions_over(text: str, shape: str) -> int:
    """Fusions in the entry of a compiled program that give an array of a shape."""
    entry = text[text.index("ENTRY ") :]
    return len(re.findall(rf"= {re.escape(shape)}\S* fusion\(", entry))


@pytest.mark.parametrize(
    "count, rounded", [(1, False), (1, True), (16, True)], ids=lambda v: str(v).lower()
)
def test_it_is_one_fusion_in_place(count, rounded):
    w, words, c = _make((512, 384), count, "bfloat16")
    key = np.array([5, 6], np.uint32) if rounded else None
    run = partial(perturbed_update, distribution="rademacher", rounding_key=key)
    options = {"xla_backend_optimization_level": 0}
    compiled = jax.jit(run, donate_argnums=0).lower(w, words, c).compile(compiler_options=options)
    text = compiled.as_text()
    assert "input_output_alias={ {}: (0, {}, may-alias) }" in text
    assert fusions_over(text, "bf16[512,384]") == 1
    assert "f32[512,384]" not in text[text.index("ENTRY ") :]
    assert compiled.memory_analysis().temp_size_in_bytes < w.nbytes / 16


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"w": np.ones(3, np.float32)}, ValueError, "two-dimensional, found"),
        ({"w": np.ones((3, 3), np.float16)}, TypeError, "float32 or bfloat16, found float16"),
        ({"coefficients": np.ones((2, 1), np.float32)}, TypeError, r"float32\[S\]"),
        ({"key_words": np.ones((1, 2), np.uint32)}, TypeError, r"key_words must be uint32\[2, 2\]"),
        ({"distribution": "uniform"}, ValueError, "found 'uniform'"),
        ({"rounding_key": np.ones(2, np.uint32)}, ValueError, "not rounded stochastically"),
    ],
)
def test_bad_arguments_are_errors(change, error, message):
    given = {
        "w": np.ones((3, 4), np.float32),
        "key_words": np.ones((2, 2), np.uint32),
        "coefficients": np.ones(2, np.float32),
        "distribution": "rademacher",
    }
    with pytest.raises(error, match=message):
        perturbed_update(**(given | change))
