"""DeepZero: sweeps over coordinates, and which: scores, shares of the layers, fresh draws."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zojax.directions import coordinate_basis
from zojax.estimators._estimate import value_and_grad
from zojax.estimators._estimator import Estimator, Joint, joint
from zojax.estimators._schemes import coordinate_sweep
from zojax.estimators._shaping import difference


def deepzero(
    positions: Any, mu: optax.ScalarOrSchedule = 5e-3, *, batch_size: int = 1
) -> Estimator:
    """DeepZero's CGE: a difference quotient for each of the active coordinates.

    `g_i = (L(x + mu e_i) - L(x)) / mu` for i in S, 0 elsewhere.

    Args:
        positions: S, a tree like the parameters (`coordinate_positions`, `draw_positions`); may
            be traced, and changed every few epochs without compiling again.
        mu: how far each coordinate moves.
        batch_size: coordinates asked at once. In one batch everything before the first layer that
            moves is computed once, see `deepzero_by_layer`.

    Returns:
        An `Estimator` of `|S| + 1` forward passes. Deterministic, biased by O(mu) on S; worth its
        price where about d forward passes an estimate are affordable. The paper's step sizes.

    Raises:
        ValueError: if there is no position.

    Reference: Chen et al., DeepZero: scaling up zeroth-order optimization for deep model training,
    2024.
    """
    count = sum(leaf.size for leaf in jax.tree.leaves(positions))
    if count < 1:
        raise ValueError("deepzero needs at least one active coordinate, found none")
    root = count**0.5
    # the basis moves by sqrt(n) mu along a coordinate, having the identity as covariance
    scaled = (lambda step: mu(step) / root) if callable(mu) else mu / root
    scheme = coordinate_sweep(count, batch_size)
    return Estimator(coordinate_basis(positions), scheme, difference(), scaled)


def deepzero_by_layer(
    positions: Any, mu: optax.ScalarOrSchedule = 5e-3, *, batch_size: int = 32
) -> Joint:
    """DeepZero's feature reuse: a sweep for each leaf, from the features that come before it.

    The same gradient as `deepzero`. The coordinates of a batch are all of one leaf, so that under
    `vmap` what the model computes before that leaf is done once for all of them, whatever model it
    is: of a chain of equal layers, about half the work of a sweep.

    Args:
        positions, mu: as of `deepzero`, a leaf without positions stays.
        batch_size: coordinates asked at once, each with the activations from its leaf on.

    Returns:
        A `Joint` of `|S|` forward passes and one for each leaf that moves.

    Raises:
        ValueError: if there is no position.

    Reference: Chen et al., DeepZero: scaling up zeroth-order optimization for deep model training,
    2024.
    """
    leaves, structure = jax.tree.flatten(positions)
    alone = [
        jax.tree.unflatten(structure, [at[:0] if j != i else at for j, at in enumerate(leaves)])
        for i, leaf in enumerate(leaves)
        if leaf.size
    ]
    return joint(*(deepzero(at, mu, batch_size=batch_size) for at in alone))


def grasp_scores(
    fun: Callable, estimator: Estimator, mu: float = 5e-3, *, per_example: bool = False
) -> Callable[..., Any]:
    """ZO-GraSP: how much each parameter matters to the flow of the gradient.

    `s = -x * (g(x + mu g0) - g0) / mu`, an estimate of `-x * (H g)`, with `g0 = g(x)`; both
    estimates along the same directions, so that their noise cancels.

    Args:
        fun: `fun(params, *args) -> loss`.
        estimator: for g, for example `mezo(num_samples=192, direction=rademacher())`.
        mu: step along g0.
        per_example: as of `estimate`.

    Returns:
        `(key, params, *args) -> scores`, a tree like `params` in float32.

    Reference: Chen et al., DeepZero: scaling up zeroth-order optimization for deep model training,
    2024, whose code draws other directions for the second estimate.
    """
    estimated = value_and_grad(fun, estimator, per_example=per_example)

    def scores(key, params, *args, **kwargs):
        _, first = estimated(key, params, *args, **kwargs)
        moved = jax.tree.map(lambda p, g: (p + mu * g).astype(p.dtype), params, first)
        _, second = estimated(key, moved, *args, **kwargs)
        return jax.tree.map(
            lambda p, a, b: -p.astype(jnp.float32) * (b - a).astype(jnp.float32) / mu,
            params,
            first,
            second,
        )

    return scores


def layer_counts(scores: Any, density: float, always: Callable[[Any], bool] | None = None) -> Any:
    """How many coordinates of each leaf are active, from where the largest scores lie.

    Args:
        scores: tree of arrays, as of `grasp_scores`; concrete.
        density: part of all scored coordinates that is active, in (0, 1].
        always: `leaf -> bool`, leaves that are active as a whole and not scored; None takes those
            of one axis or none, the biases and norms.

    Returns:
        Tree like `scores` of integers; at least one for each leaf.

    Raises:
        ValueError: if the density is out of range or a score is NaN.
    """
    if not 0 < density <= 1:
        raise ValueError(f"the density must be in (0, 1], found {density}")
    whole = always or (lambda leaf: leaf.ndim <= 1)
    paths, structure = jax.tree_util.tree_flatten_with_path(scores)
    for path, leaf in paths:
        if np.isnan(np.asarray(leaf)).any():
            raise ValueError(f"the scores of leaf {jax.tree_util.keystr(path)} contain NaN")
    sizes = [np.abs(np.asarray(leaf, np.float32)).ravel() for _, leaf in paths]
    scored = [s for s, (_, leaf) in zip(sizes, paths, strict=True) if not whole(leaf)]
    if scored:
        together = np.concatenate(scored)
        kept = max(1, round(density * together.size))
        threshold = np.partition(together, together.size - kept)[together.size - kept]
    else:
        threshold = 0.0
    counts = [
        s.size if whole(leaf) else max(1, int(np.count_nonzero(s >= threshold)))
        for s, (_, leaf) in zip(sizes, paths, strict=True)
    ]
    return jax.tree.unflatten(structure, counts)


def draw_positions(key: jax.Array, params: Any, counts: Any) -> Any:
    """Active coordinates, drawn uniformly and without replacement in each leaf.

    Args:
        key: typed key, a new one for each refresh.
        params: tree of arrays or `ShapeDtypeStruct`.
        counts: tree like `params` of integers, as of `layer_counts`; not traced.

    Returns:
        Positions for `deepzero`, a tree of uint32[n_i]; traceable.

    Raises:
        ValueError: if a leaf has fewer entries than are to be drawn.
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(params)
    out = []
    for i, ((path, leaf), count) in enumerate(
        zip(paths, structure.flatten_up_to(counts), strict=True)
    ):
        size = math.prod(jnp.shape(leaf))
        if not 0 <= count <= size:
            raise ValueError(
                f"leaf {jax.tree_util.keystr(path) or 'of the parameters'} has {size} entries; "
                f"{count} cannot be drawn"
            )
        drawn = jax.random.permutation(jax.random.fold_in(key, i), size)[:count]
        out.append(drawn.astype(jnp.uint32))
    return jax.tree.unflatten(structure, out)
