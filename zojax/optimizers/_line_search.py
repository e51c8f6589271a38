"""Choose how far to go among a few step lengths, by asking."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.core import Tracer


class ScaleByBestState(NamedTuple):
    """State of `scale_by_best`: what the last step did."""

    scale: jax.Array  # shape=(), dtype=jnp.float32: the chosen one
    value: jax.Array  # shape=(), dtype=jnp.float32: loss there; NaN if only an order is known


def scale_by_best(
    scales: Sequence[float] = (1.0, 0.5, 0.25, 0.0),
    *,
    best_of: Callable[[list], int] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Scale the updates by the best of a few factors; goes last in an optax chain.

    `s* = argmin_s L(x + s u)` over the scales, one forward pass each. With 0 among them the step
    is conservative: on this batch it is never worse than no step. (1, 0, -1) after `optax.sgd` is
    conservative ZO-SGD, also called three points; (1, 1/2, 1/4, ..., 0) with an order is
    RankSGD's line search.

    Args:
        scales: the factors s, at least one.
        best_of: an oracle that is not a loss, such as a person: from the list of all the
            `x + s u`, in the order of `scales`, it gives the number of the best. Outside `jit`.

    Returns:
        A transformation whose `update(updates, state, params, *, value_fn, **extra)` asks
        `value_fn(params, **extra)`, as `zeroth_order` does; a vector, one loss an example, is
        averaged. Candidates are `params + s u` in the dtype of `params`, rounded to nearest, one
        at a time: the memory of one forward pass and of what it makes of its weights. NaN is never
        the best and ties go to the first; where all are NaN or infinite the updates are zero. The
        choice depends on the batch: `ScaleByBestState.scale` tells it, a journal of coefficients
        does not.

    Raises:
        ValueError: if there are no scales; when called, if `params` or an oracle is missing, the
            loss is neither a scalar nor a vector, or `best_of` is called inside `jit` or returns
            what is no number of a candidate.

    References: Bergou et al., Stochastic three points method for unconstrained smooth
    minimization, 2020; Tang et al., Zeroth-order optimization meets human feedback (ZO-RankSGD),
    2024; Zhang et al., Revisiting zeroth-order optimization for memory-efficient LLM fine-tuning,
    2024 (ZO-SGD-Cons).

    >>> import jax.numpy as jnp, optax, zojax
    >>> tx = optax.chain(optax.sgd(1.0), zojax.scale_by_best())
    >>> w = jnp.array([3.0])
    >>> state = tx.init(w)
    >>> loss = lambda w: jnp.sum(jnp.square(w))
    >>> updates, state = tx.update(jnp.array([6.0]), state, w, value_fn=loss)  # far too long
    >>> float(updates[0]), float(state[1].scale)
    (-3.0, 0.5)
    """
    factors = tuple(scales)
    if not factors:
        raise ValueError("scale_by_best needs at least one scale")

    def init_fn(params):
        del params
        return ScaleByBestState(jnp.ones((), jnp.float32), jnp.full((), jnp.nan, jnp.float32))

    def update(updates, state, params=None, *, value_fn: Callable | None = None, **extra):
        del state
        if params is None or (value_fn is None and best_of is None):
            missing = "params" if params is None else "value_fn"
            raise ValueError(
                f"scale_by_best needs {missing}: call "
                "tx.update(updates, state, params, value_fn=loss, batch=batch)"
            )
        if best_of is not None:
            best = _told(best_of, [_moved(params, updates, s) for s in factors])
            scale, value = jnp.float32(factors[best]), jnp.float32(jnp.nan)
        else:
            assert value_fn is not None
            asked = jnp.stack([jnp.asarray(s, jnp.float32) for s in factors])
            losses = lax.map(lambda s: _mean(value_fn(_moved(params, updates, s), **extra)), asked)
            losses = jnp.where(jnp.isnan(losses), jnp.inf, losses)
            best = jnp.argmin(losses)
            value = losses[best]
            scale = jnp.where(jnp.isposinf(value), 0.0, asked[best])
        scaled = jax.tree.map(lambda u: _times(u, scale), updates)
        return scaled, ScaleByBestState(scale, value)

    return optax.GradientTransformationExtraArgs(init_fn, update)


def _times(update: jax.Array, scale) -> jax.Array:
    """No step at all for the scale zero, whatever the update: infinity times zero is NaN."""
    scaled = update * jnp.asarray(scale, jnp.float32)
    return jnp.where(jnp.asarray(scale) == 0, 0.0, scaled).astype(update.dtype)


def _moved(params: Any, updates: Any, scale) -> Any:
    return optax.apply_updates(params, jax.tree.map(lambda u: _times(u, scale), updates))


def _mean(loss) -> jax.Array:
    loss = jnp.asarray(loss)
    if loss.ndim > 1:
        raise ValueError(
            f"the loss must be a scalar, or a vector with one an example, found {list(loss.shape)}"
        )
    return jnp.mean(loss.astype(jnp.float32))


def _told(best_of: Callable[[list], int], points: list) -> int:
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(points)):
        raise ValueError(
            "best_of is asked outside jit: call tx.update without jax.jit, or give a value_fn"
        )
    best = int(best_of(points))
    if not 0 <= best < len(points):
        raise ValueError(f"best_of must return a number from 0 to {len(points) - 1}, found {best}")
    return best
