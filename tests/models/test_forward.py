"""The forward pass: against numbers from transformers, and against its own promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zojax
import zojax.models as models
from tests.models import tiny
from zojax import virtual

# Logits are O(1) sums of about a hundred products in float32, in another order than torch's.
TOLERANCE = 5e-6


def _load(case, folder):
    return models.load(tiny.case_folder(folder, case))


def _random(case, **changes):
    config = models.parse_config(tiny.CASES[case] | changes)
    kind = models.Decoder if config.causal else models.Encoder
    return kind(config, rngs=nnx.Rngs(0))


def _abstract(case, **changes):
    return nnx.eval_shape(lambda: _random(case, **changes))


def _jit(model):
    """The forward pass, compiled as one; its promises are about that as well."""
    bind, params = models.functional(model)
    compiled = jax.jit(lambda params, tokens, mask: bind(params)(tokens, mask))
    return lambda tokens, mask=None: compiled(params, tokens, mask)


def _inputs(case):
    tokens, mask = tiny.inputs(case)
    return jnp.asarray(tokens), jnp.asarray(mask)


@pytest.mark.parametrize("case", tiny.CASES)
def test_equals_transformers(case, tmp_path):
    tokens, mask = _inputs(case)
    with np.load(tiny.FIXTURE) as fixture:
        expected = fixture[case]
    found = np.asarray(_jit(_load(case, tmp_path))(tokens, mask))[np.asarray(mask)][
        :, :: tiny.STRIDE
    ]
    assert np.std(expected) > 0.5
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("case", ["llama", "qwen2_window", "opt", "gpt2", "bert", "roberta"])
def test_padding_changes_nothing(case, tmp_path):
    forward = _jit(_load(case, tmp_path))
    tokens = _inputs(case)[0][:1]
    alone = forward(tokens)
    length = tokens.shape[1]
    # The positions of BERT count padding, as they do in transformers.
    starts = [0] if case == "bert" else [0, 2, 3]
    padded = np.full((len(starts), length + 3), 7, np.int32)
    mask = np.zeros(padded.shape, bool)
    for row, start in enumerate(starts):
        padded[row, start : start + length] = tokens[0]
        mask[row, start : start + length] = True
    found = forward(padded, mask)[mask].reshape(len(starts), length, -1)
    np.testing.assert_allclose(found, np.repeat(alone, len(starts), 0), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("case", ["llama", "mistral", "gpt2", "bert"])
def test_a_row_of_padding_stays_finite_and_alone(case, tmp_path):
    model = _jit(_load(case, tmp_path))
    tokens, mask = _inputs(case)
    emptied = mask.at[1].set(False)
    before, after = model(tokens, mask), model(tokens, emptied)
    assert np.isfinite(after).all()
    np.testing.assert_array_equal(before[0][mask[0]], after[0][mask[0]])


@pytest.mark.parametrize("case", ["llama", "qwen2_window", "opt", "gpt2"])
def test_decoders_do_not_see_the_future(case, tmp_path):
    model = _jit(_load(case, tmp_path))
    tokens = _inputs(case)[0][:1]
    changed = tokens.at[0, 5].set(4)
    before, after = model(tokens), model(changed)
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert (np.abs(before - after)[0, 5:].max(axis=-1) > 1e-3).all()


def test_sliding_window_reaches_no_further(tmp_path):
    # Two layers with a window of 4 see 2 * (4 - 1) positions back.
    model = _jit(_load("mistral", tmp_path))
    tokens = _inputs("mistral")[0][:1]
    before, after = model(tokens), model(tokens.at[0, 0].set(5))
    assert np.abs(before - after)[0, 6].max() > 1e-6
    np.testing.assert_array_equal(before[0, 7:], after[0, 7:])


@pytest.mark.parametrize("case", ["llama", "qwen2_window", "opt_350m", "gpt2", "bert"])
def test_stages_make_the_whole(case, tmp_path):
    model = _load(case, tmp_path)
    tokens, mask = _inputs(case)
    bind, params = models.functional(model)

    @jax.jit
    def staged(params):
        model = bind(params)
        x = model.embed(tokens, mask)
        for first in range(model.config.num_layers):
            x = model.run_layers(x, mask, first, first + 1)
        assert model.run_layers(x, mask, 1, 1) is x
        hidden = model.finish(x)
        return model.logits(hidden[:, -1]) if case in tiny.DECODERS else hidden[:, -1]

    # Scans of one layer and a scan of all are compiled differently, so rounded differently.
    whole = _jit(model)(tokens, mask)[:, -1]
    np.testing.assert_allclose(staged(params), whole, rtol=0, atol=TOLERANCE)


def _count(jaxpr):
    inner = [p for eqn in jaxpr.eqns for p in jax.tree.leaves(list(eqn.params.values()))]
    return len(jaxpr.eqns) + sum(_count(p.jaxpr) for p in inner if hasattr(p, "jaxpr"))


@pytest.mark.parametrize("case", ["llama", "qwen2_window", "gpt2", "bert"])
def test_program_does_not_grow_with_depth(case):
    layers = "n_layer" if case == "gpt2" else "num_hidden_layers"
    tokens, mask = _inputs(case)
    counts = []
    for depth in (2, 9):
        bind, params = models.functional(_abstract(case, **{layers: depth}))
        counts.append(_count(jax.make_jaxpr(lambda p, b=bind: b(p)(tokens, mask))(params).jaxpr))
    assert counts[0] == counts[1] > 30


@pytest.mark.parametrize("case", tiny.CASES)
def test_parameter_tree(case, tmp_path):
    loaded = _load(case, tmp_path)
    _, params = models.functional(loaded)
    config = loaded.config
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for path, leaf in leaves:
        keys = [entry.key for entry in path]
        ndim = leaf.ndim - (keys[0] == "layers")
        assert keys[-1] in ("kernel", "bias", "scale", "embedding")
        assert ndim == (1 if keys[-1] in ("bias", "scale") else 2), keys
        assert (keys[-1] == "scale") <= ("norm" in keys[-2]), keys
        if keys[0] == "layers":
            assert leaf.shape[0] == config.num_layers
    queries = params["layers"]["attention"]["query"]["kernel"]
    assert queries.shape == (config.num_layers, 32, config.num_heads * config.head_dim)
    assert params["embedding"]["embedding"].shape == (61, config.embedding_size or 32)
    untied = isinstance(loaded, models.Decoder) and not config.tie_embeddings
    assert ("head" in params) == untied
    if untied:
        assert params["head"]["kernel"].shape == (32, 61)

    _, random = models.functional(_abstract(case))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, random)


@pytest.mark.parametrize("case", ["llama", "bert"])
def test_bind(case, tmp_path):
    model = _load(case, tmp_path)
    bind, params = models.functional(model)
    tokens, mask = _inputs(case)
    forward = jax.jit(lambda params: bind(params)(tokens, mask))
    found = forward(params)
    np.testing.assert_allclose(found, model(tokens, mask), rtol=0, atol=TOLERANCE)
    halved = jax.tree.map(lambda leaf: leaf / 2, params)
    assert np.abs(forward(halved) - found).max() > 1e-2


@pytest.mark.parametrize("case", ["llama", "gemma", "bert"])
def test_random_model(case):
    _, params = models.functional(_random(case))
    kernel = np.asarray(params["layers"]["attention"]["query"]["kernel"])
    count = kernel.size
    # Six standard errors of the mean and of the standard deviation of a Gaussian.
    assert abs(kernel.mean()) < 6 * 0.02 / count**0.5
    assert abs(kernel.std() / 0.02 - 1) < 6 / (2 * count) ** 0.5
    assert np.abs(kernel[0] - kernel[1]).max() > 0.01
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if path[-1].key == "bias":
            assert not np.any(leaf)
        if path[-1].key == "scale":
            assert (np.asarray(leaf) == (0.0 if case == "gemma" else 1.0)).all()


@pytest.mark.parametrize("case", tiny.CASES)
def test_strict_promotion(case):
    tokens, mask = _inputs(case)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for dtype in (jnp.float32, jnp.bfloat16):
            model = _abstract(case, dtype=jnp.dtype(dtype).name)
            bind, params = models.functional(model)
            assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
            hidden = jax.eval_shape(lambda p, b=bind: b(p).hidden(tokens, mask), params)
            out = jax.eval_shape(lambda p, b=bind: b(p)(tokens, mask), params)
            assert hidden.dtype == dtype
            assert out.dtype == (jnp.float32 if case in tiny.DECODERS else dtype)


@pytest.mark.parametrize("case", ["llama", "opt_350m", "gpt2", "bert"])
def test_no_matrix_is_made_dense(case, tmp_path):
    bind, params = models.functional(_load(case, tmp_path))
    tokens, mask = _inputs(case)

    def perturbed(path, leaf):
        if leaf.ndim - (path[0].key == "layers") < 2:
            return leaf
        rows, columns = leaf.shape[:-1], (*leaf.shape[:-2], leaf.shape[-1])
        factors = (0.1 * np.cos(np.arange(np.prod(n))).reshape(*n, 1) for n in (rows, columns))
        a, b = (jnp.asarray(factor, jnp.float32) for factor in factors)
        return virtual.VirtualArray(leaf).plus(virtual.LowRank.of_matrices(a, b))

    def forward(params, tokens, mask):
        return bind(params)(tokens, mask)

    formulas = jax.tree_util.tree_map_with_path(perturbed, params)
    dense = jax.tree.map(virtual.materialize, formulas, is_leaf=virtual.is_virtual)
    virtualized = zojax.virtualize(forward, on_fallback="error")
    found = jax.jit(virtualized)(formulas, tokens, mask)
    forward = jax.jit(forward)
    expected = forward(dense, tokens, mask)
    assert np.abs(expected - forward(params, tokens, mask)).max() > 1e-2
    np.testing.assert_allclose(found[mask], expected[mask], rtol=0, atol=2 * TOLERANCE)


def test_bad_arguments():
    decoder, encoder = _abstract("gpt2"), _abstract("bert")
    tokens = jnp.zeros((2, 5), jnp.int32)
    with pytest.raises(ValueError, match=r"mask has shape \(2, 4\) and the tokens \(2, 5\)"):
        decoder(tokens, jnp.ones((2, 4), bool))
    with pytest.raises(ValueError, match=r"shape \(5,\); expected \[batch, length\]"):
        decoder(tokens[0])
    with pytest.raises(ValueError, match="21 tokens and the model only 20 positions"):
        encoder(jnp.zeros((1, 21), jnp.int32))
    with pytest.raises(ValueError, match="Layers 1 to 3 were asked of a model with 2 layers"):
        decoder.run_layers(jnp.zeros((2, 5, 32)), None, 1, 3)
    with pytest.raises(ValueError, match="bert is an encoder; use Encoder"):
        models.Decoder(encoder.config, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="gpt2 is a decoder; use Decoder"):
        models.Encoder(decoder.config, rngs=nnx.Rngs(0))


def test_unknown_tokens_are_loud():
    # A clamped lookup would give plausible logits for a tokenizer of another vocabulary.
    assert np.isnan(_random("llama")(jnp.array([[3, 61]]))[0, 1]).all()
