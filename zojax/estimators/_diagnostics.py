"""How good an estimate is, and how a budget is best split between examples and directions."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from zojax import noise
from zojax.estimators._estimate import Estimate, _pick, estimate
from zojax.estimators._estimator import Adaptive, AnyEstimator, Estimator, Joint, init, parts
from zojax.estimators._schemes import Losses
from zojax.estimators._shaping import examples_mean


class Info(NamedTuple):
    """What `diagnose` found out; float32 scalars, but for the estimate.

    Attributes:
        estimate: the estimate itself, to go on with.
        gradient_squared: G, of `|g|^2`, g the gradient over all data; can be negative. Without
            losses of each example that of the batch.
        example_variance: T, of the trace of the covariance of an example's gradient; NaN without
            losses of at least two examples.
        direction_variance: V, of what the directions add to the squared error of the estimate.
        noise_scale: `T / G`, the simple noise scale: a batch much smaller than this is mostly
            noise. Infinite where G is not positive.
        signal_to_noise: `G / (V + T / B)`, over the expected squared error of the estimate (`G / V`
            where T is not known).
    """

    estimate: Estimate
    gradient_squared: jax.Array
    example_variance: jax.Array
    direction_variance: jax.Array
    noise_scale: jax.Array
    signal_to_noise: jax.Array


def diagnose(
    fun: Callable,
    estimator: AnyEstimator,
    *,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    per_example: bool = False,
) -> Callable[..., Info]:
    """An estimate with its signal and its noise, from the same queries.

    A difference quotient of each example, `c_kb = z_k . g_b`, has over directions the mean square
    `|g_b|^2`. With `c_k = mean_b c_kb` over B examples and n directions therefore

    `T = mean_k 1/(B-1) sum_b (c_kb - c_k)^2`, `G = mean_k c_k^2 - T/B`,
    `V = (mean_k c_k^2 |z_k|^2 - mean_k c_k^2) / n`,

    each unbiased for directions with `E[z z^T] = I` that are drawn independently and examples that
    are: no second batch, no gradient. Parts of a joint estimator add up. They are noisy: G and T
    have a relative error of about `sqrt(2/n)`. Average both over steps before dividing them.

    Args:
        fun, estimator, argnums, has_aux, per_example: as of `estimate`. Quotients are made of the
            losses whatever the shaping. Those of one side add `mu/2 z . H z` to each, and so
            `mu^2/4 ((tr H)^2 + 2 |H|^2)` to G. A `coordinate_sweep` has no random directions: its
            V says nothing.

    Returns:
        `(key, *args, step=0, state=None) -> Info`, traceable; the forward passes of `estimate`, and
        the directions once more for their lengths.

    Raises:
        ValueError: as `estimate`, and if a population has only one point.

    Reference: McCandlish et al., An empirical model of large-batch training, 2018 (noise scale).
    """
    ask = estimate(fun, estimator, argnums=argnums, has_aux=has_aux, per_example=per_example)

    def diagnosed(key: jax.Array, *args, step=0, state=None, **kwargs) -> Info:
        found = ask(key, *args, step=step, state=state, **kwargs)
        params = _pick(args, argnums)
        memory = init(estimator, params) if state is None else state
        joined = isinstance(estimator, Joint)
        losses: Any = found.losses if joined else (found.losses,)
        totals, examples = jnp.zeros(3, jnp.float32), 1
        for i, (part, kept, answers) in enumerate(
            zip(parts(estimator), memory, losses, strict=True)
        ):
            now = part.at(kept) if isinstance(part, Adaptive) else part
            keys = now.scheme.keys(noise.fold_in(key, i) if joined else key)
            squared = squared_lengths(now, keys, params, step)
            quotients = _quotients(answers, now.mu_at(step))
            totals = totals + jnp.stack(_moments(quotients, squared, _active(now, step)))
            examples = quotients.shape[1] if quotients.ndim == 2 else 1
        g, t, v = totals
        known = jnp.where(jnp.isnan(t), 0.0, t) / examples
        return Info(
            estimate=found,
            gradient_squared=g - known,
            example_variance=t,
            direction_variance=v,
            noise_scale=jnp.where(g - known > 0, t / (g - known), jnp.where(t >= 0, jnp.inf, t)),
            signal_to_noise=(g - known) / (v + known),
        )

    return diagnosed


class BudgetSplit(NamedTuple):
    """What `split_budget` suggests.

    Attributes:
        examples: b, the size of a batch.
        directions: m, asked of each batch, or of each example where they have their own.
        error: expected squared error of the estimate, `E |g' - g|^2`.
    """

    examples: int
    directions: int
    error: float


def split_budget(
    gradient_squared: float,
    example_variance: float,
    dimension: int,
    forwards: int,
    *,
    shared: bool = True,
) -> BudgetSplit:
    """Examples against directions: the split with the least error at `b m <= forwards`.

    With the same m directions for all b examples the error is
    `(d + 1) G / m + (T / b) (1 + (d + 1) / m)`, least where `m / b` is about `(d + 1) G / T`. With
    m directions of each example's own it is `(d + 1) (G + T) / (b m) + T / b`, least at `m = 1`;
    `jax.vmap` of a `value_and_grad` over keys and examples does that, at one forward pass of each
    example alone.

    Args:
        gradient_squared: G, positive; averaged over several `diagnose`.
        example_variance: T, not negative; likewise.
        dimension: d, parameters that move. For directions other than Gaussian take
            `n V / (G + T/B) - 1` of `diagnose`, which counts their kurtosis in.
        forwards: forward passes of one example along one direction; a two-sided scheme makes two
            of each.
        shared: whether all examples are asked along the same directions, as estimators do.

    Returns:
        A `BudgetSplit`: the exact minimum over whole numbers.

    Raises:
        ValueError: if an argument is out of range.

    >>> split_budget(gradient_squared=1.0, example_variance=100.0, dimension=10_000, forwards=400)
    BudgetSplit(examples=2, directions=200, error=2600.255)
    """
    g, t, d = float(gradient_squared), float(example_variance), dimension
    if not (0 < g < math.inf and 0 <= t < math.inf and d >= 1 and forwards >= 1):
        raise ValueError(
            "split_budget needs gradient_squared > 0, example_variance >= 0, dimension >= 1 and "
            f"forwards >= 1, found {g}, {t}, {d}, {forwards}; average more estimates if G is not "
            "positive"
        )
    if not shared:
        return BudgetSplit(forwards, 1, ((d + 1) * (g + t) + t) / forwards)
    # every split that is not beaten by a larger one has b = N // m or m = N // b
    half = math.isqrt(forwards)
    splits = [(b, forwards // b) for b in range(1, half + 1)]
    splits += [(forwards // m, m) for m in range(1, half + 1)]
    found = [BudgetSplit(b, m, (d + 1) * g / m + t / b * (1 + (d + 1) / m)) for b, m in splits]
    return min(found, key=lambda split: split.error)


def squared_lengths(part: Estimator, keys: jax.Array, params: Any, step) -> jax.Array:
    """`|z_k|^2` of each direction, float32[n]."""

    def one(key):
        terms = part.direction.terms(key, params, step)
        squares = [jnp.sum(jnp.square(t.materialize())) for t in terms if t is not None]
        return sum(squares, jnp.zeros((), jnp.float32))

    return lax.map(one, keys)


def _quotients(losses: Losses, mu: jax.Array) -> jax.Array:
    """`z_k . g_b` of each direction and example, [n, B] or [n]."""
    if losses.slope is not None:
        return losses.slope
    assert losses.plus is not None
    if losses.minus is not None:
        return (losses.plus - losses.minus) / (2 * mu)
    if losses.base is not None:
        return (losses.plus - losses.base) / mu
    n = losses.plus.shape[0]
    if n < 2:
        raise ValueError("diagnose() needs at least two points of a population, found 1")
    # centred by its own mean, which takes a fraction 1/n of the squares
    return (losses.plus - jnp.mean(losses.plus, axis=0)) / mu * math.sqrt(n / (n - 1))


def _moments(quotients, squared, active) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`mean_k c_k^2`, T and V of the active directions."""
    weights = active / jnp.sum(active)
    c = examples_mean(quotients)
    size = jnp.sum(weights * jnp.square(c))
    v = (jnp.sum(weights * jnp.square(c) * squared) - size) / jnp.sum(active)
    if quotients.ndim == 1 or quotients.shape[1] < 2:
        return size, jnp.float32(jnp.nan), v
    return size, jnp.sum(weights * jnp.var(quotients, axis=1, ddof=1)), v


def _active(part: Estimator, step) -> jax.Array:
    number = jnp.arange(part.scheme.num_samples)
    return (number < part.active_at(step)).astype(jnp.float32)
