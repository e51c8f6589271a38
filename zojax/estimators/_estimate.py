"""The estimator, and the two ways to call it: `estimate` and `value_and_grad`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from zojax import noise
from zojax.directions import combine, perturb
from zojax.directions._combine import shapes_of
from zojax.estimators._estimator import (
    Adaptive,
    AnyEstimator,
    Estimator,
    Joint,
    init,
    num_coefficients,
    parts,
)
from zojax.estimators._queries import answers
from zojax.estimators._schemes import Losses
from zojax.virtual import VirtualArray, is_virtual, virtualize
from zojax.virtual._report import Implementation

_SHAPING = 0x73686170  # folded into the key of an estimate for shapings that draw


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
    estimator: AnyEstimator,
    *,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    per_example: bool = False,
    implementation: Implementation | None = None,
) -> Callable[..., Estimate]:
    """Ask a loss along random directions; coefficients and keys instead of a gradient.

    Args:
        fun: `fun(*args) -> loss`, a real scalar, or `(loss, aux)` with `has_aux`.
        estimator: for example `zojax.mezo()`.
        argnums: which arguments hold the parameters, as in `jax.grad`.
        has_aux: whether `fun` returns auxiliary data.
        per_example: whether the loss is float[B], one an example, and their mean what is minimised.
            Differences are then taken of each example before they are averaged.
        implementation: of products with perturbed weights, as for `zojax.virtualize`.

    Virtual leaves of the other arguments, such as quantised frozen weights, reach `fun` as they
    are: it hands them to a function that is wrapped in `zojax.virtualize`.

    Returns:
        `(key, *args, step=0, state=None) -> Estimate`, traceable; `step` feeds a schedule of mu,
        and directions that keep a part of themselves for several steps; `state` is the memory of an
        adaptive estimator, that of `init` if None.

    Raises:
        TypeError, ValueError: at trace time, if the loss is not a real scalar (or vector) or does
            not depend on the parameters, a leaf is not a floating-point array, was deleted, or a
            concrete mu is not positive.
    """

    def shown_fun(*args, **kwargs):
        return fun(*_shown(args), **_shown(kwargs))

    virtual_fun = virtualize(shown_fun, on_unused="error", implementation=implementation)

    def one(part: Estimator, key, args, kwargs, step) -> Estimate:
        params = _pick(args, argnums)
        mu = part.mu_at(step)
        _check_mu(mu)

        def ask(direction_key, scale):
            moved = perturb(part.direction, direction_key, params, scale, step)
            out = virtual_fun(*_put(_hidden(args), argnums, moved), **_hidden(kwargs))
            loss, aux = out if has_aux else (out, None)
            return _checked(loss, per_example), aux

        keys = part.scheme.keys(key)
        losses, aux = answers(part, ask, keys, mu, step)
        return concluded(part, key, losses, step)._replace(aux=aux)

    def estimated(key: jax.Array, *args, step=0, state=None, **kwargs) -> Estimate:
        memory = init(estimator, shapes_of(_pick(args, argnums))) if state is None else state
        now = [
            part.at(kept) if isinstance(part, Adaptive) else part
            for part, kept in zip(parts(estimator), memory, strict=True)
        ]
        if not isinstance(estimator, Joint):
            return one(now[0], key, args, kwargs, step)
        found = [one(part, noise.fold_in(key, i), args, kwargs, step) for i, part in enumerate(now)]
        return together(found)

    return estimated


def advance(
    estimator: AnyEstimator,
    keys: jax.Array,
    coefficients: jax.Array,
    params: Any,
    step: Any = 0,
    state: tuple | None = None,
) -> tuple[Any, tuple]:
    """The gradient that an estimate stands for, and the estimator's memory after it.

    Args:
        estimator: the one that made the estimate.
        keys: uint32[n, 2], as in `Estimate`.
        coefficients: float32[n].
        params: tree of the parameters; only shapes and dtypes are read.
        step: the step of the estimate.
        state: the memory that the estimate was made with; that of `init` if None.

    Returns:
        Tree like `params`, `1/n sum_k c_k z(key_k)` where the estimator is not adaptive, and the
        next state.
    """
    params = shapes_of(params)
    memory = init(estimator, params) if state is None else state
    total, start, after = None, 0, []
    for part, kept in zip(parts(estimator), memory, strict=True):
        end = start + num_coefficients(part)
        if isinstance(part, Adaptive):
            grads, kept = part.advance(kept, keys[start:end], coefficients[start:end], params, step)
        else:
            grads = combine(part.direction, keys[start:end], coefficients[start:end], params, step)
        after.append(kept)
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
        start = end
    return total, tuple(after)


def gradient(
    estimator: AnyEstimator,
    keys: jax.Array,
    coefficients: jax.Array,
    params: Any,
    step: Any = 0,
    state: tuple | None = None,
) -> Any:
    """The gradient that coefficients and keys stand for, `1/n sum_k c_k z(key_k)`.

    Args:
        estimator, keys, coefficients, params, step, state: as of `advance`.

    Returns:
        Tree like `params`; the first part of what `advance` returns.
    """
    return advance(estimator, keys, coefficients, params, step, state)[0]


def value_and_grad(
    fun: Callable,
    estimator: AnyEstimator,
    *,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    per_example: bool = False,
    implementation: Implementation | None = None,
) -> Callable:
    """Like `jax.value_and_grad`, with forward passes only; the key comes first.

    `grad = 1/n sum_k c_k z_k`, unbiased for the gradient of the loss smoothed by mu where the
    estimator's shaping is; the total variance with Gaussian directions is `(d + 1) |g|^2 / n`.

    Args:
        fun: `fun(*args) -> loss`, or `(loss, aux)` with `has_aux`; any JAX function, unmodified.
        estimator: for example `zojax.fzoo(num_samples=8)`.
        argnums: which arguments to differentiate, as in `jax.value_and_grad`.
        has_aux: whether `fun` returns auxiliary data; see `Estimate.aux` for which query's.
        per_example: whether the loss is float[B], one an example, as in `estimate`.
        implementation: of products with perturbed weights, as for `zojax.virtualize`.

    Returns:
        `(key, *args, step=0, state=None) -> (value, grads)` or `((value, aux), grads)`; grads like
        the parameters. An adaptive estimator learns nothing from a call: go on with `estimate` and
        `advance`, or `zeroth_order`, which keep its state.

    Raises:
        As `estimate`.

    >>> import jax, jax.numpy as jnp, zojax
    >>> loss = lambda w: jnp.sum((w - 1.0) ** 2)
    >>> vg = zojax.value_and_grad(loss, zojax.mezo(mu=1e-3, num_samples=64))
    >>> value, grads = vg(jax.random.key(0), jnp.zeros(4))
    >>> grads.shape
    (4,)
    """
    ask = estimate(
        fun, estimator, argnums=argnums, has_aux=has_aux, per_example=per_example,
        implementation=implementation,
    )  # fmt: skip

    def value_and_grads(key: jax.Array, *args, step=0, state=None, **kwargs):
        found = ask(key, *args, step=step, state=state, **kwargs)
        params = _pick(args, argnums)
        grads = gradient(estimator, found.keys, found.coefficients, params, step, state)
        return ((found.value, found.aux) if has_aux else found.value), grads

    return value_and_grads


def concluded(part: Estimator, key, losses: Losses, step) -> Estimate:
    """The estimate that losses make, without aux."""
    keys, value = part.scheme.keys(key), losses.value
    found = part.shaping(losses, part.mu_at(step), _shaping_key(key))
    if part.active is not None:
        n, active = part.scheme.num_samples, part.active_at(step)
        found = jnp.where(jnp.arange(n) < active, found, 0.0) * (n / active)
        # losses that were not asked are zeros
        value = value if losses.base is not None else value * (n / active)
    return Estimate(value, losses, found, _one_each(keys, found), None)


def together(found: list[Estimate]) -> Estimate:
    """The estimates of a joint estimator's parts as one."""
    return Estimate(
        value=jnp.mean(jnp.stack([f.value for f in found])),
        losses=tuple(f.losses for f in found),
        coefficients=jnp.concatenate([f.coefficients for f in found]),
        keys=jnp.concatenate([f.keys for f in found]),
        aux=found[0].aux,
    )


def _shaping_key(key) -> jax.Array:
    return jax.random.wrap_key_data(noise.fold_in(key, _SHAPING), impl="threefry2x32")


def _one_each(keys: jax.Array, coefficients: jax.Array) -> jax.Array:
    """The keys, again from the first where a shaping has more to say than one number for each."""
    if coefficients.ndim != 1 or coefficients.shape[0] % keys.shape[0]:
        raise ValueError(
            f"the shaping returned {list(coefficients.shape)} coefficients for {keys.shape[0]} "
            "directions; expected one for each"
        )
    return jnp.tile(keys, (coefficients.shape[0] // keys.shape[0], 1))


@dataclass(frozen=True)
class _Opaque:
    """A virtual leaf that is no parameter: the objective gets it as it is."""

    array: VirtualArray


def _hidden(tree):
    hide = lambda x: _Opaque(x) if is_virtual(x) else x  # noqa: E731
    return jax.tree.map(hide, tree, is_leaf=is_virtual)


def _shown(tree):
    return jax.tree.map(lambda x: x.array if isinstance(x, _Opaque) else x, tree)


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


def _checked(loss, per_example: bool) -> jax.Array:
    loss = jnp.asarray(loss)
    if loss.ndim != per_example or jnp.issubdtype(loss.dtype, jnp.complexfloating):
        wanted, way_out = (
            ("a vector of real losses, one an example", "leave per_example out for a mean")
            if per_example
            else (
                "a real scalar",
                "return its mean, pass per_example=True if it is one loss an example, or "
                "has_aux=True if the function returns (loss, aux)",
            )
        )
        raise ValueError(
            f"the loss must be {wanted}, found {loss.dtype}{list(loss.shape)}; {way_out}"
        )
    return loss.astype(jnp.float32)


def _check_mu(mu) -> None:
    if not isinstance(mu, Tracer) and not float(mu) > 0:
        raise ValueError(f"the smoothing parameter mu must be positive, found {float(mu)}")
