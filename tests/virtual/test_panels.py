"""Dense weights are made where their base lies, and large ones a panel at a time."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import zojax
from tests.virtual.arrays import make
from tests.virtual.test_matrix import USES, X
from zojax.virtual import _contraction, _dense

NAMES = [
    "matmul", "matmul of the transpose", "weight on the left", "heads", "heads contracted",
    "batched weights", "scan", "scan of the transpose",
]  # fmt: skip


# widths that do not divide the axis, and such that are rounded up, so that the last panel overlaps
@pytest.mark.parametrize("cut", [_dense.Cut(10, 5, 1), _dense.Cut(10, 5, 3)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_panels_give_the_product_with_the_dense_weight(name, cut, monkeypatch):
    for module in (_contraction, _dense):
        monkeypatch.setattr(module, "ON_CPU", cut)
    shape, fn = USES[name]
    arrays = {kind: make(kind, shape) for kind in ("rademacher", "low_rank_entries")}
    run = jax.jit(lambda ws: {k: zojax.virtualize(fn)(w, X) for k, w in ws.items()})
    assert "while" in str(run.lower(arrays).as_text())
    found = run(arrays)
    dense = jax.jit(lambda ws: {k: fn(w.materialize(), X) for k, w in ws.items()})(arrays)
    for kind in arrays:
        for a, b in zip(jax.tree.leaves(found[kind]), jax.tree.leaves(dense[kind]), strict=True):
            # sums of at most twenty products, four deep
            size = float(jnp.abs(b).max(initial=1.0))
            np.testing.assert_allclose(a, b, rtol=0, atol=80 * 2**-24 * size, err_msg=kind)


@pytest.mark.parametrize(
    "kind, layers, panels",
    [
        ("rademacher", 23, True),
        ("rademacher", 24, False),
        ("entries", 23, True),
        ("entries", 24, False),
        ("nf4", 24, True),
    ],
)
def test_matrices_that_are_a_small_part_of_all_are_dense_as_a_whole(kind, layers, panels):
    # just more than a panel
    weight = make(kind, (1024, 1056))
    ws = [replace(weight, name=f"w{i}") for i in range(layers)]
    x = jax.ShapeDtypeStruct((2, 1024), jnp.float32)
    run = jax.jit(lambda ws, x: zojax.virtualize(lambda ws, x: [x @ w for w in ws])(ws, x))
    assert ("while" in run.lower(ws, x).as_text()) == panels


@pytest.mark.parametrize("kind", ["rademacher", "entries"])
def test_a_stack_of_many_layers_is_made_in_panels(kind):
    def layers(w, x):
        return lax.scan(lambda x, w: (x + (x @ w)[:, :1024], None), x, w)[0]

    few, many = (
        jax.jit(lambda w, x: zojax.virtualize(layers)(w, x))
        .lower(replace(make(kind, (n, 1024, 1056)), name="w"), jnp.ones((2, 1024)))
        .as_text()
        .count("stablehlo.while")
        for n in (2, 32)
    )
    assert few == many == 2


X_WIDE = jnp.ones((3, 64))


def _produced(fn, w, shape: str) -> list[str]:
    """What makes float arrays of that shape, other than views, on a CPU."""
    run = jax.jit(lambda w, x: zojax.virtualize(fn)(w, x))
    text = run.lower(w, X_WIDE).compile().as_text()
    made = re.findall(rf"^ +(?:ROOT )?%\S+ = f32\[{shape}\]\S* ([\w-]+)\(", text, re.M)
    return [op for op in made if op not in ("parameter", "bitcast", "get-tuple-element")]


@pytest.mark.parametrize("kind", ["entries", "rademacher", "nf4"])
def test_a_transpose_is_left_to_the_product(kind):
    assert not _produced(lambda w, x: x @ w.T, make(kind, (96, 64)), "64,96")


@pytest.mark.parametrize("kind", ["entries", "rademacher"])
def test_a_layer_is_not_cut_out_of_its_stack_before_it_is_perturbed(kind):
    def layers(w, x):
        return lax.scan(lambda x, w: (jnp.sin(x @ w), None), x, w)[0]

    run = jax.jit(lambda w, x: zojax.virtualize(layers)(w, x))
    compiled = run.lower(make(kind, (4, 256, 256)), jnp.ones((3, 256))).compile()
    # one matrix, and activations
    assert compiled.memory_analysis().temp_size_in_bytes <= 1.1 * 256 * 256 * 4


def test_materializing_as_stored_gives_the_same_array():
    stack = make("low_rank_entries", (4, 5, 6, 7))
    for layer in (stack, stack.index(jnp.int32(2))):
        for order in ((2, 0, 1), (1, 2, 0), (0, 2, 1), (0, 1, 2)):
            order = order if layer.ndim == 3 else (*order, 3)
            view = layer.transpose(order)
            np.testing.assert_array_equal(view.materialize_as_stored(), view.materialize())
