"""Scores against brute force, and what must not change them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics

import zojax.tasks as tasks

TEMPLATE = tasks.Template("{text} this is", lambda e: tuple(e["options"]))
OPTIONS = (
    [" a", " so the"],
    [" movie", " a story", " a story the"],
    [" the story", " so", " a movie the"],
)
EXAMPLES = [
    {"text": text, "options": options, "label": i}
    for i, (text, options) in enumerate(zip(["he fell", "ok then", "so"], OPTIONS, strict=True))
]


@pytest.fixture(scope="module")
def data(tokenizer):
    return tasks.encode_options(EXAMPLES, TEMPLATE, tokenizer, 64)


def brute_force(tokenizer, bind, params, example):
    """One unpadded row an option, logits everywhere, log-softmax in float64."""
    prompt = tokenizer.encode(TEMPLATE.render(example).prompt).ids
    forward = jax.jit(lambda params, tokens: bind(params)(tokens))
    scores = []
    for option in example["options"]:
        ids = prompt + tokenizer.encode(option).ids
        logits = np.asarray(forward(params, jnp.array([ids]))[0], np.float64)
        log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        scores.append(np.mean([log_probs[t - 1, ids[t]] for t in range(len(prompt), len(ids))]))
    return scores


def test_scores_are_mean_log_probabilities(tokenizer, decoder, data):
    bind, params = decoder
    _, logits = tasks.option_scoring(bind)
    scores = jax.jit(logits)(params, tasks.take(data, np.arange(3)))
    assert scores.dtype == jnp.float32
    assert np.isneginf(scores[0, 2]) and np.isfinite(scores[data.option_mask]).all()
    assert (data.length > 0).sum(axis=1).tolist() == [1, 1, 2]
    spread = []
    for i, example in enumerate(EXAMPLES):
        expected = brute_force(tokenizer, bind, params, example)
        np.testing.assert_allclose(scores[i, : len(expected)], expected, atol=1e-5, rtol=0)
        spread.append(np.ptp(expected))
    assert min(spread) > 1e-3  # a hundred times the tolerance


def test_losses_follow_from_the_scores(decoder, data):
    bind, params = decoder
    batch = tasks.take(data, np.arange(3))
    classify, logits = tasks.option_scoring(bind)
    generate, _ = tasks.option_scoring(bind, "generation")
    logits, classify, generate = map(jax.jit, (logits, classify, generate))
    scores = np.asarray(logits(params, batch), np.float64)
    gold = scores[np.arange(3), batch["label"]]
    expected = np.mean(np.log(np.exp(scores).sum(axis=-1)) - gold)
    np.testing.assert_allclose(classify(params, batch), expected, rtol=1e-5)
    np.testing.assert_allclose(generate(params, batch), -gold.mean(), rtol=1e-5)
    each = tasks.example_losses(logits(params, batch), jnp.asarray(batch["label"]))
    np.testing.assert_allclose(each.mean(), expected, rtol=1e-5)


def test_shared_rows_score_like_separate_rows(tokenizer, decoder):
    bind, params = decoder
    logits = jax.jit(tasks.option_scoring(bind)[1])
    for example in EXAMPLES:
        shared = tasks.encode_options([example], TEMPLATE, tokenizer, 64)
        together = logits(params, tasks.take(shared, [0]))[0]
        for option, score in zip(example["options"], together, strict=True):
            alone = tasks.encode_options(
                [example | {"options": [option], "label": 0}], TEMPLATE, tokenizer, 64
            )
            assert alone.tokens.shape[1] == 1
            separate = logits(params, tasks.take(alone, [0]))[0, 0]
            np.testing.assert_allclose(score, separate, atol=1e-5, rtol=0)


def test_width_of_the_batch_does_not_matter(decoder, data):
    bind, params = decoder
    logits = jax.jit(tasks.option_scoring(bind)[1])
    narrow = tasks.take(data, [0, 2], buckets=range(1, 64))
    wide = dict(narrow)
    wide["tokens"] = np.pad(narrow["tokens"], ((0, 0), (0, 0), (0, 40)), constant_values=7)
    np.testing.assert_allclose(logits(params, narrow), logits(params, wide), atol=1e-5, rtol=0)


def test_no_logits_of_other_positions_exist(decoder, data):
    """The largest array over the vocabulary has a row a scored token, not a row a token."""
    bind, params = decoder
    _, logits = tasks.option_scoring(bind)
    batch = tasks.take(data, np.arange(3))
    vocabulary = params["embedding"]["embedding"].shape[0]
    closed = jax.make_jaxpr(logits)(jax.tree.map(jnp.asarray, params), batch)

    def rows(jaxpr):
        for equation in jaxpr.eqns:
            for out in equation.outvars:
                if vocabulary in out.aval.shape and equation.primitive.name == "dot_general":
                    yield out.aval.size // vocabulary
            for inner in jax.tree.leaves(list(equation.params.values())):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from rows(inner)

    assert list(rows(closed.jaxpr)) == [batch["target"].size]


def test_option_loss_has_the_gradient_of_finite_differences(decoder, data):
    """Masked options are -inf; no derivative of theirs may leak a NaN."""
    bind, params = decoder
    loss, _ = tasks.option_scoring(bind)
    batch = tasks.take(data, np.arange(3))
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(params))))
    along = jax.tree.map(lambda x: jax.random.normal(next(keys), x.shape), params)
    value = jax.jit(lambda p: loss(p, batch))
    _, slope = jax.jvp(value, (params,), (along,))
    step = 1e-3
    ends = [value(jax.tree.map(lambda x, z, s=s: x + s * z, params, along)) for s in (step, -step)]
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / (2 * step), rtol=2e-2)


@pytest.mark.parametrize("pool, normalize", [("mean", False), ("first", True)])
def test_head_classifies_pooled_states(wrapping_tokenizer, encoder, pool, normalize):
    bind, params = encoder
    texts, labels = ["he fell", "so the story is a movie", "ok"], [0, 2, 1]
    data = tasks.encode_texts(texts, labels, wrapping_tokenizer, 32, 3)
    head = tasks.init_head(jax.random.key(0), 16, 3)
    head["bias"] = jnp.array([0.1, -0.2, 0.3])
    loss, logits = tasks.head_classification(bind, 3, pool, normalize, scale=5.0)
    found = jax.jit(logits)({"encoder": params, "head": head}, tasks.take(data, np.arange(3)))
    forward = jax.jit(lambda params, tokens: bind(params).hidden(tokens))
    expected = []
    for text in texts:
        ids = jnp.array([wrapping_tokenizer.encode(text).ids])
        hidden = np.asarray(forward(params, ids)[0], np.float64)
        pooled = hidden.mean(axis=0) if pool == "mean" else hidden[0]
        pooled = pooled / np.linalg.norm(pooled) if normalize else pooled
        expected.append(5.0 * pooled @ np.asarray(head["kernel"]) + np.asarray(head["bias"]))
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    log_probs = expected - np.log(np.exp(expected).sum(axis=-1, keepdims=True))
    value = loss({"encoder": params, "head": head}, tasks.take(data, np.arange(3)))
    np.testing.assert_allclose(value, -log_probs[np.arange(3), labels].mean(), atol=1e-5)


def test_label_name_head_recognises_the_names(wrapping_tokenizer, encoder):
    bind, params = encoder
    names = ["story", "movie the", "so he ran"]
    head = tasks.label_name_head(bind, params, wrapping_tokenizer, names)
    data = tasks.encode_texts(names, range(3), wrapping_tokenizer, 32, 3)
    _, logits = tasks.head_classification(bind, 3, normalize=True, scale=2.0)
    found = logits({"encoder": params, "head": head}, tasks.take(data, np.arange(3)))
    np.testing.assert_allclose(np.diag(found), 2.0, rtol=1e-5)
    assert (np.asarray(found) <= 2.0 + 1e-5).all()
    assert tasks.accuracy(found, data.label) == 1.0


def test_init_head_is_small_and_centred():
    head = tasks.init_head(jax.random.key(0), 400, 100)
    # 40,000 draws: five standard errors.
    assert abs(head["kernel"].mean()) < 5 * 0.02 / 200
    assert abs(head["kernel"].std() - 0.02) < 5 * 0.02 / np.sqrt(2 * 40_000)
    assert head["kernel"].shape == (400, 100) and not head["bias"].any()


@pytest.mark.parametrize("seed", range(5))
def test_metrics_are_those_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    logits, labels = rng.standard_normal((40, 4)), rng.integers(0, 4, 40)
    valid = rng.random(40) < 0.7
    predicted = logits.argmax(axis=1)
    assert tasks.accuracy(logits, labels) == metrics.accuracy_score(labels, predicted)
    assert tasks.accuracy(logits, labels, valid) == metrics.accuracy_score(
        labels[valid], predicted[valid]
    )
    np.testing.assert_allclose(
        tasks.macro_f1(logits, labels, valid),
        metrics.f1_score(labels[valid], predicted[valid], average="macro"),
        rtol=1e-12,
    )


def test_bad_arguments(decoder, encoder):
    with pytest.raises(ValueError, match="loss='nll'"):
        tasks.option_scoring(decoder[0], "nll")  # pyright: ignore
    with pytest.raises(ValueError, match="pool='max'"):
        tasks.head_classification(encoder[0], 2, "max")  # pyright: ignore
    with pytest.raises(ValueError, match="no examples to measure"):
        tasks.accuracy(np.zeros((1, 2)), np.zeros(1, int), [False])
    _, logits = tasks.head_classification(encoder[0], 2)
    params = {"encoder": encoder[1], "head": tasks.init_head(jax.random.key(0), 16, 3)}
    with pytest.raises(ValueError, match=r"head: found kernel \(16, 3\)"):
        logits(params, {"tokens": jnp.ones((1, 4), int), "length": jnp.array([4])})
