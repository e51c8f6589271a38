"""Scores: the streamed Fisher diagonal at its promised peak, and the one of forward passes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax
from zojax import trainables
from zojax.trainables._fisher import gradients, layer_gradient, square_adder
from zojax.trainables._tree import flatten

DRAW = np.random.default_rng(0)
LAYERS, WIDTH, ROWS = 6, 64, 4


def _normal(*shape, dtype=jnp.float32):
    return jnp.asarray(DRAW.standard_normal(shape), dtype)


PARAMS = {
    "bias": _normal(WIDTH),
    "embedding": _normal(10, WIDTH),
    "layers": {
        "down": _normal(LAYERS, WIDTH, WIDTH) / WIDTH**0.5,
        "up": _normal(LAYERS, WIDTH, WIDTH) / WIDTH**0.5,
    },
    "steps": jnp.arange(3),
}
BATCHES = [jnp.array([i, 3, 7, 9 - i]) for i in range(3)]


def _loss(params, tokens):
    def layer(x, w):
        return x + jnp.tanh(x @ w["up"]) @ w["down"], None

    x = jax.lax.scan(layer, params["embedding"][tokens], params["layers"])[0]
    return jnp.mean(jnp.square((x + params["bias"]).astype(jnp.float32)))


EXPECTED = zojax.sensitivity(_loss, PARAMS, BATCHES)


def _close(found, expected):
    def same(a, b):
        # squares of gradients that were summed in another order
        np.testing.assert_allclose(a, b, rtol=0, atol=64 * 2**-24 * np.abs(b).max())

    jax.tree.map(same, found, expected)


def test_integer_leaves_have_no_scores():
    assert EXPECTED["steps"] is None
    grad = jax.jit(jax.grad(_loss, allow_int=True))
    each = [grad(PARAMS, b) for b in BATCHES]
    mean = jax.tree.map(
        lambda *g: np.mean([np.square(x) for x in g], 0), *[e["layers"] for e in each]
    )
    _close(EXPECTED["layers"], mean)


@pytest.mark.parametrize("by, host", [("model", True), ("leaf", False), ("layer", True)])
def test_scores_are_the_same_in_all_parts_and_places(by, host):
    found = zojax.sensitivity(_loss, PARAMS, BATCHES, by=by, host=host)
    kind = np.ndarray if host else jax.Array
    assert all(isinstance(x, kind) and x.dtype == jnp.float32 for x in jax.tree.leaves(found))
    _close(found, EXPECTED)


def test_where_picks_the_leaves_and_half_precision_is_squared_in_float32():
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), {**PARAMS, "steps": None})
    where = lambda path: path == "layers/up"  # noqa: E731
    found = [
        zojax.sensitivity(_loss, low, BATCHES[:1], by=by, where=where) for by in ("model", "layer")
    ]
    (grad,) = jax.jit(gradients(_loss, flatten(low), [3]))(flatten(low).leaves, BATCHES[0])
    for score in found:
        assert jax.tree.leaves(score)[0].dtype == jnp.float32 and score["embedding"] is None
        _close(score["layers"]["up"], np.square(np.asarray(grad, np.float32)))


def test_quantised_leaves_are_scored_at_their_values():
    small = zojax.quantize({**PARAMS, "steps": None}, "int8", group_size=32)
    dense = zojax.virtual.materialize(small)
    where = lambda path: path in ("layers/up", "bias")  # noqa: E731
    found = zojax.sensitivity(_loss, small, BATCHES, by="layer", where=where)
    _close(found, zojax.sensitivity(_loss, dense, BATCHES, where=where))


def _temporaries(grads, *rest, totals):
    flat = flatten({**PARAMS, "steps": None})
    lowered = square_adder(grads(flat), False).lower(totals, flat.leaves, BATCHES[0], *rest)
    return lowered.compile().memory_analysis().temp_size_in_bytes


def test_the_peak_is_the_backward_pass_of_what_is_scored_at_once():
    """Of the whole model, a stack, or a matrix; beside the accumulator, which is an argument."""
    shapes = [x.shape for x in jax.tree.leaves({**PARAMS, "steps": None})]
    zeros = [jnp.zeros(shape) for shape in shapes]
    matrix, stack = 4 * WIDTH**2, 4 * LAYERS * WIDTH**2
    forward = jax.jit(_loss).lower(PARAMS, BATCHES[0]).compile().memory_analysis()
    kept = 4 * 4 * LAYERS * ROWS * WIDTH  # four activations a layer
    backward = forward.temp_size_in_bytes + kept
    model = _temporaries(lambda f: gradients(_loss, f, [0, 1, 2, 3]), totals=zeros)
    leaf = _temporaries(lambda f: gradients(_loss, f, [3]), totals=zeros[3:])
    layer = _temporaries(lambda f: layer_gradient(_loss, f, 3), jnp.int32(0), totals=[zeros[3][0]])
    # the gradients, and two matrices in flight
    assert model < backward + 2 * stack + 4 * WIDTH * 11 + 2 * matrix
    assert leaf < backward + stack + 2 * matrix
    assert layer < backward + 3 * matrix < stack + backward


def test_batches_that_end_are_an_error():
    with pytest.raises(
        ValueError, match=r'by="leaf" .* an iterator \(list_iterator\).*pass a list'
    ):
        zojax.sensitivity(_loss, PARAMS, iter(BATCHES), by="leaf")

    class Once:
        def __init__(self):
            self.left = list(BATCHES)

        def __iter__(self):
            while self.left:
                yield self.left.pop()

    with pytest.raises(ValueError, match=r"gave \[0, 3\] of them"):
        zojax.sensitivity(_loss, PARAMS, Once(), by="leaf")


def test_sensitivity_errors():
    with pytest.raises(ValueError, match="by must be"):
        zojax.sensitivity(_loss, PARAMS, BATCHES, by="block")  # pyright: ignore
    with pytest.raises(ValueError, match="nothing to score"):
        zojax.sensitivity(_loss, PARAMS, BATCHES, where=lambda path: path == "steps")


SLOPE = {"a": _normal(5, 4), "b": _normal(3).astype(jnp.bfloat16)}


def _linear(params, batch):
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(SLOPE), strict=True)
    return batch * sum(jnp.vdot(p.astype(jnp.float32), g.astype(jnp.float32)) for p, g in pairs)


def test_the_forward_score_is_unbiased_and_as_noisy_as_its_docstring_says():
    samples, batches = 6, 600
    params = jax.tree.map(jnp.zeros_like, SLOPE)
    found = zojax.forward_sensitivity(
        jax.random.key(0), _linear, params, [1.0] * batches, num_samples=samples, mu=1.0
    )
    slope = np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(SLOPE)])
    score = np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(found)])
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(found))
    v = (slope**2).sum() - slope**2
    variance = 4 * v * slope**2 / samples + 2 * v**2 / (samples * (samples - 1))
    standard = (score - slope**2) / np.sqrt(variance / batches)
    # 23 numbers, nearly normal
    assert np.abs(standard).max() < 5
    # their mean square is 1 if the variance is right; of dependent numbers, so wide
    assert 0.3 < (standard**2).mean() < 2.5


def test_a_forward_score_can_be_negative():
    params = jax.tree.map(jnp.zeros_like, SLOPE)
    found = zojax.forward_sensitivity(
        jax.random.key(0), _linear, params, [1.0], num_samples=2, mu=1.0
    )
    # a product of two independent numbers of either sign, 23 times
    assert min(np.min(x) for x in jax.tree.leaves(found)) < 0


def test_forward_sensitivity_errors():
    key, where = jax.random.key(0), lambda path: path == "layers/up"
    with pytest.raises(ValueError, match="num_samples must be at least 2, found 1"):
        zojax.forward_sensitivity(key, _loss, PARAMS, BATCHES, num_samples=1)
    with pytest.raises(ValueError, match="no calibration batch"):
        zojax.forward_sensitivity(key, _loss, PARAMS, [], where=where)
    overflow = lambda p, b: _loss(p, b) * jnp.inf  # noqa: E731
    with pytest.raises(ValueError, match="calibration batch 0 is not finite"):
        zojax.forward_sensitivity(key, overflow, PARAMS, BATCHES, num_samples=2, where=where)
    small = zojax.quantize(PARAMS, "int8", group_size=32)
    with pytest.raises(ValueError, match="leaf layers/down is quantised .* score the dense model"):
        zojax.forward_sensitivity(key, _loss, small, BATCHES)


def test_coverage_is_the_part_of_the_mass():
    scores = {
        "a": jnp.array([[[4.0, 0, 0, 0]], [[1, 1, 1, 1]]]),
        "b": jnp.ones(3),
        "z": jnp.zeros((2, 2)),
    }
    found = trainables.coverage(scores, 0.25)
    a, z = found.rows
    assert (a.name, a.size, a.entries, a.mass, a.covered) == ("a", 8, 2, 1.0, 5 / 8)
    assert (z.size, z.entries, z.mass, z.covered) == (4, 1, 0.0, 0.0)
    assert found.total == 5 / 8
    of_model = trainables.coverage(scores, 1 / 12, "model")  # one entry of twelve
    assert [r.entries for r in of_model.rows] == [1, 0] and of_model.total == 0.5
    assert str(found).splitlines()[1].split() == ["a", "8", "2", "1.0000", "0.6250"]


def test_overlap_counts_what_both_pick():
    a, b = {"w": jnp.arange(10.0).reshape(2, 5)}, {"w": jnp.arange(10.0)[::-1].reshape(2, 5)}
    same, opposite = trainables.overlap(a, a, 0.2), trainables.overlap(a, b, 0.2)
    assert (same.shared, same.covered, same.best) == (1.0, 17 / 45, 17 / 45)
    assert (opposite.shared, opposite.covered, opposite.best) == (0.0, 1 / 45, 17 / 45)
    assert trainables.overlap(a, b, 0.6).rows[0].shared == 2 / 6
    assert str(same).splitlines()[-1].split() == ["all", "1.0000", "0.3778", "0.3778"]
    with pytest.raises(ValueError, match="they are of two models"):
        trainables.overlap(a, {"w": jnp.ones((5, 2))}, 0.2)
    with pytest.raises(ValueError, match="no tree like"):
        trainables.overlap(a, {"v": jnp.ones((5, 2))}, 0.2)
    with pytest.raises(ValueError, match="two or more axes"):
        trainables.coverage({"b": jnp.ones(3)})
