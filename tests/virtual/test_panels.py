"""Large dense weights are made a panel at a time: the same product as with the whole of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax
from tests.virtual.arrays import make
from tests.virtual.test_matrix import USES, X
from zojax.virtual import _contraction

NAMES = [
    "matmul", "matmul of the transpose", "weight on the left", "heads", "heads contracted",
    "batched weights", "scan", "scan of the transpose",
]  # fmt: skip


# widths that do not divide the axis, and such that are rounded up, so that the last panel overlaps
@pytest.mark.parametrize("cut", [_contraction._Cut(10, 5, 1), _contraction._Cut(10, 5, 3)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_panels_give_the_product_with_the_dense_weight(name, cut, monkeypatch):
    monkeypatch.setattr(_contraction, "_CPU", cut)
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
