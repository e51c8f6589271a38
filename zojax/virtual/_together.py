"""Noise of several weights that is drawn at once on a CPU: fewer operations to compile.

XLA takes every operation of every use through most of its passes, and noise has many. What is
drawn at once is stored until its last use: with the largest weight of it no more than a large
weight's panel.
"""

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from zojax import _compat
from zojax.virtual._array import is_virtual
from zojax.virtual._base import is_formula
from zojax.virtual._buffer import depend, outlined
from zojax.virtual._noise import Noise, numbers_of
from zojax.virtual._row_keys import Drawn, RowKeys, Run
from zojax.virtual._slices import Slice

_VIEWS = ("transpose", "reshape", "squeeze", "expand_dims", "convert_element_type")


class _Use(NamedTuple):
    """The first product of a weight whose noise can be drawn with that of others."""

    eqn: Any
    keys: RowKeys
    run: Run
    coefficient: jax.Array


class Group:
    """Weights whose noise is drawn when the first of them is used."""

    def __init__(self) -> None:
        self._numbers: jax.Array | None = None

    def with_numbers(self, values: list) -> list:
        """The inputs of a product with one of the weights, which then has its numbers."""
        side = 0 if is_virtual(values[0]) else 1
        weight, x = values[side], values[1 - side]
        term = _groupable(weight)
        if term is None or is_virtual(x):
            return values  # a view that noise could not follow, or a product of two weights
        keys: Any = term.row_keys
        numbers = self._numbers
        if numbers is None:
            draw = _draw(term.distribution, keys.run)
            numbers = self._numbers = draw(x, keys.segment, term.coefficient)
        out = list(values)
        drawn = Drawn(numbers, keys)
        out[side] = replace(weight, terms=(replace(term, drawn=drawn),))
        return out


def drawn_together(jaxpr, values: dict) -> dict[int, Group]:
    """The group of each product that has one, by the identity of its equation.

    A group is all weights of a run of keys, with no weight of another run used between them: else
    the numbers would be kept for long.

    Args:
        jaxpr: open.
        values: of its inputs, by variable.
    """
    found: dict[int, Group] = {}
    for _, uses in itertools.groupby(_uses(jaxpr, values), _run_of):
        of_run = list(uses)
        if sum(use.keys.count for use in of_run) == of_run[0].run.count:
            group = Group()
            found.update((id(use.eqn), group) for use in of_run)
    return found


def _run_of(use: _Use) -> tuple:
    segment = use.keys.segment
    shared = (segment.square, segment.row, segment.column, use.coefficient)
    return *(id(x) for x in shared), use.run


def _uses(jaxpr, values: dict) -> list[_Use]:
    terms = {v: term for v in jaxpr.invars if (term := _groupable(values.get(v))) is not None}
    seen: set[int] = set()
    found: list[_Use] = []
    for eqn in jaxpr.eqns if terms else ():
        of = [None if hasattr(v, "val") else terms.get(v) for v in eqn.invars]
        name = eqn.primitive.name
        if name in _VIEWS and of[0] is not None:
            terms[eqn.outvars[0]] = of[0]
        elif name == "dot_general" and (of[0] is None) != (of[1] is None):
            term: Any = of[1] if of[0] is None else of[0]
            if id(term) not in seen:
                found.append(_Use(eqn, term.row_keys, term.row_keys.run, term.coefficient))
            seen.add(id(term))
    return found


def _groupable(value) -> Noise | None:
    """The noise of a dense array, if it is that of a whole leaf and can be drawn with others'."""
    if not is_virtual(value) or len(value.terms) != 1 or value.entries is not None:
        return None
    (term,) = value.terms
    if type(term) is not Noise or term.order is None or is_formula(value.base):
        return None
    return term


@lru_cache(maxsize=512)
def _draw(distribution: str, run: Run) -> Callable:
    """`(x, segment, coefficient) -> float32[count, width]`: on a CPU the numbers of a run times the
    coefficient, made when x is there; elsewhere zeros, that nothing uses.
    """
    none = jax.ShapeDtypeStruct((run.count, run.width), jnp.float32)

    def zeros(x, segment, coefficient):
        del segment, coefficient
        return _compat.varying_like(jnp.zeros(none.shape, none.dtype), x)

    @partial(outlined, on_cpu=True)
    def numbers(x, segment: Slice, coefficient):
        part = segment.part(jnp.uint32(run.first), run.count)
        words = replace(part, row=depend(x, _compat.varying_like(part.row, x))).get()
        cols = jnp.arange(run.width, dtype=jnp.uint32)
        drawn = numbers_of(distribution, (words[:, 0, None], words[:, 1, None]), cols)
        return coefficient * drawn

    @custom_vmap
    def draw(x, segment: Slice, coefficient):
        return lax.platform_dependent(x, segment, coefficient, cpu=numbers, default=zeros)

    @draw.def_vmap
    def _(size, is_batched, x, segment, coefficient):
        del size
        x_batched, *batched = is_batched
        if any(jax.tree.leaves(batched)):
            # each query draws the noise of each product when it comes to it: see `dense_use`
            return jnp.zeros(none.shape, none.dtype), False
        return draw(x[0] if x_batched else x, segment, coefficient), False

    differentiable: Any = jax.custom_jvp(draw)
    differentiable.defjvp(lambda primals, _: (out := draw(*primals), jnp.zeros_like(out)))
    return differentiable
