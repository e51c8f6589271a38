"""Every example once an epoch, whatever the sizes; few widths; nothing but the step to know."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zojax.tasks as tasks
from zojax.tasks._random import permutation


def encoded(lengths):
    lengths = np.asarray(lengths, np.int32)
    tokens = np.arange(1, lengths.max() + 1, dtype=np.int32)
    tokens = np.where(tokens <= lengths[:, None], tokens, 0)
    return tasks.Encoded(tokens, lengths, np.arange(len(lengths), dtype=np.int32))


@settings(deadline=None, max_examples=60)
@given(
    num=st.integers(1, 90),
    batch_size=st.integers(1, 40),
    seed=st.integers(0, 2**40),
    grouped=st.booleans(),
)
def test_epochs_cover_every_example_once(num, batch_size, seed, grouped):
    examples = np.arange(num) % 7 + 1 if grouped else num
    steps = -(-3 * num // batch_size)
    batches = [tasks.batch_indices(examples, batch_size, seed, s) for s in range(steps)]
    assert all(b.shape == (batch_size,) and b.dtype == np.int64 for b in batches)
    stream = np.concatenate(batches)
    for epoch in range(3):
        part = np.sort(stream[epoch * num : (epoch + 1) * num])
        np.testing.assert_array_equal(part, np.arange(num))


def test_step_is_all_there_is_to_know():
    lengths = np.random.default_rng(0).integers(1, 100, 333)
    forward = [tasks.batch_indices(lengths, 16, 5, s) for s in range(50)]
    for s in reversed(range(50)):
        np.testing.assert_array_equal(tasks.batch_indices(lengths, 16, 5, s), forward[s])
    other = np.concatenate([tasks.batch_indices(lengths, 16, 6, s) for s in range(50)])
    assert not np.array_equal(np.concatenate(forward), other)


def test_epochs_differ_in_order_and_company():
    lengths = np.random.default_rng(0).integers(1, 100, 64)
    epochs = [
        [frozenset(tasks.batch_indices(lengths, 8, 0, 8 * e + s).tolist()) for s in range(8)]
        for e in range(4)
    ]
    assert len({batch for epoch in epochs for batch in epoch}) == 32


@pytest.mark.parametrize("seed", range(8))
def test_similar_lengths_meet_in_random_order(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 200, 1000)

    def batches(examples):
        return [tasks.batch_indices(examples, 10, seed, s) for s in range(100)]

    def padded(batches):
        return sum(10 * lengths[b].max() for b in batches) / lengths.sum()

    # In a sorted group of 160 uniform lengths ten neighbours span a sixteenth of the range, so
    # the longest exceeds the mean by 6 %; of ten random ones the longest is at 10/11 of it.
    grouped = batches(lengths)
    assert padded(grouped) < 1.1
    assert padded(batches(1000)) > 1.7
    longest = np.array([lengths[b].max() for b in grouped])
    assert abs(np.corrcoef(longest, np.arange(100))[0, 1]) < 0.5  # five standard errors


def test_permutation_is_the_same_for_ever():
    assert permutation(8, 0, 0).tolist() == [3, 2, 1, 6, 0, 7, 4, 5]
    assert len({tuple(permutation(8, 0, e)) for e in range(20)}) > 18


@pytest.mark.parametrize("change", [{"examples": 0}, {"batch_size": 0}, {"seed": -1}, {"step": -1}])
def test_bad_arguments(change):
    arguments = {"examples": 4, "batch_size": 2, "seed": 0, "step": 0} | change
    with pytest.raises(ValueError, match="expected at least one example"):
        tasks.batch_indices(**arguments)


def test_take_cuts_to_the_smallest_bucket():
    data = encoded([3, 16, 17, 40, 90])
    assert tasks.take(data, [0, 1])["tokens"].shape == (2, 16)
    assert tasks.take(data, [0, 2])["tokens"].shape == (2, 32)
    assert tasks.take(data, [3])["tokens"].shape == (1, 64)
    assert tasks.take(data, [4, 0])["tokens"].shape == (2, 90)  # the data's own width
    assert tasks.take(data, [0, 2], buckets=(20, 50))["tokens"].shape == (2, 20)
    batch = tasks.take(data, [2, 0])
    assert set(batch) == {"tokens", "length", "label"}
    np.testing.assert_array_equal(batch["label"], [2, 0])
    for tokens, length in zip(batch["tokens"], batch["length"], strict=True):
        np.testing.assert_array_equal(tokens[:length], np.arange(1, length + 1))
        assert not tokens[length:].any()
    with pytest.raises(ValueError, match="no indices"):
        tasks.take(data, [])


@pytest.mark.parametrize("num", [1, 7, 8, 9, 33])
def test_eval_covers_every_example_once(num):
    data = encoded(np.random.default_rng(num).integers(1, 100, num))
    batches = list(tasks.eval_batches(data, 8))
    assert all(batch["label"].shape == valid.shape == (8,) for batch, valid in batches)
    kept = np.concatenate([batch["label"][valid] for batch, valid in batches])
    np.testing.assert_array_equal(np.sort(kept), np.arange(num))
    np.testing.assert_array_equal(data.length[kept], np.sort(data.length))
    indices = np.concatenate([i[v] for i, v in tasks.eval_indices(data, 8)])
    np.testing.assert_array_equal(indices, kept)
    assert all(valid.all() for _, valid in batches[:-1])
    with pytest.raises(ValueError, match="batch_size=0"):
        list(tasks.eval_batches(data, 0))
