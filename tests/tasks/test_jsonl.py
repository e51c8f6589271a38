"""JSON Lines: what is read, and what is said about a bad file."""

import re

import pytest

import zojax.tasks as tasks


def test_reads_objects_in_order_and_skips_blank_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('\ufeff{"text": "é", "label": 1}\n\n{"text": "b"}', encoding="utf-8")
    assert tasks.read_jsonl(path) == [{"text": "é", "label": 1}, {"text": "b"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"a\.jsonl: empty"),
        (b" \n\n", r"a\.jsonl: empty"),
        (b'{"a": 1}\n\n{"a": 1\n', r"a\.jsonl:3: not JSON .*'\{\"a\": 1'"),
        (b'{"a": 1}\n[1, 2]\n', r"a\.jsonl:2: found a JSON list, '\[1, 2\]'"),
        (b'{"a": 1}\n{"a": "\xff"}\n', r"a\.jsonl: not UTF-8"),
    ],
)
def test_bad_file_is_named_with_its_line(tmp_path, content, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        tasks.read_jsonl(path)
    assert str(path) in str(caught.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "none.jsonl"))):
        tasks.read_jsonl(tmp_path / "none.jsonl")
