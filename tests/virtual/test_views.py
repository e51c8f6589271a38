"""Random chains of views: the formula follows, and is the same chain of the dense array."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.virtual.arrays import make
from zojax import noise
from zojax.virtual import Noise, VirtualArray, materialize
from zojax.virtual._shapes import reshape_groups

SHAPES = [(6,), (4, 6), (6, 1), (2, 4, 6), (3, 2, 2, 4)]
KINDS = ["gaussian", "rademacher", "low_rank_1", "low_rank_12", "entries", "low_rank_entries"]


def _divisors(n):
    return [d for d in range(1, n + 1) if n % d == 0]


@st.composite
def _view(draw, shape):
    """(name, view of a numpy array, view of a virtual array) of an array of this shape."""
    kind = draw(st.sampled_from(["transpose", "split", "merge", "slice", "one"]))
    axis = draw(st.integers(0, len(shape) - 1))
    if kind == "transpose":
        order = draw(st.permutations(range(len(shape))))
        return kind, lambda a: a.transpose(order), lambda v: v.transpose(order)
    if kind == "slice":
        starts = [draw(st.integers(0, n - 1)) for n in shape]
        strides = [draw(st.integers(1, 3)) for _ in shape]
        room = [-(-(n - s) // t) for n, s, t in zip(shape, starts, strides, strict=True)]
        sizes = [draw(st.integers(1, r)) for r in room]
        cut = tuple(
            slice(a, a + (n - 1) * t + 1, t) for a, n, t in zip(starts, sizes, strides, strict=True)
        )
        return kind, lambda a: a[cut], lambda v: v.slice(starts, sizes, strides)
    if kind == "split":
        d = draw(st.sampled_from(_divisors(shape[axis])))
        new = (*shape[:axis], d, shape[axis] // d, *shape[axis + 1 :])
    elif kind == "one":
        new = (*shape[:axis], 1, *shape[axis:])
    else:
        end = draw(st.integers(axis + 1, len(shape)))
        new = (*shape[:axis], math.prod(shape[axis:end]), *shape[end:])
    return kind, lambda a: a.reshape(new), lambda v: v.reshape(new)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_chain_of_views(kind, data):
    shapes = [s for s in SHAPES if kind in ("gaussian", "rademacher") or len(s) > 1]
    start = make(kind, data.draw(st.sampled_from(shapes)))
    dense = np.asarray(jax.jit(materialize)(start))

    def chain(virtual):
        nonlocal dense
        for _ in range(data.draw(st.integers(1, 5))):
            name, of_dense, of_virtual = data.draw(_view(dense.shape))
            moved = of_virtual(virtual)
            if moved is None:
                # only merging axes can leave a formula; everything else must stay one
                assert name == "merge"
                continue
            virtual, dense = moved, of_dense(dense)
            assert virtual.shape == dense.shape
            assert all(t.shape == dense.shape for t in virtual.terms)
        return virtual.materialize()

    found = jax.jit(chain)(start)  # one program an example
    if kind in ("rademacher", "entries"):
        np.testing.assert_array_equal(found, dense)
    else:
        # the same float32 formula for each element, but vectorised or contracted in another way
        np.testing.assert_allclose(found, dense, rtol=0, atol=16 * 2**-24 * abs(dense).max())


@pytest.mark.parametrize("kind", [*KINDS, "two_terms"])
def test_heads_there_and_back_stay_formulas(kind):
    """What attention does to a weight never falls back."""
    w = make(kind, (6, 8))
    heads = w.reshape((6, 2, 4)).transpose((1, 0, 2))
    back = heads.transpose((1, 0, 2)).reshape((6, 8))
    np.testing.assert_array_equal(back.materialize(), w.materialize())
    np.testing.assert_array_equal(w.index(2).materialize(), w.materialize()[2])


def test_a_merge_of_rows_and_columns_is_no_noise_any_more():
    w = make("gaussian", (6, 8))
    assert w.transpose((1, 0)).reshape((48,)) is None
    assert make("low_rank_1", (6, 8)).reshape((48,)) is None
    assert make("entries", (6, 8)).transpose((1, 0)).reshape((48,)) is not None


def test_a_leaf_of_any_rank_has_the_noise_of_its_rows():
    key = noise.words(jax.random.key(3))
    for shape in [(), (5,), (3, 5), (2, 3, 5), (2, 0, 5)]:
        found = Noise.of_leaf(key, 2.0, "rademacher", shape).materialize()
        expected = 2.0 * noise.rademacher(noise.leaf_bits(key, shape))
        np.testing.assert_array_equal(found, expected)


def test_a_leaf_too_large_to_address_is_an_error():
    with pytest.raises(ValueError, match="4294967296 rows of 1.*reshape the leaf"):
        Noise.of_leaf(jnp.zeros(2, jnp.uint32), 1.0, "gaussian", (2**16, 2**16, 1))


def test_padding_entries_are_dropped():
    w = make("entries", (4, 6))
    padded = VirtualArray(
        w.base,
        type(w.entries)(
            jnp.append(w.entries.values, 99.0), jnp.append(w.entries.index, 24), (4, 6)
        ),
    )
    for view in (lambda v: v, lambda v: v.transpose((1, 0)), lambda v: v.slice((1, 0), (2, 6))):
        np.testing.assert_array_equal(view(padded).materialize(), view(w).materialize())


def test_materialize_sums_in_float32_and_rounds_once():
    w = make("low_rank_1", (6, 8), jnp.bfloat16)
    exact = w.base.astype(jnp.float32) + w.terms[0].materialize()
    tree = materialize({"w": w, "x": 1})
    np.testing.assert_array_equal(tree["w"], exact.astype(jnp.bfloat16))
    assert tree["x"] == 1


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_reshape_groups_partition_both_shapes(data):
    old = tuple(data.draw(st.lists(st.integers(1, 6), max_size=4)))
    factors = list(old)
    new = []
    for n in data.draw(st.permutations(factors)):
        d = data.draw(st.sampled_from(_divisors(n)))
        new += [d, n // d]
    groups = reshape_groups(old, tuple(new))
    assert [i for g in groups for i in g.old] == list(range(len(old)))
    assert [i for g in groups for i in g.new] == list(range(len(new)))
    for g in groups:
        assert math.prod(old[i] for i in g.old) == math.prod(new[i] for i in g.new)


def test_reshape_to_another_size_is_an_error():
    with pytest.raises(ValueError, match=r"cannot reshape \(4, 6\) to \(5,\)"):
        reshape_groups((4, 6), (5,))
