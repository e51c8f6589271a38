"""Scores of entries: the diagonal of the empirical Fisher information, streamed."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from zojax.trainables._layered import Layered
from zojax.trainables._tree import Flat, as_dense, flatten, is_floating
from zojax.virtual import VirtualArray, virtualize

By = Literal["model", "leaf", "layer"]


def sensitivity(
    loss: Callable,
    params: Any,
    batches: Iterable[Any],
    *,
    by: By = "model",
    where: Callable[[str], bool] | None = None,
    host: bool = False,
) -> Any:
    """Diagonal of the empirical Fisher, `1/B sum_b (dL_b/dw)^2`.

    Give batches of one sequence: squares do not add up within a batch. Wrap the batches in `tqdm`
    to see how far it is.

    The peak of memory is the backward pass of one batch, which includes the gradients of what is
    scored at once, and a float32 accumulator of the same. `by` says what that is; anything but
    "model" costs a pass over the batches for each part.

    Args:
        loss: `loss(params, batch) -> scalar`.
        params: tree of arrays; quantised leaves are scored at their dense values, and are dense
            while they are.
        batches: iterable of batches of one shape; with "leaf" and "layer" it is gone through many
            times, so not an iterator.
        by: "model", all leaves at once in one pass; "leaf", one at a time; "layer", one slice of a
            stack of matrices at a time, where not even the gradient of the whole stack exists.
        where: called with each path: the leaves to score; None for all floating-point ones.
        host: keep accumulators and scores on the host, as numpy arrays.

    Returns:
        Tree like `params`, float32; None for leaves that are not scored.

    Raises:
        ValueError: if there is no batch, nothing to score, a score is not finite (names the leaf),
            or the batches cannot be gone through again.

    Reference: Guo et al., Zeroth-order fine-tuning of LLMs with transferable static sparsity
    (SensZOQ), 2024.
    """
    if by not in ("model", "leaf", "layer"):
        raise ValueError(f'by must be "model", "leaf" or "layer", found {by!r}')
    if by != "model" and iter(batches) is batches:
        raise ValueError(
            f'by="{by}" goes through the batches once for each part, and these are an iterator '
            f"({type(batches).__name__}), which is empty after the first: pass a list"
        )
    flat = flatten(params)
    chosen = scored_leaves(flat, where)
    counts: set[int] = set()
    scores: list[Any] = [None] * len(flat.leaves)
    if by == "model":
        step = square_adder(gradients(loss, flat, chosen), host)
        found = _mean_squares(step, flat, chosen, batches, host, counts)
        for i, score in zip(chosen, found, strict=True):
            scores[i] = score
    for i in chosen if by != "model" else ():
        shape = flat.leaves[i].shape
        if by == "leaf" or len(shape) < 3:
            step = square_adder(gradients(loss, flat, [i]), host)
            (scores[i],) = _mean_squares(step, flat, [i], batches, host, counts)
            continue
        step, parts = square_adder(layer_gradient(loss, flat, i), host), []
        for layer in range(shape[0]):
            parts += _mean_squares(step, flat, [i], batches, host, counts, jnp.int32(layer))
        scores[i] = np.stack(parts) if host else jnp.stack(parts)
    return jax.tree.unflatten(flat.structure, scores)


def scored_leaves(flat: Flat, where: Callable[[str], bool] | None) -> list[int]:
    """Places of the floating-point leaves that a predicate picks.

    Raises:
        ValueError: if there is none.
    """
    found = [
        i
        for i, (name, leaf) in enumerate(zip(flat.names, flat.leaves, strict=True))
        if is_floating(leaf) and (where is None or where(name))
    ]
    if not found:
        raise ValueError(
            f"there is nothing to score: no floating-point leaf of {', '.join(flat.names[:8])} "
            "is picked by where="
        )
    return found


def gradients(loss: Callable, flat: Flat, chosen: list[int]) -> Callable:
    """`(leaves, batch) -> gradients` of some of the leaves, each made dense."""
    virtual_loss = virtualize(loss)

    def find(leaves, batch):
        def of(moving):
            filled = list(leaves)
            for i, leaf in zip(chosen, moving, strict=True):
                filled[i] = leaf
            return virtual_loss(jax.tree.unflatten(flat.structure, filled), batch)

        return jax.grad(of)([as_dense(leaves[i]) for i in chosen])

    return find


def layer_gradient(loss: Callable, flat: Flat, place: int) -> Callable:
    """`(leaves, batch, layer) -> [gradient]` of one slice of a stack; no other one is made.

    The slice is tapped where it is used. A product keeps its weight for the backward pass; there a
    tapped one is cut out of the stack again, or a scan would store the stack once more.
    """
    virtual_loss = virtualize(loss)

    def find(leaves, batch, layer):
        stack = leaves[place]

        def of(cotangent):
            base = Layered.over(stack, _tapped, (cotangent, layer))
            filled = list(leaves)
            filled[place] = VirtualArray(base, name=flat.keys[place])
            return virtual_loss(jax.tree.unflatten(flat.structure, filled), batch)

        return [jax.grad(of)(jnp.zeros(stack.shape[1:], stack.dtype))]

    return find


def square_adder(grads: Callable, host: bool) -> Callable:
    """`(totals, leaves, batch, *rest) -> totals` plus squared gradients, in float32; jitted."""

    def add(totals, *args):
        squares = [jnp.square(g.astype(jnp.float32)) for g in grads(*args)]
        return [t + s for t, s in zip(totals, squares, strict=True)]

    if not host:
        return jax.jit(add, donate_argnums=0)
    jitted = jax.jit(grads)

    def add_on_host(totals, *args):
        for total, grad in zip(totals, jitted(*args), strict=True):
            wide = np.asarray(grad).astype(np.float32)
            total += np.square(wide, out=wide)
        return totals

    return add_on_host


def _mean_squares(step, flat: Flat, chosen, batches, host: bool, counts: set[int], *rest) -> list:
    """The means over one pass of squares that `step(totals, leaves, batch, *rest)` adds."""
    module = np if host else jnp
    shapes = [flat.leaves[i].shape[1:] if rest else flat.leaves[i].shape for i in chosen]
    totals = [module.zeros(shape, module.float32) for shape in shapes]
    count = 0
    for batch in batches:
        totals = step(totals, flat.leaves, batch, *rest)
        count += 1
    counts.add(count)
    if count == 0 and len(counts) == 1:
        raise ValueError("no calibration batch: pass at least one to score sensitivity")
    if len(counts) > 1:
        raise ValueError(
            f"passes over the batches gave {sorted(counts)} of them: they must be the same each "
            "time; pass a list"
        )
    for i, total in zip(chosen, totals, strict=True):
        if not bool(module.all(module.isfinite(total))):
            raise ValueError(
                f"the sensitivity of leaf {flat.names[i]} is not finite: the loss or its "
                "gradient overflowed on a calibration batch"
            )
    return [t / module.float32(count) for t in totals]


@jax.custom_vjp
def _tap(matrix: jax.Array, cotangent: jax.Array, is_here: jax.Array) -> jax.Array:
    """The matrix; what is differentiated is `cotangent`, which gets the matrix's own if here."""
    del cotangent, is_here
    return matrix


def _tap_forward(matrix, cotangent, is_here):
    del cotangent
    return matrix, is_here


def _tap_backward(is_here, grad):
    return None, jnp.where(is_here, grad, 0), None


_tap.defvjp(_tap_forward, _tap_backward)


def _tapped(extra, matrix: jax.Array, layer: jax.Array) -> jax.Array:
    cotangent, target = extra
    return _tap(matrix, cotangent, layer == target)
