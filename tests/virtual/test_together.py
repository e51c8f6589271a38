"""Noise of several weights that is drawn at once: the same weights, and fewer computations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

import zojax
from tests.slow import slow_but
from zojax import virtual
from zojax.directions import perturb
from zojax.virtual import _contraction, _dense, _together

KEY = jax.random.key(5)
MADE = {"gaussian": zojax.gaussian(), "integer_normal": zojax.integer_normal()}
SHAPES = {"a": (64, 128), "b": (64, 64), "c": (64, 192), "d": (128, 64), "scale": (64,)}


def _params(layers: int):
    draw = np.random.default_rng(0)
    return [
        {k: jnp.asarray(draw.normal(size=s), jnp.float32) for k, s in SHAPES.items()}
        for _ in range(layers)
    ]


def _stacked(params, x):
    """One layer after the other, weights in no order and used in several ways."""
    for p in params:
        heads = p["c"].reshape(64, 3, 4, 16)
        x = jnp.tanh(x * (1 + p["scale"]))
        x = x + jnp.einsum("bi,ishd->bhds", x, heads).reshape(x.shape[0], -1)[:, :64] / 8
        x = x + (jnp.tanh(x @ p["a"] / 8) @ p["d"]) / 8
        x = x + (p["b"].T @ x.T).T / 8
    return x


def _kinds_apart(params, x):
    """All weights of one kind before the next, five products a layer, far from each other."""
    for name in "bb":
        for p in params:
            x = jnp.tanh(x @ p[name] / 8)
    for p in params:
        x = x + jnp.tanh(x @ p["a"] / 8) @ p["d"] / 8
    for p in params:
        x = x + (x @ p["c"] / 8)[:, :64]
    return x


def _draws(fn, name: str, layers: int) -> int:
    """How many computations of normals a compiled program has."""

    def run(key, x):
        return zojax.virtualize(fn)(perturb(MADE[name], key, _params(layers), 0.1), x)

    text = jax.jit(run).lower(KEY, jnp.ones((8, 64))).compile().as_text()
    return text.count(" log(")


@pytest.mark.parametrize("fn, more", [(_stacked, 1), (_kinds_apart, 5)])
def test_a_layer_is_drawn_at_once_where_its_weights_are_used_together(fn, more):
    few, many = (_draws(fn, "gaussian", layers) for layers in (3, 5))
    assert many - few == 2 * more


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize(
    "fn", slow_but(["together"], {"together": _stacked, "apart": _kinds_apart})
)
def test_the_weights_are_those_that_are_materialized(fn, name):
    params, x = _params(3), jnp.asarray(np.random.default_rng(1).normal(size=(8, 64)), jnp.float32)
    moved = perturb(MADE[name], KEY, params, 0.1)

    @jax.jit
    def both(key, x):
        moved = perturb(MADE[name], key, params, 0.1)
        return zojax.virtualize(fn)(moved, x), fn(virtual.materialize(moved), x)

    eager = zojax.virtualize(fn)(moved, x)
    found, expected = both(KEY, x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(eager, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MADE)
def test_each_entry_is_exact(name):
    """A product with ones on the diagonal is the weight itself, in whatever order it lies."""
    params = _params(2)

    def rows(params, eye):
        return [
            {
                "a": eye[:64, :64] @ p["a"],
                "b": (p["b"].T @ eye[:64, :64]).T,
                "c": jnp.einsum("ij,jshd->ishd", eye[:64, :64], p["c"].reshape(64, 3, 4, 16)),
                "d": lax.dot_general(p["d"], eye, (((0,), (0,)), ((), ()))).T,
                "scale": p["scale"] * 1.0,
            }
            for p in params
        ]

    @jax.jit
    def both(key, eye):
        moved = perturb(MADE[name], key, params, 0.1)
        return zojax.virtualize(rows)(moved, eye), virtual.materialize(moved)

    found, expected = both(KEY, jnp.eye(128))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        tolerance = 1e-6 if name == "gaussian" else 0
        np.testing.assert_allclose(a.reshape(b.shape), b, rtol=0, atol=tolerance)


def _value(params, x):
    return jnp.mean(jnp.square(_stacked(params, x)))


def _pair(fn):
    """`(key, x) -> fn(perturbed, x)`, virtual and materialized."""
    params = _params(2)

    def found(key, x):
        return zojax.virtualize(fn)(perturb(MADE["gaussian"], key, params, 0.1), x)

    def expected(key, x):
        return fn(virtual.materialize(perturb(MADE["gaussian"], key, params, 0.1)), x)

    return found, expected


X = jnp.asarray(np.random.default_rng(2).normal(size=(4, 3, 64)), jnp.float32)


def _under_vmap_of_keys(fn):
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(3))
    return jax.vmap(fn, (0, None))(keys, X[0])


def _under_vmap_of_examples(fn):
    return jax.vmap(fn, (None, 0))(KEY, X)


def _under_map(fn):
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(3))
    return lax.map(lambda k: fn(k, X[0]), keys)


def _differentiated(fn):
    return jax.grad(fn, 1)(KEY, X[0]), jax.jvp(lambda x: fn(KEY, x), (X[0],), (X[1],))[1]


def _on_devices(fn):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    each = jax.shard_map(
        lambda k, x: lax.pmean(fn(k, x), "data"),
        mesh=mesh,
        in_specs=(P(), P("data")),
        out_specs=P(),
    )
    return each(KEY, X[0, :2])


@pytest.mark.parametrize(
    "how",
    [_under_vmap_of_keys, _under_vmap_of_examples, _under_map, _differentiated, _on_devices],
    ids=lambda how: how.__name__,
)
def test_transforms(how):
    found, expected = (jax.jit(functools.partial(how, fn))() for fn in _pair(_value))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_first_use_that_is_batched_and_a_second_that_is_not():
    def fn(params, x):
        p = params[0]
        return [x @ p["a"], jnp.eye(64) @ p["b"], x @ p["c"], jnp.eye(128) @ p["d"]]

    found, expected = (jax.jit(lambda fn=fn: jax.vmap(fn, (None, 0))(KEY, X))() for fn in _pair(fn))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_other_platforms_never_see_what_is_drawn_for_a_cpu(monkeypatch):
    found, expected = _pair(_stacked)
    wanted = jax.jit(expected)(KEY, X[0])

    def elsewhere(*args, default, **named):
        return default(*args)

    monkeypatch.setattr(lax, "platform_dependent", elsewhere)
    jax.clear_caches()
    # a function that was traced before would be taken from the cache
    monkeypatch.setattr(_contraction, "dense_use", _dense.dense_use.__wrapped__)
    monkeypatch.setattr(_together, "_draw", _together._draw.__wrapped__)
    try:
        got = jax.jit(found)(KEY, X[0])
    finally:
        jax.clear_caches()  # of what was traced for no platform that is here
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_the_derivative_by_the_scale():
    params = _params(2)

    def value(scale, weights):
        moved = perturb(MADE["gaussian"], KEY, params, scale)
        return (
            zojax.virtualize(_value)(moved, X[0])
            if weights == "virtual"
            else _value(virtual.materialize(moved), X[0])
        )

    found, expected = (
        jax.jit(jax.grad(functools.partial(value, weights=weights)))(0.1)
        for weights in ("virtual", "dense")
    )
    assert abs(expected) > 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_views_that_noise_cannot_follow_and_products_of_two_weights():
    def fn(params, x):
        p = params[0]
        mixed = p["a"].T.reshape(64, 128)  # no view of the leaf's rows
        return x @ mixed, p["b"] @ p["c"], x @ p["c"], jnp.tanh(x @ p["b"]), jnp.sin(p["d"])

    found, expected = (jax.jit(f)(KEY, X[0]) for f in _pair(fn))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)
