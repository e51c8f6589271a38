"""Which leaves are stored and drawn together."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zojax.directions._segments import _repetition, segments
from zojax.virtual._row_keys import Run

LAYER = ((64,), (64, 128), (64, 64), (128, 64), (128,), ())
SHAPES = st.lists(
    st.one_of(
        st.tuples(),
        st.tuples(st.sampled_from([0, 1, 3, 64, 66, 128, 197, 262, 2**16, 2**17])),
        st.tuples(
            st.sampled_from([1, 5, 64, 2**14, 2**16]), st.sampled_from([8, 64, 96, 128, 192])
        ),
        st.tuples(st.just(2), st.just(3), st.just(64)),
    ),
    max_size=24,
)


@given(SHAPES, st.booleans())
def test_every_leaf_is_in_one_place_at_most_and_keys_are_contiguous(shapes, together):
    seen = []
    for layout, members in segments(tuple(shapes), together).items():
        guests = sum(-1 in leaves for leaves in members)
        assert 4 * guests <= len(members) - guests
        for leaves in members:
            seen += [leaf for leaf in leaves if leaf >= 0]
            for leaf, part, run, place in zip(
                leaves, layout.parts, layout.run_of, layout.places, strict=True
            ):
                if leaf < 0:  # no leaf has this part
                    continue
                size = math.prod(shapes[leaf])
                rest = part.keys * part.width - size
                assert 0 <= rest <= (size / 4 if len(shapes[leaf]) < 2 else 0)
                assert part.rows == math.prod(shapes[leaf][:-1])
                if run is None:
                    assert part.blocks == 1
                else:
                    assert run.width == part.width and place + part.keys <= run.count
        firsts = [
            p + (r.first if r else 0) for p, r in zip(layout.places, layout.run_of, strict=True)
        ]
        sizes = [part.keys for part in layout.parts]
        assert firsts == [sum(sizes[:i]) for i in range(len(sizes))]
    assert len(seen) == len(set(seen))
    # a small vector always has a place: its numbers are stored
    assert set(seen) >= {
        i for i, s in enumerate(shapes) if len(s) < 2 and 0 < math.prod(s) <= 2**16
    }


def _drawn(layout):
    """The sizes of the matrices of each run."""
    return [
        [p.keys * p.width for p, of in zip(layout.parts, layout.run_of, strict=True) if of == run]
        for run in layout.runs[len(layout.stored) :]
    ]


@given(SHAPES, st.sampled_from([1, 40]))
def test_what_is_drawn_at_once_fits_a_panel_or_a_share_of_all(shapes, times):
    most = max(2**20, min(times * sum(map(math.prod, shapes)) // 24, 2**24))
    for layout in segments(tuple(shapes) * times, together=True):
        for sizes in _drawn(layout):
            assert len(sizes) > 1 and sum(sizes) + max(sizes) <= most


@pytest.mark.parametrize("width, expected", [(256, 4), (512, 4), (1024, 4), (2048, 0)])
def test_a_layer_of_thirty_two_is_drawn_at_once_up_to_64_megabytes(width, expected):
    layer = (width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)
    (layout,) = segments(layer * 32, together=True)
    assert [len(sizes) for sizes in _drawn(layout)] == [expected] * (expected > 0)
    assert len(layout.parts) == 4


def test_a_wide_layer_of_few_is_not():
    layer = (1024, 3072), (1024, 1024), (1024, 4096), (4096, 1024)
    (layout,) = segments(layer * 6, together=True)
    assert not layout.runs


@pytest.mark.parametrize("layers", [2, 12])
@pytest.mark.parametrize("before, after", [((), ()), (((512, 64), (64,)), ((64,), (64, 512)))])
def test_a_segment_is_a_layer(layers, before, after):
    found = segments((*before, *LAYER * layers, *after), together=True)
    (leaves,) = (v for v in found.values() if len(v) > 1)
    assert sorted(sorted(v) for v in leaves if -1 not in v) == [
        list(range(len(before) + i * 6, len(before) + (i + 1) * 6)) for i in range(layers)
    ]


def test_vectors_around_the_layers_are_laid_out_as_a_layer():
    layer = (197,), (66,), (262,), (262,)
    found = segments(((262,), (66,), *layer * 12, (262,)), together=False)
    ((layout, members),) = found.items()
    assert layout.runs == (Run(0, 12, 66),)
    others = [leaves for leaves in members if -1 in leaves]
    assert len(members) == 13 and [sorted(leaves) for leaves in others] == [[-1, 0, 1, 50]]
    # of few layers too many numbers would be drawn for nothing
    assert len(segments(((66,), *layer * 3), together=False)) == 2
    # a vector that no layer has stays apart, but for that from which little is left over
    found = segments(((262,), (500,), (55,), *layer * 12), together=False)
    assert sorted(sum(found.values(), [])[-2:]) == [(-1, 2, 0, -1), (1,)]
    # so do vectors for which a quarter of the layers would have to be drawn again
    found = segments(((66,),) * 9 + layer * 12, together=False)
    assert sorted(map(len, found.values())) == [1, 15]
    assert [len(leaves) for leaves in sum(found.values(), []) if len(leaves) != 4] == [6]


def test_vectors_beside_matrices_are_laid_out_as_those_of_a_layer():
    found = segments(((512, 64), (64,), (128,), (96,), (256, 64), *LAYER * 12), together=True)
    (layer, members), (other, rest) = found.items()
    assert len(members) == 13 and layer.vectors < len(layer.parts)
    assert sorted(members[-1]) == [-1] * 4 + [1, 2]
    assert rest == [(3, 0, 4)] and other.vectors == 1


@given(
    st.lists(st.integers(0, 2), max_size=4),
    st.lists(st.integers(3, 9), min_size=1, max_size=4, unique=True),
    st.integers(2, 5),
)
def test_a_stretch_that_repeats_is_found(others, period, count):
    start, length, times = _repetition([*others, *period * count, *others])
    expected = len(others), len(period), count
    # or one as long in what is before and after
    assert (start, length, times) == expected or length * times >= len(period) * count
