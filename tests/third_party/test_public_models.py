"""Public model codes from PyPI, imported as they are and run on tiny random weights.

`penzai`, transformers of Google DeepMind with named axes; `jax-resnet`, ResNets in flax linen;
`attnax`, transformers in flax nnx. None of them knows zojax.
"""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import zojax
from tests.slow import slow_but
from tests.third_party.checks import (
    assert_steps_do_not_retrace,
    assert_virtual_is_materialized,
    covering,
    explained,
    fallbacks,
)

VOCABULARY = 23
TOKENS = jax.random.randint(jax.random.key(1), (2, 5), 0, VOCABULARY)
IMAGES = jax.random.uniform(jax.random.key(2), (2, 32, 32, 3))


def penzai_transformer(**options):
    """(fn, params) of a Llama-like decoder: grouped queries, RoPE, RMS norms, gated MLP."""
    pytest.importorskip("penzai", reason="needs penzai, of the `test` extra")
    from penzai import pz
    from penzai.models.transformer.variants import llamalike_common

    config = llamalike_common.LlamalikeTransformerConfig(
        num_kv_heads=2, query_head_multiplier=2, embedding_dim=12, projection_dim=6,
        mlp_hidden_dim=20, num_decoder_blocks=2, vocab_size=VOCABULARY, **options,
    )  # fmt: skip
    built = llamalike_common.build_llamalike_transformer(config, jax.random.key(0))
    model, params = pz.unbind_params(built, freeze=True)

    def fn(params, tokens):
        named = pz.nx.wrap(tokens).tag("batch", "seq")
        logits = pz.bind_variables(model, params)(named)
        return logits.unwrap("batch", "seq", "vocabulary")

    return fn, params


def llama():
    return penzai_transformer(mlp_variant="swiglu", tie_embedder_and_logits=False)


def gemma_2():
    """Gemma's second version: layers under scan, tied embedding, soft caps, norms on both sides."""
    return penzai_transformer(
        mlp_variant="geglu_approx", tie_embedder_and_logits=True, use_layer_stack=True,
        use_post_attn_norm=True, use_post_ffw_norm=True,
        final_logit_softcap=30.0, attn_logits_soft_cap=50.0,
    )  # fmt: skip


def resnet():
    jax_resnet = pytest.importorskip("jax_resnet", reason="needs jax-resnet, of the `test` extra")
    model = jax_resnet.ResNet(
        jax_resnet.ResNetBottleneckBlock, stage_sizes=(1, 1), hidden_sizes=(4, 8), n_classes=5
    )
    variables = jax.jit(model.init)(jax.random.key(0), IMAGES)

    def fn(params, images):
        variables_now = {**variables, "params": params}
        return model.apply(variables_now, images, mutable=["batch_stats"])[0]

    return fn, variables["params"]


def attnax_vision_transformer():
    attnax = pytest.importorskip("attnax", reason="needs attnax, of the `test` extra")
    config = attnax.VisionTransformerConfig(
        image_size=32, patch_size=8, num_classes=5, d_model=12, num_heads=2, num_layers=2, d_ff=20
    )
    return _split(attnax.VisionTransformer(nnx.Rngs(0), config))


def attnax_decoder():
    attnax = pytest.importorskip("attnax", reason="needs attnax, of the `test` extra")
    config = attnax.TransformerConfig(
        vocab_size=VOCABULARY, d_model=12, num_heads=2, num_kv_heads=1, num_layers=2, d_ff=20,
        dropout_rate=0.0, max_len=8, pos_emb_type="rope", ff_activation="swiglu", norm_type="rms",
    )  # fmt: skip
    return _split(attnax.TransformerDecoder(nnx.Rngs(0), config))


def _split(model):
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    return lambda params, x: nnx.merge(graph, params, rest)(x), params


# maker, input, weights on the longest path
MODELS = {
    "penzai llama": (llama, TOKENS, 2 * 8 + 3),
    "penzai gemma 2": (gemma_2, TOKENS, 2 * 10 + 3),
    "jax-resnet bottleneck": (resnet, IMAGES, 2 * 9 + 4),
    "attnax vision transformer": (attnax_vision_transformer, IMAGES, 2 * 12 + 4),
    "attnax decoder": (attnax_decoder, TOKENS, 2 * 9 + 2),
}

# a table of positions is added to the tokens, whole
ADDED = {"attnax vision transformer": ["['pos_embed']['embedding'].value"]}


@functools.cache
def build(name):
    make, inputs, depth = MODELS[name]
    return *make(), inputs, depth


@pytest.mark.parametrize("name, direction", covering(MODELS))
def test_virtual_is_materialized(name, direction):
    fn, params, inputs, depth = build(name)
    assert_virtual_is_materialized(fn, direction, params, inputs, depth=depth, scale=0.1)


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_is_seen_and_none_falls_back_but_these(name):
    fn, params, inputs, _ = build(name)
    found = fallbacks(explained(fn, "low_rank", params, inputs))
    assert found == {(leaf, "add") for leaf in ADDED.get(name, ())}


@pytest.mark.parametrize("name", slow_but([next(iter(MODELS))], {name: name for name in MODELS}))
def test_steps_do_not_retrace(name):
    fn, params, inputs, _ = build(name)
    assert_steps_do_not_retrace(lambda p, x: jnp.mean(fn(p, x) ** 2), params, inputs)


@pytest.mark.slow
def test_thirty_steps_lower_the_loss_as_gradient_descent_does():
    """Small unbiased steps follow gradient descent; their variance costs less than half of it."""
    fn, params, tokens, _ = build("penzai llama")
    traces = []

    @jax.jit
    def loss(params, tokens):
        logits = fn(params, tokens)[:, :-1]
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]))

    vg = zojax.value_and_grad(loss, zojax.mezo(num_samples=8, direction=zojax.low_rank(1)))

    def descent(gradient):
        """The loss lost in thirty steps, as a function of the key."""

        @jax.jit
        def step(params, key):
            traces.append(key)
            grads = gradient(key, params)
            return jax.tree.map(lambda p, g: p - 3e-3 * g, params, grads)

        def run(seed):
            found = params
            for i in range(30):
                found = step(found, jax.random.fold_in(jax.random.key(seed), i))
            return float(loss(params, tokens) - loss(found, tokens))

        return run

    exact = descent(lambda key, params: jax.grad(loss)(params, tokens))(0)
    run = descent(lambda key, params: vg(key, params, tokens)[1])
    asked = [run(seed) for seed in range(4)]
    assert len(traces) == 2  # one for each kind of gradient
    assert exact > 0.3
    assert sum(asked) / len(asked) > 0.5 * exact
