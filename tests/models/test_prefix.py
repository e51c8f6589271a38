"""Virtual tokens before the text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zojax
from tests.models import tiny
from zojax import models, tasks
from zojax.trainables import Prefixed, leaf_mask

TOKENS = jnp.array([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0]])
MASK = jnp.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)
BEFORE = jnp.array([7, 8, 11])


def _model(case):
    config = models.parse_config(tiny.CASES[case])
    kind = models.Decoder if config.causal else models.Encoder
    bind, params = models.functional(kind(config, rngs=nnx.Rngs(0)))
    return jax.jit(lambda p, t, m: bind(p)(t, m)), bind, params


def _prefixed(bind):
    return jax.jit(lambda p, t, m: models.with_prefix(bind)(p)(t, m))


def test_a_prefix_of_embeddings_is_those_tokens_before_the_text():
    plain, bind, params = _model("llama")
    theta, frozen, merge = zojax.prefix(params, params["embedding"]["embedding"][BEFORE])
    found = _prefixed(bind)(merge(theta, frozen), TOKENS, MASK)
    longer = jnp.concatenate([jnp.tile(BEFORE, (2, 1)), TOKENS], 1)
    seen = jnp.concatenate([jnp.ones((2, 3), bool), MASK], 1)
    expected = plain(params, longer, seen)[:, 3:]
    counted = np.asarray(MASK)
    # the very same sums
    np.testing.assert_allclose(found[counted], expected[counted], rtol=0, atol=5e-6)


@pytest.mark.parametrize("case", ["gpt2", "bert"])
def test_padding_after_the_text_changes_nothing_and_the_prefix_does(case):
    _, bind, params = _model(case)
    init, run = jax.random.normal(jax.random.key(0), (3, 32)), _prefixed(bind)
    found = run(Prefixed(params, init), TOKENS, MASK)[1, :3]
    alone = run(Prefixed(params, init), TOKENS[1:, :3], MASK[1:, :3])[0]
    np.testing.assert_allclose(found, alone, rtol=0, atol=5e-6)
    other = run(Prefixed(params, -init), TOKENS, MASK)[1, :3]
    assert np.abs(found - other).max() > 1e-3


def test_a_prefix_trains_through_the_losses_of_tasks():
    _, bind, params = _model("llama")
    split = zojax.prefix(params, 0.02 * jax.random.normal(jax.random.key(0), (3, 32)))
    loss = tasks.language_modelling(models.with_prefix(bind))
    batch = {"tokens": TOKENS, "length": MASK.sum(1)}
    of = lambda t: zojax.virtualize(loss)(split.merge(t, split.frozen), batch)  # noqa: E731
    estimator = zojax.fgd(4)
    found = jax.jit(zojax.estimate(of, estimator))(jax.random.key(1), split.trainable)
    grad = jax.jit(jax.grad(of))(split.trainable).prefix
    for key, c in zip(found.keys, found.coefficients, strict=True):
        (z,) = (t.materialize() for t in zojax.gaussian().terms(key, split.trainable))
        # g.z, forwards and backwards, each to some roundings of its terms
        assert abs(float((grad * z).sum()) - c) < 100 * 2**-24 * float(jnp.abs(grad * z).sum())
    mask = leaf_mask(split)
    assert mask.prefix is True and not any(jax.tree.leaves(mask.params))


def test_prefix_errors():
    _, bind, params = _model("llama")
    for init in (jnp.zeros(32), jnp.zeros((0, 32))):
        with pytest.raises(ValueError, match=r"init must be \(length, width\)"):
            zojax.prefix(params, init)
    with pytest.raises(ValueError, match="The prefix is 16 wide and the model 32"):
        models.with_prefix(bind)(Prefixed(params, jnp.zeros((2, 16))))(TOKENS)
