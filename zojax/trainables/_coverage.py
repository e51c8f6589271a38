"""How much of the Fisher information a part of the entries has, and how far two scores agree."""

from typing import Any, NamedTuple

import numpy as np

from zojax.trainables._top import Per, rows_of, top_entries
from zojax.trainables._tree import Flat, flatten


class CoverageRow(NamedTuple):
    """One tensor of a `Coverage`.

    Attributes:
        name: path.
        size: number of entries.
        entries: how many of them are picked.
        mass: the tensor's part of the sum of all scores.
        covered: the part of the tensor's own sum that the picked entries have.
    """

    name: str
    size: int
    entries: int
    mass: float
    covered: float


class Coverage(NamedTuple):
    """What the entries with the highest scores cover; prints as a table.

    Attributes:
        rows: one a tensor.
        total: the part of the sum of all scores that the picked entries have.
    """

    rows: tuple[CoverageRow, ...]
    total: float

    def __str__(self) -> str:
        lines = [("tensor", "size", "entries", "mass", "covered")]
        lines += [
            (r.name, str(r.size), str(r.entries), f"{r.mass:.4f}", f"{r.covered:.4f}")
            for r in self.rows
        ]
        size, entries = sum(r.size for r in self.rows), sum(r.entries for r in self.rows)
        return _table([*lines, ("all", str(size), str(entries), "", f"{self.total:.4f}")])


class OverlapRow(NamedTuple):
    """One tensor of an `Overlap`.

    Attributes:
        name: path.
        shared: the part of the first's picked entries that the second picks too.
        covered: the part of the first's sum of scores that the second's entries have.
        best: the same of its own entries, the most that as many can have.
    """

    name: str
    shared: float
    covered: float
    best: float


class Overlap(NamedTuple):
    """How far the entries of two scores agree; prints as a table.

    Attributes:
        rows: one a tensor.
        shared: as in `OverlapRow`, of all tensors.
        covered: as in `OverlapRow`, of all tensors.
        best: as in `OverlapRow`, of all tensors.
    """

    rows: tuple[OverlapRow, ...]
    shared: float
    covered: float
    best: float

    def __str__(self) -> str:
        rows = [*self.rows, OverlapRow("all", self.shared, self.covered, self.best)]
        lines = [(r.name, *(f"{x:.4f}" for x in r[1:])) for r in rows]
        return _table([("tensor", "shared", "covered", "best"), *lines])


def coverage(scores: Any, density: float = 1e-3, per: Per = "tensor") -> Coverage:
    """How much of the Fisher mass, the sum of the scores, a density covers in each tensor.

    Args:
        scores: of `sensitivity`.
        density: part of the entries, in (0, 1].
        per: "tensor" or "model", as for `sensitive`.

    Returns:
        A `Coverage`. Parts of scores that can be negative may lie outside of [0, 1]; a tensor
        whose scores are all zero counts as not covered.

    Raises:
        ValueError: if the density is out of range or gives no entry, a score is NaN, or no leaf is
            a matrix.

    >>> import jax.numpy as jnp, zojax
    >>> print(zojax.trainables.coverage({"w": jnp.array([[6.0, 1.0], [2.0, 1.0]])}, density=0.5))
    tensor  size  entries    mass  covered
    w          4        2  1.0000   0.8000
    all        4        2           0.8000
    """
    flat, matrices = _matrices(scores)
    picked = top_entries(flat.names, matrices, density, per)
    sums, tops, rows = [], [], []
    for name, score, index in zip(flat.names, matrices, picked, strict=True):
        if score is None:
            continue
        values = rows_of(score, name).astype(np.float64)
        at = _flat_positions(index, values.shape)
        sums.append(values.sum())
        tops.append(values.ravel()[at].sum())
        rows.append(CoverageRow(name, values.size, at.size, sums[-1], _part(tops[-1], sums[-1])))
    total = sum(sums)
    rows = [r._replace(mass=_part(r.mass, total)) for r in rows]
    return Coverage(tuple(rows), _part(sum(tops), total))


def overlap(a: Any, b: Any, density: float = 1e-3, per: Per = "tensor") -> Overlap:
    """How far the entries that two scores pick agree: a mask of general text and one of the task.

    Args:
        a: scores; those whose mass is looked at.
        b: scores of the same model, by another text or another method.
        density: part of the entries, in (0, 1].
        per: "tensor" or "model", as for `sensitive`.

    Returns:
        An `Overlap`. Independent masks share a part equal to the density.

    Raises:
        ValueError: if the two are not of one model, or as `coverage`.
    """
    flat, first = _matrices(a)
    second = flat.like(b, "second scores")
    for name, x, y in zip(flat.names, first, second, strict=True):
        if x is not None and (y is None or tuple(x.shape) != tuple(y.shape)):
            raise ValueError(
                f"leaf {name} has scores of shape {tuple(x.shape)} and "
                f"{None if y is None else tuple(y.shape)}: they are of two models"
            )
    second = [None if x is None else y for x, y in zip(first, second, strict=True)]
    ours = top_entries(flat.names, first, density, per)
    theirs = top_entries(flat.names, second, density, per)
    rows, sums = [], np.zeros(5)
    for name, score, i, j in zip(flat.names, first, ours, theirs, strict=True):
        if score is None:
            continue
        values = rows_of(score, name).astype(np.float64)
        own, other = (_flat_positions(x, values.shape) for x in (i, j))
        both = np.intersect1d(own, other, assume_unique=True)
        flat_values = values.ravel()
        found = [both.size, own.size, flat_values[other].sum(), flat_values[own].sum()]
        found = np.array([*found, flat_values.sum()])
        sums += found
        rows.append(OverlapRow(name, *_overlap_parts(found)))
    return Overlap(tuple(rows), *_overlap_parts(sums))


def _overlap_parts(sums: np.ndarray) -> tuple[float, float, float]:
    both, own, theirs, ours, total = sums
    return _part(both, own), _part(theirs, total), _part(ours, total)


def _matrices(scores: Any) -> tuple[Flat, list]:
    flat = flatten(scores)
    matrices = [leaf if len(leaf.shape) > 1 else None for leaf in flat.leaves]
    if all(m is None for m in matrices):
        raise ValueError("no leaf of the scores has two or more axes: there is nothing to pick")
    return flat, matrices


def _flat_positions(index: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """Positions in the whole leaf, without padding."""
    if index is None:
        return np.zeros(0, np.int64)
    rows = index.reshape(shape[0], -1).astype(np.int64)
    return (rows + np.arange(shape[0])[:, None] * shape[1])[rows < shape[1]]


def _part(x: float, total: float) -> float:
    return float(x / total) if total else 0.0


def _table(lines: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def aligned(line):
        cells = [x.rjust(w) for x, w in zip(line, widths, strict=True)]
        return "  ".join([line[0].ljust(widths[0]), *cells[1:]]).rstrip()

    return "\n".join(map(aligned, lines))
