"""Which file feeds which split, and that no example is in two."""

import json

import pytest

import zojax.tasks as tasks

TEMPLATE = tasks.Template("{text}?", (" no", " yes"))


def write(folder, **files):
    for name, examples in files.items():
        text = "\n".join(json.dumps(example) for example in examples)
        (folder / f"{name}.jsonl").write_text(text)


def examples(prefix, num):
    return [{"text": f"{prefix} {i}", "label": i % 2} for i in range(num)]


def sources(split):
    return {example["text"].split()[0] for example in split}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (("train", "dev", "test"), ("train", "dev", "test")),
        (("train", "val", "test"), ("train", "val", "test")),
        (("train", "test"), ("train", "train", "test")),
        (("train", "dev"), ("train", "train", "dev")),
        (("train", "validation"), ("train", "train", "validation")),
        (("train32", "dev32", "val"), ("train32", "dev32", "val")),
        (("train", "train32", "dev", "dev32", "val"), ("train", "dev", "val")),
        (("train",), ("train", "train", "train")),
    ],
)
def test_rule(tmp_path, files, expected):
    write(tmp_path, **{name: examples(name, 40) for name in files})
    splits = tasks.load_splits(TEMPLATE, tmp_path, num_train=20, num_dev=9, num_test=8)
    assert tuple(map(sources, splits)) == tuple({name} for name in expected)
    assert tuple(map(len, splits)) == (20, 9, 8)
    texts = [example["text"] for split in splits for example in split]
    assert len(set(texts)) == len(texts)


def test_fixed_by_seed_and_test_untouched_by_the_other_numbers(tmp_path):
    write(tmp_path, train=examples("train", 60))
    first = tasks.load_splits(TEMPLATE, tmp_path, 20, 10, 10, seed=3)
    assert first == tasks.load_splits(TEMPLATE, tmp_path, 20, 10, 10, seed=3)
    assert first.test == tasks.load_splits(TEMPLATE, tmp_path, 5, 20, 10, seed=3).test
    assert first.test != tasks.load_splits(TEMPLATE, tmp_path, 20, 10, 10, seed=4).test


def test_cut_leaves_half_of_a_small_train_file(tmp_path):
    write(tmp_path, train=examples("train", 11), test=examples("test", 4))
    assert tuple(map(len, tasks.load_splits(TEMPLATE, tmp_path))) == (6, 5, 4)


def test_equal_examples_stay_in_one_split(tmp_path):
    train, test = examples("a", 50), examples("b", 20)
    copies = [example | {"idx": i} for i, example in enumerate(test[:12])]
    write(tmp_path, train=train + copies + train[:10], test=test)
    splits = tasks.load_splits(TEMPLATE, tmp_path, num_dev=10)
    keys = [{example["text"] for example in split} for split in splits]
    assert len(splits.test) == 20
    assert not keys[0] & keys[1] and not keys[0] & keys[2] and not keys[1] & keys[2]


@pytest.mark.parametrize("change", [{"label": -1}, {"label": None}])
def test_test_file_without_labels_is_passed_over(tmp_path, change):
    unlabelled = [example | change for example in examples("test", 5)]
    write(tmp_path, train=examples("train", 20), dev=examples("dev", 5), test=unlabelled)
    assert sources(tasks.load_splits(TEMPLATE, tmp_path).test) == {"dev"}


def test_bad_label_names_file_and_line(tmp_path):
    bad = [*examples("train", 3), {"text": "train 3", "label": 5}]
    write(tmp_path, train=bad, test=examples("test", 5))
    with pytest.raises(ValueError, match=r"train\.jsonl:4: label 5 .*' no', ' yes'"):
        tasks.load_splits(TEMPLATE, tmp_path)


def test_bad_folders_and_numbers(tmp_path):
    with pytest.raises(FileNotFoundError, match="none: no such folder"):
        tasks.load_splits("sst2", tmp_path / "none")
    write(tmp_path, test=examples("test", 5))
    with pytest.raises(FileNotFoundError, match=r"no train\.jsonl; found \['test\.jsonl'\]"):
        tasks.load_splits("sst2", tmp_path)
    with pytest.raises(ValueError, match="num_train=-1"):
        tasks.load_splits("sst2", tmp_path, num_train=-1)
    with pytest.raises(ValueError, match="no template is called"):
        tasks.load_splits("nope", tmp_path)
    write(tmp_path, train=examples("test", 5))
    with pytest.raises(ValueError, match=r"train\.jsonl: all 5 examples went to other splits"):
        tasks.load_splits(TEMPLATE, tmp_path, num_dev=2)
