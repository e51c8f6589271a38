"""A large batch, a part of it at a time."""

import functools
import inspect
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax


def microbatched(fun: Callable, size: int, argnums: int | Sequence[int] = 1) -> Callable:
    """A loss over a large batch, from one microbatch after another: only numbers are kept.

    With m microbatches, n directions and one query at a time an estimate needs the memory of a
    forward pass over one microbatch, whatever m and n, and that of the perturbed vectors, which
    XLA makes once for all microbatches.

    Args:
        fun: `fun(params, batch, ...)`; a scalar that is a mean over examples, or one number an
            example, or a tree of such.
        size: examples a microbatch; must divide the batch.
        argnums: which arguments hold the examples, each a tree of arrays with examples on the
            leading axis. They may be passed by name too, as `zeroth_order` does.

    Returns:
        A function of the same arguments: scalars are averaged over the microbatches in float32,
        everything else is concatenated along its leading axis, in the order of the batch. Equal to
        `fun` but for rounding where the scalars are means over examples that all weigh the same,
        and examples do not see each other.

    Raises:
        ValueError: if `size` is below 1; when called, if an array's leading axis is not a multiple
            of it or not that of the others.

    >>> import jax.numpy as jnp, zojax
    >>> loss = lambda w, x: jnp.mean(jnp.square(x - w))
    >>> parts = zojax.microbatched(loss, size=2)
    >>> round(float(parts(1.0, jnp.arange(6.0))), 4), round(float(loss(1.0, jnp.arange(6.0))), 4)
    (5.1667, 5.1667)
    """
    if size < 1:
        raise ValueError(f"a microbatch needs at least one example, found size={size}")
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    @functools.wraps(fun)
    def of_batch(*args, **kwargs):
        positions, names = _places(fun, numbers, args, kwargs)
        count = _check_sizes([args[i] for i in positions] + [kwargs[name] for name in names], size)
        accumulate = _accumulator(count)
        run = optax.microbatching.microbatch(fun, positions, size, accumulate, argnames=names)
        return run(*args, **kwargs)

    return of_batch


def _places(fun: Callable, numbers: tuple, args: tuple, kwargs: dict) -> tuple[tuple, tuple]:
    """Which of the numbered arguments came by position, and the names of the others."""
    positions = tuple(i for i in numbers if i < len(args))
    by_name = [i for i in numbers if i >= len(args)]
    known = list(inspect.signature(fun).parameters) if by_name else []
    names = tuple(known[i] for i in by_name if i < len(known))
    if len(names) < len(by_name) or not set(names) <= set(kwargs):
        raise TypeError(
            f"microbatched(argnums={numbers}) found {len(args)} positional arguments and "
            f"{sorted(kwargs)} by name: the examples are not among them"
        )
    return positions, names


def _check_sizes(batches: list, size: int) -> int:
    """The number of microbatches."""
    paths, _ = jax.tree_util.tree_flatten_with_path(batches)
    found = {
        jax.tree_util.keystr(path[1:]) or "the batch": jnp.shape(leaf)[:1] for path, leaf in paths
    }
    if len(set(found.values())) != 1 or () in found.values():
        shapes = ", ".join(f"{name}: {list(shape)}" for name, shape in found.items())
        raise ValueError(f"the arrays of a batch need one leading axis of examples, found {shapes}")
    ((examples,),) = set(found.values())
    if examples % size or not examples:
        raise ValueError(
            f"a batch of {examples} examples is not a multiple of the microbatch size {size}: "
            f"leave {examples % size} out, pad it to {-(-examples // size) * size} with weights "
            "of zero, or choose a size that divides it"
        )
    return examples // size


def _accumulator(count: int) -> optax.microbatching.Accumulator:
    """Means of scalars, in float32 as `AccumulationType.MEAN` is not; a row of everything else."""

    def begin(value):
        if not value.ndim:
            return jnp.zeros((), jnp.float32)
        return jnp.zeros((count, *value.shape), value.dtype)

    def add(carry, value, index):
        return carry.at[index].set(value) if value.ndim else carry + value.astype(jnp.float32)

    def end(carry):
        # a microbatch is every count-th example, so that a sharded axis stays where it is
        if not carry.ndim:
            return carry / count
        return jnp.swapaxes(carry, 0, 1).reshape(-1, *carry.shape[2:])

    return optax.microbatching.Accumulator(
        init=lambda values: jax.tree.map(begin, values),
        update=lambda carry, values, index: jax.tree.map(
            lambda c, v: add(c, v, index), carry, values
        ),
        finalize=lambda carry: jax.tree.map(end, carry),
        aggregate=lambda values: values,
    )
