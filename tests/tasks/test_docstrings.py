"""The demonstration task: real, split by file, alike in every process, and never executed."""

import json
import os
import subprocess
import sys
import sysconfig

import numpy as np
import pytest

import zojax.tasks as tasks

DIGEST = """
import json, sys
import zojax.tasks as tasks
before = set(sys.modules)
task = tasks.docstring_topics(num_topics=3, seed=2)
print(json.dumps([sorted(set(sys.modules) - before), task.train_texts, task.test_texts]))
"""


@pytest.fixture(scope="module")
def task():
    return tasks.docstring_topics()


def test_no_file_and_no_text_is_in_both_splits(task):
    assert not set(task.train_files) & set(task.test_files)
    texts = task.train_texts + task.test_texts
    assert len(set(texts)) == len(texts)


def test_every_topic_is_in_both_splits_in_fair_shares(task):
    assert len(task.names) == 7
    train, test = (np.bincount(x, minlength=7) for x in (task.train_labels, task.test_labels))
    assert (train > 250).all() and (test > 80).all()
    assert (test <= 0.25 * (train + test) + 1).all()
    assert train.sum() + test.sum() > 4500  # some 5,900 with Tk, 5,000 without
    assert train.max() / train.sum() < 0.33
    for split in (0, 2):
        assert len(task[split]) == len(task[split + 1]) == len(task[5 + split // 2])


def test_only_the_library_and_not_its_tests(task):
    parts = {part for file in (*task.train_files, *task.test_files) for part in file.split("/")}
    assert not parts & {"test", "tests", "idle_test", "lib2to3", "distutils", "site-packages"}
    assert all(len(text.split()) >= 3 for text in task.train_texts + task.test_texts)


def test_texts_are_the_real_docstrings(task):
    import fractions

    name = "Fraction.limit_denominator"
    expected = " ".join((fractions.Fraction.limit_denominator.__doc__ or "").split())
    found = [t for t in task.train_texts + task.test_texts if t.startswith(name + ":")]
    assert found == [f"{name}: {expected}"]


@pytest.mark.slow
def test_seed_changes_the_files_of_the_test_split(task):
    other = tasks.docstring_topics(seed=1)
    assert sorted(other.train_texts + other.test_texts) == sorted(
        task.train_texts + task.test_texts
    )
    assert set(other.test_files) != set(task.test_files)


@pytest.mark.slow
def test_alike_in_another_process_and_nothing_imported():
    here = tasks.docstring_topics(num_topics=3, seed=2)
    environment = os.environ | {
        "PYTHONHASHSEED": "77",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DIGEST],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    imported, train, test = json.loads(run.stdout)
    assert imported == []
    assert (train, test) == (here.train_texts, here.test_texts)


@pytest.mark.slow
def test_limit_thins_the_largest_topics_first(task):
    small = tasks.docstring_topics(limit=1400)
    counts = np.bincount(small.train_labels) + np.bincount(small.test_labels)
    assert 1350 <= counts.sum() <= 1400
    assert counts.max() == 200
    assert set(small.train_texts) <= set(task.train_texts)
    assert set(small.test_texts) <= set(task.test_texts)


def module(*docstrings):
    functions = (f'def f{i}():\n    r"""{text}"""' for i, text in enumerate(docstrings))
    return "raise SystemExit('executed')\n" + "\n".join(functions)


def test_collects_from_a_library(tmp_path, monkeypatch):
    files = {
        "socket.py": module("open a socket now", "too short", "a shared text here"),
        "http/client.py": module("ask a server \\d nicely"),
        "http/test/test_client.py": module("a test of http"),
        "threading.py": module("start a new thread", "a shared text here"),
        "queue.py": module("wait for an\n    item"),
        "other.py": module("of no topic at all"),
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    task = tasks.docstring_topics(num_topics=2)
    pairs = zip(
        task.train_texts + task.test_texts,
        [*task.train_labels, *task.test_labels],
        task.train_files + task.test_files,
        strict=True,
    )
    assert sorted(pairs) == [
        ("f0: ask a server \\d nicely", 0, "http/client.py"),
        ("f0: open a socket now", 0, "socket.py"),
        ("f0: start a new thread", 1, "threading.py"),
        ("f0: wait for an item", 1, "queue.py"),
        ("f2: a shared text here", 0, "socket.py"),
    ]


@pytest.mark.parametrize("has_tk", [True, False])
def test_python_without_tk_has_another_seventh_topic(tmp_path, monkeypatch, has_tk):
    modules = "socket ssl threading queue shutil glob csv re random numbers pdb bdb ast dis turtle"
    (tmp_path / "tkinter").mkdir()
    for name in modules.split() + ["tkinter/__init__"] * has_tk:
        (tmp_path / f"{name}.py").write_text(module(f"some words about {name}"))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    names = tasks.docstring_topics().names
    graphics, code = "windows, widgets and graphics", "source code, imports and types"
    assert len(names) == 7 and names[6] == (graphics if has_tk else code)


def test_bad_arguments(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="num_topics=8; expected 2 to 7"):
        tasks.docstring_topics(num_topics=8)
    with pytest.raises(ValueError, match="limit=10; expected at least 4 a topic, 28"):
        tasks.docstring_topics(limit=10)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(FileNotFoundError, match="expected the source files"):
        tasks.docstring_topics()
