"""Which entries have the highest scores."""

import math
from typing import Any, Literal

import numpy as np

Per = Literal["tensor", "model"]


def check_density(density: float, per: str = "tensor") -> None:
    """Raise if a density is out of range, or `per` is unknown."""
    if not 0 < density <= 1:
        raise ValueError(f"density must be in (0, 1], found {density}")
    if per not in ("tensor", "model"):
        raise ValueError(f'per must be "tensor" or "model", found {per!r}')


def rows_of(score: Any, name: str) -> np.ndarray:
    """float (matrices, entries) of a leaf's scores, on the host.

    Raises:
        ValueError: if there is a NaN.
    """
    found = np.asarray(score)
    if np.isnan(found).any():
        raise ValueError(f"the score of leaf {name} has NaN")
    return found.reshape(-1, math.prod(found.shape[-2:]))


def top_entries(
    names: list[str], scores: list[Any], density: float, per: Per
) -> list[np.ndarray | None]:
    """Positions of the highest scores.

    Args:
        names: of the leaves.
        scores: arrays of two or more axes, None for leaves without.
        density: part of the entries, in (0, 1].
        per: "tensor", that part of each matrix and at least one entry; or "model", of all together.

    Returns:
        int32 (*stack, k) ascending flat positions in each matrix, None for leaves without any.
        With "model" the matrices of a stack have different numbers of entries, and k is the most:
        the rest is padding, positions equal to the size of a matrix.
    """
    check_density(density, per)
    if per == "tensor":
        found = [
            None
            if s is None
            else _padded([_top(row, density) for row in rows_of(s, name)], s.shape)
            for name, s in zip(names, scores, strict=True)
        ]
    else:
        found = _top_of_model(names, scores, density)
    return found


def _top(row: np.ndarray, density: float) -> np.ndarray:
    k = max(1, round(density * row.size))
    return np.sort(np.argpartition(-row, k - 1)[:k])


def _top_of_model(names, scores, density: float) -> list[np.ndarray | None]:
    total = sum(math.prod(s.shape) for s in scores if s is not None)
    count = round(density * total)
    if count < 1:
        raise ValueError(
            f"density {density} of {total} entries is less than one entry: nothing would be "
            f"trained; take at least {1 / max(total, 1):.1e}"
        )
    best = np.zeros(0, np.float32)
    for name, score in zip(names, scores, strict=True):
        for row in () if score is None else rows_of(score, name):
            best = np.concatenate([best, row.astype(np.promote_types(row.dtype, np.float32))])
            if best.size > count:
                best = np.partition(best, best.size - count)[best.size - count :]
    threshold = best.min()
    ties = int((best == threshold).sum())  # the first that come are taken
    found: list[np.ndarray | None] = []
    for name, score in zip(names, scores, strict=True):
        if score is None:
            found.append(None)
            continue
        picked = []
        for row in rows_of(score, name):
            equal = np.flatnonzero(row == threshold)[:ties]
            ties -= equal.size
            picked.append(np.sort(np.concatenate([np.flatnonzero(row > threshold), equal])))
        found.append(_padded(picked, score.shape) if any(p.size for p in picked) else None)
    return found


def _padded(picked: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    size, most = math.prod(shape[-2:]), max(p.size for p in picked)
    index = np.full((len(picked), most), size, np.int32)
    for i, positions in enumerate(picked):
        index[i, : positions.size] = positions
    return index.reshape(*shape[:-2], most)
