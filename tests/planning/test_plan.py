"""A plan against the programs and the arrays of training itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zojax
from tests.benchmarks.steps import initialize
from tests.slow import slow_but
from zojax import planning, trainables
from zojax.training import Problem, step, training_functions

VOCABULARY, WIDTH, HIDDEN, LAYERS, TOKENS = 512, 64, 256, 3, (4, 32)
LOW_RANK = zojax.mezo(direction=zojax.low_rank(1))


def loss(params, tokens):
    """Next-token loss of a residual network over embeddings, layers scanned."""

    def layer(x, p):
        return x + jnp.tanh(x @ p["up"]) @ p["down"], None

    x, _ = jax.lax.scan(layer, params["embedding"][tokens], params["layers"])
    scores = jax.nn.log_softmax((x @ params["head"])[:, :-1].astype(jnp.float32))
    return -jnp.take_along_axis(scores, tokens[:, 1:, None], -1).mean()


def shapes():
    def leaf(*sizes):
        return jax.ShapeDtypeStruct(sizes, jnp.float32)

    layers = {"up": leaf(LAYERS, WIDTH, HIDDEN), "down": leaf(LAYERS, HIDDEN, WIDTH)}
    return {
        "embedding": leaf(VOCABULARY, WIDTH),
        "layers": layers,
        "head": leaf(WIDTH, VOCABULARY),
        "bias": leaf(VOCABULARY),
    }


def is_inner(path: str) -> bool:
    return path.startswith("layers")


def full(params):
    return zojax.full(params), LOW_RANK, optax.sgd(1e-3)


def lora(params):
    split = zojax.lora(params, jax.random.key(0), 4, where=is_inner)
    return split, zojax.mezo(), optax.adam(1e-3)


def over_nf4(params):
    split = zojax.sensitive(params, jax.tree.map(jnp.abs, params), 0.05)
    split = split._replace(frozen=quantized(split.frozen))
    return split, zojax.mezo(), optax.adam(1e-3)


def quantized(tree):
    return zojax.quantize(tree, "nf4", group_size=32, where=is_inner)


def n_m(params):
    scores = jax.tree.map(jnp.abs, params) | {"embedding": None, "head": None}
    return trainables.n_m(params, scores, 1, 24), zojax.mezo(), optax.adam(1e-3)


def scales(params):
    return zojax.scales(quantized(params), "exp"), zojax.qzo(1e-2), optax.adam(1e-3)


def codebook(params):
    # of no values: the k-means that finds them takes longer to compile than all else
    shapes = jax.eval_shape(with_codebooks, params)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return zojax.codebook(zeros), zojax.qzo(1e-2), optax.adam(1e-3)


def with_codebooks(tree):
    return zojax.quantize(tree, "codebook", where=is_inner)


CASES = {
    "full": full,
    "lora": lora,
    "sensitive over nf4": over_nf4,
    "n-m": n_m,
    "scales": scales,
    "codebook": codebook,
}
ABSTRACT = {
    "full": None,
    "lora": lambda params: zojax.lora(params, jax.random.key(0), 4, where=is_inner),
    "sensitive over nf4": trainables.abstract_sensitive(jax.eval_shape(quantized, shapes()), 0.05),
    "n-m": trainables.abstract_n_m(shapes(), 1, 24, where=is_inner),
    "scales": lambda params: zojax.scales(quantized(params), "exp"),
    "codebook": lambda params: zojax.codebook(with_codebooks(params)),
}


def held(*trees) -> int:
    """Bytes of real arrays."""
    return sum(x.nbytes for x in jax.tree.leaves(trees))


FAST = ["full", "sensitive over nf4", "scales"]


@pytest.mark.parametrize("name", slow_but(FAST, {name: name for name in CASES}))
def test_a_plan_is_what_training_holds_and_what_its_programs_report(name):
    abstract = shapes()
    split, estimator, optimizer = CASES[name](initialize(0, abstract))
    tokens = jnp.zeros(TOKENS, jnp.int32)

    found = zojax.plan(
        loss, abstract, jax.eval_shape(lambda: tokens), estimator,
        trainable=ABSTRACT[name], optimizer=optimizer,
    )  # fmt: skip

    functions = training_functions(Problem(loss, loss, loss), split.merge, estimator, optimizer)
    state = functions.init(split.trainable, jax.random.key(0))
    # the programs that the loop runs, after a step, on what it holds
    state, answer = step(functions, state, split.frozen, tokens)
    ask = functions.ask.lower(state, split.frozen, tokens).compile().memory_analysis()
    apply = functions.apply.lower(state, answer.keys, answer.coefficients).compile()
    apply = apply.memory_analysis()
    kept = held(split.frozen, tokens)
    asking = kept + held(state) + ask.temp_size_in_bytes + held(answer)
    made = apply.output_size_in_bytes - apply.alias_size_in_bytes
    applying = kept + held(state) + apply.temp_size_in_bytes + made + held(answer[2:4])

    assert found.total == pytest.approx(max(asking, applying), rel=0.05)
    assert found.ask == pytest.approx(asking, rel=0.05)
    assert found.apply == pytest.approx(applying, rel=0.05)
    # without the compiler there is nothing to be wrong about
    assert found.weights == held(split.frozen)
    assert found.trainables == held(state.trainable)
    assert found.optimizer == held(state) - held(state.trainable)
    assert found.batch == held(tokens)
    assert sum(found.parts.values()) == found.total


@functools.cache
def small_plan() -> planning.Plan:
    estimator = zojax.mezo(num_samples=3, direction=zojax.low_rank(1))
    params = {"w": jax.ShapeDtypeStruct((256, 64), jnp.float32)}
    x = jax.ShapeDtypeStruct((8, 256), jnp.float32)
    return zojax.plan(lambda p, x: jnp.square(x @ p["w"]).mean(), params, x, estimator)


def test_operations_are_those_of_the_queries():
    found = small_plan()
    assert found.queries == 2 * 3
    product, thin, update = 2 * 8 * 256 * 64, 2 * 8 * (256 + 64), 3 * 2 * 256 * 64
    assert 6 * product <= found.flops <= 6 * (product + thin) + update


def test_a_plan_prints_its_parts_and_the_largest_arrays():
    text = str(small_plan())
    assert "trainables     64.00 KiB" in text
    assert "trainables/w float32[256, 64]" in text
    assert "compiled for this machine; on a GPU or TPU only the temporaries differ" in text
    gib = small_plan().to_dict()
    assert gib["total_bytes"] == small_plan().total
    assert gib["trainables_gib"] == round(65536 / 2**30, 4)


def test_a_plan_is_drawn(tmp_path):
    small_plan().draw(tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_of_the_size_of_the_model_is_allocated():
    before = len(jax.live_arrays())
    # 4 TiB of weights
    params = {"w": jax.ShapeDtypeStruct((2**20, 2**20), jnp.float32)}
    x = jax.ShapeDtypeStruct((1, 2**20), jnp.float32)
    found = zojax.plan(lambda p, x: jnp.square(x @ p["w"]).mean(), params, x, LOW_RANK)
    assert found.trainables == 4 * 2**40
    assert len(jax.live_arrays()) <= before + 1


def test_abstract_entries_have_the_shape_of_real_ones():
    params = initialize(0, shapes())
    scores = jax.tree.map(jnp.abs, params)
    pairs = [
        (zojax.sensitive(params, scores, d), trainables.abstract_sensitive(shapes(), d))
        for d in (1e-4, 1e-2, 0.37, 1.0)
    ]
    # the same shapes as those of sensitive, hence the same programs
    low = trainables.abstract_sensitive(shapes(), 0.05, where=is_inner)
    pairs += [
        (trainables.random(jax.random.key(0), params, 0.05, where=is_inner), low),
        (trainables.magnitude(params, 0.05, where=is_inner), low),
    ]
    pairs += [
        (trainables.n_m(params, scores, n, m), trainables.abstract_n_m(shapes(), n, m))
        for n, m in ((1, 4), (3, 7), (6, 7), (5, 5), (2, 1000))
    ]
    for real, abstract in pairs:
        for mine, theirs in ((abstract.trainable, real.trainable), (abstract.frozen, real.frozen)):
            assert jax.tree.structure(mine) == jax.tree.structure(theirs)
            for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
                assert (a.shape, a.dtype) == (b.shape, b.dtype)


def test_bad_splits_are_refused():
    params = shapes()
    for density in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="density must be in"):
            trainables.abstract_sensitive(params, density)
    with pytest.raises(ValueError, match="nothing would be trained"):
        trainables.abstract_sensitive({"b": jax.ShapeDtypeStruct((3,), jnp.float32)})
    with pytest.raises(ValueError, match="nothing would be trained"):
        trainables.abstract_n_m(params, 1, 4, where=lambda path: path == "bias")
    with pytest.raises(ValueError, match="found n=5, m=4"):
        trainables.abstract_n_m(params, 5, 4)


def test_targets_that_cannot_be_compiled_for(monkeypatch):
    with pytest.raises(ValueError, match="'h300' is not known; known are h200, h100"):
        zojax.plan(lambda p, x: p, np.zeros(()), np.zeros(()), zojax.mezo(), target="h300")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    planning.target_device.cache_clear()
    for target, package in (("a100-80", "jax-cuda13-plugin=="), ("v5e", "pip install .jax.tpu.==")):
        with pytest.raises(ModuleNotFoundError, match=package):
            planning.target_device(target)
