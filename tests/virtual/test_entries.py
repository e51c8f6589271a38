"""Entries in every view that a model uses: the same weights, without arithmetic on positions."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import PartitionSpec as P

import zojax
from zojax import virtual
from zojax.virtual import Entries, VirtualArray
from zojax.virtual._entries import _set_by_coordinates, _set_flat

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
            p["heads"].transpose(0, 2, 1)[5:9, 3:].transpose(0, 2, 1) * 1,
            p["heads"].transpose(2, 0, 1).reshape(32, -1).T.reshape(64, 4, 32) * 1,
        ],
    }


@pytest.fixture(params=[1, 8])
def devices(request, monkeypatch):
    """The suite has eight devices; with one alone entries are set in another way on a CPU."""
    jax.clear_caches()
    monkeypatch.setattr(jax, "device_count", lambda: request.param)
    yield
    jax.clear_caches()


@pytest.mark.usefixtures("devices")
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


@pytest.mark.usefixtures("devices")
def test_a_small_leaf_is_set_flat_in_a_product_and_where_no_rule_knows_its_use():
    leaf = _params(jnp.float32)["b"]
    fn = zojax.virtualize(lambda w, x: x @ w + w)
    text = jax.jit(fn).lower(leaf, jnp.ones((64, 64))).as_text()
    found = re.findall(r"\}\) : \(tensor<([\dx]+)xf32>, tensor<\d+x\dxu?i32>", text)
    assert found == (["4096"] if jax.device_count() == 1 else ["64x64"]) * 2


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_both_ways_to_set_give_the_same(data):
    """Stacks, axes and positions in any order, padding, and values that are no numbers."""
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple))
    stack = data.draw(st.integers(0, len(shape) - 1))
    order = data.draw(st.permutations(range(len(shape))))
    draw = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    size = int(np.prod(shape[stack:]))
    count = data.draw(st.integers(1, size + 2))
    rows = [draw.permutation(np.minimum(np.arange(size + 2), size)) for _ in range(4**stack)]
    index = np.stack(rows)[: np.prod(shape[:stack], dtype=int), :count]
    kinds = np.asarray([0.0, -0.0, np.inf, np.nan, 1.5], np.float32)
    base, values = draw.choice(kinds, shape), draw.choice(kinds, index.shape)
    expected = base.reshape(-1, size).copy()
    for row, at, value in zip(expected, index, values, strict=True):
        row[at[at < size]] = value[at < size]
    expected = expected.reshape(shape).transpose(order)
    values, index = (jnp.asarray(x.reshape(*shape[:stack], count)) for x in (values, index))
    entries = Entries(values, index, shape).transpose(order)
    for way in (_set_flat, _set_by_coordinates):
        found = np.asarray(way(jnp.asarray(base.transpose(order)), entries))
        for see in (np.asarray, np.signbit):
            np.testing.assert_array_equal(see(found), see(expected))


def test_a_view_whose_positions_would_overflow_is_refused():
    def entries(shape):
        index = jax.ShapeDtypeStruct((shape[0], 5), jnp.int32)
        return Entries(jax.ShapeDtypeStruct((shape[0], 5), jnp.float32), index, shape)

    def viewed(order, shape):
        return jax.eval_shape(lambda e: e.transpose(order).settled().index, entries(shape)).shape

    large = 2**12, 2**10, 2**9
    assert viewed((1, 0, 2), (2**11, 2**10, 2**9)) == (2**11 * 5,)
    # each matrix of a stack may be transposed, however many there are
    assert viewed((0, 2, 1), large) == (2**12, 5)
    with pytest.raises(ValueError, match="positions up to 2,147,483,648, but positions are int32"):
        viewed((1, 0, 2), large)


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_rows_that_are_looked_up_have_their_entries(data):
    """Any row any number of times or not at all, and padding."""
    size, width = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4))
    draw = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    index = draw.permutation(np.append(np.arange(size * width), [size * width] * 2))
    index = index[: data.draw(st.integers(1, index.size))].astype(np.int32)
    base = draw.normal(size=(size, width)).astype(np.float32)
    values = draw.normal(size=index.size).astype(np.float32)
    entries = Entries(jnp.asarray(values), jnp.asarray(index), (size, width))
    ids = draw.integers(0, size, data.draw(st.sampled_from([(1,), (7,), (2, 3)])))
    found = entries.set_in_rows(jnp.asarray(base[ids]), jnp.asarray(ids), 0)
    np.testing.assert_array_equal(found, np.asarray(entries.set_in(jnp.asarray(base)))[ids])


@pytest.mark.parametrize("spec", [P("parts", None), P(None, "parts")], ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_a_weight_that_is_sharded_is_not_gathered(spec, transposed):
    mesh = jax.make_mesh((4,), ("parts",), axis_types=(jax.sharding.AxisType.Auto,))
    count = 500

    def product(w, values, index, x):
        # named, as leaves are: else it would not be set flat on one device either
        weight = VirtualArray(w, Entries(values, index, w.shape), name="w")
        return zojax.virtualize(lambda w, x: x @ (w.T if transposed else w))(weight, x)

    def like(shape, dtype, spec):
        sharding = jax.sharding.NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    compiled = jax.jit(product).lower(
        like((512, 1024), jnp.float32, spec),
        like((count,), jnp.float32, P()),
        like((count,), jnp.int32, P()),
        like((16, 1024 if transposed else 512), jnp.float32, P()),
    )
    text = compiled.compile().as_text()
    gathered = re.findall(r"= \w+\[([\d,]+)\]\S* all-gather\(", text)
    assert all(math.prod(map(int, g.split(","))) < 512 * 1024 // 4 for g in gathered), gathered
