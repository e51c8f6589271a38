"""Ask and tell: objectives that JAX cannot trace, and people who only rank."""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zojax import noise
from zojax.directions import perturb
from zojax.estimators._estimate import Estimate, _check_mu, concluded, together
from zojax.estimators._estimator import Adaptive, AnyEstimator, Estimator, Joint, init, parts
from zojax.virtual import materialize


def candidates(
    estimator: AnyEstimator, key: jax.Array, params: Any, step: Any = 0, state: tuple | None = None
) -> list:
    """The parameters that one estimate asks about, for a loss that is not a JAX function.

    Evaluate them in any way, in any order, on any machine, and give the losses to `tell`.

    Args:
        estimator: any but a `forward_gradient`, which asks for derivatives.
        key: typed key, a new one every step; the same for `tell`.
        params: tree of floating-point arrays.
        step: integer, for schedules and directions that keep a part of themselves.
        state: memory of an adaptive estimator; that of `init` if None.

    Returns:
        A list of trees like `params`, dense, one for each query: the base first where the scheme
        has one, then `x + mu z_0, x - mu z_0, x + mu z_1, ...`, of a one-sided scheme the plus
        sides only. Those of a joint estimator's parts one after another.

    Raises:
        ValueError: if the estimator asks for derivatives or a concrete mu is not positive.
        TypeError: if a leaf is not a floating-point array.

    >>> import jax, numpy as np, zojax
    >>> estimator, x = zojax.mezo(), np.zeros(3, np.float32)
    >>> points = zojax.candidates(estimator, jax.random.key(0), x)
    >>> losses = [float(np.sum((p - 1.0) ** 2)) for p in points]  # or ask someone
    >>> found = zojax.tell(estimator, jax.random.key(0), losses, x)
    >>> zojax.gradient(estimator, found.keys, found.coefficients, x).shape
    (3,)
    """
    found = []
    for part, kept, own in _parts(estimator, key, params, state):
        now = _as_it_asks(part, kept)
        mu = now.mu_at(step)
        _check_mu(mu)
        # mu may be an array, which cannot be a part of what is compiled for
        fixed = part._replace(mu=1.0) if isinstance(part, Estimator) else part
        found += [
            _candidate(fixed, kept, own, mu, params, step, i) for i in range(_asked(now, step))
        ]
    return found


def tell(
    estimator: AnyEstimator,
    key: jax.Array,
    losses: Any,
    params: Any,
    step: Any = 0,
    state: tuple | None = None,
) -> Estimate:
    """What the losses of `candidates` say: the estimate that `estimate` makes of a JAX loss.

    Args:
        estimator, key, step, state: as given to `candidates`.
        losses: float[q], one for each candidate in their order, or float[q, B] with one for each
            of B examples. `losses_of_order` makes them of an order. None of them is dropped for
            being NaN or infinite: `ranks` takes NaN as worst, `private` and `clipped` bound what
            is infinite, and every other shaping makes coefficients of it that are not finite.
        params: the parameters; only shapes and dtypes are read.

    Returns:
        An `Estimate` without aux, for `gradient` or `advance`; the same keys and coefficients as
        `estimate` with this key finds.

    Raises:
        ValueError: if the number of losses is not that of the candidates or the estimator asks for
            derivatives.
    """
    losses = jnp.asarray(losses, jnp.float32)
    now = [
        (_as_it_asks(part, kept), own) for part, kept, own in _parts(estimator, key, params, state)
    ]
    counts = [_asked(part, step) for part, _ in now]
    if losses.ndim not in (1, 2) or losses.shape[0] != sum(counts):
        raise ValueError(
            f"the losses must be float[{sum(counts)}] or float[{sum(counts)}, examples], one for "
            f"each of the candidates in their order, found float{list(losses.shape)}"
        )
    found, start = [], 0
    for (part, own), count in zip(now, counts, strict=True):
        found.append(_concluded(part, own, losses[start : start + count], step))
        start += count
    if not isinstance(estimator, Joint):
        return found[0]
    return together(found)


def losses_of_order(order: Sequence[int], count: int) -> jax.Array:
    """Losses that stand for an order, for `ranks` and nothing else.

    Args:
        order: numbers of candidates from the best on; not all need to be there.
        count: how many candidates there were.

    Returns:
        float32[count]: 0 for the best, 1 for the next, `count` for each that was not ordered. With
        `ranks(top=len(order))` those count as known to be beaten and not compared with each other.

    Raises:
        ValueError: if a number is not one of the candidates or comes twice.

    >>> losses_of_order([2, 0], 4).tolist()
    [1.0, 4.0, 0.0, 4.0]
    """
    order = [operator.index(i) for i in order]
    unknown = [i for i in order if not 0 <= i < count]
    if unknown or len(set(order)) < len(order):
        what = f"{unknown[0]} is none of them" if unknown else "one comes twice"
        raise ValueError(
            f"the order must name candidates 0 to {count - 1}, each at most once, found {order}: "
            f"{what}"
        )
    losses = np.full(count, count, np.float32)
    losses[order] = np.arange(len(order))
    return jnp.asarray(losses)


def numpy_function(fun: Callable, *, shape: tuple[int, ...] = ()) -> Callable[..., jax.Array]:
    """Make a loss of a Python function on NumPy arrays, for use inside `jit`.

    Args:
        fun: `fun(params, *args) -> float`, or float[B]. Arrays arrive as NumPy arrays, in trees
            like those given; whatever else is given arrives as it is. It may be called more or
            less often than it looks, so it must not count its calls: ask a simulator with a state
            by `candidates`.
        shape: of what it returns: `(B,)` where it is one loss an example.

    Returns:
        A function of the same signature that JAX can trace (`jax.pure_callback`), float32; one
        call for each query, also under `vmap`. It has no derivatives. What `fun` raises, and a
        result of another shape, surfaces as `jax.errors.JaxRuntimeError` with its traceback.

    >>> import jax, jax.numpy as jnp, numpy as np, zojax
    >>> median = zojax.numpy_function(lambda w: np.median(np.abs(w - 1.0)))
    >>> step = jax.jit(zojax.value_and_grad(median, zojax.mezo(0.1)))
    >>> value, grads = step(jax.random.key(0), jnp.zeros(5))
    >>> grads.shape
    (5,)
    """
    result = jax.ShapeDtypeStruct(tuple(shape), jnp.float32)

    def loss(*args, **kwargs):
        leaves, tree = jax.tree.flatten((args, kwargs))
        moved = [i for i, x in enumerate(leaves) if isinstance(x, (jax.Array, np.ndarray))]

        def call(*arrays):
            filled = list(leaves)
            for i, array in zip(moved, arrays, strict=True):
                filled[i] = np.asarray(array)
            given, named = jax.tree.unflatten(tree, filled)
            found = np.asarray(fun(*given, **named), np.float32)
            if found.shape != result.shape:
                raise ValueError(
                    f"{getattr(fun, '__name__', 'the function')} returned float{list(found.shape)}"
                    f", expected float{list(result.shape)}: numpy_function(fun, shape=...) says "
                    "what it returns"
                )
            return found

        arrays = [leaves[i] for i in moved]
        return jax.pure_callback(call, result, *arrays, vmap_method="sequential")

    return loss


def _parts(
    estimator: AnyEstimator, key, params, state: tuple | None
) -> list[tuple[Estimator | Adaptive, Any, jax.Array]]:
    """Each part, its memory and its key."""
    memory = init(estimator, params) if state is None else state
    joined = isinstance(estimator, Joint)
    return [
        (part, kept, noise.fold_in(key, i) if joined else key)
        for i, (part, kept) in enumerate(zip(parts(estimator), memory, strict=True))
    ]


def _as_it_asks(part: Estimator | Adaptive, kept) -> Estimator:
    now = part.at(kept) if isinstance(part, Adaptive) else part
    if now.scheme.differentiate:
        raise ValueError(
            "forward_gradient() asks for derivatives along directions, which losses of candidates "
            "do not give: use two_sided(), one_sided() or population()"
        )
    return now


@functools.partial(jax.jit, static_argnums=0)
def _candidate(part: Estimator | Adaptive, kept, key, mu, params, step, i):
    """The parameters of one query; compiled once for all of them and all steps."""
    now = _as_it_asks(part, kept)
    keys, scales = now.scheme.queries(now.scheme.keys(key), mu)
    return materialize(perturb(now.direction, keys[i], params, scales[i], step))


def _asked(part: Estimator, step) -> int:
    """Queries that are asked at a step: the base, and those of the active directions."""
    per_direction, base = divmod(part.scheme.num_queries, part.scheme.num_samples)
    return base + per_direction * int(part.active_at(step))


def _concluded(part: Estimator, key, losses: jax.Array, step) -> Estimate:
    missing = part.scheme.num_queries - losses.shape[0]
    padded = jnp.pad(losses, ((0, missing), *((0, 0),) * (losses.ndim - 1)))
    return concluded(part, key, part.scheme.collect(padded, None), step)
