"""Terms made of terms: an elementwise product, and a term that may be switched off."""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from zojax.virtual._term import Term


@partial(jax.tree_util.register_dataclass, data_fields=["term", "factor"], meta_fields=[])
@dataclass(frozen=True)
class Product:
    """`term * factor`, elementwise; a view where both of them can follow.

    Attributes:
        term: any term; `scaled` scales it.
        factor: any term of the same shape.
    """

    term: Term
    factor: Term

    @property
    def shape(self) -> tuple[int, ...]:
        return self.term.shape

    @property
    def scale(self):
        return self.term.scale

    def scaled(self, factor):
        return replace(self, term=self.term.scaled(factor))

    def transpose(self, permutation):
        return self._viewed(lambda t: t.transpose(permutation))

    def reshape(self, shape):
        return self._viewed(lambda t: t.reshape(shape))

    def broadcast(self, shape, dimensions):
        return self._viewed(lambda t: t.broadcast(shape, dimensions))

    def slice(self, starts, sizes, strides):
        return self._viewed(lambda t: t.slice(starts, sizes, strides))

    def rows(self, index, axis):
        return self.term.rows(index, axis) * self.factor.rows(index, axis)

    def materialize(self):
        return self.term.materialize() * self.factor.materialize()

    def _viewed(self, view):
        term, factor = view(self.term), view(self.factor)
        return None if term is None or factor is None else Product(term, factor)


@partial(jax.tree_util.register_dataclass, data_fields=["term", "active"], meta_fields=[])
@dataclass(frozen=True)
class Gated:
    """`term` where `active` holds, else zeros, made without evaluating the term.

    Under `vmap` over `active` both are evaluated.

    Attributes:
        term: any term.
        active: boolean scalar.
    """

    term: Term
    active: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.term.shape

    @property
    def scale(self):
        return self.term.scale

    def scaled(self, factor):
        return replace(self, term=self.term.scaled(factor))

    def transpose(self, permutation):
        return self._viewed(self.term.transpose(permutation))

    def reshape(self, shape):
        return self._viewed(self.term.reshape(shape))

    def broadcast(self, shape, dimensions):
        return self._viewed(self.term.broadcast(shape, dimensions))

    def slice(self, starts, sizes, strides):
        return self._viewed(self.term.slice(starts, sizes, strides))

    def rows(self, index, axis):
        return self._switched(lambda: self.term.rows(index, axis))

    def materialize(self):
        return self._switched(self.term.materialize)

    def _switched(self, make):
        out = jax.eval_shape(make)
        return lax.cond(self.active, make, lambda: jnp.zeros(out.shape, out.dtype))

    def _viewed(self, term):
        return None if term is None else replace(self, term=term)
