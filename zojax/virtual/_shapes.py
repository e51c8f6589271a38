"""Index arithmetic that the terms share: how a reshape splits and merges axes."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class AxisGroup(NamedTuple):
    """Old axes `old` hold exactly the elements of new axes `new`, in the same order."""

    old: tuple[int, ...]
    new: tuple[int, ...]


def reshape_groups(old: tuple[int, ...], new: tuple[int, ...]) -> tuple[AxisGroup, ...]:
    """The finest split of a row-major reshape into groups of axes of equal size.

    >>> reshape_groups((4, 6), (4, 2, 3))
    (AxisGroup(old=(0,), new=(0,)), AxisGroup(old=(1,), new=(1, 2)))
    """
    if math.prod(old) != math.prod(new):
        raise ValueError(f"cannot reshape {old} to {new}")
    if math.prod(old) == 0:
        return (AxisGroup(tuple(range(len(old))), tuple(range(len(new)))),)
    groups, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        i0, j0, p, q = i, j, 1, 1
        if i < len(old):
            p, i = old[i], i + 1
        if j < len(new):
            q, j = new[j], j + 1
        while p != q:
            if p < q:
                p, i = p * old[i], i + 1
            else:
                q, j = q * new[j], j + 1
        if i == i0 or j == j0:
            # trailing axes of size one belong to the last group
            last = groups.pop() if groups else AxisGroup((), ())
            groups.append(AxisGroup(last.old + tuple(range(i0, i)), last.new + tuple(range(j0, j))))
        else:
            groups.append(AxisGroup(tuple(range(i0, i)), tuple(range(j0, j))))
    return tuple(groups)


def row_major_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def unravel(index: jax.Array, shape: tuple[int, ...]) -> list[jax.Array]:
    """Coordinates of flat positions, none of them negative, one array per axis.

    A position that is outside has a first coordinate that is.
    """
    # `//` and `%` have many operations more to compile, for negative numbers
    found = []
    for axis, (stride, size) in enumerate(zip(row_major_strides(shape), shape, strict=True)):
        c = index if stride == 1 else lax.div(index, lax.full_like(index, stride))
        found.append(c if axis == 0 else lax.rem(c, lax.full_like(c, size)))
    return found


def ravel(coordinates: list[jax.Array], shape: tuple[int, ...], like: jax.Array) -> jax.Array:
    """Flat positions of coordinates; `like` gives shape and dtype when there are no axes."""
    flat = jnp.zeros_like(like)
    for c, s in zip(coordinates, row_major_strides(shape), strict=True):
        flat = flat + c * s
    return flat


def slice_axis(x: jax.Array, start, size: int, stride: int, axis: int) -> jax.Array:
    """Slice one axis; a start that is not a Python integer is dynamic, with stride one."""
    if isinstance(start, int):
        return lax.slice_in_dim(x, start, start + (size - 1) * stride + 1, stride, axis)
    return lax.dynamic_slice_in_dim(x, start, size, axis)
