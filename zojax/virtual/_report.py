"""What became of every weight: the record behind `explain` and `on_fallback`."""

import warnings
from dataclasses import dataclass, field
from typing import Literal

from zojax import _compat

OnFallback = Literal["allow", "warn", "error"]
Implementation = Literal["xla", "tpu", "gpu"]


class MaterializedWarning(UserWarning):
    """A virtual leaf was made dense because the primitive that uses it has no fused rule."""


class MaterializedError(ValueError):
    """The same, where the caller asked for an error."""


def is_vector(value) -> bool:
    """Whether at most one axis is longer than one, so that dense costs nothing."""
    return sum(n != 1 for n in value.shape) <= 1


@dataclass(frozen=True)
class Use:
    """One use of one virtual leaf.

    Attributes:
        leaf: path of the leaf in the arguments.
        primitive: name of the jax primitive that used it.
        how: "fused" (stayed a formula), "rows" (only the looked-up rows were made), "kernel" (a
            Pallas kernel makes it a tile at a time), "at use" (dense for this one matmul, as noise
            must be without a kernel), "vector" (at most one axis: dense costs nothing), or
            "fallback" (made dense because no rule knows this use).
        num_bytes: bytes of dense array that this use makes.
        source: "file:line (function)", where known.
    """

    leaf: str
    primitive: str
    how: Literal["fused", "rows", "kernel", "at use", "vector", "fallback"]
    num_bytes: int
    source: str


@dataclass(frozen=True)
class Report:
    """Collects uses while a function is traced; one a call of the transformed function.

    Attributes:
        on_fallback, implementation: as given to `virtualize`.
        whole: names of leaves that are dense as a whole where they are dense on a CPU.
        uses: what was collected.
    """

    on_fallback: OnFallback = "allow"
    implementation: Implementation | None = None
    whole: frozenset[str] = frozenset()
    uses: dict = field(default_factory=dict)

    def sets_flat(self, value) -> bool:
        """Whether a leaf's entries are set by their flat positions where it is dense on a CPU."""
        return value.entries is not None and value.name in self.whole

    def note(self, eqn, position: int, value, how) -> None:
        dense = 0 if how in ("fused", "rows", "kernel") else value.size * value.dtype.itemsize
        if how == "fallback" and is_vector(value):
            how = "vector"
        key = (id(eqn), position, value.name)
        if key in self.uses:
            return
        use = Use(value.name, eqn.primitive.name, how, dense, _compat.source_line(eqn))
        self.uses[key] = use
        if how != "fallback" or self.on_fallback == "allow":
            return
        message = (
            f"leaf {use.leaf or '(unnamed)'} {value.dtype}{list(value.shape)} was made dense "
            f"({dense:,} bytes) for primitive '{use.primitive}' at {use.source or 'unknown line'}; "
            "write the use as a matmul, a row lookup, a reshape, a transpose or a slice, or pass "
            "on_fallback='allow'"
        )
        if self.on_fallback == "error":
            raise MaterializedError(message)
        warnings.warn(message, MaterializedWarning, stacklevel=2)


@dataclass(frozen=True)
class Explanation:
    """Every use of every virtual leaf in one call; print it for a table."""

    uses: tuple[Use, ...]

    @property
    def fallbacks(self) -> tuple[Use, ...]:
        return tuple(u for u in self.uses if u.how == "fallback")

    def __str__(self) -> str:
        rows = [("leaf", "use", "how", "dense bytes", "where")]
        rows += [(u.leaf, u.primitive, u.how, f"{u.num_bytes:,}", u.source) for u in self.uses]
        widths = [max(len(r[i]) for r in rows) for i in range(5)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in rows]
        count = len(self.fallbacks)
        lines.append(f"{len(self.uses)} uses, {count} fallback{'' if count == 1 else 's'}")
        return "\n".join(line.rstrip() for line in lines)
