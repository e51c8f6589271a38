"""`explain` and `on_fallback`: nothing becomes dense without a name and a line."""

import warnings

import jax
import jax.numpy as jnp
import pytest

import zojax
from tests.virtual.arrays import make
from zojax import virtual

X = jnp.ones((3, 6))


def _model(params, x):
    x = jnp.tanh(x @ params["low_rank_1"])
    x, _ = jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, params["gaussian"])
    rows = params["entries"][jnp.array([0, 2])]
    return x.sum() + rows.sum() + jnp.exp(params["low_rank_12"]).sum()


PARAMS = {
    "low_rank_1": make("low_rank_1", (6, 8)),
    "gaussian": make("gaussian", (2, 8, 8)),
    "entries": make("entries", (6, 8)),
    "low_rank_12": make("low_rank_12", (5, 7)),
}


def test_explain_lists_each_use():
    found = zojax.explain(_model)(PARAMS, X)
    uses = {u.leaf: (u.primitive, u.how, u.num_bytes) for u in found.uses}
    assert uses == {
        "['low_rank_1']": ("dot_general", "fused", 0),
        "['gaussian']": ("dot_general", "at use", 8 * 8 * 4),
        "['entries']": ("gather", "rows", 0),
        "['low_rank_12']": ("exp", "fallback", 5 * 7 * 4),
    }
    assert [u.leaf for u in found.fallbacks] == ["['low_rank_12']"]
    assert all(u.source.startswith("test_report.py:") for u in found.uses)
    table = str(found)
    assert table.splitlines()[-1] == "4 uses, 1 fallback" and "140" in table


def test_explain_does_not_run_the_function():
    def fn(w, x):
        out = jax.ShapeDtypeStruct((), jnp.float32)
        return jax.pure_callback(lambda: pytest.fail("ran"), out) + (x @ w).sum()

    assert [u.how for u in zojax.explain(fn)(make("low_rank_1", (6, 8)), X).uses] == ["fused"]


def test_vectors_are_no_fallback():
    w = make("gaussian", (8,))
    found = zojax.explain(lambda w: jnp.exp(w).sum())(w)
    assert [(u.how, u.num_bytes) for u in found.uses] == [("vector", 32)]
    zojax.virtualize(jnp.exp, on_fallback="error")(w)


def test_on_fallback_error_names_leaf_shape_primitive_and_line():
    expected = (
        r"leaf \['low_rank_12'\] float32\[5, 7\] was made dense \(140 bytes\) for primitive "
        r"'exp' at test_report.py:\d+ \(_model\); write the use as"
    )
    with pytest.raises(virtual.MaterializedError, match=expected):
        zojax.virtualize(_model, on_fallback="error")(PARAMS, X)


def test_on_fallback_warns_once():
    fn = lambda w: jnp.exp(w).sum()  # noqa: E731
    with pytest.warns(virtual.MaterializedWarning, match=r"leaf \['gaussian'\].*'exp'") as caught:
        zojax.virtualize(fn, on_fallback="warn")(make("gaussian", (6, 8)))
    assert len(caught) == 1


def test_what_has_a_rule_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        params = {k: v for k, v in PARAMS.items() if k != "low_rank_12"}
        fn = lambda p, x: _model(p | {"low_rank_12": X}, x)  # noqa: E731
        for mode in ("warn", "error"):
            zojax.virtualize(fn, on_fallback=mode)(params, X)
