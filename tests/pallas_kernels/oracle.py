"""The products in float64 with numpy, and the bounds of the arithmetic of float32 and bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np

from zojax import noise

_bits = jax.jit(noise.bits)


def numbers(words, row: int, col: int, shape: tuple[int, int], distribution: str) -> np.ndarray:
    """Noise from its definition; only the bits are those of `zojax.noise`."""
    rows = (row + np.arange(shape[0])) % 2**32
    cols = (col + np.arange(shape[1])) % 2**32
    addresses = rows[:, None].astype(np.uint32), cols[None].astype(np.uint32)
    bits = np.asarray(_bits(np.asarray(words, np.uint32), *addresses)).astype(np.int64)
    if distribution == "rademacher":
        return np.where(bits >> 31, -1.0, 1.0)
    if distribution == "nibble_sum":
        return sum((bits >> 4 * i) & 15 for i in range(8)) - 60.0
    u, v = ((bits >> 16) + 0.5) / 2**16, (bits & 0xFFFF) / 2**16
    return np.sqrt(-2 * np.log(u)) * np.cos(2 * np.pi * v)


def rounded(value: np.ndarray, dtype) -> np.ndarray:
    """float64 rounded to float32, then to a dtype."""
    with np.errstate(over="ignore", invalid="ignore"):
        return value.astype(np.float32).astype(dtype).astype(np.float64)


def perturbed(w, words, c, row, col, distribution) -> tuple[np.ndarray, np.ndarray]:
    """The perturbed weight, and how far a correct one may be from it."""
    w, dtype = np.asarray(w), np.asarray(w).dtype
    wide = w.astype(np.float64)
    z = numbers(words, row, col, w.shape, distribution)
    # integers are exact, the functions of a normal agree to 2e-6
    error = 2e-6 * abs(c) if distribution == "gaussian" else 0.0
    low, high = (rounded(wide + c * z + e, dtype) for e in (-error, error))
    return rounded(wide + c * z, dtype), high - low


def products(x, w, words, coefficient, row, col, distribution, transposed=False, out_dtype=None):
    """float64 [P, S, M, N] and the largest error of a sum in float32 of correct products."""
    x = np.asarray(x)
    out_dtype = x.dtype if out_dtype is None else out_dtype
    out, bound = [], []
    for p in range(x.shape[0]):
        for s in range(x.shape[1]):
            c = float(coefficient[p, s])
            moved, off = perturbed(w, words[p], c, row, col, distribution)
            if transposed:
                moved, off = moved.T, off.T
            wide = x[p, s].astype(np.float64)
            out.append(wide @ moved)
            sizes = abs(wide) @ abs(moved)
            bound.append(abs(wide) @ off + (x.shape[3] + 1) * 2.0**-24 * sizes)
    shape = (*x.shape[:3], -1)
    out, bound = np.stack(out).reshape(shape), np.stack(bound).reshape(shape)
    return out, bound + abs(out) * float(jnp.finfo(out_dtype).eps) / 2


def assert_within(found, expected, bound) -> None:
    """Each element within its bound."""
    found = np.asarray(found).astype(np.float64)
    assert found.shape == expected.shape
    worst = np.max(abs(found - expected) / np.maximum(bound, 1e-300))
    assert np.all(abs(found - expected) <= bound), f"{worst} times the bound"
