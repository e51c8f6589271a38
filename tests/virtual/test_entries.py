"""Entries in every view that a model uses: the same weights, without arithmetic on positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import zojax
from zojax import virtual
from zojax.virtual import Entries, VirtualArray

SHAPES = {"table": (96, 64), "a": (64, 128), "b": (64, 64), "c": (64, 192), "d": (128, 64)}
# of these entries each matrix of a stack has its own
STACKED = {"heads": (64, 4, 32)}


def _matrix(draw, name: str, shape: tuple[int, ...], dtype) -> VirtualArray:
    """Entries in no order, some of them padding."""
    stack, core = shape[:-2], int(np.prod(shape[-2:]))
    count = max(3, core // 50)
    index = [draw.permutation(core)[:count] for _ in range(int(np.prod(stack)))]
    index = np.stack(index).reshape(*stack, count).astype(np.int32)
    index[..., 1] = core
    values = draw.normal(size=index.shape).astype(np.float32)
    base = jnp.asarray(draw.normal(size=shape) / 4, dtype)
    entries = Entries(jnp.asarray(values / 4), jnp.asarray(index), shape)
    return VirtualArray(base, entries, name=name)


def _params(dtype):
    draw = np.random.default_rng(0)
    return {k: _matrix(draw, k, s, dtype) for k, s in {**SHAPES, **STACKED}.items()}


def _used(p, eye):
    """Each weight times one, as it is and in other views."""
    short = eye[:64, :64]
    return {
        "table": [p["table"][jnp.arange(96)], p["table"].T[:, jnp.arange(96)].T],
        "a": [short @ p["a"], p["a"].T.T * 1, short @ jnp.swapaxes(p["a"].T, 0, 1)],
        "b": [(p["b"].T @ short).T, p["b"][3:, 8:40].T @ short[3:, :8]],
        "c": [jnp.einsum("ij,jshd->ishd", short, p["c"].reshape(64, 3, 4, 16)).reshape(64, 192)],
        "d": [lax.dot_general(p["d"], eye, (((0,), (0,)), ((), ()))).T],
        "heads": [
            jnp.einsum("ij,jhd->ihd", short, p["heads"]),
            jnp.einsum("ij,jhd->hdi", short, p["heads"]).transpose(2, 0, 1),
            p["heads"].transpose(2, 0, 1).reshape(32, -1).T.reshape(64, 4, 32) * 1,
        ],
    }


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("wrap", [jax.jit, lambda fn: fn], ids=["jit", "eager"])
def test_each_element_is_exact(wrap, dtype):
    params, eye = _params(dtype), jnp.eye(128, dtype=dtype)
    found = wrap(zojax.virtualize(_used))(params, eye)
    expected = _used(virtual.materialize(params), eye)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
    for name, leaf in params.items():
        np.testing.assert_array_equal(found[name][0], leaf.materialize())


def test_a_transpose_changes_no_positions():
    leaf = _params(jnp.float32)["heads"]
    there = leaf.entries.transpose((2, 0, 1))
    assert there.index is leaf.entries.index and there.order == (2, 0, 1)
    assert there.transpose((1, 2, 0)).order is None
