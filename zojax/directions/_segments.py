"""Leaves whose numbers are drawn together: as a rule, those of a layer."""

import itertools
import math
from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from zojax.virtual._dense import most_at_once
from zojax.virtual._row_keys import Run

_MOST_STORED = 2**16  # entries of a vector whose noise is stored
_LEAST_WIDTH = 64  # of a leaf whose row keys are stored: eight bytes a row
_MOST_ROWS = 2**15  # of a segment of several leaves
_SPARE = 0.25  # numbers of vectors that may be drawn and not used


class Part(NamedTuple):
    """A leaf in a segment: `rows * blocks` keys, from each of which `width` numbers are made.

    Of a vector the last ones may not be used.
    """

    rows: int
    blocks: int
    width: int

    @property
    def keys(self) -> int:
        return self.rows * self.blocks


class Layout(NamedTuple):
    """How the keys of several leaves lie; equal for layers that are alike.

    Attributes:
        parts: one a leaf, vectors first.
        vectors: how many of them are vectors, whose numbers are stored.
        runs: those that are drawn at once; of the vectors each is in one.
    """

    parts: tuple[Part, ...]
    vectors: int
    runs: tuple[Run, ...]

    @property
    def keys(self) -> int:
        return sum(part.keys for part in self.parts)

    @property
    def stored(self) -> tuple[Run, ...]:
        """The runs of the vectors."""
        end = sum(part.keys for part in self.parts[: self.vectors])
        return tuple(run for run in self.runs if run.first < end)

    @property
    def run_of(self) -> list[Run | None]:
        """The run of each part."""
        return [
            next((r for r in self.runs if r.first <= start < r.first + r.count), None)
            for start in self._starts
        ]

    @property
    def places(self) -> list[int]:
        """The first key of each part, counted from that of its run if it has one."""
        pairs = zip(self._starts, self.run_of, strict=True)
        return [start - (run.first if run else 0) for start, run in pairs]

    @property
    def shared_places(self) -> set[int]:
        """Places of parts that are used alike: one computation, if XLA does not know the place."""
        kinds = list(zip(self.parts, self.run_of, strict=True))
        return {p for p, k in zip(self.places, kinds, strict=True) if kinds.count(k) > 1}

    @property
    def _starts(self) -> list[int]:
        return [0, *itertools.accumulate(part.keys for part in self.parts)][:-1]


@lru_cache(maxsize=64)
def segments(
    shapes: tuple[tuple[int, ...], ...], together: bool
) -> dict[Layout, list[tuple[int, ...]]]:
    """The leaves of each segment, in the order of its parts, by how the segment is laid out.

    Where a segment has no leaf for a part of its layout, there is -1.

    Args:
        shapes: of the leaves. Those that are neither small vectors nor wide matrices are left out.
        together: whether several matrices may be drawn at once.
    """
    most = most_at_once(sum(map(math.prod, shapes))) if together else 0
    found: dict[Layout, list[tuple[int, ...]]] = {}

    def add(leaves):
        layout, order = _laid_out(leaves, shapes, most)
        if order:
            found.setdefault(layout, []).append(order)

    others, layers = _cut(shapes)
    for leaves in layers:
        add(leaves)
    seats = {layout: int(_SPARE * len(members)) for layout, members in found.items()}
    for leaves in others:
        for layout in seats:
            while seats[layout] and (guests := _guests(leaves, shapes, layout)):
                found[layout].append(guests)
                leaves = [i for i in leaves if i not in guests]
                seats[layout] -= 1
        add(leaves)
    # a matrix alone makes the keys of its rows where it is used
    return {k: v for k, v in found.items() if k.vectors or len(v) > 1 or len(k.parts) > 1}


def _guests(leaves: Sequence[int], shapes, layout: Layout) -> tuple[int, ...] | None:
    """Vectors from before or after the layers in the layout of a layer; None if none fits.

    Each is in a vector's part that it fills but for a few numbers. What else is drawn with them is
    not used, so there can be few such segments.
    """
    left = {i: math.prod(shapes[i]) for i in leaves if _is_vector(shapes[i])}
    order = [-1] * len(layout.parts)
    for k, part in enumerate(layout.parts[: layout.vectors]):
        room = part.keys * part.width
        order[k] = next((i for i, n in left.items() if n <= room <= (1 + _SPARE) * n), -1)
        left.pop(order[k], None)
    return tuple(order) if max(order) >= 0 else None


def _is_vector(shape) -> bool:
    return len(shape) < 2 and 0 < math.prod(shape) <= _MOST_STORED


def _rows(shape) -> int:
    return math.prod(shape[:-1])


def _is_wide(shape) -> bool:
    return len(shape) > 1 and shape[-1] >= _LEAST_WIDTH and math.prod(shape) > 0


def _cut(shapes: Sequence[tuple[int, ...]]) -> tuple[list[list[int]], list[list[int]]]:
    """Segments of the leaves before and after those whose shapes repeat, and of these.

    A segment has at most so many rows, and a leaf of more is one by itself.
    """
    start, period, count = _repetition(shapes)
    periods = [range(start + i * period, start + (i + 1) * period) for i in range(count)]
    others = [*range(start), *range(start + count * period, len(shapes))]
    return _within_rows(others, shapes), [s for p in periods for s in _within_rows(p, shapes)]


def _within_rows(leaves: Sequence[int], shapes) -> list[list[int]]:
    out = []
    segment: list[int] = []
    total = 0
    for i in leaves:
        rows = _rows(shapes[i]) if _is_wide(shapes[i]) else 1
        if rows > _MOST_ROWS:
            out.append([i])
            continue
        if total + rows > _MOST_ROWS:
            out.append(segment)
            segment, total = [], 0
        segment.append(i)
        total += rows
    out.append(segment)
    return out


def _repetition(kinds: Sequence[Hashable]) -> tuple[int, int, int]:
    """(start, period, number of periods) of the most leaves that repeat; of none (0, 1, 0)."""
    names: dict[Hashable, int] = {}
    named = np.array([names.setdefault(kind, len(names)) for kind in kinds])
    most, found = 0, (0, 1, 0)
    for period in range(1, len(kinds) // 2 + 1):
        differs = np.flatnonzero(named[:-period] != named[period:])
        cuts = np.array([-1, *differs, len(kinds) - period])
        runs = np.diff(cuts) - 1
        run, start = int(runs.max()), int(cuts[runs.argmax()]) + 1
        count = (run + period) // period
        if count > 1 and count * period > most:
            most, found = count * period, (start, period, count)
    return found


def _laid_out(leaves: Sequence[int], shapes, most: int) -> tuple[Layout, tuple[int, ...]]:
    """The layout and its leaves; `most` entries, the largest twice, may be drawn at once."""
    vectors = [i for i in leaves if _is_vector(shapes[i])]
    wide = [i for i in leaves if _is_wide(shapes[i])]
    small = [i for i in wide if 2 * math.prod(shapes[i]) <= most]
    # numbers of one width are drawn by one computation: those of the narrowest leaf, if they fit;
    # of a vector a few may be left over
    widths = {
        **_widths({i: math.prod(shapes[i]) for i in vectors}, _SPARE),
        **_widths({i: shapes[i][-1] for i in small}, 0),
    }
    order: list[int] = []
    parts: list[Part] = []
    runs: list[Run] = []

    def place(members: list[int], width: int):
        first = sum(p.keys for p in parts)
        order.extend(members)
        parts.extend(
            Part(_rows(shapes[i]), -(-math.prod(shapes[i]) // _rows(shapes[i]) // width), width)
            for i in members
        )
        runs.append(Run(first, sum(p.keys for p in parts) - first, width))

    for width in sorted({widths[i] for i in vectors}):
        place([i for i in vectors if widths[i] == width], width)
    alone = [i for i in wide if i not in widths]
    for width in sorted({widths[i] for i in wide if i in widths}):
        group: list[int] = []
        for i in [*(i for i in wide if widths.get(i) == width), None]:
            sizes = [math.prod(shapes[j]) for j in (*group, i) if j is not None]
            if i is None or sum(sizes) + max(sizes) > most:
                if len(group) > 1:
                    place(group, width)
                else:
                    alone += group
                group = []
            if i is not None:
                group.append(i)
    parts += [Part(_rows(shapes[i]), 1, shapes[i][-1]) for i in sorted(alone)]
    order += sorted(alone)
    return Layout(tuple(parts), len(vectors), tuple(runs)), tuple(order)


def _widths(sizes: dict[int, int], spare: float) -> dict[int, int]:
    """The least for those that are multiples of it, if up to a part `spare` is added; else own."""
    least = min((n for n in sizes.values() if n >= _LEAST_WIDTH), default=0)
    return {i: least if least and -n % least <= spare * n else n for i, n in sizes.items()}
