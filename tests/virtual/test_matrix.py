"""Virtual = materialised: primitive x transform x term, with `materialize` as the oracle."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import zojax
from tests.virtual.arrays import KINDS, make
from zojax import noise
from zojax.virtual import LowRank, Noise, VirtualArray, materialize

X = jnp.asarray(np.random.default_rng(1).standard_normal((3, 6), np.float32))
IDS = jnp.array([[0, 3, 3], [5, 1, 0]])


@jax.custom_vjp
def _scaled_tanh(x):
    return jnp.tanh(x) * 2


_scaled_tanh.defvjp(lambda x: (_scaled_tanh(x), x), lambda x, g: (g,))


def _scan(w, x, **options):
    return lax.scan(lambda c, w: (jnp.tanh(c @ w), w[0]), x, w, **options)


def _convolve(w, x, strides=(1, 1), padding="SAME", **options):
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")} | options
    image = jnp.sin(jnp.arange(2 * 5 * 6 * 2, dtype=jnp.float32)).reshape(2, 5, 6, 2)
    return lax.conv_general_dilated(image, w, strides, padding, **options)


def _dynamic(*starts):
    return lambda w, x: lax.dynamic_slice(w, tuple(map(jnp.int32, starts)), (3, 4))


# Only views and lookups: the same formula for the same element, so equal bit for bit.
VIEWS = {
    "output": ((6, 8), lambda w, x: w.T),
    "flat": ((6, 8), lambda w, x: w.reshape(-1)),
    "split": ((6, 8), lambda w, x: w.reshape(3, 2, 2, 4).transpose(2, 0, 3, 1)),
    "split and merge back": ((6, 8), lambda w, x: w.reshape(2, 3, 8).reshape(6, 2, 4)),
    "merge that no formula follows": ((6, 8), lambda w, x: w.T.reshape(4, 12)),
    "size-one axes": ((6, 8), lambda w, x: jnp.squeeze(w[None, :, None], 2)[0][..., None]),
    "slice": ((6, 8), lambda w, x: w[1:5, 2:7]),
    "strided slice": ((6, 8), lambda w, x: w[1:6:2, 7:0:-3] + 0 * w[::3, 1::3][:1, :1]),
    "dynamic slice": ((6, 8), _dynamic(1, 2)),
    "dynamic slice beyond the end": ((6, 8), _dynamic(7, 1)),
    "dynamic slice before the start": ((6, 8), _dynamic(-20, 100)),
    "lookup": ((6, 8), lambda w, x: w[IDS]),
    "lookup of columns": ((8, 6), lambda w, x: jnp.take(w, IDS, axis=1)),
    "lookup in a stack": ((4, 6, 8), lambda w, x: jnp.take(w, IDS, axis=1)),
    "lookup of matrices": ((6, 4, 8), lambda w, x: w[IDS]),
    "lookup of one": ((6, 8), lambda w, x: w[jnp.int32(2)]),
    "lookup with negative ids": ((6, 8), lambda w, x: w[jnp.array([-1, -6, 2])]),
    "lookup filled": ((6, 8), lambda w, x: jnp.take(w, jnp.array([9, 1, -1, -7]), axis=0)),
    "lookup filled beside the last row": (
        (6, 8),
        lambda w, x: jnp.take(w, jnp.array([5, 9, 5]), axis=0),
    ),
    "lookup of one under vmap": ((6, 8), lambda w, x: jax.vmap(lambda i: w[i])(IDS[0])),
    "lookup along a kept axis": (
        (6, 8),
        lambda w, x: lax.gather(
            w,
            IDS[..., None],
            lax.GatherDimensionNumbers(
                offset_dims=(0, 3), collapsed_slice_dims=(), start_index_map=(1,)
            ),
            slice_sizes=(6, 1),
            mode="clip",
        ),
    ),
    "lookup clipped": (
        (6, 8),
        lambda w, x: jnp.take(w, jnp.array([9, 1, 9, -7]), axis=0, mode="clip"),
    ),
    "lookup by bytes": ((6, 8), lambda w, x: w[IDS.astype(jnp.uint8)]),
    "lookup by bytes in a long table": ((300, 2), lambda w, x: w[IDS.astype(jnp.uint8)]),
    "lookup of elements": ((6, 8), lambda w, x: w[IDS, IDS]),
    "lookup of a range": ((6, 8), lambda w, x: w[1:][jnp.array([0, 4, 4])][:, ::2]),
    "scan outputs": ((4, 6, 8), lambda w, x: lax.scan(lambda c, w: (c, w.T), 0, w)[1]),
    "concatenate": ((6, 8), lambda w, x: jnp.concatenate([w, w[:2]])),
}

USES = {
    "matmul": ((6, 8), lambda w, x: x @ w),
    "matmul of the transpose": ((8, 6), lambda w, x: x @ w.T),
    "weight on the left": ((8, 6), lambda w, x: w @ x.T),
    "matrix and vector": ((6, 8), lambda w, x: x[0] @ w),
    "vector and matrix": ((8, 6), lambda w, x: w @ x[0]),
    "heads": ((6, 8), lambda w, x: jnp.einsum("bi,ihk->bhk", x, w.reshape(6, 2, 4))),
    "heads contracted": ((8, 6), lambda w, x: jnp.einsum("bi,hki->hbk", x, w.reshape(2, 4, 6))),
    "two axes contracted": (
        (6, 8),
        lambda w, x: jnp.einsum("bij,ijo->bo", x.reshape(3, 2, 3), w.reshape(2, 3, 8)),
    ),
    "all contracted": ((3, 6), lambda w, x: jnp.einsum("bi,bi->", x, w)),
    "both sides": ((6, 6), lambda w, x: w @ w.T),
    "batched weights": ((3, 6, 8), lambda w, x: jnp.einsum("bi,bij->bj", x, w)),
    "batched weights on the left": ((3, 8, 6), lambda w, x: jnp.einsum("boi,bi->bo", w, x)),
    "experts": ((4, 6, 8), lambda w, x: jnp.einsum("bi,eio->beo", x, w)),
    "outer product": ((6, 8), lambda w, x: jnp.einsum("bi,mn->bmni", x[:1], w)),
    "one column": ((6, 1), lambda w, x: x @ w),
    "one row": ((1, 8), lambda w, x: x[:, :1] @ w),
    "matmul of a slice": ((6, 8), lambda w, x: x[:, 1:5:2] @ w[1:5:2, 2:6]),
    "matmul of a dynamic slice": ((6, 8), lambda w, x: x[:, :3] @ _dynamic(7, 1)(w, x)),
    "scan": ((4, 6, 6), _scan),
    "scan reversed": ((4, 6, 6), functools.partial(_scan, reverse=True)),
    "scan unrolled": ((4, 6, 6), functools.partial(_scan, unroll=2)),
    "scan of the transpose": ((4, 6, 6), lambda w, x: _scan(jnp.swapaxes(w, 1, 2), x)),
    "scan with the weight outside": (
        (6, 6),
        lambda w, x: lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=3),
    ),
    "scan of scans": (
        (4, 6, 6),
        lambda w, x: lax.scan(lambda c, w: (_scan(w, c)[0], None), x, w.reshape(2, 2, 6, 6)),
    ),
    "weight in the carry": (
        (6, 6),
        lambda w, x: lax.scan(lambda c, _: ((c[0], c[1] @ c[0]), None), (w, x), None, length=2),
    ),
    "indexed layers": ((4, 6, 6), lambda w, x: x @ w[0] @ w[3]),
    "fori over layers": (
        (4, 6, 6),
        lambda w, x: lax.fori_loop(0, 4, lambda i, c: jnp.tanh(c @ w[i]), x),
    ),
    "fori over traced layers": (
        (4, 6, 6),
        lambda w, x: lax.fori_loop(
            0, jnp.int32(x.shape[0]), lambda i, c: jnp.tanh(c @ w[i + 1]), x
        ),
    ),
    "while": (
        (6, 6),
        lambda w, x: lax.while_loop(
            lambda c: c[1] < jnp.abs(w).sum() * 0 + 3,
            lambda c: (jnp.tanh(c[0] @ w), c[1] + 1),
            (x, 0),
        ),
    ),
    "cond": ((6, 6), lambda w, x: lax.cond(x.sum() > 0, lambda: x @ w, lambda: x @ w.T)),
    "cond with operands": (
        (6, 6),
        lambda w, x: lax.cond(x.sum() > 0, lambda w: w, lambda w: w.T, w),
    ),
    "switch": (
        (6, 6),
        lambda w, x: lax.switch(
            IDS[0, 1], [lambda w, x: x, lambda w, x: x @ w, lambda w, x: x @ w.T], w, x
        ),
    ),
    "jit": ((6, 6), lambda w, x: jax.jit(lambda w, x: jnp.sin(x @ w))(w, x)),
    "jit of a view": ((6, 8), lambda w, x: jax.jit(lambda w: jax.jit(jnp.transpose)(w))(w) @ x.T),
    "remat": ((6, 6), lambda w, x: jax.checkpoint(lambda w, x: jnp.sin(x @ w))(w, x)),
    "custom_jvp": ((6, 6), lambda w, x: jax.nn.relu(w).sum() + jax.nn.silu(x @ w)),
    "custom_vjp": ((6, 6), lambda w, x: _scaled_tanh(x @ w) + _scaled_tanh(w)[:3]),
    "elementwise": ((6, 8), lambda w, x: (w * 2).sum() + jnp.exp(w[0])),
    "one vector of a stack": (
        (4, 8),
        lambda w, x: lax.scan(lambda c, w: (c + w, None), x[0, 0] * w[0], w),
    ),
    "reduction": ((6, 8), lambda w, x: (w.max(0), w.mean(), jnp.argmax(w))),
    "convolution": (
        (8, 3, 2),
        lambda w, x: lax.conv_general_dilated(x[None], w, (1,), "SAME"),
    ),
    "convolution of an image": ((3, 2, 2, 4), _convolve),
    "convolution strided and dilated": (
        (2, 3, 2, 4),
        functools.partial(_convolve, strides=(2, 1), rhs_dilation=(1, 2), padding="VALID"),
    ),
    "convolution in groups": (
        (3, 2, 1, 4),
        functools.partial(_convolve, feature_group_count=2),
    ),
    "convolution, output first": (
        (4, 2, 3, 2),
        functools.partial(_convolve, dimension_numbers=("NHWC", "OIHW", "NCHW")),
    ),
    "split": ((6, 9), lambda w, x: [x @ part for part in jnp.split(w, (2, 2, 5), axis=1)]),
    "broadcast over a batch": (
        (6, 8),
        lambda w, x: jnp.einsum("bi,bij->bj", x, jnp.broadcast_to(w, (3, 6, 8))),
    ),
    "broadcast of an axis": (
        (1, 8),
        lambda w, x: x @ jnp.broadcast_to(w, (6, 8)),
    ),
    "stop_gradient": ((6, 8), lambda w, x: x @ lax.stop_gradient(w)),
    "vmap inside": ((6, 8), lambda w, x: jax.vmap(lambda x: x @ w)(x)),
    "vmap inside over weights": ((4, 6, 8), lambda w, x: jax.vmap(lambda w: x @ w)(w)),
    "vmap inside over both": ((3, 6, 8), lambda w, x: jax.vmap(lambda w, x: x @ w)(w, x)),
    "vmap inside over a lookup": ((6, 8), lambda w, x: jax.vmap(lambda i: w[i])(IDS)),
    "gradient of the input": ((6, 8), lambda w, x: jax.grad(lambda x: jnp.sin(x @ w).sum())(x)),
    "hessian of the input": (
        (6, 8),
        lambda w, x: jax.hessian(lambda x: jnp.tanh(x @ w).sum())(x[0]),
    ),
    "attention": (
        (6, 6),
        lambda w, x: jax.nn.softmax((x @ w) @ (x @ w.T).T) @ (x @ w),
    ),
    "tied": ((6, 6), lambda w, x: jnp.tanh(w[IDS[0]] @ w) @ w.T),
    "callback": (
        (6, 6),
        lambda w, x: jax.pure_callback(
            lambda w, x: np.asarray(x) @ np.asarray(w), jax.ShapeDtypeStruct((3, 6), x.dtype), w, x
        ),
    ),
}


def _assert_close(found, expected, message=""):
    """Sums of at most twenty products, at most four deep: 80 roundings of the largest value."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape, message
        size = np.abs(np.nan_to_num(np.asarray(b, np.float64))).max(initial=1.0)
        np.testing.assert_allclose(a, b, rtol=0, atol=80 * 2**-24 * size, err_msg=message)


@functools.cache
def _arrays(shape):
    """A virtual array of every kind, and the same materialised."""
    arrays = {kind: make(kind, shape) for kind in KINDS}
    return arrays, jax.jit(materialize)(arrays)


@functools.cache
def _compiled(fn):
    return jax.jit(fn)


# kinds whose parts make up all others, and the others
SOME = ("rademacher", "tall_2", "entries", "two_terms", "nf4")
OTHERS = tuple(kind for kind in KINDS if kind not in SOME)
each_kind = pytest.mark.parametrize(
    "kinds", [SOME, pytest.param(OTHERS, marks=pytest.mark.slow)], ids=["some", "others"]
)


def _both(fn, shape, kinds, x=X):
    """What each kind gives, and the function itself on the dense array: one program for each."""
    virtual, dense = ({kind: arrays[kind] for kind in kinds} for arrays in _arrays(shape))
    virtual_fn, dense_fn = zojax.virtualize(fn), _compiled(fn)
    found = jax.jit(lambda ws, x: {kind: virtual_fn(w, x) for kind, w in ws.items()})(virtual, x)
    return {kind: (found[kind], dense_fn(dense[kind], x)) for kind in kinds}


@each_kind
@pytest.mark.parametrize("name", VIEWS)
def test_views_are_bit_equal(name, kinds):
    shape, fn = VIEWS[name]
    for kind, (found, expected) in _both(fn, shape, kinds).items():
        if kind in ("rademacher", "entries"):
            np.testing.assert_array_equal(found, expected, err_msg=kind)
        else:
            _assert_close(found, expected, kind)


@each_kind
@pytest.mark.parametrize("name", USES)
def test_uses_under_jit(name, kinds):
    shape, fn = USES[name]
    for kind, (found, expected) in _both(fn, shape, kinds).items():
        _assert_close(found, expected, kind)


@pytest.mark.parametrize(
    "name",
    [
        "matmul", "heads contracted", "scan", "scan with the weight outside", "indexed layers",
        "fori over layers", "while", "cond", "switch", "jit", "remat", "custom_jvp", "custom_vjp",
        "vmap inside", "gradient of the input", "tied", "callback", "dynamic slice beyond the end",
        "lookup filled",
    ],
)  # fmt: skip
def test_eager(name):
    """Outside jit, where values are concrete: everything that runs or traces a function."""
    shape, fn = (VIEWS | USES)[name]
    w = make("low_rank_entries", shape)
    _assert_close(zojax.virtualize(fn)(w, X), fn(w.materialize(), X))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["low_rank_1", "two_terms"])
def test_vmap_over_scale(kind):
    """The batch of queries of an estimate: all cases that have no callback, in one program."""
    cases = {n: c for n, c in (VIEWS | USES).items() if n != "callback"}
    scales = jnp.array([0.25, -0.25])

    weights = lambda scale: {s: make(kind, s, scale=scale) for s, _ in cases.values()}  # noqa: E731

    @jax.jit
    @jax.vmap
    def run(scale):
        ws = weights(scale)
        return {n: zojax.virtualize(fn)(ws[s], X) for n, (s, fn) in cases.items()}

    found, dense = run(scales), jax.jit(jax.vmap(lambda s: materialize(weights(s))))(scales)
    for name, (shape, fn) in cases.items():
        expected = [_compiled(fn)(w, X) for w in dense[shape]]
        _assert_close(found[name], jax.tree.map(lambda *a: jnp.stack(a), *expected), name)


@pytest.mark.parametrize("over", [jax.vmap, lambda f: lambda keys: lax.map(f, keys)])
@pytest.mark.parametrize("kind", ["gaussian", "low_rank"])
def test_over_keys(over, kind):
    """Directions of their own: vmap and lax.map over the keys of the noise."""
    base = make("entries", (6, 8)).base

    def perturbed(key):
        if kind == "gaussian":
            return VirtualArray(base).plus(Noise.of_leaf(key, 0.25, "gaussian", (6, 8)))
        a, b = (noise.gaussian(noise.leaf_bits(noise.fold_in(key, i), (n, 2)))
                for i, n in enumerate((6, 8)))  # fmt: skip
        return VirtualArray(base).plus(LowRank.of_matrices(a, b, 0.25))

    fn = lambda w, x: (jnp.tanh(x @ w), w[IDS])  # noqa: E731
    keys = noise.fold_in(jax.random.key(0), jnp.arange(3))
    found = jax.jit(over(lambda k: zojax.virtualize(fn)(perturbed(k), X)))(keys)
    one = jax.jit(lambda k: fn(perturbed(k).materialize(), X))
    expected = [one(k) for k in keys]
    _assert_close(found, jax.tree.map(lambda *a: jnp.stack(a), *expected))


def test_gradient_through_the_terms():
    """Differentiable in what the formula is made of, as the dense array is."""
    fn = lambda w, x: jnp.tanh(x @ w).sum() + jnp.sin(w[IDS]).sum()  # noqa: E731
    w = make("low_rank_entries", (6, 8))
    found = jax.jit(jax.grad(lambda w: zojax.virtualize(fn)(w, X), allow_int=True))(w)
    expected = jax.jit(jax.grad(lambda w: fn(w.materialize(), X), allow_int=True))(w)
    for part in (lambda w: w.base, lambda w: w.entries.values, lambda w: w.terms[0].left):
        _assert_close(part(found), part(expected))


BF16_USES = {
    "matmul": ((6, 8), "bi,io->bo"),
    "transpose": ((8, 6), "bi,oi->bo"),
    "batched": ((3, 6, 8), "bi,bio->bo"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_products_are_within_three_roundings(kind):
    """2^-8 relative for each: the weight with its noise, their product, the sum with low rank."""
    x = X.astype(jnp.bfloat16)
    wide = np.asarray(x, np.float64)

    def both(w, letters):
        found = zojax.virtualize(lambda w, x: jnp.einsum(letters, x, w))(w, x)
        stored = VirtualArray(w.base, w.entries).materialize().astype(jnp.float32)
        noise_terms = tuple(t for t in w.terms if isinstance(t, Noise))
        terms = noise_terms, w.terms
        return found, [VirtualArray(stored, None, t).materialize() for t in terms]

    arrays = {name: make(kind, shape, jnp.bfloat16) for name, (shape, _) in BF16_USES.items()}
    results = jax.jit(lambda ws: {n: both(w, BF16_USES[n][1]) for n, w in ws.items()})(arrays)
    for name, (found, wholes) in results.items():
        shape, letters = BF16_USES[name]
        assert found.dtype == jnp.bfloat16
        dense, exact = (np.asarray(w, np.float64) for w in wholes)
        product, expected = np.einsum(letters, wide, dense), np.einsum(letters, wide, exact)
        sums = np.einsum(letters, abs(wide), abs(dense)) + abs(product) + abs(expected)
        bound = 2.0**-8 * (1 + 2.0**-7) * sums
        assert np.all(abs(np.asarray(found, np.float64) - expected) <= bound), shape


@pytest.mark.parametrize("kind", ["rademacher", "entries"])
def test_bfloat16_lookups_are_bit_equal(kind):
    w = make(kind, (6, 8), jnp.bfloat16)
    fn = lambda w: (w[IDS], w.T[2:5])  # noqa: E731
    found, expected = zojax.virtualize(fn)(w), fn(w.materialize())
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_array_equal(a, b)


def test_cast_before_a_product():
    w = make("low_rank_1", (6, 8), jnp.bfloat16)
    fn = lambda w, x: x @ w.astype(jnp.float32)  # noqa: E731
    exact = w.astype(jnp.float32).materialize()
    _assert_close(zojax.virtualize(fn)(w, X), X @ exact)
    ints = lambda w: (w * 4).astype(jnp.int32) + w.astype(jnp.int32)  # noqa: E731
    np.testing.assert_array_equal(zojax.virtualize(ints)(w), ints(w.materialize()))


_MESH = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("a", "b"))


def _on_mesh(fn, in_specs, out_specs):
    specs = jax.tree.map(lambda s: PartitionSpec(*s), (in_specs, out_specs), is_leaf=_is_spec)
    return jax.shard_map(fn, mesh=_MESH, in_specs=specs[0], out_specs=specs[1])


def _is_spec(x):
    return isinstance(x, tuple) and all(n is None or n in ("a", "b", ("a", "b")) for n in x)


SHARDED = {
    "batch": ((8, 12), _on_mesh(lambda w, x: x @ w, ((), ("a",)), ("a",))),
    "rows": (
        (8, 12),
        _on_mesh(lambda w, x: lax.psum(x @ w, "a"), (("a", "b"), (None, "a")), (None, "b")),
    ),
    "columns over two axes": (
        (8, 12),
        _on_mesh(lambda w, x: x @ w, ((None, ("a", "b")), ()), (None, ("a", "b"))),
    ),
    "a view": ((8, 12), _on_mesh(lambda w, x: w.T, (("a", "b"), ()), ("b", "a"))),
    "a lookup": (
        (8, 12),
        _on_mesh(lambda w, x: w[jnp.array([0, 3, 3])], (("a",), ()), ("a",)),
    ),
    "a stack of layers": (
        (4, 8, 8),
        _on_mesh(
            lambda w, x: lax.scan(lambda c, w: (c, jnp.tanh(c @ w)), x, w)[1], (("a",), ()), ("a",)
        ),
    ),
}


@pytest.mark.parametrize("name", SHARDED)
def test_shard_map_gives_each_device_its_part(name):
    shape, fn = SHARDED[name]
    x = jnp.asarray(np.random.default_rng(2).standard_normal((4, 8), np.float32))
    for kind, (found, expected) in _both(fn, shape, KINDS, x).items():
        _assert_close(found, expected, kind)
    tall = make("tall_2", shape)
    uses = zojax.explain(fn)(tall, x).uses
    # a view that is the output has to be made, all others stay formulas
    assert name == "a view" or all(u.how in ("fused", "rows") for u in uses), uses


def test_sharding_constraint_stays_a_formula():
    where = NamedSharding(_MESH, PartitionSpec("a", "b"))
    fn = lambda w, x: x @ jax.lax.with_sharding_constraint(w, where)  # noqa: E731
    w, x = make("low_rank_1", (6, 8)), X
    _assert_close(jax.jit(zojax.virtualize(fn))(w, x), x @ w.materialize())
    assert [u.how for u in zojax.explain(fn)(w, x).uses] == ["fused"]


@pytest.mark.parametrize("kind", ["gaussian", "entries"])
def test_a_batch_of_queries_makes_one_dense_weight_at_a_time(kind):
    """Sixteen perturbed weights of a megabyte each: the compiled program holds two at most."""
    shape, queries = (512, 512), 16
    weight = make(kind, shape)
    x = jnp.ones((1, 512))

    def query(scale):
        scaled = VirtualArray(
            weight.base,
            None
            if weight.entries is None
            else replace(weight.entries, values=weight.entries.values * scale),
            tuple(t.scaled(scale) for t in weight.terms),
        )
        return zojax.virtualize(jnp.dot)(x, scaled)

    compiled = jax.jit(jax.vmap(query)).lower(jnp.ones(queries)).compile()
    size = weight.size * 4
    assert compiled.memory_analysis().temp_size_in_bytes < 2.5 * size
    scales = jnp.arange(queries, dtype=jnp.float32)
    expected = jnp.stack([query(s) for s in scales])
    _assert_close(compiled(scales) / 512, expected / 512)


def test_a_shared_weight_is_made_once_for_a_batch():
    w = make("gaussian", (512, 512))
    compiled = jax.jit(jax.vmap(lambda x: zojax.virtualize(jnp.dot)(x, w))).lower(
        jnp.ones((16, 512))
    )
    text = compiled.compile().as_text()
    assert text.count(" while(") == 0


def test_differentiable_where_a_noise_is_made_dense():
    w = make("gaussian", (6, 8))
    loss = lambda w, x: jnp.sin(x @ w).sum()  # noqa: E731
    found = jax.grad(lambda x: zojax.virtualize(loss)(w, x))(X)
    _assert_close(found, jax.grad(loss, argnums=1)(w.materialize(), X))
    tangent = jax.jvp(lambda x: zojax.virtualize(loss)(w, x), (X,), (X,))[1]
    _assert_close(tangent, jnp.vdot(found, X))


def test_weak_types_stay_weak():
    weak = VirtualArray(jnp.asarray(2.0)).plus(
        Noise.of_leaf(jax.random.key(0), 0.5, "rademacher", ())
    )
    fn = lambda s, x: x * s  # noqa: E731
    x = jnp.ones(3, jnp.bfloat16)
    assert zojax.virtualize(fn)(weak, x).dtype == fn(jnp.asarray(2.0), x).dtype == jnp.bfloat16


def test_a_static_argument_stays_static():
    def fn(w, x, mode, *, scale):
        assert mode == "twice" and isinstance(scale, float)
        return (x @ w) * scale

    w = make("low_rank_1", (6, 8))
    found = zojax.virtualize(fn)(w, X, "twice", scale=2.0)
    _assert_close(found, 2 * (X @ w.materialize()))


def test_virtual_arrays_anywhere_in_a_tree():
    params = {"layers": [make("gaussian", (6, 6)), make("entries", (6, 6))], "bias": jnp.ones(6)}
    fn = lambda p, x: {"out": x @ p["layers"][0] @ p["layers"][1] + p["bias"], "n": 1}  # noqa: E731
    found = zojax.virtualize(fn)(params, x=X)
    _assert_close(found["out"], fn(materialize(params), X)["out"])


def test_without_a_virtual_argument_the_function_itself_is_called():
    seen = []
    fn = lambda x: seen.append(x) or x  # noqa: E731
    value = object()
    assert zojax.virtualize(fn)(value) is value and seen == [value]
