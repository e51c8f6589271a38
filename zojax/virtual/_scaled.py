"""Terms multiplied by one factor, together: what they share is multiplied once."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from zojax.virtual._buffer import outlined
from zojax.virtual._low_rank import LowRank
from zojax.virtual._noise import DISTRIBUTIONS, scaled
from zojax.virtual._stored import Stored
from zojax.virtual._term import Term

_scaled = {name: outlined(partial(scaled, distribution=name)) for name in DISTRIBUTIONS}
_multiplied = outlined(jnp.multiply)


def scaled_together(terms: Sequence[Any], factor) -> list[Term | None]:
    """`term.scaled(factor)` of each, where terms that have one scale share the scaled one.

    Else XLA multiplies and rounds again in every use, which takes longer to compile. Vectors whose
    numbers are stored together are multiplied together.
    """
    products: dict[int, jax.Array] = {}
    found: dict[tuple, tuple[jax.Array, jax.Array]] = {}
    squares: dict[tuple, jax.Array] = {}
    out: list[Term | None] = []
    for term in terms:
        distribution = getattr(term, "distribution", None)
        scale = id(getattr(term, "scale", None))
        if type(term) is LowRank:
            products[scale] = products[scale] if scale in products else term.scale * factor
            out.append(replace(term, scale=products[scale]))
        elif distribution in DISTRIBUTIONS:
            key = scale, distribution
            if key not in found:
                found[key] = _scaled[distribution](term.scale, jnp.asarray(factor, jnp.float32))
            of_term, coefficient = found[key]
            part = term.whole_part if isinstance(term, Stored) else None
            if part is not None:
                square = *key, id(part.square)
                if square not in squares:
                    squares[square] = _multiplied(part.square, coefficient)
                part = replace(part, square=squares[square])
                out.append(term.multiplied(part, of_term))
            else:
                out.append(replace(term, scale=of_term, coefficient=coefficient))
        else:
            out.append(None if term is None else term.scaled(factor))
    return out
