"""The estimator, and the two ways to call it: `estimate` and `value_and_grad`."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from zojax import noise
from zojax.directions import Direction, combine, perturb
from zojax.estimators._schemes import Losses, Scheme
from zojax.estimators._shaping import Shaping
from zojax.virtual import virtualize


class Estimator(NamedTuple):
    """A zeroth-order gradient estimator: where to look, where to ask, what to make of the answers.

    Attributes:
        direction: distribution of directions.
        scheme: where along each direction the loss is asked.
        shaping: losses to coefficients.
        mu: smoothing parameter, a positive float or a schedule of the step.
    """

    direction: Direction
    scheme: Scheme
    shaping: Shaping
    mu: optax.ScalarOrSchedule

    def mu_at(self, step) -> jax.Array:
        """mu at a step, float32 scalar."""
        return jnp.asarray(self.mu(step) if callable(self.mu) else self.mu, jnp.float32)


class Joint(NamedTuple):
    """Several estimators whose gradients add up; make one with `joint`."""

    parts: tuple[Estimator, ...]


def joint(*estimators: Estimator) -> Joint:
    """Estimate each block of parameters in its own way: `g = sum_i g_i`.

    Give each estimator a `masked` direction over leaves that no other one moves. Where a block sits
    late in the model (a head), ask many of its directions at once: under `vmap` everything before
    the first perturbed leaf is computed once and shared by all of them.

    Args:
        *estimators: at least one.

    Returns:
        A `Joint`, accepted wherever an `Estimator` is.

    Raises:
        ValueError: if none is given.
    """
    if not estimators:
        raise ValueError("joint() needs at least one estimator")
    return Joint(estimators)


def num_samples(estimator: Estimator | Joint) -> int:
    """Directions an estimate."""
    return sum(part.scheme.num_samples for part in _parts(estimator))


def num_queries(estimator: Estimator | Joint) -> int:
    """Losses asked an estimate."""
    return sum(part.scheme.num_queries for part in _parts(estimator))


class Estimate(NamedTuple):
    """What one estimate found; with the base parameters it replays the step.

    Attributes:
        value: float32 scalar, the loss; the mean over the parts of a joint estimator.
        losses: `Losses` of all queries; a tuple of them for a joint estimator.
        coefficients: float32[n].
        keys: uint32[n, 2], one key a direction; `gradient` makes `mean_k c_k z(key_k)` of them.
        aux: auxiliary output of the first query: the base query of a one-sided scheme, the first
            `+mu` query of a two-sided one. None without `has_aux`.
    """

    value: jax.Array
    losses: Losses | tuple[Any, ...]
    coefficients: jax.Array
    keys: jax.Array
    aux: Any


def estimate(
    fun: Callable,
    estimator: Estimator | Joint,
    *,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
) -> Callable[..., Estimate]:
    """Ask a loss along random directions; coefficients and keys instead of a gradient.

    Args:
        fun: `fun(*args) -> loss`, a real scalar, or `(loss, aux)` with `has_aux`.
        estimator: for example `zojax.mezo()`.
        argnums: which arguments hold the parameters, as in `jax.grad`.
        has_aux: whether `fun` returns auxiliary data.

    Returns:
        `(key, *args, step=0) -> Estimate`, traceable; `step` feeds a schedule of mu, and directions
        that keep a part of themselves for several steps.

    Raises:
        TypeError, ValueError: at trace time, if the loss is not a real scalar or does not depend on
            the parameters, a leaf is not a floating-point array, was deleted, or a concrete mu is
            not positive.
    """
    virtual_fun = virtualize(fun, on_unused="error")

    def one(part: Estimator, key, args, kwargs, step) -> Estimate:
        params = _pick(args, argnums)
        mu = part.mu_at(step)
        _check_mu(mu)
        samples = jnp.arange(part.scheme.num_samples, dtype=jnp.uint32)
        keys = noise.fold_in(key, samples)

        def ask(direction_key, scale):
            moved = perturb(part.direction, direction_key, params, scale, step)
            out = virtual_fun(*_put(args, argnums, moved), **kwargs)
            loss, aux = out if has_aux else (out, None)
            return _scalar(loss), aux

        losses, aux = part.scheme.evaluate(ask, keys, mu)
        return Estimate(losses.value, losses, part.shaping(losses, mu), keys, aux)

    def estimated(key: jax.Array, *args, step=0, **kwargs) -> Estimate:
        if isinstance(estimator, Estimator):
            return one(estimator, key, args, kwargs, step)
        found = [
            one(part, noise.fold_in(key, i), args, kwargs, step)
            for i, part in enumerate(estimator.parts)
        ]
        return Estimate(
            value=jnp.mean(jnp.stack([f.value for f in found])),
            losses=tuple(f.losses for f in found),
            coefficients=jnp.concatenate([f.coefficients for f in found]),
            keys=jnp.concatenate([f.keys for f in found]),
            aux=found[0].aux,
        )

    return estimated


def gradient(
    estimator: Estimator | Joint,
    keys: jax.Array,
    coefficients: jax.Array,
    params: Any,
    step: Any = 0,
) -> Any:
    """The gradient that coefficients and keys stand for, `1/n sum_k c_k z(key_k)`.

    Args:
        estimator: the one that made the estimate.
        keys: uint32[n, 2], as in `Estimate`.
        coefficients: float32[n].
        params: tree of the parameters; only shapes and dtypes are read.
        step: the step of the estimate.

    Returns:
        Tree like `params`.
    """
    total, start = None, 0
    for part in _parts(estimator):
        end = start + part.scheme.num_samples
        grads = combine(part.direction, keys[start:end], coefficients[start:end], params, step)
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
        start = end
    return total


def value_and_grad(
    fun: Callable,
    estimator: Estimator | Joint,
    *,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
) -> Callable:
    """Like `jax.value_and_grad`, with forward passes only; the key comes first.

    `grad = 1/n sum_k c_k z_k`, unbiased for the gradient of the loss smoothed by mu where the
    estimator's shaping is; the total variance with Gaussian directions is `(d + 1) |g|^2 / n`.

    Args:
        fun: `fun(*args) -> loss`, or `(loss, aux)` with `has_aux`; any JAX function, unmodified.
        estimator: for example `zojax.fzoo(num_samples=8)`.
        argnums: which arguments to differentiate, as in `jax.value_and_grad`.
        has_aux: whether `fun` returns auxiliary data; see `Estimate.aux` for which query's.

    Returns:
        `(key, *args, step=0) -> (value, grads)` or `((value, aux), grads)`; grads like the
        parameters.

    Raises:
        As `estimate`.

    >>> import jax, jax.numpy as jnp, zojax
    >>> loss = lambda w: jnp.sum((w - 1.0) ** 2)
    >>> vg = zojax.value_and_grad(loss, zojax.mezo(mu=1e-3, num_samples=64))
    >>> value, grads = vg(jax.random.key(0), jnp.zeros(4))
    >>> grads.shape
    (4,)
    """
    ask = estimate(fun, estimator, argnums=argnums, has_aux=has_aux)

    def value_and_grads(key: jax.Array, *args, step=0, **kwargs):
        found = ask(key, *args, step=step, **kwargs)
        params = _pick(args, argnums)
        grads = gradient(estimator, found.keys, found.coefficients, params, step)
        return ((found.value, found.aux) if has_aux else found.value), grads

    return value_and_grads


def _parts(estimator: Estimator | Joint) -> tuple[Estimator, ...]:
    return (estimator,) if isinstance(estimator, Estimator) else estimator.parts


def _pick(args: tuple, argnums):
    if isinstance(argnums, int):
        return args[argnums]
    return tuple(args[i] for i in argnums)


def _put(args: tuple, argnums, values) -> tuple:
    new = list(args)
    for i, v in (
        [(argnums, values)] if isinstance(argnums, int) else zip(argnums, values, strict=True)
    ):
        new[i] = v
    return tuple(new)


def _scalar(loss) -> jax.Array:
    loss = jnp.asarray(loss)
    if loss.shape != () or jnp.issubdtype(loss.dtype, jnp.complexfloating):
        raise ValueError(
            f"the loss must be a real scalar, found {loss.dtype}{list(loss.shape)}; "
            "return its mean, or pass has_aux=True if the function returns (loss, aux)"
        )
    return loss.astype(jnp.float32)


def _check_mu(mu) -> None:
    if not isinstance(mu, Tracer) and not float(mu) > 0:
        raise ValueError(f"the smoothing parameter mu must be positive, found {float(mu)}")
