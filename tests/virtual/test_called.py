"""A query is one call in the loop over queries, unless a part of it is the same in all of them."""

import re

import jax
import jax.numpy as jnp
import pytest

import zojax
from zojax.virtual._dependence import depends, has_other_work

TOKENS, IN, HIDDEN, OUT = 128, 256, 72, 40  # TOKENS * IN * HIDDEN multiplications are work


def _params() -> dict:
    return {"trunk": jnp.ones((IN, HIDDEN)), "head": jnp.ones((HIDDEN, OUT))}


def _loss(params, x):
    return jnp.mean(jnp.sin(x @ params["trunk"]) @ params["head"])


def _computations(text: str) -> dict[str, str]:
    found = re.findall(r"^(?:ENTRY )?%([\w.\-]+) [^\n]*\{\n(.*?)^\}", text, re.M | re.S)
    return dict(found)


def _reached(computations: dict[str, str], name: str) -> set[str]:
    """The computation and those that it calls, directly or not."""
    seen, ahead = set(), [name]
    while ahead:
        name = ahead.pop()
        if name not in seen:
            seen.add(name)
            calls = r"(?:calls|to_apply|body|condition)=%([\w.\-]+)"
            ahead += re.findall(calls, computations[name])
    return seen


def _loop(ask, *args) -> tuple[dict[str, str], str]:
    """The computations of a compiled estimate, and the body of its loop over queries."""
    computations = _computations(jax.jit(ask).lower(*args).compile().as_text())
    loops = [
        body
        for text in computations.values()
        for body in re.findall(r" while\(.*body=%([\w.\-]+)", text)
        if any("dot(" in computations[c] for c in _reached(computations, body))
    ]
    (body,) = loops
    return computations, body


def _has_product(computations, names, *shape: int) -> bool:
    pattern = rf"f32\[{','.join(map(str, shape))}\]\S* dot\("
    return any(re.search(pattern, computations[name]) for name in names)


def test_a_query_that_moves_everything_is_one_call():
    ask = zojax.estimate(_loss, zojax.mezo(direction=zojax.low_rank(1)))
    computations, body = _loop(ask, jax.random.key(0), _params(), jnp.ones((TOKENS, IN)))
    assert " call(" in computations[body]
    assert "dot(" not in computations[body]
    inside = _reached(computations, body)
    assert _has_product(computations, inside, TOKENS, HIDDEN)
    assert _has_product(computations, inside, TOKENS, OUT)


def test_a_frozen_trunk_is_computed_once_for_all_queries():
    def loss(head, trunk, x):
        return _loss({"trunk": trunk, "head": head}, x)

    params, x = _params(), jnp.ones((TOKENS, IN))
    ask = zojax.estimate(loss, zojax.mezo(num_samples=4))
    computations, body = _loop(ask, jax.random.key(0), params["head"], params["trunk"], x)
    inside = _reached(computations, body)
    assert _has_product(computations, inside, TOKENS, OUT)
    assert not _has_product(computations, inside, TOKENS, HIDDEN)
    assert _has_product(computations, set(computations) - inside, TOKENS, HIDDEN)


def _work(x, w):
    return jnp.sin(x) @ w


@pytest.mark.parametrize(
    "fn",
    [
        lambda q, x, w: q * _work(x, w).sum(),
        lambda q, x, w: jax.jit(lambda q, x: q * _work(x, w).sum())(q, x),
        lambda q, x, w: jax.checkpoint(lambda q, x: q * _work(x, w).sum())(q, x),
        lambda q, x, w: q + jax.lax.fori_loop(0, 3, lambda i, a: a + _work(x, w).sum(), 0.0),
        lambda q, x, w: q + jnp.linalg.qr(w[:4, :4])[0].sum(),
        lambda q, x, w: q + jnp.linalg.cholesky(w[:4, :4]).sum(),
    ],
    ids=["product", "in a call", "in a checkpoint", "in a loop", "qr", "cholesky"],
)
def test_other_work_is_found(fn):
    x, w = jnp.ones((TOKENS, IN)), jnp.ones((IN, HIDDEN))
    jaxpr = jax.make_jaxpr(fn)(1.0, x, w)
    assert has_other_work(jaxpr, [True, False, False])
    assert not has_other_work(jaxpr, [True, True, True])


@pytest.mark.parametrize(
    "fn",
    [
        lambda q, x, w: _work(q * x, w).sum(),
        lambda q, x, w: jax.jit(lambda q, x: _work(q * x, w).sum())(q, x),
        lambda q, x, w: jax.lax.fori_loop(0, 3, lambda i, a: a + _work(q * x, w).sum(), 0.0),
        lambda q, x, w: q * (x[:8, :8] @ w[:8, :8]).sum(),
        lambda q, x, w: q * jnp.sin(x).sum(),
    ],
    ids=["product", "in a call", "in a loop", "small", "elementwise"],
)
def test_work_with_the_argument_and_small_work_do_not_count(fn):
    x, w = jnp.ones((TOKENS, IN)), jnp.ones((IN, HIDDEN))
    assert not has_other_work(jax.make_jaxpr(fn)(1.0, x, w), [True, False, False])


def test_outputs_that_depend_are_found_through_calls():
    def fn(a, b):
        return jax.jit(lambda a, b: (a + 1, b + 1, a + b))(a, b)

    jaxpr = jax.make_jaxpr(fn)(1.0, 1.0)
    assert depends(jaxpr, [True, False]) == [True, False, True]
