"""Which mu, and which step size: asked of the loss itself, before a run."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from zojax import noise
from zojax.directions import Direction, gaussian
from zojax.estimators._diagnostics import squared_lengths
from zojax.estimators._estimate import _pick, _put, estimate, gradient
from zojax.estimators._estimator import Adaptive, AnyEstimator, Estimator, Joint, init, parts
from zojax.estimators._schemes import one_sided, two_sided
from zojax.estimators._shaping import difference


class MuProbe(NamedTuple):
    """What `probe_mu` found; `print` shows it as a table.

    Attributes:
        mu: the one of the grid whose neighbours agree best; NaN if no two agree.
        low, high: the range where neighbours agree: below it there is rounding noise, above it
            curvature.
        mus: float64[m], the grid.
        quotients: float32[m, n], the difference quotient of each direction.
        changes: float64[m - 1], from each of the grid to the next: the root mean square of the
            difference over that of the larger.
    """

    mu: float
    low: float
    high: float
    mus: np.ndarray
    quotients: np.ndarray
    changes: np.ndarray

    def __str__(self) -> str:
        lines = ["          mu  quotient (rms)  change to the next"]
        for i, mu in enumerate(self.mus):
            mark = "*" if mu == self.mu else "|" if self.low <= mu <= self.high else " "
            size = np.sqrt(np.mean(np.square(self.quotients[i])))
            line = f"{mark} {mu:10.2e}  {size:14.6g}"
            if i < len(self.changes):
                change = self.changes[i]
                line += f"  {change:8.2g}  {'#' * round(20 * min(change, 1.0))}"
            lines.append(line)
        return "\n".join(lines)


def probe_mu(
    fun: Callable,
    direction: Direction | None = None,
    *,
    mus: Sequence[float] | np.ndarray | None = None,
    num_samples: int = 4,
    sides: int = 2,
    tolerance: float = 0.1,
    argnums: int | Sequence[int] = 0,
    per_example: bool = False,
) -> Callable[..., MuProbe]:
    """Find the range of mu where the difference quotient is neither rounding noise nor curvature.

    The same directions are asked at every mu of a geometric grid. Rounding of the loss moves a
    quotient by about `eps |L| / mu`, curvature by O(mu^2) of two sides and O(mu) of one; where
    neither matters, neighbours on the grid agree. The range is the longest stretch of the grid in
    which each differs from the next by at most `tolerance`.

    Args:
        fun: `fun(*args) -> loss`, as of `estimate`.
        direction: of the estimator to be used; `gaussian()` if None.
        mus: the grid, rising; from 1e-6 to 1, two a decade, if None.
        num_samples: directions; a mu costs twice as many forward passes, or one more of one side.
        sides: 2 for `two_sided`, 1 for `one_sided`.
        tolerance: relative change between neighbours that still is agreement.
        argnums, per_example: as of `estimate`.

    Returns:
        `(key, *args, step=0) -> MuProbe`, not for use inside `jit`. A loss that is constant between
        steps has no quotient at small mu, and no range if mu never reaches its steps.

    Raises:
        ValueError: if the grid does not rise from above zero or has fewer than two points, or
            `sides` is neither 1 nor 2; when called, as `estimate`.
    """
    grid = np.logspace(-6, 0, 13) if mus is None else np.asarray(mus, np.float64)
    if grid.ndim != 1 or grid.size < 2 or not grid[0] > 0 or not np.all(np.diff(grid) > 0):
        raise ValueError(f"the grid of mu must rise from above zero, found {grid.tolist()}")
    if sides not in (1, 2):
        raise ValueError(f"sides must be 1 or 2, found {sides}")
    scheme = two_sided(num_samples) if sides == 2 else one_sided(num_samples)
    looked = direction or gaussian()

    def probed(key: jax.Array, *args, step=0, **kwargs) -> MuProbe:
        def at(mu):
            estimator = Estimator(looked, scheme, difference(), mu)
            ask = estimate(fun, estimator, argnums=argnums, per_example=per_example)
            return ask(key, *args, step=step, **kwargs).coefficients

        quotients = np.asarray(lax.map(at, jnp.asarray(grid, jnp.float32)))
        changes = _changes(quotients.astype(np.float64))
        first, last = _longest(changes <= tolerance)
        if first == last:
            return MuProbe(np.nan, np.nan, np.nan, grid, quotients, changes)
        worst = [np.max(changes[max(i - 1, 0) : i + 1]) for i in range(first, last + 1)]
        best = first + int(np.argmin(worst))
        return MuProbe(
            float(grid[best]), float(grid[first]), float(grid[last]), grid, quotients, changes
        )

    return probed


class LearningRate(NamedTuple):
    """What `suggest_learning_rate` found.

    Attributes:
        learning_rate: float32 scalar, mean of the slopes over that of the curvatures; infinite if
            the latter is not positive.
        slopes: float32[trials], `g' . grad L` of each estimate g'.
        curvatures: float32[trials], `g' . H g'`.
    """

    learning_rate: jax.Array
    slopes: jax.Array
    curvatures: jax.Array


def suggest_learning_rate(
    fun: Callable,
    estimator: AnyEstimator,
    *,
    trials: int = 8,
    argnums: int | Sequence[int] = 0,
    per_example: bool = False,
) -> Callable[..., LearningRate]:
    """The step size for SGD with an estimator's gradients, where the loss is asked.

    `E L(x - lr g') = L - lr E[g' . grad L] + lr^2/2 E[g' . H g']` is least at
    `lr = E[g' . grad L] / E[g' . H g']`, and from twice that on L rises. Both are differences
    along estimates g' themselves, of `L(x + t g')`, `L(x - t g')` and `L(x)`, with t so that they
    move as far as the estimator's queries do. Whatever the direction, the scheme and the shaping,
    their noise is counted in: with n Gaussian directions and the difference quotient it is
    `n / (tr H + (n + 1) g . H g / |g|^2)`.

    Args:
        fun: `fun(*args) -> loss`, as of `estimate`.
        estimator: whose estimates will be the steps.
        trials: estimates that are made; each costs its forward passes and three more.
        argnums, per_example: as of `estimate`.

    Returns:
        `(key, *args, step=0, state=None) -> LearningRate`, traceable; needs memory for a gradient
        and a moved copy of the parameters. It is the greedy choice at these parameters and on this
        batch: give a large one, and less than the suggestion where curvature is still to rise. For
        SGD alone: momentum m wants `1 - m` times it, and steps of a fixed length, as those of Adam,
        another scale altogether.

    Raises:
        ValueError: if there are no trials; when called, as `estimate`.

    >>> import jax, jax.numpy as jnp, zojax
    >>> loss = lambda w: jnp.sum(jnp.square(w))  # H = 2 I in 10 dimensions: lr = 1 / 24
    >>> suggest = zojax.suggest_learning_rate(loss, zojax.mezo(0.1), trials=64)
    >>> found = suggest(jax.random.key(0), jnp.ones(10))
    >>> bool(1 / 40 < found.learning_rate < 1 / 15)
    True
    """
    if trials < 1:
        raise ValueError(f"trials must be at least 1, found {trials}")
    ask = estimate(fun, estimator, argnums=argnums, per_example=per_example)

    def suggested(key: jax.Array, *args, step=0, state=None, **kwargs) -> LearningRate:
        params = _pick(args, argnums)
        base = jnp.asarray(fun(*args, **kwargs), jnp.float32)

        def moved(grads, t):
            new = jax.tree.map(lambda p, g: (p + t * g).astype(jnp.result_type(p)), params, grads)
            return jnp.asarray(fun(*_put(args, argnums, new), **kwargs), jnp.float32) - base

        def trial(own):
            found = ask(own, *args, step=step, state=state, **kwargs)
            grads = gradient(estimator, found.keys, found.coefficients, params, step, state)
            length = jnp.sqrt(sum(_square(g) for g in jax.tree.leaves(grads)))
            t = _reach(estimator, own, params, step, state) / length
            # the loss rises to one side by what it falls to the other: half the difference
            up, down = moved(grads, t), moved(grads, -t)
            still = length == 0
            slope = jnp.where(still, 0.0, jnp.mean(up - down) / (2 * t))
            return slope, jnp.where(still, 0.0, jnp.mean(up + down) / t**2)

        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(trials))
        slopes, curvatures = lax.map(trial, keys)
        slope, curvature = jnp.mean(slopes), jnp.mean(curvatures)
        rate = jnp.where(curvature > 0, slope / curvature, jnp.inf)
        return LearningRate(jnp.where(jnp.isnan(curvature), jnp.nan, rate), slopes, curvatures)

    return suggested


def _square(g) -> jax.Array:
    return jnp.sum(jnp.square(jnp.asarray(g, jnp.float32)))


def _reach(estimator: AnyEstimator, key, params: Any, step, state) -> jax.Array:
    """`|mu z|` of a first direction: how far a query goes."""
    memory = init(estimator, params) if state is None else state
    joined, total = isinstance(estimator, Joint), jnp.zeros((), jnp.float32)
    for i, (part, kept) in enumerate(zip(parts(estimator), memory, strict=True)):
        now = part.at(kept) if isinstance(part, Adaptive) else part
        keys = now.scheme.keys(noise.fold_in(key, i) if joined else key)
        squared = squared_lengths(now, keys[:1], params, step)[0]
        total = total + jnp.square(now.mu_at(step)) * squared
    return jnp.sqrt(total)


def _changes(quotients: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        sizes = np.sqrt(np.mean(np.square(quotients), axis=1))
        found = np.sqrt(np.mean(np.square(np.diff(quotients, axis=0)), axis=1))
        found = found / np.maximum(sizes[1:], sizes[:-1])
    # nothing moved at all, or nothing finite was found: no agreement
    return np.where(np.isfinite(found), found, np.inf)


def _longest(agree: np.ndarray) -> tuple[int, int]:
    """First and last grid point of the longest run of neighbours that agree; the same if none."""
    best, start = (0, 0), 0
    for i, ok in enumerate([*agree, False]):
        if not ok:
            best = max(best, (start, i), key=lambda run: run[1] - run[0])
            start = i + 1
    return best
