import jax
import numpy as np
import pytest

from tests.training.problem import assert_same_state, batch_at, build
from zojax.training import Journal, JournalWarning, Record, read_journal, replay

RUN = {"trainables": 2}


def _train(functions, split, steps):
    state = functions.init(split.trainable, jax.random.key(3))
    records = []
    for step in range(steps):
        found = functions.ask(state, split.frozen, batch_at(step))
        records.append(Record(step, np.asarray(found.keys), np.asarray(found.coefficients)))
        state = functions.apply(state, found.keys, found.coefficients)
    return state, records


def _write(path, records, num_samples=2):
    journal = Journal(path, num_samples, RUN)
    for record in records:
        journal.append(record)
    journal.close()


def test_replay_gives_the_same_parameters_bit_for_bit(tmp_path):
    functions, split, _ = build()
    trained, records = _train(functions, split, 12)
    _write(tmp_path / "journal.bin", records)
    _, read = read_journal(tmp_path / "journal.bin")
    fresh = functions.init(split.trainable, jax.random.key(3))
    assert_same_state(replay(functions, fresh, read), trained)


def test_replay_of_bfloat16_parameters_rounds_the_same_way(tmp_path):
    functions, split, _ = build(dtype="bfloat16")
    trained, records = _train(functions, split, 6)
    fresh = functions.init(split.trainable, jax.random.key(3))
    assert_same_state(replay(functions, fresh, records), trained)


def test_a_record_costs_eight_bytes_a_step_and_twelve_a_direction(tmp_path):
    path = tmp_path / "journal.bin"
    _write(path, [])
    header = path.stat().st_size
    functions, split, _ = build()
    _write(path, _train(functions, split, 10)[1])
    assert path.stat().st_size - header == 10 * (8 + 2 * 12)


@pytest.mark.parametrize("lost", [1, 5, 31])
def test_a_torn_tail_is_cut_at_the_last_good_record_loudly(tmp_path, lost):
    path = tmp_path / "journal.bin"
    functions, split, _ = build()
    _, records = _train(functions, split, 5)
    _write(path, records)
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.warns(JournalWarning, match="record 4 is torn or corrupt"):
        _, read = read_journal(path)
    assert [r.step for r in read] == [0, 1, 2, 3]
    with pytest.warns(JournalWarning):
        journal = Journal(path, 2, RUN)
    journal.append(records[4])
    journal.close()
    assert [r.step for r in read_journal(path)[1]] == [0, 1, 2, 3, 4]


def test_a_flipped_bit_ends_the_journal_there(tmp_path):
    path = tmp_path / "journal.bin"
    functions, split, _ = build()
    _write(path, _train(functions, split, 5)[1])
    data = bytearray(path.read_bytes())
    size = 8 + 2 * 12
    data[len(data) - 3 * size + 9] ^= 4
    path.write_bytes(bytes(data))
    with pytest.warns(JournalWarning, match="record 2 is torn or corrupt"):
        assert len(read_journal(path)[1]) == 2


def test_a_journal_of_another_run_or_no_journal_is_refused(tmp_path):
    path = tmp_path / "journal.bin"
    _write(path, [])
    with pytest.raises(ValueError, match="of another run"):
        Journal(path, 3, RUN)
    other = tmp_path / "other.bin"
    other.write_bytes(b"\x00\x01\x02")
    with pytest.raises(ValueError, match="not a zojax journal"):
        read_journal(other)


def test_a_missing_step_is_named():
    functions, split, _ = build()
    _, records = _train(functions, split, 3)
    fresh = functions.init(split.trainable, jax.random.key(3))
    with pytest.raises(ValueError, match="step 2 where 1 was expected"):
        replay(functions, fresh, [records[0], records[2]])
