"""Computations of their own: traced once for equal arguments, and never for others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zojax.virtual._buffer import outlined


class _Counted:
    """`a + b * scale + len(rest)`, with how often it was called."""

    def __init__(self):
        self.calls = 0

    def __call__(self, a, b, *rest):
        self.calls += 1
        return a + b["scale"] * b["x"] + len(rest)


A, X = jnp.arange(3.0), jnp.arange(3.0, 6.0)


def _run(fn, scale, *rest):
    return jax.jit(lambda a, x: fn(a, {"scale": scale, "x": x}, *rest))(A, X)


def test_equal_calls_are_traced_once():
    counted = _Counted()
    fn = outlined(counted)
    np.testing.assert_array_equal(_run(fn, np.float32(2)), A + 2 * X)
    calls = counted.calls
    np.testing.assert_array_equal(_run(fn, np.float32(2)), A + 2 * X)
    assert counted.calls == calls


@pytest.mark.parametrize(
    ("scale", "rest"),
    [(np.float32(3), ()), (np.float32(2), (1.0,)), (np.int32(2), ()), (np.full(3, 2.0, "f"), ())],
    ids=["value", "structure", "dtype", "shape"],
)
def test_other_calls_are_traced_anew(scale, rest):
    fn = outlined(_Counted())
    _run(fn, np.float32(2))
    expected = A + scale * X + len(rest)
    found = _run(fn, scale, *rest)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == expected.dtype


def test_zeros_of_both_signs_are_told_apart():
    fn = outlined(lambda a, zero: a * zero)
    for zero in (np.float32(0), np.float32(-0.0)):
        found = jax.jit(lambda a, z=zero: fn(a, z))(A)
        np.testing.assert_array_equal(np.signbit(found), np.signbit(np.asarray(A) * zero))


def test_what_is_not_used_is_not_passed():
    fn = outlined(lambda pair, b: pair[0].size * b)
    text = jax.jit(lambda a, b: fn((a, a + 1), b)).lower(A, X).as_text()
    (call,) = [line for line in text.splitlines() if "call @" in line]
    assert call.count("tensor<3xf32>") == 2  # one argument, one result


def test_no_tracer_outlives_its_trace():
    fn = outlined(lambda a, b: a * b)
    with jax.checking_leaks():
        for _ in range(2):
            np.testing.assert_array_equal(jax.jit(lambda a, x: fn(a, x))(A, X), A * X)


def test_settings_of_jax_are_those_of_the_call():
    fn = outlined(lambda a: a + jnp.zeros(3))
    assert jax.jit(lambda a: fn(a))(A).dtype == jnp.float32
    with jax.enable_x64(True):
        assert jax.jit(lambda a: fn(a))(jnp.asarray(A, jnp.float32)).dtype == jnp.float64
