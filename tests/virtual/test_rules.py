"""`register_rule`: a user's own primitive stays a formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

import zojax
from tests.virtual.arrays import make
from zojax import virtual
from zojax.virtual import LowRank, _rules

X = jnp.asarray(np.random.default_rng(3).standard_normal((8, 16), np.float32))


@pytest.fixture
def rules(monkeypatch):
    """Rules registered in a test end with it."""
    monkeypatch.setattr(_rules, "RULES", dict(_rules.RULES))


def _kernel(x, w, out):
    out[...] = jnp.dot(x[...], w[...], preferred_element_type=jnp.float32)


def _matmul(x, w):
    shape = jax.ShapeDtypeStruct((x.shape[0], w.shape[1]), jnp.float32)
    return pl.pallas_call(_kernel, out_shape=shape, interpret=True)(x, w)


def _thin(values, params, bind):
    x, w = values
    if w.entries is not None or not all(isinstance(t, LowRank) for t in w.terms):
        return None
    (out,) = bind(x, w.base)
    for t in w.terms:
        out += t.scale * (x @ t.left[:, 0]) @ t.right[0].T
    return [out]


def test_a_pallas_call_without_a_rule_gets_a_dense_weight():
    w = make("low_rank_1", (16, 8))
    assert [u.how for u in zojax.explain(_matmul)(X, w).uses] == ["fallback"]
    found = jax.jit(zojax.virtualize(_matmul))(X, w)
    np.testing.assert_allclose(found, X @ w.materialize(), rtol=0, atol=16 * 2**-23 * 8)


def test_a_pallas_call_with_a_rule_stays_a_formula(rules):
    virtual.register_rule("pallas_call", _thin)
    w = make("low_rank_1", (16, 8))
    assert [u.how for u in zojax.explain(_matmul)(X, w).uses] == ["fused"]
    found = jax.jit(zojax.virtualize(_matmul))(X, w)
    np.testing.assert_allclose(found, X @ w.materialize(), rtol=0, atol=16 * 2**-23 * 8)
    shapes = str(jax.make_jaxpr(zojax.virtualize(_matmul))(X, w))
    assert "16,8" in shapes and shapes.count("add") <= 3


def test_a_rule_that_declines_leaves_a_dense_weight(rules):
    virtual.register_rule("pallas_call", _thin)
    w = make("gaussian", (16, 8))
    assert [u.how for u in zojax.explain(_matmul)(X, w).uses] == ["fallback"]
    found = jax.jit(zojax.virtualize(_matmul))(X, w)
    np.testing.assert_allclose(found, X @ w.materialize(), rtol=0, atol=16 * 2**-23 * 8)


def test_a_rule_may_return_another_formula(rules):
    virtual.register_rule("exp", lambda values, params, bind: values[0].astype(jnp.float32))
    w = make("low_rank_1", (16, 8))
    found = zojax.virtualize(lambda w: X @ jnp.exp(w))(w)
    np.testing.assert_allclose(found, X @ w.materialize(), rtol=0, atol=16 * 2**-23 * 8)
